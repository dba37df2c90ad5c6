// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>What a vCPU has of the VM's shadow tables. Its own thread uses it.</summary>
internal struct ShadowVcpu
{
    /// <summary>The page below 4 GiB with the four pointers that PAE paging begins with.</summary>
    public Hpa Pointers;
    /// <summary>The table at the top: one, or with PAE one for each GiB; 0: none yet.</summary>
    public InlineArray4<int> Tops;
    private uint _version;
    /// <summary>The guest's, when the root was found.</summary>
    private ulong _cr3;
    /// <summary>The guest has flushed its TLB, or has other tables.</summary>
    public bool IsStale;
    /// <summary>For CR3.</summary>
    public Hpa Root;
    public DevicePage Device;

    /// <summary>0 or -ENOMEM.</summary>
    public int Create() => (Pointers = KernelPages.AllocateBitmap(0)).IsNull ? Errno.ENOMEM : Errno.Ok;

    public readonly void Free() => KernelPages.Free(Pointers);

    /// <summary>
    /// The guest's control registers as hardware needs them: paging on, in the format of the shadow tables, with write
    /// protection; checks of the guest's tables only where it has some.
    /// </summary>
    public static void Adapt(ref ulong cr0, ref ulong cr4, ref ulong efer)
    {
        bool isLong = (efer & Efer.Lma) != 0;
        ulong checks = (cr0 & Cr0.Pg) == 0 ? Cr4.Smep | Cr4.Smap | Cr4.Pke : 0;
        cr4 = cr4 & ~(Cr4.Pcide | checks | (isLong ? 0 : Cr4.La57)) | Cr4.Pae;
        cr0 |= Cr0.Pg | Cr0.Wp;
        efer = efer & ~(isLong ? 0 : Efer.Lme) | Efer.Nxe;
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
            shadow.Sync(ref vcpu.Vm, in paging, protects: own._cr3 != paging.Cr3);
        shadow.Reserve(ref vcpu.Vm, ref vcpu.SpareTables);
        KernelPages.Entries(own.Pointers)[..4].Clear();
        (own.Tops, own.IsStale, own.Root, own._cr3) = (default, false, own.Pointers, paging.Cr3);
        if ((paging.Efer & Efer.Lma) != 0)
        {
            ulong role = ShadowRole.Of(in paging, default, (paging.Cr4 & Cr4.La57) != 0 ? 5 : 4, 0);
            own.Tops[0] = shadow.FindOrAdd(ref vcpu.Vm, WalkPath.FrameOf(paging.Cr3).Value, role, out _);
            own.Root = shadow.At(own.Tops[0]).Table;
            shadow.At(own.Tops[0]).IsTop = true;
        }
        own._version = shadow.RootVersion;
        own.Device.Forget();
        shadow.Unlock(ref vcpu.Vm);
        return true;
    }

    public static int IndexOf(Gva address, int level) =>
        (int)(address.Value >> Page.Shift + 9 * (level - 1)) & KernelPages.EntriesPerTable - 1;
}

/// <summary>Fills shadow tables when the guest touches memory.</summary>
internal static class ShadowFault
{
    /// <summary>How often a fault starts again when something has changed meanwhile; then it comes back.</summary>
    private const int MaxAttempts = 8;

    /// <summary>
    /// Makes the access at a linear address possible, if the guest's tables allow it: otherwise it is the guest's own
    /// fault. <see cref="FaultOutcome.NotYet"/>: the nested tables do not have the page for this access.
    /// </summary>
    /// <param name="vcpu">The vCPU whose thread this is.</param>
    /// <param name="paging">Its state.</param>
    /// <param name="address">The linear address.</param>
    /// <param name="code">The error code of the #PF that hardware raised.</param>
    /// <param name="found">What the guest's tables say.</param>
    public static FaultOutcome Handle(ref Vcpu vcpu, in PagingState paging, Gva address, PageFaultCode code,
        out Translation found)
    {
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        PageAccess access = (PageAccess)(code & (PageFaultCode.Write | PageFaultCode.Fetch));
        if ((code & PageFaultCode.User) == 0 && paging.Cpl == 3)
            access |= PageAccess.Implicit;
        found = default;
        WalkPath path = WalkPath.WithoutPaging;
        uint sequence = 0;
        bool walked = false;
        for (int attempt = 0; attempt < MaxAttempts; attempt++)
        {
            if (!vcpu.SpareTables.TopUp(ShadowTables.SparePages))
                return FaultOutcome.NoMemory;
            if (!walked)
            {
                sequence = Volatile.Read(in shadow.Sequence);
                found = GuestWalker.Translate(ref vcpu.Vm, in paging, address, access, ref path);
                if (!found.Succeeded)
                    return FaultOutcome.GuestFault;
            }
            FaultOutcome outcome = FaultOutcome.Mapped;
            vcpu.Vm.Host.LockMmu();
            shadow.Reserve(ref vcpu.Vm, ref vcpu.SpareTables);
            // Another root comes first: the next entry sees to it.
            bool done = vcpu.Shadow.MustLoad(in shadow) || shadow.Sequence == sequence
                && TryMap(ref vcpu, in paging, address, code, found.Address.Frame, ref path, out outcome);
            shadow.Unlock(ref vcpu.Vm);
            if (done && (outcome != FaultOutcome.NotYet || NestedFault.Handle<Npt>(ref vcpu, found.Address,
                (code & PageFaultCode.Write) != 0, present: true, wait: false) != FaultOutcome.Mapped))
                return outcome;
            // A page that was only missing leads to no other walk.
            walked = done;
        }
        return FaultOutcome.Mapped;
    }

