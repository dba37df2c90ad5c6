// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>A shadow table, or a place for one.</summary>
internal struct ShadowPage
{
    /// <summary>The guest's table; of a direct one, the first frame that it maps.</summary>
    public ulong Frame;
    public ShadowRole Role;
    /// <summary>What hardware walks.</summary>
    public Hpa Table;
    /// <summary>For each entry: its neighbours in the list that it is in.</summary>
    public Hpa Links;
    /// <summary>For each entry: the guest frame (level 1) or the shadow table that it leads to.</summary>
    public Hpa Targets;
    /// <summary>The next in the same bucket, or the next free place.</summary>
    public int Next;
    /// <summary>The list of entries that lead here.</summary>
    public uint Parents;
    /// <summary>How often the guest has written to its table since it was last used as one.</summary>
    public int Writes;
    /// <summary>The guest may write to its table, and entries may be out of date, until a vCPU flushes its TLB.</summary>
    public bool IsUnsync;
    /// <summary>A vCPU's root, or a page directory under one of PAE.</summary>
    public bool IsTop;
}

/// <summary>
/// The shadow tables of a VM, for CPUs without nested paging: what hardware walks instead of the guest's tables. The
/// nested tables say which page is behind a frame and with what rights; no entry here allows more.
/// <para>An entry is named by its table's place and its index; it is in one list of all that lead to the same. Changes
/// need the MMU lock exclusively; with the lock shared, bits of entries may be cleared.</para>
/// </summary>
internal struct ShadowTables
{
    /// <summary>So many tables, and some are given up for others: 16 MiB, 48 with what belongs to them.</summary>
    public const int MaxPages = 4096;
    /// <summary>Kernel pages that a walk down from the root can need.</summary>
    public const int SparePages = PagesPerTable * WalkPath.Levels;

    private const int PagesPerTable = 3, FrameBuckets = 1 << 16, MaxUnsync = 128, MaxWrites = 8;
    /// <summary>Frames of a large page, less one.</summary>
    public const ulong LargeMask = Entries - 1;

    private const int Entries = KernelPages.EntriesPerTable, ChunkSize = 64;

    private struct Link
    {
        public uint Next, Previous;
    }

    [InlineArray(Entries)]
    private struct LinkPage
    {
        private Link _first;
    }

    [InlineArray(MaxUnsync)]
    private struct UnsyncList
    {
        private int _first;
    }

    /// <summary>A piece of a guest's table.</summary>
    [InlineArray(ChunkSize)]
    private struct Chunk
    {
        private ulong _first;
    }

    /// <summary>Place 0 stays empty: no table, no entry.</summary>
    private KernelArray<ShadowPage> _pages;
    /// <summary>Tables by the guest's, and entries of level 1 by frame: the first of each bucket.</summary>
    private KernelArray<int> _byTable;
    private KernelArray<uint> _byFrame;
    private int _made, _free, _freeCount, _hand, _unsyncCount;
    private UnsyncList _unsync;
    /// <summary>A walk of the guest's tables is worth nothing if this has changed since.</summary>
    public uint Sequence;
    /// <summary>Changes when a table goes that may be a root: each vCPU looks for its own again.</summary>
    public uint RootVersion;
    /// <summary>Before the lock is given back, or a table's place to another, TLBs are to be flushed.</summary>
    private bool _mustFlush;

    /// <summary>Whether the VM has shadow tables.</summary>
    public readonly bool IsActive => !_pages.IsNull;

    /// <summary>
    /// 0 or -ENOMEM; <see cref="Free"/> in any case. <paramref name="capacity"/>, a power of two: tables at most.
    /// </summary>
    public int Create(int capacity) => KernelArray<ShadowPage>.TryAllocate(capacity + 1, out _pages)
        && KernelArray<int>.TryAllocate(capacity, out _byTable)
        && KernelArray<uint>.TryAllocate(FrameBuckets, out _byFrame) ? Errno.Ok : Errno.ENOMEM;

    public void Free()
    {
        for (int place = 1; place <= _made; place++)
        {
            ref ShadowPage page = ref At(place);
            KernelPages.Free(page.Table);
            KernelPages.Free(page.Links);
            KernelPages.Free(page.Targets);
        }
        _pages.Free();
        _byTable.Free();
        _byFrame.Free();
        this = default;
    }

    public readonly ref ShadowPage At(int place) => ref _pages.Span[place];

    public static uint Name(int place, int index) => (uint)(place * Entries + index);

    public readonly ref ulong Entry(uint name) => ref KernelPages.Entries(PageOf(name).Table)[IndexOf(name)];

