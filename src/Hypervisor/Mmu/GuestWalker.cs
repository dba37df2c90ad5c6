// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// Translates guest linear addresses as the processor would: rights, reserved bits, accessed and dirty flags (SDM
/// vol. 3, 4.6 to 4.8; APM vol. 2, 5). Page tables outside of memory read as not present.
/// </summary>
internal static class GuestWalker
{
    /// <summary>
    /// How often a walk starts again because another vCPU changed an entry while its flags were set. Afterwards the
    /// guest gets a #PF with the present bit, which it takes for a spurious one.
    /// </summary>
    private const int MaxAttempts = 8;

    /// <summary>Turns an entry into its restrictions, to be accumulated: flags that it lacks, and no-execute.</summary>
    private const ulong Inverted = GuestEntry.Writable | GuestEntry.User | GuestEntry.Accessed;
    /// <summary>What is wrong with an entry that has a reserved bit.</summary>
    private const PageFaultCode ReservedBit = PageFaultCode.Present | PageFaultCode.Reserved;

    /// <summary>An access to be translated.</summary>
    private readonly ref struct Request(
        ref Vm.Vm vm, ref readonly PagingState paging, Gva address, PageAccess access, int topShift, ref WalkPath path)
    {
        public readonly ref Vm.Vm Vm = ref vm;
        public readonly ref readonly PagingState Paging = ref paging;
        public readonly Gva Address = address;
        public readonly PageAccess Access = access;
        /// <summary>The level of the table that CR3 points at.</summary>
        public readonly int TopShift = topShift;
        /// <summary>Where to note the way; null: nowhere.</summary>
        public readonly ref WalkPath Path = ref path;

        public readonly bool IsUser = paging.Cpl == 3 && (access & PageAccess.Implicit) == 0;

        public bool Writes => (Access & PageAccess.Write) != 0;

        /// <summary>The flag that the access needs in the entry that maps the page.</summary>
        public ulong Dirty => Writes ? GuestEntry.Dirty : 0;
    }

    /// <summary>
    /// Translates <paramref name="address"/>, which segmentation has checked (canonical, or below 4 GiB outside of
    /// long mode), for an access that stays within its page.
    /// </summary>
    public static Translation Translate(ref Vm.Vm vm, in PagingState paging, Gva address, PageAccess access) =>
        Translate(ref vm, in paging, address, access, ref Unsafe.NullRef<WalkPath>());

    /// <summary>The same; a walk that succeeds is noted in <paramref name="path"/>.</summary>
    public static Translation Translate(
        ref Vm.Vm vm, in PagingState paging, Gva address, PageAccess access, ref WalkPath path)
    {
        if ((paging.Cr0 & Cr0.Pg) == 0)
            return new Translation(new Gpa((uint)address.Value), default, true);
        bool isLong = (paging.Efer & Efer.Lma) != 0, isPae = (paging.Cr4 & Cr4.Pae) != 0;
        int topShift = !isLong ? isPae ? 30 : 22 : (paging.Cr4 & Cr4.La57) != 0 ? 48 : 39;
        Request request = new(
            ref vm, in paging, isLong ? address : new((uint)address.Value), access, topShift, ref path);
        return isLong ? Walk<LongPaging>(in request) : isPae ? Walk<PagingPae>(in request) : Walk<Paging32>(in request);
    }

    private static Translation Walk<TMode>(ref readonly Request request) where TMode : struct, IPagingMode
    {
        ulong checkedBits = TMode.Reserved(in request.Paging) | GuestEntry.Present;
        Gva address = request.Address;
        for (int attempt = 0; attempt < MaxAttempts; attempt++)
        {
            ulong restrictions = 0;
            ulong table = request.Paging.Cr3 & TMode.RootMask;
            ulong entry;
            Hva hva;
            ref MemorySlot slot = ref request.Vm.Memory.Slots.Recent;
            int shift = request.TopShift;
            while (true)
            {
                Gpa location = EntryAddress<TMode>(table, address, shift);
                if (!slot.TryToHva(location, out hva))
                {
                    slot = ref request.Vm.Memory.Slots.Find(location);
                    if (!slot.TryToHva(location, out hva))
                        return Fail(in request, PageFaultCode.None);
                }
                if (!TryReadEntry<TMode>(hva, out entry))
                    return Fail(in request, PageFaultCode.None);
                if ((entry & checkedBits) != GuestEntry.Present)
                    return Fail(in request, (entry & GuestEntry.Present) == 0 ? PageFaultCode.None : ReservedBit);
                if (!Unsafe.IsNullRef(ref request.Path))
                    request.Path.Note(shift, table, entry, restrictions, TMode.IsPlain(shift));
                if (!TMode.IsPlain(shift))
                    restrictions |= entry ^ Inverted;
                if (shift == Page.Shift)
                    break;
                bool large = TMode.IsLargePage(in request.Paging, entry, shift);
                if ((entry & TMode.ReservedAbove(in request.Paging, shift, large)) != 0)
                    return Fail(in request, ReservedBit);
                if (large)
                    break;
                table = entry & GuestEntry.AddressMask;
                shift -= TMode.IndexBits;
            }

            PageFaultCode violation = Violation(in request, entry, restrictions);
            if (violation != PageFaultCode.None)
                return Fail(in request, violation);
            bool flagged = (restrictions & GuestEntry.Accessed) == 0 && (~entry & request.Dirty) == 0;
            if (!flagged && !SetFlags<TMode>(in request, entry))
                continue;
            for (uint i = 0; i < WalkPath.Group && shift == Page.Shift && TMode.EntryShift == 3
                && !Unsafe.IsNullRef(ref request.Path); i++)
                TryReadEntry<TMode>(new Hva(hva.Value & ~63ul) + i * 8, out request.Path.Near[(int)i]);
            if (shift == Page.Shift)
                return new Translation(new Gpa((entry & GuestEntry.AddressMask) | address.Offset), default, true);
            ulong offsetMask = (1UL << shift) - 1;
            ulong found = (TMode.LargePageBase(entry) & ~offsetMask) | (address.Value & offsetMask);
            return new Translation(new Gpa(found), default, true);
        }
        return Fail(in request, PageFaultCode.Present);
    }

