// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Host;

/// <summary>
/// A VM with the part of the shim: MMU lock, notifier sequence, and the TLB of a guest that remembers translations and
/// table pages until it is flushed.
/// </summary>
internal sealed unsafe class SimulatedVm : IDisposable
{
    private readonly SimulatedHost _host;
    private readonly SharpKvm.Vm.Vm* _vm;
    private readonly Dictionary<ulong, (Pfn Frame, bool Writable)> _tlb = [];
    private readonly HashSet<ulong> _cachedTables = [];
    private readonly List<nint> _vcpus = [];
    /// <summary>Invalidations under way, and the range that they cover together.</summary>
    private int _invalidations;
    private (ulong Start, ulong End) _invalid;

    public SimulatedVm(SimulatedHost host)
    {
        // SAFETY: native memory does not move; freed in Dispose.
        _vm = (SharpKvm.Vm.Vm*)NativeMemory.AllocZeroed((nuint)sizeof(SharpKvm.Vm.Vm));
        _host = host;
        _vm->Host = new HostVm(host.Register(this));
    }

    public ref SharpKvm.Vm.Vm Vm => ref *_vm;
    public KernelRef<SharpKvm.Vm.Vm> Ref => new((nint)_vm);

    /// <summary>Makes a vCPU that has nothing but its VM; others don't find it.</summary>
    public KernelRef<Vcpu> MakeVcpu(uint id)
    {
        KernelRef<Vcpu> vcpu = new((nint)NativeMemory.AllocZeroed((nuint)sizeof(Vcpu)));
        _vcpus.Add(vcpu.Address);
        vcpu.Value.VmRef = Ref;
        vcpu.Value.Id = id;
        return vcpu;
    }

    /// <summary>Threads that hold the MMU lock.</summary>
    private readonly List<Thread> _holders = [];

    public bool IsLocked => _holders.Contains(Thread.CurrentThread);
    public bool IsShared { get; private set; }
    public ulong Sequence { get; private set; }
    public int Flushes { get; private set; }
    public int Synchronizations { get; private set; }

    /// <summary>Runs once, just before the MMU lock is taken next.</summary>
    public Action? BeforeLock { get; set; }
    /// <summary>Runs once, in the next call of <see cref="HostVm.SynchronizeSlots"/>.</summary>
    public Action? OnSynchronize { get; set; }

    /// <summary>Translations that the guest's TLB may hold, by guest frame.</summary>
    public IReadOnlyDictionary<ulong, (Pfn Frame, bool Writable)> Tlb => _tlb;

    public void Lock()
    {
        RunBeforeLock();
        Take(() => _holders.Count == 0);
    }

    public void Unlock()
    {
        if (!IsLocked || IsShared)
            throw new InvalidOperationException("MMU lock released without being held exclusively");
        _holders.Clear();
        _host.EndReading();
        Schedule.Point();
    }

    public void LockShared()
    {
        RunBeforeLock();
        Take(() => _holders.Count == 0 || IsShared);
        IsShared = true;
    }

    private void Take(Func<bool> isFree)
    {
        if (IsLocked)
            throw new InvalidOperationException("MMU lock taken twice");
        Schedule.Wait(isFree, "the MMU lock");
        _holders.Add(Thread.CurrentThread);
    }

    public void UnlockShared()
    {
        if (!IsShared || !_holders.Remove(Thread.CurrentThread))
            throw new InvalidOperationException("MMU lock released without being held shared");
        IsShared = _holders.Count != 0;
        _host.EndReading();
        Schedule.Point();
    }

    private void RunBeforeLock()
    {
        Action? hook = BeforeLock;
        BeforeLock = null;
        hook?.Invoke();
    }

    private Thread? _irqHolder;

    /// <summary>Whether this thread holds the lock of the interrupt chips: interrupts are off.</summary>
    public bool IsIrqLocked => _irqHolder == Thread.CurrentThread;

    public void LockIrq()
    {
        if (IsIrqLocked)
            throw new InvalidOperationException("irq lock taken twice");
        Schedule.Wait(() => _irqHolder == null, "the irq lock");
        _irqHolder = Thread.CurrentThread;
    }

    public void UnlockIrq()
    {
        if (!IsIrqLocked)
            throw new InvalidOperationException("irq lock released without being held");
        _irqHolder = null;
        Schedule.Point();
    }

    /// <summary>When the interrupt chips' timer expires; 0: it does not run.</summary>
    public ulong ChipTimer { get; set; }

    /// <summary>GSI and resampler of each irqfd's eventfd; no resampler is -1.</summary>
    public Dictionary<int, (uint Gsi, int Resampler)> IrqFds { get; } = [];