    /// <summary>The table that an entry leads to; 0: none.</summary>
    public readonly int Child(uint name) => Entry(name) != 0 && !IsLeaf(name, Entry(name)) ? (int)Target(name) : 0;

    private readonly bool IsLeaf(uint name, ulong entry) =>
        PageOf(name).Role.Level == 1 || (entry & GuestEntry.LargePage) != 0;

    private readonly ref ShadowPage PageOf(uint name) => ref At((int)(name / Entries));
    private static int IndexOf(uint name) => (int)(name % Entries);
    private readonly ref ulong Target(uint name) => ref KernelPages.Entries(PageOf(name).Targets)[IndexOf(name)];
    private readonly ref Link LinkOf(uint name) =>
        ref KernelPages.Reference<LinkPage>(PageOf(name).Links).Value[IndexOf(name)];

    /// <summary>The first of the list that an entry is in, or will be in.</summary>
    private readonly ref uint ListOf(uint name, ulong entry) =>
        ref IsLeaf(name, entry) ? ref BucketOf(Target(name)) : ref At((int)Target(name)).Parents;

    private readonly ref uint BucketOf(ulong frame) => ref _byFrame.Span[(int)(frame % FrameBuckets)];

    private readonly ref int TableBucketOf(ulong frame) =>
        ref _byTable.Span[(int)(frame * 0x9e37_79b9_7f4a_7c15 >> 32) & _byTable.Length - 1];

    /// <summary>The table with this role; 0: there is none.</summary>
    public readonly int Find(ulong frame, ShadowRole role)
    {
        int place = TableBucketOf(frame);
        while (place != 0 && (At(place).Frame != frame || !At(place).Role.Equals(role)))
            place = At(place).Next;
        return place;
    }

    /// <summary>The next shadow of a guest's table, from <paramref name="place"/> on in its bucket; 0: no more.</summary>
    private readonly int NextOf(ulong frame, int place)
    {
        while (place != 0 && (At(place).Frame != frame || At(place).Role.IsDirect))
            place = At(place).Next;
        return place;
    }

    /// <summary>Whether the guest's writes to a frame must be noticed.</summary>
    public readonly bool IsProtected(ulong frame)
    {
        int place = NextOf(frame, TableBucketOf(frame));
        return place != 0 && !At(place).IsUnsync;
    }

    /// <summary>Has room for all that one walk needs, even if others have to go.</summary>
    public void Reserve(ref Vm.Vm vm)
    {
        int capacity = _byTable.Length;
        if (capacity - _made + _freeCount >= WalkPath.Levels)
            return;
        for (int i = 0; i < capacity / 16 + WalkPath.Levels; i++)
        {
            _hand = _hand % capacity + 1;
            if (At(_hand).Role.Level != 0)
                Zap(_hand);
        }
        Flush(ref vm);
    }

    /// <summary>
    /// Makes an empty table; the guest's own is write-protected from here on. Who has walked that before must do so
    /// again.
    /// </summary>
    /// <returns>0 when <paramref name="spare"/> has not enough.</returns>
    public int Add(ref Vm.Vm vm, ref TablePool spare, ulong frame, ShadowRole role)
    {
        int place = _free;
        if (place == 0 && (spare.Count < PagesPerTable || _made == _byTable.Length))
            return 0;
        Flush(ref vm);
        if (place == 0)
        {
            ref ShadowPage made = ref At(place = ++_made);
            spare.TryPop(out made.Table);
            spare.TryPop(out made.Links);
            spare.TryPop(out made.Targets);
        }
        else
        {
            _free = At(place).Next;
            _freeCount--;
        }
        if (!role.IsDirect)
        {
            for (int other = TableBucketOf(frame); (other = NextOf(frame, other)) != 0; other = At(other).Next)
            {
                if (At(other).IsUnsync)
                    Clear(other);
                At(other).IsUnsync = false;
            }
            Protect(ref vm, frame);
        }
        ref ShadowPage page = ref At(place);
        ref int bucket = ref TableBucketOf(frame);
        page = new()
        {
            Frame = frame, Role = role, Table = page.Table, Links = page.Links, Targets = page.Targets, Next = bucket,
        };
        bucket = place;
        return place;
    }

    private void Protect(ref Vm.Vm vm, ulong frame) =>
        _mustFlush |= Sweep(frame, frame + 1, Sweeping.Take, GuestEntry.Writable);

