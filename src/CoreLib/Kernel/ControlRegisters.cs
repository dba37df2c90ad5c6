// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using static System.Runtime.CompilerServices.MethodImplOptions;

namespace Kernel;

/// <summary>CR0 bits (SDM vol. 3, 2.5).</summary>
internal static class Cr0
{
    public const ulong Pe = 1 << 0, Mp = 1 << 1, Em = 1 << 2, Ts = 1 << 3, Et = 1 << 4, Ne = 1 << 5, Wp = 1 << 16,
        Am = 1 << 18, Nw = 1 << 29, Cd = 1 << 30, Pg = 1ul << 31,
        Defined = Pe | Mp | Em | Ts | Et | Ne | Wp | Am | Nw | Cd | Pg;

    /// <summary>No reserved upper bits, no paging without protection, no NW without CD.</summary>
    public static bool IsValid(ulong value) =>
        value >> 32 == 0 && (value & (Pg | Pe)) != Pg && (value & (Nw | Cd)) != Nw;
}

/// <summary>CR4 bits (SDM vol. 3, 2.5).</summary>
internal static class Cr4
{
    public const ulong Vme = 1 << 0, Pvi = 1 << 1, Tsd = 1 << 2, De = 1 << 3, Pse = 1 << 4, Pae = 1 << 5, Mce = 1 << 6,
        Pge = 1 << 7, Pce = 1 << 8, Osfxsr = 1 << 9, Osxmmexcpt = 1 << 10,
        Umip = 1 << 11, La57 = 1 << 12, Vmxe = 1 << 13, Fsgsbase = 1 << 16, Pcide = 1 << 17, Osxsave = 1 << 18,
        Smep = 1 << 20, Smap = 1 << 21, Pke = 1 << 22;
    /// <summary>VME … OSXMMEXCPT: every 64-bit CPU has them.</summary>
    public const ulong Always = 0x7ff;

    /// <summary>Whether a linear address is canonical, 48 or 57 bits by the paging mode.</summary>
    [MethodImpl(AggressiveInlining)] public static bool IsCanonical(ulong cr4, ulong address)
    {
        int unused = (cr4 & La57) != 0 ? 64 - 57 : 64 - 48;
        return (long)(address << unused) >> unused == (long)address;
    }
}

/// <summary>EFER bits (APM vol. 2, 3.1.7).</summary>
internal static class Efer
{
    public const ulong Sce = 1 << 0, Lme = 1 << 8, Lma = 1 << 10, Nxe = 1 << 11, Svme = 1 << 12, Ffxsr = 1 << 14;
}

/// <summary>DR6 and DR7 bits (SDM vol. 3, 18.2).</summary>
internal static class DebugBits
{
    public const ulong Dr6Bd = 1 << 13, Dr6Bs = 1 << 14, Dr6Traps = 0xf, Dr6Writable = 0xe00f, Dr6Fixed = 0xffff0ff0,
        Dr7Writable = 0xffff23ff, Dr7Fixed = 0x400, Dr7Enable = 0xff, Dr7Gd = 1 << 13;
}