    [MethodImpl(AggressiveInlining)]
    private static Gpa EntryAddress<TMode>(ulong table, Gva address, int shift) where TMode : struct, IPagingMode
    {
        ulong index = (address.Value >> shift) & ((1UL << TMode.IndexBits) - 1);
        return new Gpa(table + (index << TMode.EntryShift));
    }

    [MethodImpl(AggressiveInlining)]
    private static bool TryReadEntry<TMode>(Hva hva, out ulong entry) where TMode : struct, IPagingMode
    {
        if (TMode.EntryShift == 3)
            return UserMemory.TryReadUInt64(hva, out entry);
        bool read = UserMemory.TryReadUInt64(new Hva(hva.Value & ~7UL), out ulong pair);
        entry = (uint)(pair >> (int)((hva.Value & 4) * 8));
        return read;
    }

    /// <summary>Checks rights: <see cref="PageFaultCode.None"/> or what the error code says of the violation.</summary>
    private static PageFaultCode Violation(ref readonly Request request, ulong leaf, ulong restrictions)
    {
        ref readonly PagingState paging = ref request.Paging;
        bool user = request.IsUser, userPage = (restrictions & GuestEntry.User) == 0;
        bool denied = user && !userPage;
        if ((request.Access & PageAccess.Fetch) != 0)
        {
            denied |= (restrictions & GuestEntry.NoExecute) != 0;
            denied |= !user && userPage && (paging.Cr4 & Cr4.Smep) != 0;
            return denied ? PageFaultCode.Present : PageFaultCode.None;
        }

        bool writes = request.Writes && (user || (paging.Cr0 & Cr0.Wp) != 0);
        denied |= writes && (restrictions & GuestEntry.Writable) != 0;
        if (!user && userPage && (paging.Cr4 & Cr4.Smap) != 0)
            denied |= !paging.AlignmentCheck || (request.Access & PageAccess.Implicit) != 0;
        if (userPage && (paging.Cr4 & Cr4.Pke) != 0 && (paging.Efer & Efer.Lma) != 0)
        {
            int key = (int)(leaf >> GuestEntry.ProtectionKeyShift) & 15;
            uint disabled = (paging.Pkru >> (2 * key)) & 3;
            if ((disabled & 1) != 0 || (disabled != 0 && writes))
                return PageFaultCode.Present | PageFaultCode.ProtectionKey;
        }
        return denied ? PageFaultCode.Present : PageFaultCode.None;
    }

    /// <summary>The #PF: what is wrong, and which kind of access it was.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Translation Fail(ref readonly Request request, PageFaultCode reason)
    {
        PageFaultCode code = reason | (PageFaultCode)(request.Access & PageAccess.Write);
        if (request.IsUser)
            code |= PageFaultCode.User;
        // The fetch bit exists only where something can forbid fetches.
        ref readonly PagingState paging = ref request.Paging;
        bool noExecute = (paging.Cr4 & Cr4.Pae) != 0 && (paging.Efer & Efer.Nxe) != 0;
        if (noExecute || (paging.Cr4 & Cr4.Smep) != 0)
            code |= (PageFaultCode)(request.Access & PageAccess.Fetch);
        return new Translation(default, code, false);
    }

    /// <summary>
    /// Sets the accessed flags of all levels and, for a write, the dirty flag of the last, which the walk found to be
    /// <paramref name="leaf"/>. In a read-only slot they stay as they are.
    /// </summary>
    /// <returns>False when an entry is no longer what the walk found.</returns>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool SetFlags<TMode>(ref readonly Request request, ulong leaf) where TMode : struct, IPagingMode
    {
        ulong table = request.Paging.Cr3 & TMode.RootMask;
        for (int shift = request.TopShift; ; shift -= TMode.IndexBits)
        {
            Gpa location = EntryAddress<TMode>(table, request.Address, shift);
            ref MemorySlot slot = ref request.Vm.Memory.Slots.Find(location);
            if (!slot.TryToHva(location, out Hva hva) || !TryReadEntry<TMode>(hva, out ulong entry)
                || (entry & GuestEntry.Present) == 0)
                return false;
            bool last = shift == Page.Shift || TMode.IsLargePage(in request.Paging, entry, shift);
            if (last && ((entry ^ leaf) & ~(GuestEntry.Accessed | GuestEntry.Dirty)) != 0)
                return false;

            ulong flagged = entry | GuestEntry.Accessed | (last ? request.Dirty : 0);
            if (flagged != entry && !TMode.IsPlain(shift) && !slot.IsReadOnly)
            {
                GuestMemory.CompareExchange(
                    ref request.Vm, location, 1 << TMode.EntryShift, entry, flagged, out bool swapped);
                if (!swapped)
                    return false;
            }
            if (last)
                return true;
            table = entry & GuestEntry.AddressMask;
        }
    }
}
