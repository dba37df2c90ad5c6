// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>What a vCPU has of the VM's shadow tables. Its own thread uses it.</summary>
internal struct ShadowVcpu
{
    /// <summary>The page below 4 GiB with the four pointers that PAE paging begins with.</summary>
    private Hpa _pointers;
    /// <summary>The table at the top: one, or with PAE one for each GiB; 0: none yet.</summary>
    private InlineArray4<int> _tops;
    private uint _version;
    /// <summary>The guest has flushed its TLB, or has other tables.</summary>
    public bool IsStale;
    /// <summary>For CR3.</summary>
    public Hpa Root;

    /// <summary>0 or -ENOMEM.</summary>
    public int Create()
    {
        _pointers = KernelPages.AllocateBitmap(0);
        IsStale = true;
        return _pointers.IsNull ? Errno.ENOMEM : Errno.Ok;
    }

    /// <summary>
    /// The guest's control registers as hardware needs them: paging on, in the format of the shadow tables, with write
    /// protection; checks of the guest's tables only where it has some.
    /// </summary>
    public static void Adapt(ref ulong cr0, ref ulong cr4, ref ulong efer)
    {
        bool isLong = (efer & Efer.Lma) != 0;
        cr4 &= ~(Cr4.Pcide | ((cr0 & Cr0.Pg) == 0 ? Cr4.Smep | Cr4.Smap | Cr4.Pke : 0) | (isLong ? 0 : Cr4.La57));
        cr4 |= Cr4.Pae;
        cr0 |= Cr0.Pg | Cr0.Wp;
        efer = efer & ~(isLong ? 0 : Efer.Lme) | Efer.Nxe;
    }

    public readonly void Free()
    {
        if (!_pointers.IsNull)
            KernelPages.FreeBitmap(_pointers, 0);
    }

    /// <summary>Whether <see cref="TryLoad"/> must come before the guest runs.</summary>
    public readonly bool MustLoad(in ShadowTables shadow) =>
        IsStale || _version != Volatile.Read(in shadow.RootVersion);

    /// <summary>Finds the root for the guest's CR3, after a flush of what is out of date. False: no memory.</summary>
    public static bool TryLoad(ref Vcpu vcpu, in PagingState paging)
    {
        ref ShadowVcpu own = ref vcpu.Shadow;
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        if (!vcpu.SpareTables.TopUp(ShadowTables.SparePages))
            return false;
        vcpu.Vm.Host.LockMmu();
        if (own.IsStale)
            shadow.Sync(ref vcpu.Vm);
        shadow.Reserve(ref vcpu.Vm);
        own.IsStale = false;
        own._tops = default;
        own.Root = own._pointers;
        KernelPages.Entries(own._pointers).Clear();
        if ((paging.Efer & Efer.Lma) != 0)
        {
            int levels = (paging.Cr4 & Cr4.La57) != 0 ? 5 : 4;
            ulong frame = (paging.Cr3 & GuestEntry.AddressMask) >> Page.Shift;
            own._tops[0] = FindOrAdd(ref vcpu, frame, ShadowRole.Of(in paging, default, levels, 0), out _);
            own.Root = shadow.At(own._tops[0]).Table;
            shadow.At(own._tops[0]).IsTop = true;
        }
        own._version = shadow.RootVersion;
        shadow.Flush(ref vcpu.Vm);
        vcpu.Vm.Host.UnlockMmu();
        return true;
    }

    public static int FindOrAdd(ref Vcpu vcpu, ulong frame, ShadowRole role, out bool isNew)
    {
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        int place = shadow.Find(frame, role);
        isNew = place == 0;
        return isNew ? shadow.Add(ref vcpu.Vm, ref vcpu.SpareTables, frame, role) : place;
    }

    /// <summary>The table at the top for an address in a guest with these modes; 0: none yet.</summary>
    [UnscopedRef]
    public ref int TopOf(in PagingState paging, Gva address) =>
        ref _tops[(paging.Efer & Efer.Lma) != 0 ? 0 : (int)(address.Value >> 30) & 3];

    /// <summary>A page directory of PAE.</summary>
    public void SetTop(ref ShadowTables shadow, Gva address, int place)
    {
        int index = (int)(address.Value >> 30) & 3;
        _tops[index] = place;
        shadow.At(place).IsTop = true;
        KernelPages.Entries(_pointers)[index] = shadow.At(place).Table.Value | GuestEntry.Present;
    }

