// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Mmu;

namespace SharpKvm.Tests.Mmu;

/// <summary>
/// Paging as the SDM's figures and lists tell it (vol. 3, 4.3 to 4.8), bit by bit and without a thought of speed: what
/// the walker is compared with.
/// </summary>
internal sealed class PagingModel(PagingState state, Func<ulong, ulong?> read, Action<ulong, ulong> write)
{
    private enum Mode
    {
        None, Legacy, Pae, Long,
    }

    private readonly Mode _mode = (Bit(state.Cr0, 31), Bit(state.Cr4, 5), Bit(state.Efer, 10)) switch
    {
        (false, _, _) => Mode.None,
        (true, false, _) => Mode.Legacy,
        (true, true, false) => Mode.Pae,
        (true, true, true) => Mode.Long,
    };

    private int EntryBytes => _mode == Mode.Legacy ? 4 : 8;

    /// <summary>The physical address, or the error code of the #PF.</summary>
    public (ulong? Address, uint Error) Translate(ulong linear, PageAccess access)
    {
        bool isWrite = access.HasFlag(PageAccess.Write);
        bool isFetch = access.HasFlag(PageAccess.Fetch);
        bool isUser = state.Cpl == 3 && !access.HasFlag(PageAccess.Implicit);
        if (_mode == Mode.None)
            return (linear & 0xffff_ffff, 0);

        uint kind = (isWrite ? 2u : 0) | (isUser ? 4u : 0);
        if (isFetch && (Bit(state.Cr4, 20) || (Bit(state.Cr4, 5) && Bit(state.Efer, 11))))
            kind |= 16;

        List<(ulong Address, ulong Entry, int Level)> path = [];
        int level = _mode switch { Mode.Legacy => 2, Mode.Pae => 3, _ => Bit(state.Cr4, 12) ? 5 : 4 };
        ulong table = _mode switch
        {
            Mode.Legacy => Field(state.Cr3, 31, 12) << 12,
            Mode.Pae => Field(state.Cr3, 31, 5) << 5,
            _ => Field(state.Cr3, 51, 12) << 12,
        };
        bool isLeaf;
        do
        {
            ulong index = _mode switch
            {
                Mode.Legacy => level == 2 ? Field(linear, 31, 22) : Field(linear, 21, 12),
                Mode.Pae when level == 3 => Field(linear, 31, 30),
                _ => Field(linear, 12 + 9 * level - 1, 12 + 9 * (level - 1)),
            };
            ulong address = table + index * (ulong)EntryBytes;
            if (read(address) is not { } entry || !Bit(entry, 0))
                return (null, kind);
            isLeaf = level == 1 || (Bit(entry, 7) && MayBeLarge(level));
            for (int bit = 0; bit < EntryBytes * 8; bit++)
            {
                if (Bit(entry, bit) && IsReserved(bit, level, isLeaf))
                    return (null, kind | 1 | 8);
            }
            path.Add((address, entry, level));
            table = _mode == Mode.Legacy ? Field(entry, 31, 12) << 12 : Field(entry, 51, 12) << 12;
            level--;
        }
        while (!isLeaf);

        (ulong _, ulong leaf, int leafLevel) = path[^1];
        IEnumerable<ulong> rights = path.Where(step => !IsPointer(step.Level)).Select(step => step.Entry);
        bool writable = rights.All(entry => Bit(entry, 1));
        bool userPage = rights.All(entry => Bit(entry, 2));
        bool executable = EntryBytes == 4 || rights.All(entry => !Bit(entry, 63));
        bool wp = Bit(state.Cr0, 16);

        bool allowed = (isUser, isFetch, isWrite) switch
        {
            (true, true, _) => userPage && executable,
            (true, false, true) => userPage && writable,
            (true, false, false) => userPage,
            (false, true, _) => executable && !(userPage && Bit(state.Cr4, 20)),
            (false, false, true) => SmapAllows() && (writable || !wp),
            (false, false, false) => SmapAllows(),
        };
        bool keyDenies = false;
        if (_mode == Mode.Long && Bit(state.Cr4, 22) && userPage && !isFetch)
        {
            int key = (int)Field(leaf, 62, 59);
            bool accessDisabled = Bit(state.Pkru, 2 * key);
            bool writeDisabled = Bit(state.Pkru, 2 * key + 1);
            keyDenies = accessDisabled || (writeDisabled && isWrite && (isUser || wp));
        }
        if (!allowed || keyDenies)
            return (null, kind | 1 | (keyDenies ? 32u : 0));

        foreach ((ulong address, ulong entry, int at) in path)
        {
            if (IsPointer(at))
                continue;
            ulong flagged = entry | 1 << 5;
            if (isWrite && at == leafLevel)
                flagged |= 1 << 6;
            write(address, flagged);
        }
        int size = _mode == Mode.Legacy && leafLevel == 2 ? 22 : 12 + 9 * (leafLevel - 1);
        ulong page = Field(leaf, EntryBytes == 4 ? 31 : 51, size) << size;
        if (size == 22)
            page |= Field(leaf, 20, 13) << 32;
        return (page | Field(linear, size - 1, 0), 0);

        bool SmapAllows() => !userPage || !Bit(state.Cr4, 21)
            || (state.AlignmentCheck && !access.HasFlag(PageAccess.Implicit));
    }

    /// <summary>The page-directory-pointer entries of PAE have neither rights nor flags.</summary>
    private bool IsPointer(int level) => _mode == Mode.Pae && level == 3;

    private bool MayBeLarge(int level) => _mode switch
    {
        Mode.Legacy => level == 2 && Bit(state.Cr4, 4),
        Mode.Pae => level == 2,
        _ => level is 2 or 3,
    };

    private bool IsReserved(int bit, int level, bool isLeaf)
    {
        int width = state.PhysicalBits;
        if (_mode == Mode.Legacy)
            return isLeaf && level == 2 && bit <= 21 && bit >= Math.Min(40, width) - 19;
        if (IsPointer(level))
            return bit is 1 or 2 or 6 or 7 or 8 || bit >= width;
        if (bit == 63)
            return !Bit(state.Efer, 11);
        if (bit >= 52)
            return _mode == Mode.Pae;
        if (bit >= width || (bit == 7 && level >= 4))
            return true;
        return isLeaf && level > 1 && bit >= 13 && bit < 12 + 9 * (level - 1);
    }

    private static bool Bit(ulong value, int bit) => (value >> bit & 1) != 0;

    private static ulong Field(ulong value, int high, int low) => value << (63 - high) >> (63 - high + low);
}
