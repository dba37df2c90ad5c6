// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Registers of the local APIC by their offset in its page (SDM volume 3, table 11-1; APM volume 2, table
/// 16-2) and the bits that tests use.</summary>
static class Apic
{
    public const ulong Base = 0xFEE00000;

    public const int Id = 0x20, Version = 0x30, Tpr = 0x80, Apr = 0x90, Ppr = 0xA0, Eoi = 0xB0, Rrr = 0xC0, Ldr = 0xD0,
        Dfr = 0xE0, Svr = 0xF0, Isr = 0x100, Tmr = 0x180, Irr = 0x200, Esr = 0x280, LvtCmci = 0x2F0, Icr = 0x300,
        IcrHigh = 0x310, LvtTimer = 0x320, LvtThermal = 0x330, LvtPerf = 0x340, LvtLint0 = 0x350, LvtLint1 = 0x360,
        LvtError = 0x370, TimerInitial = 0x380, TimerCurrent = 0x390, TimerDivide = 0x3E0, SelfIpi = 0x3F0;

    public const uint SvrEnable = 0x100, SvrSuppressEoiBroadcast = 0x1000, VersionDirectedEoi = 1 << 24;
    public const uint DfrFlat = 0xFFFFFFFF, DfrCluster = 0x0FFFFFFF;

    /// <summary>Bits of an entry of the local vector table.</summary>
    public const uint Masked = 1 << 16, TimerPeriodic = 1 << 17, TimerDeadline = 2 << 17, ModeExtInt = 7 << 8;

    /// <summary>
    /// Bits of the interrupt command register; delivery modes are those of the I/O APIC and MSIs too.
    /// </summary>
    public const uint LowestPriority = 1 << 8, Nmi = 4 << 8, Init = 5 << 8, Startup = 6 << 8, Logical = 1 << 11,
        Assert = 1 << 14, Level = 1 << 15, ToSelf = 1 << 18, ToAll = 2 << 18, ToOthers = 3 << 18;

    /// <summary>Divide configuration register: by one.</summary>
    public const uint DivideBy1 = 0xB;

    /// <summary>MSRs, and bits of APIC_BASE.</summary>
    public const uint BaseMsr = 0x1B, DeadlineMsr = 0x6E0;
    public const ulong BaseBsp = 1 << 8, BaseX2 = 1 << 10, BaseEnable = 1 << 11;

    /// <summary>The x2APIC MSR of a register.</summary>
    public static uint Msr(int register) => 0x800 + ((uint)register >> 4);

    /// <summary>Whether a bit of one of the 256-bit registers <see cref="Isr"/>, <see cref="Tmr"/>,
    /// <see cref="Irr"/> is set.</summary>
    public static bool HasVector(this ref KvmLapicState lapic, int register, int vector) =>
        (lapic[register + (vector >> 5) * 0x10] >> (vector & 31) & 1) != 0;

    /// <summary>Sets a bit of one of the 256-bit registers.</summary>
    public static void AddVector(this ref KvmLapicState lapic, int register, int vector) =>
        lapic[register + (vector >> 5) * 0x10] |= 1u << (vector & 31);

    /// <summary>The vectors in one of the 256-bit registers, ascending.</summary>
    public static int[] Vectors(this KvmLapicState lapic, int register) =>
        [.. Enumerable.Range(0, 256).Where(vector => lapic.HasVector(register, vector))];
}
