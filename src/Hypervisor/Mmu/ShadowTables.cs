// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>A shadow table, or a place for one.</summary>
internal struct ShadowPage
{
    /// <summary>The guest's table; of a direct one, the first frame that it maps.</summary>
    public ulong Frame;
    /// <summary><see cref="ShadowRole"/>; 0: the place is free.</summary>
    public ulong Role;
    /// <summary>
    /// What hardware walks; for each of its entries two neighbours in the list that it is in; and the guest frame or
    /// the shadow table that it leads to.
    /// </summary>
    public Hpa Table, Links, Targets;
    /// <summary>The next in the same bucket, or the next free place.</summary>
    public int Next;
    /// <summary>The first in a bucket; an element of the list of those that the guest may write to.</summary>
    public int Bucket, Unsync;
    /// <summary>The list of entries that lead here.</summary>
    public uint Parents;
    /// <summary>How often the guest has written to its table since it was last used as one.</summary>
    public int Writes;
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
    /// <summary>Frames of a large page, less one.</summary>
    public const ulong LargeMask = Entries - 1;

    private const int Entries = KernelPages.EntriesPerTable, PagesPerTable = 3, FrameBuckets = 1 << 16,
        MaxUnsync = 64, MaxWrites = 8, MaxLooks = 8;
    /// <summary>Place 0 stays empty: no table, no entry.</summary>
    private KernelArray<ShadowPage> _pages;
    /// <summary>Entries that map pages by the frame, the first of each bucket.</summary>
    private KernelArray<uint> _byFrame;
    private int _made, _free, _freeCount, _hand, _unsyncCount;
    /// <summary>Before the lock is given back, or a table's place to another, TLBs are to be flushed.</summary>
    private bool _mustFlush;
    /// <summary>A walk of the guest's tables is worth nothing if this has changed since.</summary>
    public uint Sequence;
    /// <summary>Changes when a table goes that may be a root: each vCPU looks for its own again.</summary>
    public uint RootVersion;

    /// <summary>Whether the VM has shadow tables.</summary>
    public readonly bool IsActive => !_pages.IsNull;

    /// <summary>
    /// 0 or -ENOMEM; <see cref="Free"/> in any case. <paramref name="capacity"/>, 64 or more: tables at most.
    /// </summary>
    public int Create(int capacity) => KernelArray<ShadowPage>.TryAllocate(capacity + 1, out _pages)
        && KernelArray<uint>.TryAllocate(FrameBuckets, out _byFrame) ? Errno.Ok : Errno.ENOMEM;

    public void Free()
    {
        for (int place = 1; place <= _made; place++)
        {
            KernelPages.Free(At(place).Table);
            KernelPages.Free(At(place).Links);
            KernelPages.Free(At(place).Targets);
        }
        _pages.Free();
        _byFrame.Free();
        this = default;
    }

    public readonly ref ShadowPage At(int place) => ref _pages.Span[place];
    public static uint Name(int place, int index) => (uint)(place * Entries + index);
    public readonly ref ulong Entry(uint name) => ref KernelPages.Entries(PageOf(name).Table)[IndexOf(name)];
    private readonly ref ulong Target(uint name) => ref KernelPages.Entries(PageOf(name).Targets)[IndexOf(name)];

    private readonly ref ShadowPage PageOf(uint name) => ref At((int)(name / Entries));
    private static int IndexOf(uint name) => (int)(name % Entries);
    /// <summary>The neighbours of an entry in the list that it is in; 0: none.</summary>
    private readonly ref (uint Next, uint Previous) Link(uint name) => ref MemoryMarshal.Cast<ulong, (uint, uint)>(
        KernelPages.Entries(PageOf(name).Links))[IndexOf(name)];

    /// <summary>The first of the list that an entry is in, or will be in.</summary>
    private readonly ref uint ListOf(uint name, ulong entry) =>
        ref ShadowRole.LevelOf(PageOf(name).Role) == 1 || (entry & GuestEntry.LargePage) != 0
            ? ref BucketOf(Target(name)) : ref At((int)Target(name)).Parents;

    private readonly ref uint BucketOf(ulong frame) => ref _byFrame.Span[(int)(frame % FrameBuckets)];
    private readonly ref int TableBucketOf(ulong frame) =>
        ref At((int)((frame * 0x9e37_79b9_7f4a_7c15 >> 32) % (uint)_pages.Length)).Bucket;

