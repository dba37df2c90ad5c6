// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>MSR numbers (SDM vol. 4; APM vol. 2, appendix A).</summary>
internal static class Msr
{
    public const uint Tsc = 0x10, PlatformId = 0x17, ApicBase = 0x1b, EblCrPowerOn = 0x2a, TscAdjust = 0x3b,
        SpecCtrl = 0x48, PredCmd = 0x49, MicrocodeRevision = 0x8b, PlatformInfo = 0xce, MtrrCap = 0xfe,
        SysenterCs = 0x174, SysenterEsp = 0x175, SysenterEip = 0x176, McgCap = 0x179, McgStatus = 0x17a, McgCtl = 0x17b,
        MiscEnable = 0x1a0, LastBranchFrom = 0x1db, LastIntTo = 0x1de, DebugCtl = 0x1d9, PowerCtl = 0x1fc,
        MtrrVariable = 0x200, MtrrFix64K = 0x250, MtrrFix16K = 0x258, MtrrFix4K = 0x268, Pat = 0x277,
        MtrrDefType = 0x2ff, MachineCheckBanks = 0x400, TscDeadline = 0x6e0, X2apic = 0x800, X2apicLast = 0x8ff,
        Efer = 0xc0000080, Star = 0xc0000081, Lstar = 0xc0000082, Cstar = 0xc0000083, Sfmask = 0xc0000084,
        FsBase = 0xc0000100, GsBase = 0xc0000101, KernelGsBase = 0xc0000102, TscAux = 0xc0000103,
        K7EventSelect = 0xc0010000, K7CounterLast = 0xc0010007, Syscfg = 0xc0010010, Hwcr = 0xc0010015,
        IorrBase = 0xc0010016, TopMem2 = 0xc001001d, NbCfg = 0xc001001f, PatchLoader = 0xc0010020,
        IntPendingMessage = 0xc0010055, PstateCurrentLimit = 0xc0010061, PstateLast = 0xc001006b,
        TsegAddress = 0xc0010112, VmCr = 0xc0010114, VmHsavePa = 0xc0010117, MmioConfigBase = 0xc0010058,
        LsCfg = 0xc0011020, DcCfg = 0xc0011022, BuCfg2 = 0xc001102a, DeCfg = 0xc0011029;
}