    /// <summary>Maps a page for a walk whose tables have not changed. False: with new shadows, walk again.</summary>
    private static bool TryMap(ref Vcpu vcpu, in PagingState paging, Gva address, PageFaultCode code, Gfn frame,
        ref WalkPath path, out FaultOutcome outcome)
    {
        ref ShadowTables shadow = ref vcpu.Vm.Memory.Shadow;
        bool writes = (code & PageFaultCode.Write) != 0, isLong = (paging.Efer & Efer.Lma) != 0;
        outcome = FaultOutcome.NotYet;
        if (!NestedTables.TryFind(ref vcpu.Vm.Memory, frame, out Pfn page, out bool writable, out int largest)
            || writes && !writable)
            return true;
        // Other CPUs may still have the large page when it becomes small ones: the erratum is about that.
        if (Ept.ExecutesSmallOnly)
            largest = 1;

        // From here on with the page's protection key.
        ulong restrictions = path.Restrictions | (isLong ? path.Entry & ShadowRole.KeyMask : 0);
        bool isUsers = (restrictions & GuestEntry.User) == 0;
        outcome = FaultOutcome.Emulate;
        // CR0.WP is clear, which hardware's is not. The page is the supervisor's until a user comes, who faults, unless
        // it is then free of checks that are the supervisor's, too.
        if (writes && isUsers && (code & PageFaultCode.User) == 0 && (paging.Cr0 & (Cr0.Wp | Cr0.Pg)) == Cr0.Pg
            && (paging.Cr4 & (Cr4.Smap | Cr4.Pke)) != 0)
            return true;
        if (writes && (restrictions & GuestEntry.Writable) != 0)
            restrictions = restrictions & ~GuestEntry.Writable | GuestEntry.User
                | (isUsers && (paging.Cr4 & Cr4.Smep) != 0 ? GuestEntry.NoExecute : 0);
        // The first write faults, and sets the guest's dirty flag.
        if (!writes && (path.Entry & GuestEntry.Dirty) == 0)
            restrictions |= GuestEntry.Writable;

        bool isNew = false;
        int top = isLong ? 0 : (int)(address.Value >> 30) & 3, place = vcpu.Shadow.Tops[top];
        int level = isLong ? ShadowRole.LevelOf(shadow.At(place).Role) : 3;
        // At level 2 a large page may follow instead of a table.
        while (level > 2 || level == 2 && !(path.Bottom > 1 && largest > 1 && !shadow.HasTables(frame.Value)))
        {
            uint parent = ShadowTables.Name(place, ShadowVcpu.IndexOf(address, level--));
            bool isDirect = level < path.Bottom;
            ulong role = isDirect ? ShadowRole.DirectAt(level, restrictions)
                : ShadowRole.Of(in paging, address, level, path.Steps[level]);
            ulong table = isDirect ? frame.Value & ~(NestedTables.PagesOf(level + 1) - 1)
                : WalkPath.FrameOf(path.Steps[level]).Value;
            place = shadow.FindOrAdd(ref vcpu.Vm, table, role, out bool isAdded);
            ref ShadowPage child = ref shadow.At(place);
            child.Writes = 0;
            // What was read of a table that nothing protected then may not be linked.
            if (!isNew && (isLong || level < 2))
                shadow.Put(parent, child.Table.Value | ShadowRole.Table, (ulong)place);
            else if (!isNew)
            {
                KernelPages.Entries(vcpu.Shadow.Pointers)[top] = child.Table.Value | GuestEntry.Present;
                (vcpu.Shadow.Tops[top], child.IsTop) = (place, true);
            }
            isNew |= isAdded && !isDirect;
        }
        if (isNew)
            return false;

        writable &= (restrictions & GuestEntry.Writable) == 0;
        if (writable && shadow.IsProtected(frame.Value))
        {
            outcome = FaultOutcome.Emulate;
            if (writes && !shadow.TryUnsync(frame.Value))
                return true;
            writable = writes;
        }
        outcome = FaultOutcome.Mapped;
        ulong inside = level > 1 ? ShadowTables.LargeMask : 0, flags = ShadowRole.Leaf(restrictions);
        shadow.Put(ShadowTables.Name(place, ShadowVcpu.IndexOf(address, level)),
            new Pfn(page.Value & ~inside).Address.Value | (writable ? flags : flags & ~GuestEntry.Writable)
            | (level > 1 ? GuestEntry.LargePage : 0), frame.Value & ~inside);
        uint first = ShadowTables.Name(place, ShadowVcpu.IndexOf(address, 1) & -WalkPath.Group);
        for (int i = 0; path.Bottom == 1 && i < WalkPath.Group; i++)
        {
            if (path.Near[i] != 0 && shadow.Entry(first + (uint)i) == 0)
                shadow.Fill(ref vcpu.Vm, in paging, first + (uint)i, path.Near[i]);
        }
        return true;
    }
}