    /// <summary>The next table in its bucket with this frame and these bits of its role; 0: none.</summary>
    private readonly int Search(int place, ulong frame, ulong mask, ulong role)
    {
        while (place != 0 && (At(place).Frame != frame || (At(place).Role & mask) != role))
            place = At(place).Next;
        return place;
    }

    /// <summary>The shadows of a guest's table, one after the other.</summary>
    private readonly int FirstOf(ulong frame) => Search(TableBucketOf(frame), frame, ShadowRole.Direct, 0);
    private readonly int NextOf(int place) => Search(At(place).Next, At(place).Frame, ShadowRole.Direct, 0);

    /// <summary>Whether the guest's writes to a frame must be noticed.</summary>
    public readonly bool IsProtected(ulong frame) =>
        Search(TableBucketOf(frame), frame, ShadowRole.Direct | ShadowRole.Unsync, 0) != 0;

    /// <summary>Whether one of the frames that a large page would map is a guest's table.</summary>
    public readonly bool HasTables(ulong frame)
    {
        ulong i = frame & ~LargeMask, last = frame | LargeMask;
        while (i <= last && FirstOf(i) == 0)
            i++;
        return i <= last;
    }

    /// <summary>
    /// Has room for all that one walk needs, even if others have to go. <paramref name="spare"/> has
    /// <see cref="SparePages"/>.
    /// </summary>
    public void Reserve(ref Vm.Vm vm, ref TablePool spare)
    {
        int capacity = _pages.Length - 1;
        while (_freeCount < WalkPath.Levels && _made < capacity)
        {
            ref ShadowPage page = ref At(++_made);
            spare.TryPop(out page.Table);
            spare.TryPop(out page.Links);
            spare.TryPop(out page.Targets);
            Release(_made);
        }
        if (_freeCount >= WalkPath.Levels)
            return;
        for (int i = 0; i < capacity / 16 + WalkPath.Levels; i++)
            Zap(_hand = _hand % capacity + 1);
        Flush(ref vm);
    }

    private void Release(int place)
    {
        (At(place).Next, _free) = (_free, place);
        _freeCount++;
    }

    /// <summary>
    /// The table with this role. A new one is empty; the guest's own is write-protected from here on, and who has
    /// walked that before must do so again.
    /// </summary>
    public int FindOrAdd(ref Vm.Vm vm, ulong frame, ulong role, out bool isNew)
    {
        ref int bucket = ref TableBucketOf(frame);
        int place = Search(bucket, frame, ~ShadowRole.Unsync, role);
        isNew = place == 0;
        if (!isNew)
            return place;
        Flush(ref vm);
        place = _free;
        ref ShadowPage page = ref At(place);
        _free = page.Next;
        _freeCount--;
        if ((role & ShadowRole.Direct) == 0)
            Protect(frame, clear: true);
        (page.Frame, page.Role, page.Next, bucket) = (frame, role, bucket, place);
        return place;
    }

    /// <summary>The guest does not write to its table unseen any more; what is out of date can go.</summary>
    private void Protect(ulong frame, bool clear)
    {
        _mustFlush |= Sweep(frame, frame + 1, Sweeping.Take, GuestEntry.Writable);
        for (int place = FirstOf(frame); place != 0; place = NextOf(place))
        {
            if (clear && (At(place).Role & ShadowRole.Unsync) != 0)
                Clear(place);
            At(place).Role &= ~ShadowRole.Unsync;
        }
    }

    /// <summary>Writes an entry. <paramref name="target"/>: the frame that it maps, or a table's place.</summary>
    public readonly void Put(uint name, ulong entry, ulong target)
    {
        ref ulong place = ref Entry(name), to = ref Target(name);
        if (place != 0 && (to != target || ((place ^ entry) & GuestEntry.LargePage) != 0))
            Remove(name);
        if (place == 0)
        {
            to = target;
            ref uint list = ref ListOf(name, entry);
            Link(name) = (list, 0);
            if (list != 0)
                Link(list).Previous = name;
            list = name;
        }
        Volatile.Write(ref place, entry);
    }

