// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using NUnit.Framework;

namespace SharpKvm.Tests.Host;

/// <summary>
/// The Linux that the core sees in unit tests: allocators that count, one process, VMs, a CPU. The current host is the
/// one that the thread made last and has not disposed of, so that tests may run side by side. Misuse (a sleeping call
/// under a spinlock, a page freed twice or still in use) throws.
/// </summary>
internal sealed class SimulatedHost : IDisposable
{
    /// <summary>Physical addresses of allocated pages; none is used twice, so that a stale one is noticed.</summary>
    private const ulong FirstPage = 0x1_0000_0000;

    [ThreadStatic]
    private static SimulatedHost? s_current;

    private readonly Dictionary<ulong, nint> _pages = [];
    /// <summary>With the schedule's step at which each was allocated.</summary>
    private readonly Dictionary<nint, long> _blocks = [];
    private readonly List<nint> _deferred = [];
    private readonly List<nint> _rings = [];
    private readonly Dictionary<nint, SimulatedVm> _vms = [];
    private readonly SimulatedHost? _previous = s_current;
    private ulong _nextPage = FirstPage;
    private bool _interleaving;

    public SimulatedHost()
    {
        Process = new SimulatedProcess(this);
        // Of an Intel CPU that a test before this one had.
        SharpKvm.Mmu.Ept.LogsWrites = false;
        s_current = this;
    }

    /// <summary>Makes this the host of the calling thread, too.</summary>
    public void Adopt() => s_current = this;

    public static SimulatedHost Current =>
        s_current ?? throw new InvalidOperationException("this thread has not made a SimulatedHost");

    public SimulatedProcess Process { get; }
    public SimulatedCpu Cpu { get; } = new();
    public SimulatedThread Thread { get; } = new();
    public SimulatedEvents Events { get; } = new();
    /// <summary>Lines that the core wrote to the kernel log.</summary>
    public List<string> Log { get; } = [];
    public IReadOnlyCollection<SimulatedVm> Vms => _vms.Values;

    /// <summary>How many allocations of pages and blocks were asked for.</summary>
    public int Allocations { get; private set; }
    /// <summary>The allocation that fails, counted like <see cref="Allocations"/> from 0; none by default.</summary>
    public int FailingAllocation { get; set; } = -1;
    /// <summary>Whether those behind it fail as well.</summary>
    public bool FailsFromThere { get; set; }

    /// <summary>Addresses of the dirty rings.</summary>
    public IReadOnlyList<nint> Rings => _rings;

    public int PagesInUse => _pages.Count;
    public int BlocksInUse => _blocks.Count;

    public void AssertNothingInUse()
    {
        Assert.Multiple(() =>
        {
            Assert.That(PagesInUse, Is.Zero, "pages in use");
            Assert.That(BlocksInUse, Is.Zero, "heap blocks in use");
        });
    }

    public void Dispose()
    {
        EndReading();
        foreach (nint page in _pages.Values)
            FreeNative(page);
        foreach (nint block in _blocks.Keys)
            FreeNative(block);
        foreach (nint ring in _rings)
            FreeNative(ring);
        foreach (SimulatedVm vm in _vms.Values)
            vm.Dispose();
        if (s_current == this)
            s_current = _previous;
    }

    internal nint Register(SimulatedVm vm)
    {
        nint handle = _vms.Count + 1;
        _vms.Add(handle, vm);
        return handle;
    }

    internal SimulatedVm Vm(nint handle) => _vms[handle];

    internal Hpa AllocatePage()
    {
        lock (_pages)
        {
            if (!MayAllocate())
                return default;
            ulong address = _nextPage;
            _nextPage += Page.Size;
            _pages.Add(address, AllocateNative(Page.Size));
            return new Hpa(address);
        }
    }

    internal Hpa AllocateBitmap(int order)
    {
        if (!MayAllocate())
            return default;
        Hpa bitmap = new(_nextPage);
        for (int page = 0; page < 1 << order; page++)
        {
            _pages.Add(_nextPage, AllocateNative(Page.Size));
            BytesOf(new Hpa(_nextPage)).Fill(0xff);
            _nextPage += Page.Size;
        }
        return bitmap;
    }

    internal void FreePage(Hpa page)
    {
        nint memory;
        lock (_pages)
        {
            if (!_pages.Remove(page.Value, out memory))
                throw new InvalidOperationException($"page {page.Value:x} freed, but it is not allocated");
        }
        foreach (SimulatedVm vm in _vms.Values)
            vm.CheckUnused(page);
        FreeNative(memory);
    }

    /// <summary>Runs <paramref name="change"/> as Linux does: between the two calls of every VM's notifier.</summary>
    internal void Invalidate(Hva start, Hva end, Action change)
    {
        foreach (SimulatedVm vm in _vms.Values)
            vm.BeginInvalidation(start, end);
        change();
        foreach (SimulatedVm vm in _vms.Values)
            vm.EndInvalidation();
    }

    internal nint AddressOf(Hpa page)
    {
        lock (_pages)
        {
            return _pages.TryGetValue(page.Value, out nint memory)
                ? memory
                : throw new InvalidOperationException($"page {page.Value:x} is not allocated");
        }
    }

    // SAFETY: the page is allocated; a span of it is never kept past the operation that asked for it.
    internal unsafe Span<byte> BytesOf(Hpa page) => new((void*)AddressOf(page), Page.Size);

    internal nint AllocateBlock(nuint bytes)
    {
        if (!MayAllocate())
            return 0;
        nint block = AllocateNative(bytes);
        _blocks.Add(block, Schedule.Step);
        return block;
    }

    /// <summary>A vCPU's dirty ring; it belongs to the shim, which frees it with the vCPU.</summary>
    internal nint AllocateRing(nuint bytes)
    {
        if (!MayAllocate())
            return 0;
        _rings.Add(AllocateNative(bytes));
        return _rings[^1];
    }

    internal void FreeBlock(nint address)
    {
        if (!_blocks.Remove(address, out long allocated))
            throw new InvalidOperationException($"block {address:x} freed, but it is not allocated");
        Schedule.CheckReaders(allocated);
        if (_interleaving || Schedule.IsRunning)
            _deferred.Add(address);
        else
            FreeNative(address);
    }

    /// <summary>
    /// Runs an ioctl or a system call in the middle of a page fault. In the kernel it would wait for this reader
    /// before it frees what the reader may look at: here the blocks last until <see cref="EndReading"/>.
    /// </summary>
    internal void Interleave(Action other)
    {
        _interleaving = true;
        other();
        _interleaving = false;
    }

    /// <summary>The page fault is through with the memory slots.</summary>
    internal void EndReading()
    {
        if (_interleaving || Schedule.IsRunning)
            return;
        foreach (nint address in _deferred)
            FreeNative(address);
        _deferred.Clear();
    }

    /// <summary>Called by everything that may sleep in the kernel.</summary>
    internal void MightSleep()
    {
        foreach (SimulatedVm vm in _vms.Values)
        {
            if (vm.IsLocked || vm.IsIrqLocked)
                throw new InvalidOperationException("sleeping call under a spinlock");
        }
    }

    private bool MayAllocate()
    {
        MightSleep();
        int number = Allocations++;
        bool isBehind = FailsFromThere && FailingAllocation >= 0 && number > FailingAllocation;
        return number != FailingAllocation && !isBehind;
    }

    // SAFETY (both): plain native memory, released once by the owner that the two tables above record.
    private static unsafe nint AllocateNative(nuint bytes) => (nint)NativeMemory.AllocZeroed(bytes);

    private static unsafe void FreeNative(nint address) => NativeMemory.Free((void*)address);
}
