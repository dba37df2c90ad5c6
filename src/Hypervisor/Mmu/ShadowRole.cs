// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// A walk through the guest's tables, by the level of the shadow table that stands for each: 1 maps pages.
/// Restrictions are rights that are missing: bits 1 and 2 as in an entry but inverted, bit 63 as it is.
/// </summary>
internal struct WalkPath
{
    public const int Levels = 5, Group = 8;
    public const ulong Rights = GuestEntry.Writable | GuestEntry.User | GuestEntry.NoExecute;

    /// <summary>Address of the guest's table, and in other bits what the levels above it restrict.</summary>
    public InlineArray8<ulong> Steps;
    /// <summary>The level at which the guest maps the page; above all levels without paging.</summary>
    public int Bottom;
    /// <summary>The entry that maps the page, and what it restricts together with those above.</summary>
    public ulong Entry, Restrictions;
    /// <summary>If it is one of level 1, and of 64 bits: it and its neighbours, an aligned group; else 0.</summary>
    public InlineArray8<ulong> Near;

    public static WalkPath WithoutPaging => new() { Bottom = Levels + 1, Entry = GuestEntry.Dirty };

    /// <summary>An entry of a table whose entries cover 2^shift bytes; one of 4 MiB has two in the shadow.</summary>
    public void Note(int shift, ulong table, ulong entry, ulong above, bool isPlain)
    {
        Bottom = (shift - Page.Shift) / 9 + 1;
        Entry = entry;
        Steps[Bottom] = table & GuestEntry.AddressMask | above & Rights;
        Restrictions = (isPlain ? above : above | ShadowRole.Invert(entry)) & Rights;
    }

    public static Gfn FrameOf(ulong step) => new Gpa(step & GuestEntry.AddressMask).Frame;
}

/// <summary>
/// What besides its frame tells one shadow of a guest's table from another: all that its entries depend on. The
/// restrictions of the levels above are in their own bits. And what entries of shadow tables are, whose format is that
/// of long mode and PAE.
/// </summary>
internal static class ShadowRole
{
    public const ulong KeyMask = 15UL << GuestEntry.ProtectionKeyShift;
    /// <summary>An entry for a table: rights and key are those of the entry that maps the page.</summary>
    public const ulong Table = GuestEntry.Present | GuestEntry.Writable | GuestEntry.User | GuestEntry.Accessed;

    /// <summary>An entry's rights as restrictions, and back.</summary>
    public static ulong Invert(ulong entry) => entry ^ (GuestEntry.Writable | GuestEntry.User);

    /// <summary>The flags of an entry that maps a page; accessed and dirty are the guest's own affair.</summary>
    public static ulong Leaf(ulong restrictions) =>
        GuestEntry.Present | GuestEntry.Accessed | GuestEntry.Dirty | Invert(restrictions);

    /// <summary>
    /// Stands for no table, but for a part of a page, with its key, or, without paging, for a part of memory.
    /// </summary>
    public const ulong Direct = 1 << 15;
    /// <summary>
    /// The guest may write to its table, and entries may be out of date, until a vCPU flushes its TLB.
    /// </summary>
    public const ulong Unsync = 1 << 24;
    private const ulong Narrow = 1 << 18, Long = 1 << 19, NoExecuteOn = 1 << 20;
    private const int LevelShift = 12, QuadrantShift = 16;

    public static ulong DirectAt(int level, ulong restrictions) => Direct | (ulong)level << LevelShift | restrictions;

    /// <summary>Of a guest's table that is used for an address.</summary>
    public static ulong Of(in PagingState paging, Gva address, int level, ulong above)
    {
        ulong role = (ulong)level << LevelShift | above & WalkPath.Rights;
        if ((paging.Cr4 & Cr4.Pae) == 0)
            role |= Narrow | (address.Value >> Page.Shift + 9 * level & (level == 1 ? 1ul : 3)) << QuadrantShift;
        else if ((paging.Efer & Efer.Lma) != 0)
            role |= Long;
        // Bits 21 to 23: what else entries mean something by.
        return role | ((paging.Efer & Efer.Nxe) != 0 ? NoExecuteOn : 0) | (paging.Cr4 & Cr4.Pse) << 17
            | ((paging.Cr0 & Cr0.Wp) != 0 ? 1ul << 22 : (paging.Cr4 & Cr4.Smep) << 3);
    }

    public static int LevelOf(ulong role) => (int)(role >> LevelShift) & 7;

    /// <summary>Bytes of one of the guest's entries.</summary>
    public static int EntrySizeOf(ulong role) => (role & Narrow) != 0 ? sizeof(uint) : sizeof(ulong);

    /// <summary>A table of 32-bit entries has two shadows (level 1) or four (level 2): which one this is.</summary>
    public static int QuadrantOf(ulong role) => (int)(role >> QuadrantShift & 3);

    /// <summary>
    /// Whether a guest's entry, in a table of level 1, maps a page that the guest has used, and what it restricts
    /// together with those above.
    /// </summary>
    public static bool TryRead(ulong role, ulong guest, out ulong restrictions)
    {
        const ulong Needed = GuestEntry.Present | GuestEntry.Accessed, PaeReserved = 0x7ff0_0000_0000_0000;
        ulong reserved = ((role & NoExecuteOn) != 0 ? 0 : GuestEntry.NoExecute)
            | ((role & (Long | Narrow)) != 0 ? 0 : PaeReserved);
        restrictions = (role | Invert(guest)) & WalkPath.Rights
            | ((role & Long) != 0 ? guest & KeyMask : 0)
            | ((guest & GuestEntry.Dirty) == 0 ? GuestEntry.Writable : 0);
        return (guest & (Needed | reserved)) == Needed && (role & Direct) == 0 && LevelOf(role) == 1;
    }

    /// <summary>Whether an entry of level 1 is still one that the guest's entry allows.</summary>
    public static bool Agrees(ulong role, ulong entry, ulong frame, ulong guest) =>
        TryRead(role, guest, out ulong restrictions) && WalkPath.FrameOf(guest).Value == frame
            && ((entry ^ Leaf(restrictions)) & ~(GuestEntry.AddressMask | GuestEntry.Accessed
                | ~restrictions & GuestEntry.Writable)) == 0;
}