    public readonly void Remove(uint name)
    {
        if (Entry(name) == 0)
            return;
        (uint next, uint previous) = Link(name);
        (previous != 0 ? ref Link(previous).Next : ref ListOf(name, Entry(name))) = next;
        if (next != 0)
            Link(next).Previous = previous;
        Volatile.Write(ref Entry(name), 0);
    }

    private readonly void Clear(int place)
    {
        for (int index = 0; index < Entries; index++)
            Remove(Name(place, index));
    }

    /// <summary>Gives a table up, if there is one. Those below stay: they may be found again.</summary>
    private void Zap(int place)
    {
        ref ShadowPage page = ref At(place);
        if (page.Role == 0)
            return;
        while (page.Parents != 0)
            Remove(page.Parents);
        Clear(place);
        ref int previous = ref TableBucketOf(page.Frame);
        while (previous != place)
            previous = ref At(previous).Next;
        previous = page.Next;
        RootVersion += page.IsTop ? 1u : 0;
        // Until it is a table again the guest may write to it unseen: who walked before must do so again.
        Sequence++;
        (page.Role, page.IsTop, _mustFlush) = (0, false, true);
        Release(place);
    }

    /// <summary>Gives up the tables in a part of memory: they are none any more, or have changed unseen.</summary>
    public static void Forget(ref Vm.Vm vm, Gfn first, Gfn end)
    {
        ref ShadowTables shadow = ref vm.Memory.Shadow;
        if (!shadow.IsActive)
            return;
        vm.Host.LockMmu();
        for (int place = 1; place <= shadow._made; place++)
        {
            if (shadow.At(place).Frame >= first.Value && shadow.At(place).Frame < end.Value)
                shadow.Zap(place);
        }
        shadow.Unlock(ref vm);
    }

    private void Flush(ref Vm.Vm vm)
    {
        if (_mustFlush)
            vm.Host.FlushTlbs();
        _mustFlush = false;
    }

