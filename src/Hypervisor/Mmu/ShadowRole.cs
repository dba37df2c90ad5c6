// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// A walk through the guest's tables, by the level of the shadow table that stands for each: 1 maps pages.
/// Restrictions are rights that are missing: bits 1 and 2 as in an entry but inverted, bit 63 as it is.
/// </summary>
internal struct WalkPath
{
    public const int Levels = 5;
    public const ulong Rights = GuestEntry.Writable | GuestEntry.User | GuestEntry.NoExecute;

    public struct Step
    {
        /// <summary>Frame of the guest's table.</summary>
        public ulong Table;
        /// <summary>What the levels above it restrict.</summary>
        public ulong Above;
    }

    [InlineArray(Levels + 1)]
    private struct ByLevel
    {
        private Step _first;
    }

    private ByLevel _steps;
    /// <summary>The level at which the guest maps the page; above all levels without paging.</summary>
    public int Bottom;
    /// <summary>The entry that maps the page, and what it restricts together with those above.</summary>
    public ulong Entry, Restrictions;

    public static WalkPath WithoutPaging => new() { Bottom = Levels + 1, Entry = GuestEntry.Dirty };

    [UnscopedRef]
    public ref Step this[int level] => ref _steps[level];

    /// <summary>An entry of a table whose entries cover 2^shift bytes; one of 4 MiB has two in the shadow.</summary>
    public void Note(int shift, ulong table, ulong entry, ulong above, bool isPlain)
    {
        Bottom = (shift - Page.Shift) / 9 + 1;
        Entry = entry;
        _steps[Bottom] = new Step { Table = table >> Page.Shift, Above = above & Rights };
        Restrictions = (isPlain ? above : above | entry ^ GuestEntry.Writable ^ GuestEntry.User) & Rights;
    }
}

/// <summary>
/// What besides its frame tells one shadow of a guest's table from another: all that its entries depend on. A direct
/// one stands for no table, but for a part of a large page or, without paging, of memory.
/// </summary>
internal readonly struct ShadowRole
{
    private const uint LevelMask = 7, DirectBit = 1 << 3, Narrow = 1 << 6, Long = 1 << 7, NoExecuteOn = 1 << 8;
    private const int QuadrantShift = 4, RightsShift = 13, KeyShift = 16;

    private readonly uint _value;

    private ShadowRole(uint value, int level, ulong restrictions) => _value = value | (uint)level
        | (uint)((restrictions & 6) >> 1 | (restrictions & WalkPath.Rights) >> 63 << 2) << RightsShift;

    /// <summary>Of a part of a page with these restrictions and protection key.</summary>
    public static ShadowRole Direct(int level, ulong restrictions, ulong key) =>
        new(DirectBit | (uint)(key >> GuestEntry.ProtectionKeyShift) << KeyShift, level, restrictions);

    /// <summary>Of a guest's table that is used for an address.</summary>
    public static ShadowRole Of(in PagingState paging, Gva address, int level, ulong above)
    {
        bool narrow = (paging.Cr4 & Cr4.Pae) == 0, isLong = (paging.Efer & Efer.Lma) != 0;
        uint quadrant = (uint)(address.Value >> Page.Shift + 9 * level) & (level == 1 ? 1u : 3);
        uint mode = narrow ? Narrow | quadrant << QuadrantShift : isLong ? Long : 0;
        if ((paging.Efer & Efer.Nxe) != 0)
            mode |= NoExecuteOn;
        if ((paging.Cr0 & Cr0.Wp) == 0)
            mode |= 1u << 9 | ((paging.Cr4 & Cr4.Smep) != 0 ? 1u << 10 : 0);
        if ((paging.Cr4 & Cr4.Pse) != 0)
            mode |= 1u << 12;
        return new(mode, level, above);
    }

    /// <summary>0: the place is not in use.</summary>
    public int Level => (int)(_value & LevelMask);
    public bool IsDirect => (_value & DirectBit) != 0;
    /// <summary>Whether pages of this kind are the last level of the guest's own tables.</summary>
    public bool IsLeafTable => (_value & (LevelMask | DirectBit)) == 1;
    /// <summary>Bytes of one of the guest's entries.</summary>
    public int EntrySize => (_value & Narrow) != 0 ? sizeof(uint) : sizeof(ulong);
    /// <summary>A guest's table of 32-bit entries has two shadows (level 1) or four (level 2): which part this is.</summary>
    public int Quadrant => (int)(_value >> QuadrantShift & 3);

    public bool Equals(ShadowRole other) => _value == other._value;

    private ulong Above => (ulong)(_value >> RightsShift & 3) << 1 | (ulong)(_value >> RightsShift + 2 & 1) << 63;

    /// <summary>Whether a shadow's entry is still one that the guest's entry of the last level allows.</summary>
    public bool Agrees(ulong entry, ulong frame, ulong guest)
    {
        const ulong Needed = GuestEntry.Present | GuestEntry.Accessed, PaeReserved = 0x7ff0_0000_0000_0000;
        ulong reserved = ((_value & NoExecuteOn) != 0 ? 0 : GuestEntry.NoExecute)
            | ((_value & (Long | Narrow)) != 0 ? 0 : PaeReserved);
        ulong restrictions = Above | (guest ^ GuestEntry.Writable ^ GuestEntry.User) & WalkPath.Rights;
        ulong wanted = ShadowEntry.Leaf(restrictions, guest, (_value & Long) != 0);
        if ((guest & GuestEntry.Dirty) == 0)
            wanted &= ~GuestEntry.Writable;
        ulong differs = (entry ^ wanted) & ~(GuestEntry.AddressMask | GuestEntry.Accessed);
        return (guest & Needed) == Needed && (guest & reserved) == 0 && (guest & GuestEntry.AddressMask) >> Page.Shift == frame
            && (differs & ~(wanted & GuestEntry.Writable)) == 0;
    }
}

/// <summary>Entries of shadow tables: the long-mode and PAE format. Rights are those of the entry that maps the page.</summary>
internal static class ShadowEntry
{
    private const ulong KeyMask = 15UL << GuestEntry.ProtectionKeyShift;

    public static ulong Table(Hpa table) =>
        table.Value | GuestEntry.Present | GuestEntry.Writable | GuestEntry.User | GuestEntry.Accessed;

    /// <summary>The flags of an entry that maps a page; accessed and dirty are the guest's own affair.</summary>
    public static ulong Leaf(ulong restrictions, ulong guest, bool isLong) =>
        GuestEntry.Present | GuestEntry.Accessed | GuestEntry.Dirty | Key(guest, isLong)
        | (restrictions & WalkPath.Rights) ^ GuestEntry.Writable ^ GuestEntry.User;

    public static ulong Key(ulong guest, bool isLong) => isLong ? guest & KeyMask : 0;
}
