// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

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

/// <summary>IA32_APIC_BASE (SDM vol. 3, 11.4.4).</summary>
internal static class ApicBase
{
    public const ulong Bsp = 1 << 8, X2apic = 1 << 10, Enable = 1 << 11, DefaultAddress = 0xfee00000;
    /// <summary>x2APIC mode is reserved where it is not a feature.</summary>
    public const ulong Reserved = 0x2ff | X2apic;
}

/// <summary>DR6 and DR7 bits (SDM vol. 3, 18.2).</summary>
internal static class DebugBits
{
    public const ulong Dr6Bd = 1 << 13, Dr6Bs = 1 << 14, Dr6Traps = 0xf, Dr6Writable = 0xe00f, Dr6Fixed = 0xffff0ff0,
        Dr7Writable = 0xffff23ff, Dr7Fixed = 0x400, Dr7Enable = 0xff, Dr7Gd = 1 << 13;
}

/// <summary>MSR numbers (SDM vol. 4; APM vol. 2, appendix A).</summary>
internal static class Msr
{
    public const uint Tsc = 0x10, KvmWallClockOld = 0x11, KvmSystemTimeOld = 0x12, PlatformId = 0x17, ApicBase = 0x1b,
        EblCrPowerOn = 0x2a, TscAdjust = 0x3b, SpecCtrl = 0x48, PredCmd = 0x49, MicrocodeRevision = 0x8b,
        PlatformInfo = 0xce, MtrrCap = 0xfe, SysenterCs = 0x174, SysenterEsp = 0x175, SysenterEip = 0x176,
        McgCap = 0x179, McgStatus = 0x17a, McgCtl = 0x17b, MiscEnable = 0x1a0, LastBranchFrom = 0x1db,
        LastIntTo = 0x1de, DebugCtl = 0x1d9, PowerCtl = 0x1fc, MtrrVariable = 0x200, MtrrFix64K = 0x250,
        MtrrFix16K = 0x258, MtrrFix4K = 0x268, Pat = 0x277, MtrrDefType = 0x2ff, MachineCheckBanks = 0x400,
        TscDeadline = 0x6e0, X2apic = 0x800, X2apicLast = 0x8ff, KvmWallClock = 0x4b564d00, KvmSystemTime = 0x4b564d01,
        KvmAsyncFault = 0x4b564d02, KvmStealTime = 0x4b564d03, KvmEoi = 0x4b564d04, KvmPollControl = 0x4b564d05,
        KvmAsyncFaultVector = 0x4b564d06, KvmAsyncFaultAck = 0x4b564d07, Efer = 0xc0000080, Star = 0xc0000081,
        Lstar = 0xc0000082, Cstar = 0xc0000083, Sfmask = 0xc0000084, FsBase = 0xc0000100, GsBase = 0xc0000101,
        KernelGsBase = 0xc0000102, TscAux = 0xc0000103, K7EventSelect = 0xc0010000, K7CounterLast = 0xc0010007,
        Syscfg = 0xc0010010, Hwcr = 0xc0010015, IorrBase = 0xc0010016, TopMem2 = 0xc001001d, NbCfg = 0xc001001f,
        PatchLoader = 0xc0010020, IntPendingMessage = 0xc0010055, PstateCurrentLimit = 0xc0010061,
        PstateLast = 0xc001006b, TsegAddress = 0xc0010112, VmCr = 0xc0010114, VmHsavePa = 0xc0010117,
        MmioConfigBase = 0xc0010058, LsCfg = 0xc0011020, DcCfg = 0xc0011022, BuCfg2 = 0xc001102a, DeCfg = 0xc0011029;
}
