// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;

namespace SharpKvm.Tests.Host;

/// <summary>A page of memory that a process can have mapped.</summary>
internal sealed class Frame(ulong number)
{
    private byte[]? _data;

    public Pfn Number { get; } = new(number);
    public byte[] Data => _data ??= new byte[Page.Size];
}

/// <summary>
/// The address space of the process that owns the VMs, page by page: demand-zero (a first read finds the shared zero
/// page), copy-on-write, large pages, and every change of a present page announced to the VMs as the MMU notifier does.
/// </summary>
internal sealed class SimulatedProcess(SimulatedHost host)
{
    /// <summary>End of the user half: TASK_SIZE_MAX with 4-level paging.</summary>
    public const ulong UserEnd = (1UL << 47) - Page.Size;
    private const ulong FirstFrame = 0x10_0000;
    private const ulong LargePages = 512;

    private sealed class Mapping
    {
        public bool Writable;
        /// <summary>The frame is shared: a write gets a copy.</summary>
        public bool CopyOnWrite;
        public Frame? Frame;
        /// <summary>Part of a 2 MiB page.</summary>
        public bool Large;
        /// <summary>Not marked as dirty: what is left of a large page.</summary>
        public bool Clean;
    }

    private readonly Dictionary<ulong, Mapping> _mappings = [];
    private readonly Dictionary<ulong, Frame> _frames = [];
    private readonly Frame _zero = new(FirstFrame);
    private ulong _nextFrame = FirstFrame + 1;

    /// <summary>The next look-up of a page ends with a signal.</summary>
    public bool SignalPending { get; set; }

    /// <summary>Runs once, when the next look-up has found its page: the moment for a race.</summary>
    public Action? AfterLookUp { get; set; }

    /// <summary>Runs after each read of the core: what another thread may write before the next.</summary>
    public Action? AfterRead { get; set; }

    /// <summary>Runs after each write of the core: what another CPU may see then.</summary>
    public Action? AfterWrite { get; set; }

    /// <summary>mmap(MAP_FIXED) of fresh memory.</summary>
    public void Map(ulong start, ulong pages, bool writable = true)
    {
        Unmap(start, pages);
        for (ulong page = 0; page < pages; page++)
            _mappings[(start >> Page.Shift) + page] = new Mapping { Writable = writable };
    }

    public void Unmap(ulong start, ulong pages) =>
        Change(start, pages, mapping => mapping.Frame = null, remove: true);

    public void Protect(ulong start, ulong pages, bool writable) =>
        Change(start, pages, mapping => mapping.Writable = writable);

    /// <summary>As after fork: the pages stay, a write gets a copy.</summary>
    public void Share(ulong start, ulong pages) =>
        Change(start, pages, mapping => mapping.CopyOnWrite = mapping.Frame != null);

    /// <summary>As page migration or swap: the contents move to another frame.</summary>
    public void Migrate(ulong start, ulong pages) => Change(start, pages, mapping =>
    {
        if (mapping.Frame is { } old && old != _zero)
            mapping.Frame = Copy(old);
    });

    /// <summary>
    /// As khugepaged: moves 512 pages, which are mapped alike, into a 2 MiB page. Any later change splits that.
    /// </summary>
    public void MakeLarge(ulong start)
    {
        _nextFrame = (_nextFrame + LargePages - 1) & ~(LargePages - 1);
        Change(start, LargePages, mapping =>
        {
            mapping.Frame = Copy(mapping.Frame ?? _zero);
            mapping.CopyOnWrite = false;
        });
        for (ulong page = 0; page < LargePages; page++)
            _mappings[(start >> Page.Shift) + page].Large = true;
    }

    /// <summary>The frame behind an address, if the page is present; and whether it may be written in place.</summary>
    public Frame? Present(ulong address, out bool writable)
    {
        writable = false;
        if (!_mappings.TryGetValue(address >> Page.Shift, out Mapping? mapping))
            return null;
        writable = mapping.Writable && !mapping.CopyOnWrite;
        return mapping.Frame;
    }

    public Frame FrameOf(Pfn number) => number.Value == FirstFrame ? _zero : _frames[number.Value];

    /// <summary>Pages that must be read from a disk first.</summary>
    public HashSet<ulong> Away { get; } = [];

    /// <summary>How often a page was waited for.</summary>
    public int Waits { get; private set; }

    public bool Find(Hva address, bool write, out HostPage page)
    {
        page = default;
        if (Away.Contains(address.Value))
            return false;
        if (!_mappings.TryGetValue(address.Value >> Page.Shift, out Mapping? mapping) || mapping.Frame == null)
            return false;
        bool writable = mapping.Writable && !mapping.CopyOnWrite && !mapping.Clean;
        if (write && !writable)
            return false;
        page = new HostPage { Frame = mapping.Frame.Number, Level = mapping.Large ? 2 : 1, Writable = writable };
        Action? hook = AfterLookUp;
        AfterLookUp = null;
        if (hook != null)
            host.Interleave(hook);
        return true;
    }

