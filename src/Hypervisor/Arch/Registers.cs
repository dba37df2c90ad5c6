// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>IA32_APIC_BASE (SDM vol. 3, 11.4.4).</summary>
internal static class ApicBase
{
    public const ulong Bsp = 1 << 8, X2apic = 1 << 10, Enable = 1 << 11, DefaultAddress = 0xfee00000;
    /// <summary>x2APIC mode is reserved where it is not a feature.</summary>
    public const ulong Reserved = 0x2ff | X2apic;
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
