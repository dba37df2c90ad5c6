// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>
/// How entries of nested tables are written. Read they are alike in both vendors' formats (see
/// <see cref="NestedTables"/>), which keeps everything but the making of entries free of the format.
/// </summary>
internal interface INestedFormat
{
    /// <summary>An entry that points at a table one level down and restricts nothing.</summary>
    static abstract ulong Table(Hpa table);

    /// <summary>An entry that maps a 4 KiB page of write-back memory, readable and executable.</summary>
    static abstract ulong Leaf(Pfn frame, bool writable);
}

/// <summary>
/// AMD nested paging: the long-mode format, walked with user rights (APM vol. 2, 15.25.5). Accessed and dirty are set
/// from the start, so that hardware never writes an entry behind our back.
/// </summary>
internal readonly struct Npt : INestedFormat
{
    private const ulong Common = GuestEntry.Present | GuestEntry.User | GuestEntry.Accessed;

    public static ulong Table(Hpa table) => table.Value | Common | NestedTables.Writable;

    public static ulong Leaf(Pfn frame, bool writable) =>
        frame.Address.Value | Common | GuestEntry.Dirty | (writable ? NestedTables.Writable : 0);
}