    public PageLookup FaultIn(Hva address, bool write, bool wait)
    {
        host.MightSleep();
        if (Away.Contains(address.Value))
        {
            if (!wait)
                return PageLookup.NotYet;
            Waits++;
            Away.Remove(address.Value);
        }
        if (SignalPending)
        {
            SignalPending = false;
            return PageLookup.Interrupted;
        }
        // One who does not wait only looks up what is there.
        bool clean = !wait && _mappings.TryGetValue(address.Value >> Page.Shift, out Mapping? there) && there.Clean;
        if (Fault(address.Value, write) is not { } mapping)
            return PageLookup.Absent;
        mapping.Clean |= clean;
        return PageLookup.Found;
    }

    public bool Read(ulong address, Span<byte> destination)
    {
        host.MightSleep();
        while (!destination.IsEmpty)
        {
            if (Fault(address, write: false) is not { } mapping)
                return false;
            ReadOnlySpan<byte> source = mapping.Frame!.Data.AsSpan((int)(address & Page.OffsetMask));
            int count = Math.Min(source.Length, destination.Length);
            source[..count].CopyTo(destination);
            destination = destination[count..];
            address += (ulong)count;
        }
        AfterRead?.Invoke();
        return true;
    }

    /// <summary>As a read with page faults off: within a page, if that is present.</summary>
    public bool ReadPresent(ulong address, Span<byte> destination)
    {
        if (Present(address, out _) is not { } frame)
            return false;
        frame.Data.AsSpan((int)(address & Page.OffsetMask), destination.Length).CopyTo(destination);
        return true;
    }

    public bool Write(ulong address, ReadOnlySpan<byte> source)
    {
        host.MightSleep();
        while (!source.IsEmpty)
        {
            if (Fault(address, write: true) is not { } mapping)
                return false;
            Span<byte> destination = mapping.Frame!.Data.AsSpan((int)(address & Page.OffsetMask));
            int count = Math.Min(source.Length, destination.Length);
            source[..count].CopyTo(destination);
            source = source[count..];
            address += (ulong)count;
        }
        AfterWrite?.Invoke();
        return true;
    }

    public Exchange CompareExchange(ulong address, int size, ulong expected, ulong replacement)
    {
        host.MightSleep();
        if (size is not (1 or 2 or 4 or 8) || address % (ulong)size != 0)
            throw new InvalidOperationException($"compare-exchange of {size} bytes at {address:x}");
        if (Fault(address, write: true) is not { } mapping)
            return Exchange.Fault;
        Span<byte> place = mapping.Frame!.Data.AsSpan((int)(address & Page.OffsetMask), size);
        Span<byte> bytes = stackalloc byte[sizeof(ulong)];
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, expected);
        if (!place.SequenceEqual(bytes[..size]))
            return Exchange.Different;
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, replacement);
        bytes[..size].CopyTo(place);
        return Exchange.Swapped;
    }

    /// <summary>What the kernel does at a page fault; null means SIGSEGV, or EFAULT to a system call.</summary>
    private Mapping? Fault(ulong address, bool write)
    {
        if (!_mappings.TryGetValue(address >> Page.Shift, out Mapping? mapping) || (write && !mapping.Writable))
            return null;
        if (write && (mapping.Frame == null || mapping.CopyOnWrite))
        {
            Change(address, 1, page =>
            {
                page.Frame = Copy(page.Frame ?? _zero);
                page.CopyOnWrite = false;
            });
        }
        else if (mapping.Frame == null)
        {
            mapping.Frame = _zero;
            mapping.CopyOnWrite = true;
        }
        if (write)
            mapping.Clean = false;
        return mapping;
    }

    private Frame Copy(Frame original)
    {
        Frame copy = new(_nextFrame++);
        if (original != _zero)
            original.Data.CopyTo(copy.Data.AsSpan());
        _frames.Add(copy.Number.Value, copy);
        return copy;
    }

    /// <summary>Changes pages between the two calls of the MMU notifier; large pages are split first.</summary>
    private void Change(ulong start, ulong pages, Action<Mapping> change, bool remove = false)
    {
        ulong first = start >> Page.Shift, end = first + pages;
        ulong announced = IsLarge(first) ? first & ~(LargePages - 1) : first;
        ulong announcedEnd = IsLarge(end - 1) ? (end + LargePages - 1) & ~(LargePages - 1) : end;
        bool present = false;
        for (ulong page = announced; page < announcedEnd; page++)
            present |= _mappings.TryGetValue(page, out Mapping? mapping) && mapping.Frame != null;

        if (present)
            host.Invalidate(new Hva(announced << Page.Shift), new Hva(announcedEnd << Page.Shift), Apply);
        else
            Apply();

        void Apply()
        {
            for (ulong page = announced; page < announcedEnd; page++)
            {
                if (!_mappings.TryGetValue(page, out Mapping? mapping))
                    continue;
                mapping.Clean |= mapping.Large;
                mapping.Large = false;
                if (page < first || page >= end)
                    continue;
                change(mapping);
                if (remove)
                    _mappings.Remove(page);
            }
        }
    }

    private bool IsLarge(ulong page) => _mappings.TryGetValue(page, out Mapping? mapping) && mapping.Large;
}