    /// <summary>INVLPG: what the vCPU's tables have for an address goes.</summary>
    public static void Invalidate(ref Vcpu vcpu, in PagingState paging, Gva address)
    {
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        vcpu.Vm.Host.LockMmu();
        shadow.Sequence++;
        // If the tables of now are not known, all that is out of date goes before others are loaded.
        vcpu.Shadow.IsStale |= vcpu.Shadow.MustLoad(in shadow);
        int place = vcpu.Shadow.IsStale ? 0 : vcpu.Shadow.TopOf(in paging, address);
        while (place != 0)
        {
            int level = shadow.At(place).Role.Level;
            uint name = ShadowTables.Name(place, ShadowFault.IndexOf(address, level));
            place = level > 1 ? shadow.Child(name) : 0;
            if (level == 1 && shadow.Entry(name) != 0)
                shadow.Remove(name);
        }
        vcpu.Vm.Host.UnlockMmu();
    }
}

/// <summary>What became of a #PF of a guest with shadow tables.</summary>
internal enum ShadowOutcome : byte
{
    /// <summary>Enter the guest again.</summary>
    Mapped,
    /// <summary>The guest's tables do not allow the access: it gets the #PF.</summary>
    GuestFault,
    /// <summary>The nested tables do not have the page, or not for this access.</summary>
    NotMapped,
    /// <summary>
    /// The write is to be emulated: to a table of a higher level, or with CR0.WP clear and checks that it would escape.
    /// </summary>
    Emulate,
    NoMemory,
}

/// <summary>Fills shadow tables when the guest touches memory.</summary>
internal static class ShadowFault
{
    /// <summary>How often a fault starts again when something has changed meanwhile; then it comes back.</summary>
    private const int MaxAttempts = 8;

    public static int IndexOf(Gva address, int level) =>
        (int)(address.Value >> Page.Shift + 9 * (level - 1)) & KernelPages.EntriesPerTable - 1;

    /// <summary>Makes the access at a linear address possible, if the guest's tables allow it.</summary>
    /// <param name="vcpu">The vCPU whose thread this is.</param>
    /// <param name="paging">Its state.</param>
    /// <param name="address">The linear address.</param>
    /// <param name="code">The error code of the #PF that hardware raised.</param>
    /// <param name="found">What the guest's tables say.</param>
    public static ShadowOutcome Handle(ref Vcpu vcpu, in PagingState paging, Gva address, PageFaultCode code,
        out Translation found)
    {
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        PageAccess access = (PageAccess)(code & (PageFaultCode.Write | PageFaultCode.Fetch));
        if ((code & PageFaultCode.User) == 0 && paging.Cpl == 3)
            access |= PageAccess.Implicit;
        found = default;
        for (int attempt = 0; attempt < MaxAttempts; attempt++)
        {
            if (!vcpu.SpareTables.TopUp(ShadowTables.SparePages))
                return ShadowOutcome.NoMemory;
            uint sequence = Volatile.Read(in shadow.Sequence);
            WalkPath path = WalkPath.WithoutPaging;
            found = GuestWalker.Translate(ref vcpu.Vm, in paging, address, access, ref path);
            if (!found.Succeeded)
                return ShadowOutcome.GuestFault;
            vcpu.Vm.Host.LockMmu();
            shadow.Reserve(ref vcpu.Vm);
            ShadowOutcome outcome = ShadowOutcome.Mapped;
            // Another root comes first: the next entry sees to it.
            bool done = vcpu.Shadow.MustLoad(in shadow);
            if (!done && shadow.Sequence == sequence)
                done = TryMap(ref vcpu, in paging, address, code, found.Address.Frame, ref path, out outcome);
            shadow.Flush(ref vcpu.Vm);
            vcpu.Vm.Host.UnlockMmu();
            if (done && outcome == ShadowOutcome.NotMapped)
                done = NestedFault.Handle<Npt>(ref vcpu, found.Address, (code & PageFaultCode.Write) != 0, present: true,
                    wait: false) != FaultOutcome.Mapped;
            if (done)
                return outcome;
        }
        return ShadowOutcome.Mapped;
    }