    public int AssignIrqFd(int descriptor, uint gsi, int resampler, bool resample)
    {
        int error = _host.Events.TryOpen(descriptor);
        if (error == Errno.Ok && resample && (error = _host.Events.TryOpen(resampler)) != Errno.Ok)
            _host.Events.Close(descriptor);
        if (error != Errno.Ok)
            return error;
        return IrqFds.TryAdd(descriptor, (gsi, resample ? resampler : -1)) ? Errno.Ok : Errno.EBUSY;
    }

    public int DeassignIrqFd(int descriptor, uint gsi)
    {
        if (IrqFds.TryGetValue(descriptor, out (uint Gsi, int Resampler) found) && found.Gsi == gsi)
            IrqFds.Remove(descriptor);
        return _host.Events.Exists(descriptor) ? Errno.Ok : SimulatedEvents.BadDescriptor;
    }

    public void ResampleIrqFds(uint gsi)
    {
        if (IsIrqLocked)
            throw new InvalidOperationException("an eventfd is signalled under the irq lock");
        foreach ((uint of, int resampler) in IrqFds.Values)
        {
            if (of == gsi && resampler >= 0)
                _host.Events.Signal(resampler);
        }
    }

    public bool IsInvalidated(ulong sequence, Hva start, ulong bytes)
    {
        if (!IsLocked)
            throw new InvalidOperationException("sequence tested without the MMU lock");
        bool inProgress = _invalidations != 0 && start.Value < _invalid.End && start.Value + bytes > _invalid.Start;
        return inProgress || sequence != Sequence;
    }

    public void FlushTlbs()
    {
        _tlb.Clear();
        _cachedTables.Clear();
        Flushes++;
        Schedule.Point();
    }

    public void Synchronize()
    {
        if (IsLocked)
            throw new InvalidOperationException("waiting for readers under the MMU lock");
        Synchronizations++;
        Schedule.Synchronize();
        Action? hook = OnSynchronize;
        OnSynchronize = null;
        hook?.Invoke();
    }

    /// <summary>
    /// mmu_notifier_invalidate_range_start. Afterwards no TLB may have a translation of the range.
    /// </summary>
    public void BeginInvalidation(Hva start, Hva end)
    {
        Lock();
        _invalid = _invalidations++ == 0 ? (start.Value, end.Value)
            : (Math.Min(start.Value, _invalid.Start), Math.Max(end.Value, _invalid.End));
        Invalidation.UnmapHva(ref Vm, start, end);
        foreach (ulong frame in _tlb.Keys)
        {
            MemorySlot slot = Vm.Memory.Root.IsNull ? default : Vm.Memory.Slots.Find(new Gfn(frame).Address);
            Hva at = slot.ToHva(new Gfn(frame).Address);
            if (slot.Contains(new Gfn(frame).Address) && at.Value >= start.Value && at.Value < end.Value)
                throw new InvalidOperationException($"frame {frame:x} is in a TLB after its invalidation");
        }
        Unlock();
    }

    /// <summary>mmu_notifier_invalidate_range_end.</summary>
    public void EndInvalidation()
    {
        Lock();
        Sequence++;
        _invalidations--;
        Unlock();
    }

    /// <summary>
    /// What hardware does with an access: the TLB, else a walk of the nested tables. Null is a nested page fault.
    /// </summary>
    public Pfn? Access(Gfn gfn, bool write)
    {
        if (_tlb.TryGetValue(gfn.Value, out (Pfn Frame, bool Writable) cached) && (cached.Writable || !write))
            return cached.Frame;
        ulong table = Vm.Memory.Root.Value;
        bool writable = true;
        for (int shift = 27; ; shift -= 9)
        {
            _cachedTables.Add(table);
            ref ulong entry = ref KernelPages.Entries(new Hpa(table))[(int)(gfn.Value >> shift) & 511];
            if ((entry & 5) != 5)
                return null;
            writable &= (entry & 2) != 0;
            table = entry & 0x000f_ffff_ffff_f000;
            if (shift != 0 && (entry & 0x80) == 0)
                continue;
            if (write && !writable)
                return null;
            entry |= 0x20;
            Pfn frame = new((table >> Page.Shift) + (gfn.Value & ((1UL << shift) - 1)));
            _tlb[gfn.Value] = (frame, writable);
            return frame;
        }
    }

    /// <summary>A page is about to be freed: no processor may have it in its paging-structure caches.</summary>
    public void CheckUnused(Hpa page)
    {
        if (_cachedTables.Contains(page.Value))
            throw new InvalidOperationException($"table {page.Value:x} freed before the TLB was flushed");
    }

    public void Dispose()
    {
        foreach (nint vcpu in _vcpus)
            NativeMemory.Free((void*)vcpu);
        NativeMemory.Free(_vm);
    }
}