    /// <summary>Writes an entry. <paramref name="target"/> is the frame that it maps, or the place of a table.</summary>
    public readonly void Put(uint name, ulong entry, ulong target)
    {
        ref ulong place = ref Entry(name);
        if (place != 0 && (Target(name) != target || ((place ^ entry) & GuestEntry.LargePage) != 0))
            Remove(name);
        if (place == 0)
        {
            Target(name) = target;
            ref uint list = ref ListOf(name, entry);
            LinkOf(name) = new Link { Next = list };
            if (list != 0)
                LinkOf(list).Previous = name;
            list = name;
        }
        Volatile.Write(ref place, entry);
    }

    public readonly void Remove(uint name)
    {
        Link link = LinkOf(name);
        if (link.Previous != 0)
            LinkOf(link.Previous).Next = link.Next;
        else
            ListOf(name, Entry(name)) = link.Next;
        if (link.Next != 0)
            LinkOf(link.Next).Previous = link.Previous;
        Volatile.Write(ref Entry(name), 0);
    }

    private readonly void Clear(int place)
    {
        for (uint name = Name(place, 0); name < Name(place + 1, 0); name++)
        {
            if (Entry(name) != 0)
                Remove(name);
        }
    }

    /// <summary>Gives a table up. Those below stay: they may be found again.</summary>
    public void Zap(int place)
    {
        ref ShadowPage page = ref At(place);
        while (page.Parents != 0)
            Remove(page.Parents);
        Clear(place);
        ref int previous = ref TableBucketOf(page.Frame);
        while (previous != place)
            previous = ref At(previous).Next;
        previous = page.Next;
        if (page.IsTop)
            RootVersion++;
        page.Role = default;
        page.IsUnsync = false;
        page.Next = _free;
        _free = place;
        _freeCount++;
        _mustFlush = true;
    }

    /// <summary>User space has changed the guest's memory: no table is known.</summary>
    public static void Renew(ref Vm.Vm vm)
    {
        if (!vm.Memory.Shadow.IsActive)
            return;
        vm.Host.LockMmu();
        vm.Memory.Shadow.ZapRange(ref vm, default, new Gfn(ulong.MaxValue));
        vm.Host.UnlockMmu();
    }

    /// <summary>The same for tables in a part of memory.</summary>
    public void ZapRange(ref Vm.Vm vm, Gfn first, Gfn end)
    {
        for (int place = 1; place <= _made; place++)
        {
            if (At(place).Role.Level != 0 && At(place).Frame >= first.Value && At(place).Frame < end.Value)
                Zap(place);
        }
        Flush(ref vm);
    }

    /// <summary>Gives up all shadows of a guest's table, which is none any more.</summary>
    public void ZapTable(ulong frame)
    {
        int place;
        while ((place = NextOf(frame, TableBucketOf(frame))) != 0)
            Zap(place);
    }

    public void Flush(ref Vm.Vm vm)
    {
        if (_mustFlush)
            vm.Host.FlushTlbs();
        _mustFlush = false;
    }

    /// <summary>
    /// The reverse map: what <see cref="NestedTables.Sweep"/> does to the mappings of frames is done to the entries
    /// that lead there. Only to remove them, the MMU lock must be held exclusively.
    /// </summary>
    /// <returns>Whether any entry had one of the bits.</returns>
    public readonly bool Sweep(ulong first, ulong end, Sweeping work, ulong bits)
    {
        ulong large = first & ~LargeMask;
        bool found = large != first && Visit(large, GuestEntry.LargePage, work, bits);
        for (ulong frame = first; frame < end; frame++)
            found |= Visit(frame, 0, work, bits);
        return found;
    }

    /// <summary>The same for entries, of some kind, that map a frame and maybe more behind it.</summary>
    private readonly bool Visit(ulong frame, ulong kind, Sweeping work, ulong bits)
    {
        bool found = false;
        for (uint name = BucketOf(frame), next; name != 0; name = next)
        {
            next = LinkOf(name).Next;
            ref ulong entry = ref Entry(name);
            ulong old = Volatile.Read(ref entry);
            if (Target(name) != frame || (old & kind) != kind || (old & bits) == 0)
                continue;
            found = true;
            if (work == Sweeping.Remove)
                Remove(name);
            else if (work == Sweeping.Take)
                Interlocked.And(ref entry, ~bits);
        }
        return found;
    }

    /// <summary>Whether one of the frames that a large page would map is a guest's table.</summary>
    public readonly bool HasTables(ulong frame)
    {
        for (ulong i = frame & ~LargeMask; i <= (frame | LargeMask); i++)
        {
            if (NextOf(i, TableBucketOf(i)) != 0)
                return true;
        }
        return false;
    }

