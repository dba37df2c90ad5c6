// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using SharpKvm.Host;

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

    /// <summary>
    /// Translates <paramref name="address"/>, which segmentation has checked (canonical, or below 4 GiB outside of
    /// long mode), for an access that stays within its page.
    /// </summary>
    public static Translation Translate(ref Vm.Vm vm, in PagingState paging, Gva address, PageAccess access)
    {
        if ((paging.Cr0 & PagingState.Cr0Pg) == 0)
            return new Translation(new Gpa((uint)address.Value));
        if ((paging.Efer & PagingState.EferLma) != 0)
        {
            return (paging.Cr4 & PagingState.Cr4La57) == 0
                ? Walk<LongPaging<FourLevels>>(ref vm, in paging, address, access)
                : Walk<LongPaging<FiveLevels>>(ref vm, in paging, address, access);
        }
        return (paging.Cr4 & PagingState.Cr4Pae) != 0
            ? Walk<PagingPae>(ref vm, in paging, address, access)
            : Walk<Paging32>(ref vm, in paging, address, access);
    }

    private enum WalkResult : byte
    {
        Found,
        NotPresent,
        Reserved,
    }

    /// <summary>What a walk found.</summary>
    private struct Mapping
    {
        /// <summary>The entry that maps the page.</summary>
        public ulong Leaf;
        /// <summary>
        /// Which of writable, user and accessed all levels have set; <see cref="GuestEntry.NoExecute"/> is turned
        /// around: set when all levels allow execution.
        /// </summary>
        public ulong Rights;
        /// <summary>Binary logarithm of the page's size.</summary>
        public int Shift;
    }

    /// <summary>The usual case: the guest has used the page before, so that all flags are set.</summary>
    private static Translation Walk<TMode>(ref Vm.Vm vm, in PagingState paging, Gva address, PageAccess access)
        where TMode : struct, IPagingMode
    {
        WalkResult result = Descend<TMode>(ref vm, in paging, address, out Mapping mapping);
        if (result != WalkResult.Found)
            return Fail(in paging, access, result);
        PageFaultCode violation = Violation(in paging, mapping.Leaf, mapping.Rights, access);
        if (violation != PageFaultCode.None)
            return Fail(in paging, access, violation);
        ulong leaf = (access & PageAccess.Write) == 0 ? GuestEntry.Dirty : mapping.Leaf;
        if ((mapping.Rights & GuestEntry.Accessed) == 0 || (leaf & GuestEntry.Dirty) == 0)
            return WalkAndSetFlags<TMode>(ref vm, in paging, address, access);
        return Found<TMode>(mapping.Leaf, mapping.Shift, address);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Translation WalkAndSetFlags<TMode>(
        ref Vm.Vm vm, in PagingState paging, Gva address, PageAccess access) where TMode : struct, IPagingMode
    {
        ulong dirty = (access & PageAccess.Write) != 0 ? GuestEntry.Dirty : 0;
        for (int attempt = 0; attempt < MaxAttempts; attempt++)
        {
            WalkResult result = Descend<TMode>(ref vm, in paging, address, out Mapping mapping);
            if (result != WalkResult.Found)
                return Fail(in paging, access, result);
            PageFaultCode violation = Violation(in paging, mapping.Leaf, mapping.Rights, access);
            if (violation != PageFaultCode.None)
                return Fail(in paging, access, violation);
            if (SetFlags<TMode>(ref vm, in paging, address, mapping.Leaf, dirty))
                return Found<TMode>(mapping.Leaf, mapping.Shift, address);
        }
        return Fail(in paging, access, PageFaultCode.Present);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Translation Found<TMode>(ulong leaf, int shift, Gva address) where TMode : struct, IPagingMode
    {
        if (shift == Page.Shift)
            return new Translation(new Gpa((leaf & GuestEntry.AddressMask) | address.Offset));
        ulong offsetMask = (1UL << shift) - 1;
        return new Translation(new Gpa((TMode.LargePageBase(leaf) & ~offsetMask) | (address.Value & offsetMask)));
    }

    /// <summary>The walk proper; changes nothing.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static WalkResult Descend<TMode>(
        ref Vm.Vm vm, in PagingState paging, Gva address, out Mapping mapping) where TMode : struct, IPagingMode
    {
        Unsafe.SkipInit(out mapping);
        ulong checkedBits = TMode.Reserved(in paging) | GuestEntry.Present;
        ulong rights = ~0UL;
        ulong table = paging.Cr3 & TMode.RootMask;
        ref MemorySlot slot = ref vm.Memory.Slots.Recent;
        for (int shift = TMode.TopShift; ; shift -= TMode.IndexBits)
        {
            Gpa location = EntryAddress<TMode>(table, address, shift);
            if (!slot.Contains(location))
            {
                slot = ref vm.Memory.Slots.Find(location);
                if (!slot.Contains(location))
                    return WalkResult.NotPresent;
            }
            if (!TryReadEntry<TMode>(in slot, location, out ulong entry))
                return WalkResult.NotPresent;
            if ((entry & checkedBits) != GuestEntry.Present)
                return (entry & GuestEntry.Present) == 0 ? WalkResult.NotPresent : WalkResult.Reserved;
            if (!TMode.IsPlain(shift))
                rights &= entry ^ GuestEntry.NoExecute;

            mapping.Leaf = entry;
            mapping.Rights = rights;
            mapping.Shift = shift;
            if (shift == Page.Shift)
                return WalkResult.Found;
            if (TMode.IsLargePage(in paging, entry, shift))
            {
                bool malformed = (entry & TMode.ReservedInLargePage(in paging, shift)) != 0;
                return malformed ? WalkResult.Reserved : WalkResult.Found;
            }
            if (TMode.IsBadPointer(entry, shift))
                return WalkResult.Reserved;
            table = entry & GuestEntry.AddressMask;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Gpa EntryAddress<TMode>(ulong table, Gva address, int shift) where TMode : struct, IPagingMode
    {
        // The top level of PAE has an index of two bits, because linear addresses have 32 there.
        ulong linear = TMode.TopShift > 32 ? address.Value : (uint)address.Value;
        ulong index = (linear >> shift) & ((1UL << TMode.IndexBits) - 1);
        return new Gpa(table + (index << TMode.EntryShift));
    }

    /// <summary>Reads an entry that lies in <paramref name="slot"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool TryReadEntry<TMode>(in MemorySlot slot, Gpa location, out ulong entry)
        where TMode : struct, IPagingMode
    {
        if (TMode.EntryShift == 3)
            return UserMemory.TryReadUInt64(slot.ToHva(location), out entry);
        bool read = UserMemory.TryReadUInt64(slot.ToHva(new Gpa(location.Value & ~7UL)), out ulong pair);
        entry = (uint)(pair >> (int)((location.Value & 4) * 8));
        return read;
    }

    /// <summary>Checks rights: <see cref="PageFaultCode.None"/> or what the error code says of the violation.</summary>
    private static PageFaultCode Violation(in PagingState paging, ulong leaf, ulong rights, PageAccess access)
    {
        bool user = IsUser(in paging, access);
        bool userPage = (rights & GuestEntry.User) != 0;
        bool denied = user && !userPage;
        if ((access & PageAccess.Fetch) != 0)
        {
            denied |= (rights & GuestEntry.NoExecute) == 0;
            denied |= !user && userPage && (paging.Cr4 & PagingState.Cr4Smep) != 0;
            return denied ? PageFaultCode.Present : PageFaultCode.None;
        }

        bool writes = (access & PageAccess.Write) != 0 && (user || (paging.Cr0 & PagingState.Cr0Wp) != 0);
        denied |= writes && (rights & GuestEntry.Writable) == 0;
        if (!user && userPage && (paging.Cr4 & PagingState.Cr4Smap) != 0)
            denied |= !paging.AlignmentCheck || (access & PageAccess.Implicit) != 0;
        if (userPage && (paging.Cr4 & PagingState.Cr4Pke) != 0 && (paging.Efer & PagingState.EferLma) != 0)
        {
            int key = (int)(leaf >> GuestEntry.ProtectionKeyShift) & 15;
            uint disabled = (paging.Pkru >> (2 * key)) & 3;
            if ((disabled & 1) != 0 || (disabled != 0 && writes))
                return PageFaultCode.Present | PageFaultCode.ProtectionKey;
        }
        return denied ? PageFaultCode.Present : PageFaultCode.None;
    }

    private static bool IsUser(in PagingState paging, PageAccess access) =>
        paging.Cpl == 3 && (access & PageAccess.Implicit) == 0;

    private static Translation Fail(in PagingState paging, PageAccess access, WalkResult result) =>
        Fail(in paging, access, result == WalkResult.Reserved
            ? PageFaultCode.Present | PageFaultCode.Reserved
            : PageFaultCode.None);

    /// <summary>The #PF: what is wrong, and which kind of access it was.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Translation Fail(in PagingState paging, PageAccess access, PageFaultCode reason)
    {
        PageFaultCode code = reason | (PageFaultCode)(access & PageAccess.Write);
        if (IsUser(in paging, access))
            code |= PageFaultCode.User;
        // The fetch bit exists only where something can forbid fetches.
        bool noExecute = (paging.Cr4 & PagingState.Cr4Pae) != 0 && (paging.Efer & PagingState.EferNxe) != 0;
        if (noExecute || (paging.Cr4 & PagingState.Cr4Smep) != 0)
            code |= (PageFaultCode)(access & PageAccess.Fetch);
        return new Translation(code);
    }

    /// <summary>
    /// Sets the accessed flags of all levels and <paramref name="dirty"/> in the last. In a read-only slot they stay as
    /// they are.
    /// </summary>
    /// <returns>False when an entry is no longer what the walk found.</returns>
    private static bool SetFlags<TMode>(
        ref Vm.Vm vm, in PagingState paging, Gva address, ulong leaf, ulong dirty) where TMode : struct, IPagingMode
    {
        ulong table = paging.Cr3 & TMode.RootMask;
        for (int shift = TMode.TopShift; ; shift -= TMode.IndexBits)
        {
            Gpa location = EntryAddress<TMode>(table, address, shift);
            ref MemorySlot slot = ref vm.Memory.Slots.Find(location);
            if (!slot.Contains(location) || !TryReadEntry<TMode>(in slot, location, out ulong entry))
                return false;
            if ((entry & GuestEntry.Present) == 0)
                return false;
            bool last = shift == Page.Shift || TMode.IsLargePage(in paging, entry, shift);
            if (last && ((entry ^ leaf) & ~(GuestEntry.Accessed | GuestEntry.Dirty)) != 0)
                return false;

            ulong flagged = entry | GuestEntry.Accessed | (last ? dirty : 0);
            if (flagged != entry && !TMode.IsPlain(shift) && !slot.IsReadOnly)
            {
                GuestMemory.CompareExchange(
                    ref vm, location, 1 << TMode.EntryShift, entry, flagged, out bool swapped);
                if (!swapped)
                    return false;
            }
            if (last)
                return true;
            table = entry & GuestEntry.AddressMask;
        }
    }
}
