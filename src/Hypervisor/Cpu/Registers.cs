// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>CR0 bits (SDM vol. 3, 2.5).</summary>
internal static class Cr0
{
    public const ulong Pe = 1 << 0;
    public const ulong Mp = 1 << 1;
    public const ulong Em = 1 << 2;
    public const ulong Ts = 1 << 3;
    public const ulong Et = 1 << 4;
    public const ulong Ne = 1 << 5;
    public const ulong Wp = 1 << 16;
    public const ulong Am = 1 << 18;
    public const ulong Nw = 1 << 29;
    public const ulong Cd = 1 << 30;
    public const ulong Pg = 1ul << 31;
    public const ulong Defined = Pe | Mp | Em | Ts | Et | Ne | Wp | Am | Nw | Cd | Pg;

    /// <summary>No reserved upper bits, no paging without protection, no NW without CD.</summary>
    public static bool IsValid(ulong value) =>
        value >> 32 == 0 && (value & (Pg | Pe)) != Pg && (value & (Nw | Cd)) != Nw;
}

/// <summary>CR4 bits (SDM vol. 3, 2.5).</summary>
internal static class Cr4
{
    public const ulong De = 1 << 3;
    public const ulong Pae = 1 << 5;
    public const ulong Mce = 1 << 6;
    public const ulong Umip = 1 << 11;
    public const ulong La57 = 1 << 12;
    public const ulong Fsgsbase = 1 << 16;
    public const ulong Pcide = 1 << 17;
    public const ulong Osxsave = 1 << 18;
    public const ulong Smep = 1 << 20;
    public const ulong Smap = 1 << 21;
    public const ulong Pke = 1 << 22;
    /// <summary>VME … OSXMMEXCPT: every 64-bit CPU has them.</summary>
    public const ulong Always = 0x7ff;
}

/// <summary>EFER bits (APM vol. 2, 3.1.7).</summary>
internal static class Efer
{
    public const ulong Sce = 1 << 0;
    public const ulong Lme = 1 << 8;
    public const ulong Lma = 1 << 10;
    public const ulong Nxe = 1 << 11;
    public const ulong Svme = 1 << 12;
    public const ulong Ffxsr = 1 << 14;
}

/// <summary>IA32_APIC_BASE (SDM vol. 3, 11.4.4).</summary>
internal static class ApicBase
{
    public const ulong Bsp = 1 << 8;
    public const ulong X2apic = 1 << 10;
    public const ulong Enable = 1 << 11;
    public const ulong DefaultAddress = 0xfee00000;
    /// <summary>x2APIC mode is reserved too: no guest is given that feature.</summary>
    public const ulong Reserved = 0x2ff | X2apic;
}

/// <summary>DR6 and DR7 bits (SDM vol. 3, 18.2).</summary>
internal static class DebugBits
{
    public const ulong Dr6Bd = 1 << 13;
    public const ulong Dr6Traps = 0xf;
    public const ulong Dr6Writable = 0xe00f;
    public const ulong Dr6Fixed = 0xffff0ff0;
    public const ulong Dr7Writable = 0xffff23ff;
    public const ulong Dr7Fixed = 0x400;
    public const ulong Dr7Enable = 0xff;
    public const ulong Dr7Gd = 1 << 13;
}

/// <summary>MSR numbers (SDM vol. 4; APM vol. 2, appendix A).</summary>
internal static class Msr
{
    public const uint Tsc = 0x10;
    public const uint KvmWallClockOld = 0x11, KvmSystemTimeOld = 0x12;
    public const uint PlatformId = 0x17;
    public const uint ApicBase = 0x1b;
    public const uint EblCrPowerOn = 0x2a;
    public const uint FeatureControl = 0x3a;
    public const uint TscAdjust = 0x3b;
    public const uint SpecCtrl = 0x48;
    public const uint PredCmd = 0x49;
    public const uint MicrocodeRevision = 0x8b;
    public const uint MtrrCap = 0xfe;
    public const uint SysenterCs = 0x174, SysenterEsp = 0x175, SysenterEip = 0x176;
    public const uint McgCap = 0x179, McgStatus = 0x17a, McgCtl = 0x17b;
    public const uint MiscEnable = 0x1a0;
    public const uint LastBranchFrom = 0x1db, LastIntTo = 0x1de;
    public const uint DebugCtl = 0x1d9;
    public const uint MtrrVariable = 0x200, MtrrFix64K = 0x250, MtrrFix16K = 0x258, MtrrFix4K = 0x268;
    public const uint Pat = 0x277;
    public const uint MtrrDefType = 0x2ff;
    public const uint MachineCheckBanks = 0x400;
    public const uint KvmFirst = 0x4b564d00, KvmLast = 0x4b564d07;
    public const uint Efer = 0xc0000080, Star = 0xc0000081, Lstar = 0xc0000082, Cstar = 0xc0000083;
    public const uint Sfmask = 0xc0000084, FsBase = 0xc0000100, GsBase = 0xc0000101, KernelGsBase = 0xc0000102;
    public const uint TscAux = 0xc0000103;
    public const uint K7EventSelect = 0xc0010000, K7CounterLast = 0xc0010007;
    public const uint Syscfg = 0xc0010010, Hwcr = 0xc0010015;
    public const uint IorrBase = 0xc0010016, TopMem = 0xc001001a, TopMem2 = 0xc001001d;
    public const uint NbCfg = 0xc001001f;
    public const uint PatchLoader = 0xc0010020;
    public const uint IntPendingMessage = 0xc0010055;
    public const uint PstateCurrentLimit = 0xc0010061, PstateLast = 0xc001006b;
    public const uint VmCr = 0xc0010114, VmHsavePa = 0xc0010117;
    public const uint MmioConfigBase = 0xc0010058;
    public const uint LsCfg = 0xc0011020, DcCfg = 0xc0011022, BuCfg2 = 0xc001102a, DeCfg = 0xc0011029;
}