    /// <summary>
    /// Lets the guest write to its table: until a vCPU flushes its TLB, entries of the last level may be out of date.
    /// What is not in use any more is given up.
    /// </summary>
    /// <returns>False when it is a table of a higher level, or too many are so already.</returns>
    public bool TryUnsync(ulong frame)
    {
        int next, count = 0;
        for (int place = NextOf(frame, TableBucketOf(frame)); place != 0; place = next)
        {
            ref ShadowPage page = ref At(place);
            next = NextOf(frame, page.Next);
            if (page.Parents == 0 && !page.IsTop)
                Zap(place);
            else if (!page.Role.IsLeafTable || _unsyncCount + ++count > MaxUnsync)
                return false;
        }
        for (int place = NextOf(frame, TableBucketOf(frame)); place != 0; place = NextOf(frame, At(place).Next))
        {
            At(place).IsUnsync = true;
            _unsync[_unsyncCount++] = place;
        }
        return true;
    }

    /// <summary>
    /// A vCPU flushes its TLB: protects the tables that the guest was allowed to write to and takes out the entries
    /// that its own do not allow any more.
    /// </summary>
    public void Sync(ref Vm.Vm vm)
    {
        Sequence++;
        for (int i = 0; i < _unsyncCount; i++)
        {
            ref ShadowPage page = ref At(_unsync[i]);
            if (page.IsUnsync)
                Protect(ref vm, page.Frame);
            page.IsUnsync = false;
        }
        Flush(ref vm);
        for (int i = 0; i < _unsyncCount; i++)
        {
            if (At(_unsync[i]).Role.IsLeafTable)
                Compare(ref vm, _unsync[i]);
        }
        _unsyncCount = 0;
    }

    private readonly void Compare(ref Vm.Vm vm, int place)
    {
        ShadowPage page = At(place);
        int size = page.Role.EntrySize;
        Gpa table = new Gfn(page.Frame).Address + (ulong)(page.Role.Quadrant * Entries * size);
        ref readonly MemorySlot slot = ref vm.Memory.Slots.Find(table);
        Chunk chunk = default;
        Span<byte> bytes = MemoryMarshal.AsBytes(new Span<Chunk>(ref chunk))[..(ChunkSize * size)];
        for (int index = 0; index < Entries; index++)
        {
            // The table may not be there any more: then nothing agrees.
            if (index % ChunkSize == 0 && !(slot.TryToHva(table + (ulong)(index * size), out Hva hva)
                && UserMemory.TryReadPresent(hva, bytes)))
                bytes.Clear();
            uint name = Name(place, index);
            ulong entry = Entry(name);
            if (entry == 0)
                continue;
            ReadOnlySpan<byte> own = bytes.Slice(index % ChunkSize * size, size);
            ulong guest = size == sizeof(uint) ? BinaryPrimitives.ReadUInt32LittleEndian(own)
                : BinaryPrimitives.ReadUInt64LittleEndian(own);
            if (!page.Role.Agrees(entry, Target(name), guest))
                Remove(name);
        }
    }

    /// <summary>
    /// The emulator has written to guest memory, within a page: entries that were made from what was there go. A table
    /// that is written to again and again is none any more.
    /// </summary>
    public static void Written(ref Vm.Vm vm, Gpa address, int length)
    {
        ref ShadowTables shadow = ref vm.Memory.Shadow;
        if (!shadow.IsActive)
            return;
        vm.Host.LockMmu();
        shadow.Sequence++;
        ulong frame = address.Frame.Value;
        int next;
        for (int place = shadow.NextOf(frame, shadow.TableBucketOf(frame)); place != 0; place = next)
        {
            ref ShadowPage page = ref shadow.At(place);
            next = shadow.NextOf(frame, page.Next);
            if (++page.Writes > MaxWrites)
            {
                shadow.Zap(place);
                continue;
            }
            // An entry of 4 MiB has two in the shadow.
            int size = page.Role.EntrySize, scale = size == sizeof(uint) ? page.Role.Level - 1 : 0;
            int from = ((int)address.Offset / size << scale) - page.Role.Quadrant * Entries;
            int to = (((int)address.Offset + length - 1) / size + 1 << scale) - page.Role.Quadrant * Entries;
            for (int index = Math.Max(from, 0); index < Math.Min(to, Entries); index++)
            {
                if (shadow.Entry(Name(place, index)) != 0)
                    shadow.Remove(Name(place, index));
            }
        }
        shadow.Flush(ref vm);
        vm.Host.UnlockMmu();
    }
}
