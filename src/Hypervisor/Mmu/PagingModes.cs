// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>Bits of the guest's page-table entries that all paging modes share (SDM vol. 3, 4.3 to 4.5).</summary>
internal static class GuestEntry
{
    public const ulong Present = 1 << 0, Writable = 1 << 1, User = 1 << 2, Accessed = 1 << 5, Dirty = 1 << 6,
        LargePage = 1 << 7, NoExecute = 1UL << 63;

    public const ulong AddressMask = 0x000f_ffff_ffff_f000;
    public const int ProtectionKeyShift = 59;

    /// <summary>
    /// Bits that must be 0 in entries of 64 bits: addresses that the processor does not have, no-execute when that is
    /// off.
    /// </summary>
    [MethodImpl(AggressiveInlining)] public static ulong Reserved(in PagingState paging) =>
        AddressMask & (~0UL << paging.PhysicalBits) | ((paging.Efer & Efer.Nxe) != 0 ? 0 : NoExecute);

    /// <summary>Bits 13 up to the page's size, which are no part of a large page's address.</summary>
    public static ulong BelowLargePage(int shift) => (1UL << shift) - (1UL << 13);
}

/// <summary>
/// A format of the guest's page tables. A level is named by its shift: where its index lies in the linear address, and
/// also the size of the page if the entry maps one. A format that says nothing else has tables of 512 entries of 64
/// bits, each with rights and an accessed flag.
/// </summary>
internal interface IPagingMode
{
    static virtual int IndexBits => 9;
    /// <summary>Binary logarithm of an entry's size in bytes.</summary>
    static virtual int EntryShift => 3;
    static abstract ulong RootMask { get; }

    /// <summary>Bits that must be 0 in each present entry.</summary>
    static abstract ulong Reserved(in PagingState paging);
    /// <summary>
    /// More bits that must be 0 in an entry above the lowest level, which maps a large page or points at a table.
    /// </summary>
    static abstract ulong ReservedAbove(in PagingState paging, int shift, bool large);

    static abstract bool IsLargePage(in PagingState paging, ulong entry, int shift);
    static virtual ulong LargePageBase(ulong entry) => entry & GuestEntry.AddressMask;

    /// <summary>Whether the level has no rights and no accessed flag: then it restricts nothing.</summary>
    static virtual bool IsPlain(int shift) => false;
}

/// <summary>32-bit paging with 4 MiB pages and PSE-36 (SDM vol. 3, 4.3).</summary>
internal readonly struct Paging32 : IPagingMode
{
    public static int IndexBits => 10;
    public static int EntryShift => 2;
    public static ulong RootMask => 0xffff_f000;

    public static ulong Reserved(in PagingState paging) => 0;

    /// <summary>Bits 13-20 are address bits 32-39, as far as the processor has them; bit 21 is always 0.</summary>
    public static ulong ReservedAbove(in PagingState paging, int shift, bool large) =>
        large ? (1UL << 22) - (1UL << (Math.Min(40, (int)paging.PhysicalBits) - 19)) : 0;

    public static bool IsLargePage(in PagingState paging, ulong entry, int shift) =>
        (entry & GuestEntry.LargePage) != 0 && (paging.Cr4 & Cr4.Pse) != 0;

    public static ulong LargePageBase(ulong entry) => (entry & 0xffc0_0000) | ((entry & 0x001f_e000) << (32 - 13));
}

/// <summary>
/// PAE paging (SDM vol. 3, 4.4). The four entries at CR3 are read with each walk, as AMD processors do under nested
/// paging (APM vol. 2, 15.25.10).
/// </summary>
internal readonly struct PagingPae : IPagingMode
{
    private const int PointerShift = 30;

    public static ulong RootMask => 0xffff_ffe0;

    public static ulong Reserved(in PagingState paging) => GuestEntry.Reserved(in paging) | 0x7ff0_0000_0000_0000;

    // Emulated processors set the accessed flag in pointers, though the manuals reserve its place.
    public static ulong ReservedAbove(in PagingState paging, int shift, bool large) =>
        large ? GuestEntry.BelowLargePage(shift)
        : shift == PointerShift ? GuestEntry.NoExecute | (0x1e6 & ~GuestEntry.Accessed) : 0;

    public static bool IsLargePage(in PagingState paging, ulong entry, int shift) =>
        (entry & GuestEntry.LargePage) != 0 && shift < PointerShift;

    public static bool IsPlain(int shift) => shift == PointerShift;
}

/// <summary>4-level and 5-level paging (SDM vol. 3, 4.5).</summary>
internal readonly struct LongPaging : IPagingMode
{
    private const int LargestPageShift = 30;

    public static ulong RootMask => GuestEntry.AddressMask;

    public static ulong Reserved(in PagingState paging) => GuestEntry.Reserved(in paging);

    public static ulong ReservedAbove(in PagingState paging, int shift, bool large) =>
        large ? GuestEntry.BelowLargePage(shift) : shift > LargestPageShift ? GuestEntry.LargePage : 0;

    public static bool IsLargePage(in PagingState paging, ulong entry, int shift) =>
        (entry & GuestEntry.LargePage) != 0 && shift <= LargestPageShift;
}