    /// <summary>Maps a page for a walk whose tables have not changed. False: there are new shadows, walk again.</summary>
    private static bool TryMap(ref Vcpu vcpu, in PagingState paging, Gva address, PageFaultCode code, Gfn frame,
        ref WalkPath path, out ShadowOutcome outcome)
    {
        ref VmMemory memory = ref vcpu.Vm.Memory;
        ref ShadowTables shadow = ref memory.Shadow;
        bool writes = (code & PageFaultCode.Write) != 0, isLong = (paging.Efer & Efer.Lma) != 0;
        outcome = ShadowOutcome.NotMapped;
        if (!NestedTables.TryFind(ref memory, frame, out Pfn page, out bool writable, out int largest)
            || writes && !writable)
            return true;

        ulong restrictions = path.Restrictions;
        bool keys = isLong && (paging.Cr4 & Cr4.Pke) != 0 && (paging.Cr0 & Cr0.Wp) == 0 && (code & PageFaultCode.User) == 0;
        if (writes && ((restrictions & GuestEntry.Writable) != 0 || keys && (restrictions & GuestEntry.User) == 0))
        {
            // CR0.WP is clear, which hardware's is not: the page is the supervisor's until a user comes, who faults.
            outcome = ShadowOutcome.Emulate;
            if ((paging.Cr4 & (Cr4.Smap | Cr4.Pke)) != 0)
                return true;
            bool keepsCode = (restrictions & GuestEntry.User) == 0 && (paging.Cr4 & Cr4.Smep) != 0;
            restrictions = restrictions & ~GuestEntry.Writable | GuestEntry.User | (keepsCode ? GuestEntry.NoExecute : 0);
        }
        // The first write faults, and sets the guest's dirty flag.
        if (!writes && (path.Entry & GuestEntry.Dirty) == 0)
            restrictions |= GuestEntry.Writable;

        bool isNew = false, isLarge = false;
        int place = vcpu.Shadow.TopOf(in paging, address);
        for (int level = isLong ? shadow.At(place).Role.Level - 1 : 2; level > 0; level--)
        {
            bool isDirect = level < path.Bottom;
            isLarge = level == 1 && isDirect && largest > 1 && !shadow.HasTables(frame.Value);
            if (isLarge)
                break;
            ShadowRole role = isDirect
                ? ShadowRole.Direct(level, restrictions, ShadowEntry.Key(path.Entry, isLong))
                : ShadowRole.Of(in paging, address, level, path[level].Above);
            ulong table = isDirect ? frame.Value & ~(NestedTables.PagesOf(level + 1) - 1) : path[level].Table;
            int child = ShadowVcpu.FindOrAdd(ref vcpu, table, role, out bool added);
            outcome = ShadowOutcome.NoMemory;
            if (child == 0)
                return true;
            shadow.At(child).Writes = 0;
            // What was read of a table that nothing protected then may not be linked.
            if (!isNew && !isLong && level == 2)
                vcpu.Shadow.SetTop(ref shadow, address, child);
            else if (!isNew)
                shadow.Put(ShadowTables.Name(place, IndexOf(address, level + 1)),
                    ShadowEntry.Table(shadow.At(child).Table), (ulong)child);
            isNew |= added && !isDirect;
            place = child;
        }
        if (isNew)
            return false;

        writable &= (restrictions & GuestEntry.Writable) == 0;
        outcome = ShadowOutcome.Emulate;
        if (writable && shadow.IsProtected(frame.Value))
        {
            if (writes && !shadow.TryUnsync(frame.Value))
                return true;
            writable = writes;
        }
        outcome = ShadowOutcome.Mapped;
        ulong inside = isLarge ? ShadowTables.LargeMask : 0;
        ulong entry = new Pfn(page.Value & ~inside).Address.Value | ShadowEntry.Leaf(restrictions, path.Entry, isLong)
            | (isLarge ? GuestEntry.LargePage : 0);
        shadow.Put(ShadowTables.Name(place, IndexOf(address, isLarge ? 2 : 1)),
            writable ? entry : entry & ~GuestEntry.Writable, frame.Value & ~inside);
        return true;
    }

    /// <summary>Gives up the shadows of a table that something writes to that cannot be emulated.</summary>
    /// <returns>False when the table lies on the way to the address: it would come back at once.</returns>
    public static bool TryRelease(ref Vcpu vcpu, in PagingState paging, Gva address, Gfn frame)
    {
        WalkPath path = WalkPath.WithoutPaging;
        GuestWalker.Translate(ref vcpu.Vm, in paging, address, PageAccess.Read, ref path);
        for (int level = path.Bottom; level <= WalkPath.Levels; level++)
        {
            if (path[level].Table == frame.Value)
                return false;
        }
        vcpu.Vm.Host.LockMmu();
        vcpu.Vm.Memory.Shadow.ZapTable(frame.Value);
        vcpu.Vm.Memory.Shadow.Flush(ref vcpu.Vm);
        vcpu.Vm.Host.UnlockMmu();
        return true;
    }
}
