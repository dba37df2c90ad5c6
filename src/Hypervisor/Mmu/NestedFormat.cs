// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// How entries of nested tables are written. Read they are alike in both vendors' formats (see
/// <see cref="NestedTables"/>), which keeps everything but the making of entries free of the format.
/// </summary>
internal interface INestedFormat
{
    /// <summary>
    /// Set by hardware when it uses an entry; the rights when hardware has no such bit: a fault gives them back.
    /// </summary>
    static abstract ulong Accessed { get; }

    /// <summary>An entry that points at a table one level down and restricts nothing.</summary>
    static abstract ulong Table(Hpa table);

    /// <summary>
    /// An entry of level 1, 2 or 3 that maps 4 KiB, 2 MiB or 1 GiB of write-back memory, readable and, unless the CPU
    /// is better off without, executable.
    /// </summary>
    static abstract ulong Leaf(Pfn frame, int level);
}

/// <summary>
/// AMD nested paging: the long-mode format, walked with user rights (APM vol. 2, 15.25.5). Accessed and dirty are set
/// from the start; hardware writes to an entry only after software has taken accessed away to learn of the next use.
/// </summary>
internal readonly struct Npt : INestedFormat
{
    private const ulong Common = GuestEntry.Present | GuestEntry.User | GuestEntry.Accessed;

    public static ulong Accessed => GuestEntry.Accessed;

    public static ulong Table(Hpa table) => table.Value | Common | NestedTables.Writable;

    public static ulong Leaf(Pfn frame, int level) =>
        frame.Address.Value | Common | GuestEntry.Dirty | (level > 1 ? NestedTables.Large : 0);
}

/// <summary>
/// Intel extended page tables (SDM vol. 3, 29.3.2): readable, writable and executable in bits 0 to 2, the memory type,
/// write-back whatever the guest's PAT says, in leaves.
/// </summary>
internal readonly struct Ept : INestedFormat
{
    private const ulong Read = 1 << 0, Execute = 1 << 2, WriteBack = 6 << 3, IgnorePat = 1 << 6, AccessedBit = 1 << 8;

    /// <summary>What the CPUs have; set when the module is loaded.</summary>
    public static bool HasAccessedDirty;
    public static int LargestLevel;
    /// <summary>
    /// Large pages are not executable: CPUs with the erratum of instruction TLBs that hold a page in two sizes at once
    /// check the machine (iTLB multihit).
    /// </summary>
    public static bool ExecutesSmallOnly;

    /// <summary>They can log the first write to a page by its address (page-modification logging).</summary>
    public static bool LogsWrites;

    /// <summary>A CPU without the bit faults when it uses an entry whose rights were taken away.</summary>
    public static ulong Accessed => HasAccessedDirty ? AccessedBit : Read | NestedTables.Writable | Execute;

    /// <summary>The highest level that a fault maps.</summary>
    public static int LargestFor(bool fetch) => fetch && ExecutesSmallOnly ? 1 : LargestLevel;

    public static ulong Table(Hpa table) => table.Value | Read | NestedTables.Writable | Execute | AccessedBit;

    public static ulong Leaf(Pfn frame, int level) => frame.Address.Value | Read | WriteBack | IgnorePat | AccessedBit
        | NestedTables.Written | (level > 1 ? NestedTables.Large : 0) | (level > 1 && ExecutesSmallOnly ? 0 : Execute);
}