    public void Unlock(ref Vm.Vm vm)
    {
        Flush(ref vm);
        vm.Host.UnlockMmu();
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
            next = Link(name).Next;
            ulong old = Volatile.Read(ref Entry(name));
            if (Target(name) != frame || (old & kind) != kind || (old & bits) == 0)
                continue;
            found = true;
            if (work == Sweeping.Remove)
                Remove(name);
            else if (work == Sweeping.Take)
                Interlocked.And(ref Entry(name), ~bits);
        }
        return found;
    }

    /// <summary>
    /// Lets the guest write to its table: until a vCPU flushes its TLB, entries of the last level may be out of date.
    /// What is not in use any more is given up.
    /// </summary>
    /// <returns>False when it is a table of a higher level, or too many are so already.</returns>
    public bool TryUnsync(ulong frame)
    {
        for (int place = FirstOf(frame), next; place != 0; place = next)
        {
            ref ShadowPage page = ref At(place);
            next = NextOf(place);
            if (page.Parents == 0 && !page.IsTop)
            {
                Zap(place);
                continue;
            }
            if (ShadowRole.LevelOf(page.Role) > 1 || _unsyncCount == MaxUnsync)
                return false;
            page.Role |= ShadowRole.Unsync;
            At(_unsyncCount++).Unsync = place;
        }
        return true;
    }

    /// <summary>
    /// A vCPU flushes its TLB: takes out the entries of the tables that the guest was allowed to write to which its own
    /// do not allow any more.
    /// </summary>
    /// <param name="vm">The VM.</param>
    /// <param name="paging">The vCPU's state.</param>
    /// <param name="protects">Whether the guest's next write to such a table is to be noticed. Otherwise the guest, which
    /// is changing it, does not fault, but each flush looks at it again; so now and then it is noticed anyway.</param>
    public void Sync(ref Vm.Vm vm, in PagingState paging, bool protects)
    {
        protects |= ++Sequence % MaxLooks == 0 || _unsyncCount > MaxUnsync / 2;
        for (int i = 0; protects && i < _unsyncCount; i++)
            Protect(At(At(i).Unsync).Frame, clear: false);
        Flush(ref vm);
        for (int i = 0; i < _unsyncCount; i++)
            Compare(ref vm, in paging, At(i).Unsync, 0, Entries);
        _unsyncCount = protects ? 0 : _unsyncCount;
    }

    /// <summary>
    /// A vCPU flushes one page from its TLB: the same for the entries that may have to do with it. Whoever never
    /// flushes more is made to when many tables are out of date.
    /// </summary>
    public static void Invalidate(ref Vcpu vcpu, in PagingState paging, Gva address)
    {
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        int index = ShadowVcpu.IndexOf(address, 1);
        vcpu.Shadow.Device.Forget();
        vcpu.Vm.Host.LockMmu();
        shadow.Sequence++;
        for (int i = 0; i < shadow._unsyncCount; i++)
            shadow.Compare(ref vcpu.Vm, in paging, shadow.At(i).Unsync, index, index + 1);
        vcpu.Shadow.IsStale |= shadow._unsyncCount > MaxUnsync / 2;
        shadow.Unlock(ref vcpu.Vm);
    }

    /// <summary>Entries that the guest's do not allow any more become what those allow, if anything.</summary>
    private readonly void Compare(ref Vm.Vm vm, in PagingState paging, int place, int first, int end)
    {
        Span<ulong> entries = KernelPages.Entries(At(place).Table);
        for (int index = first; index < end; index++)
        {
            uint name = Name(place, index);
            ulong guest;
            // Most are empty. It may be another table by now: whatever goes can come again.
            if (entries[index] == 0 || ShadowRole.Agrees(
                At(place).Role, entries[index], Target(name), guest = ReadGuest(ref vm, name)))
                continue;
            Remove(name);
            Fill(ref vm, in paging, name, guest);
        }
    }

    /// <summary>The guest's entry of level 1 behind one here, in one load and without sleeping; 0: not there.</summary>
    private readonly ulong ReadGuest(ref Vm.Vm vm, uint name)
    {
        ulong role = PageOf(name).Role, guest = 0;
        int size = ShadowRole.EntrySizeOf(role), index = ShadowRole.QuadrantOf(role) * Entries + IndexOf(name);
        Gpa at = new Gfn(PageOf(name).Frame).Address + (ulong)(index * size);
        return !vm.Memory.Slots.Find(at).TryToHva(at, out Hva hva)
            || !UserMemory.TryReadPresent(new Hva(hva.Value & ~7ul), MemoryMarshal.AsBytes(new Span<ulong>(ref guest)))
            ? 0 : size == sizeof(ulong) ? guest : (uint)(guest >> (int)(at.Value & 4) * 8);
    }

    /// <summary>
    /// Fills an empty entry of level 1 if the guest's says that it has used the page, and the nested tables have that.
    /// The guest may write to what has its dirty flag and is no table.
    /// </summary>
    public readonly void Fill(ref Vm.Vm vm, in PagingState paging, uint name, ulong guest)
    {
        Gfn frame = WalkPath.FrameOf(guest);
        if (!ShadowRole.TryRead(PageOf(name).Role, guest, out ulong restrictions)
            || (guest & GuestEntry.Reserved(in paging)) != 0
            || !NestedTables.TryFind(ref vm.Memory, frame, out Pfn target, out bool writable, out _))
            return;
        if (!writable || (restrictions & GuestEntry.Writable) == 0 && IsProtected(frame.Value))
            restrictions |= GuestEntry.Writable;
        // Hardware tells when it is used.
        Put(name, target.Address.Value | ShadowRole.Leaf(restrictions) & ~GuestEntry.Accessed, frame.Value);
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
        for (int place = shadow.FirstOf(address.Frame.Value), next; place != 0; place = next)
        {
            ref ShadowPage page = ref shadow.At(place);
            next = shadow.NextOf(place);
            // An entry of 4 MiB has two in the shadow.
            int size = ShadowRole.EntrySizeOf(page.Role), before = ShadowRole.QuadrantOf(page.Role) * Entries;
            int scale = size == sizeof(uint) ? ShadowRole.LevelOf(page.Role) - 1 : 0;
            int from = ((int)address.Offset / size << scale) - before;
            int end = (((int)address.Offset + length - 1) / size + 1 << scale) - before;
            for (int index = Math.Max(from, 0); index < Math.Min(end, Entries); index++)
                shadow.Remove(Name(place, index));
            if (++page.Writes > MaxWrites)
                shadow.Zap(place);
        }
        shadow.Unlock(ref vm);
    }
}
