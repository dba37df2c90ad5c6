// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;
using SharpKvm.Vm;

namespace SharpKvm.Cpu;

/// <summary>MSRs that hardware does not switch for the guest.</summary>
internal struct MsrState
{
    /// <summary>Machine-check banks, the value of KVM_CAP_MCE.</summary>
    public const int MaxBanks = 32;
    public const int RegistersPerBank = 4;
    public const ulong McgCtlPresent = 1 << 8;
    private const ulong McgRecovery = 1 << 24;
    public const ulong McgSupported = McgCtlPresent | McgRecovery;
    private const int MtrrPairs = 8;
    public const int FirstFixed = 2 * MtrrPairs;
    /// <summary>Eight variable pairs, fixed ranges, write-combining (SDM vol. 3, 12.11.1).</summary>
    public const ulong MtrrCapabilities = 0x500 | MtrrPairs;

    /// <summary>Base and mask of each variable MTRR, then the fixed ones.</summary>
    [InlineArray(FirstFixed + 11)]
    internal struct MtrrFile
    {
        private ulong _first;
    }

    [InlineArray(MaxBanks * RegistersPerBank)]
    internal struct McBanks
    {
        private ulong _first;
    }

    public ulong ApicBase, MiscEnable, TscAdjust, Hwcr, DeCfg, MicrocodeRevision, MtrrDefType;
    public ulong McgCap, McgStatus, McgCtl;
    public MtrrFile Mtrrs;
    /// <summary>CTL, STATUS, ADDR, MISC of each bank.</summary>
    public McBanks Banks;

    public readonly int BankCount => (int)(McgCap & 0xff);

    /// <summary>Where an MTRR is kept in <see cref="Mtrrs"/>; -1 for another MSR.</summary>
    public static int MtrrSlot(uint index) => index switch
    {
        >= Msr.MtrrVariable and < Msr.MtrrVariable + FirstFixed => (int)(index - Msr.MtrrVariable),
        Msr.MtrrFix64K => FirstFixed,
        Msr.MtrrFix16K or Msr.MtrrFix16K + 1 => (int)(FirstFixed + 1 + index - Msr.MtrrFix16K),
        >= Msr.MtrrFix4K and < Msr.MtrrFix4K + 8 => (int)(FirstFixed + 3 + index - Msr.MtrrFix4K),
        _ => -1,
    };
}

/// <summary>
/// Model-specific registers (SDM vol. 4; APM vol. 2, appendix A). "Host" means user space: it may restore what the
/// guest itself could not write.
/// </summary>
internal static class Msrs<TVendor> where TVendor : struct, IVendor
{
    private const ulong HwcrStatusWritable = 1 << 18;
    /// <summary>HWCR bits that firmware sets and nothing here depends on: TLB cache, flush filter, IGNNE.</summary>
    private const ulong HwcrIgnored = 1 << 3 | 1 << 6 | 1 << 8;
    private const ulong DeCfgLfence = 1 << 1;
    /// <summary>No PEBS, no branch trace, no performance monitoring: read-only.</summary>
    private const ulong MiscEnableReadOnly = 1 << 7 | 1 << 11 | 1 << 12;
    private const ulong DebugCtlIgnored = 0x3f;
    private const ulong McCtlOptional = 1 << 10 | 1;

    /// <summary>RDMSR and KVM_GET_MSRS; false is #GP(0), or the end of the ioctl's list.</summary>
    public static bool TryRead(ref Vcpu vcpu, uint index, out ulong value, bool host = false) =>
        TryGet(ref vcpu, index, host, out value) || Parameters.IgnoreMsrs();

    /// <summary>WRMSR and KVM_SET_MSRS. Only unknown MSRs are ignored, not values that an MSR cannot take.</summary>
    public static bool TryWrite(ref Vcpu vcpu, uint index, ulong value, bool host = false) =>
        TrySet(ref vcpu, index, value, host) || Parameters.IgnoreMsrs() && !TryGet(ref vcpu, index, host, out _);

    public static bool TryGet(ref Vcpu vcpu, uint index, bool host, out ulong value)
    {
        if (TVendor.TryGetMsr(ref vcpu, index, out value))
            return true;
        ref MsrState msrs = ref vcpu.Msrs;
        switch (index)
        {
            case Msr.Efer: value = TVendor.GetEfer(ref vcpu); return true;
            case Msr.Tsc: value = HostCpu.Tsc() + TVendor.GetTscOffset(ref vcpu); return true;
            case Msr.TscAdjust: value = msrs.TscAdjust; return true;
            case Msr.TscAux: value = vcpu.Shared.TscAux; return host || HasTscAux(ref vcpu);
            case Msr.ApicBase: value = msrs.ApicBase; return true;
            case Msr.MiscEnable: value = msrs.MiscEnable; return true;
            case Msr.SpecCtrl: value = vcpu.Shared.SpecCtrl; return host || vcpu.Cpuid.Has(Feature.Ibrs);
            case Msr.MicrocodeRevision: value = msrs.MicrocodeRevision; return true;
            case Msr.Hwcr: value = msrs.Hwcr; return true;
            case Msr.DeCfg: value = msrs.DeCfg; return true;
            case Msr.MtrrCap: value = MsrState.MtrrCapabilities; return true;
            case Msr.MtrrDefType: value = msrs.MtrrDefType; return true;
            case Msr.McgCap: value = msrs.McgCap; return true;
            case Msr.McgStatus: value = msrs.McgStatus; return true;
            case Msr.McgCtl: value = msrs.McgCtl; return host || (msrs.McgCap & MsrState.McgCtlPresent) != 0;
        }
        bool isBank = TryFindBank(in msrs, index, out int register);
        int slot = MsrState.MtrrSlot(index);
        value = isBank ? msrs.Banks[register] : slot >= 0 ? msrs.Mtrrs[slot] : 0;
        return isBank || slot >= 0 || ReadsAsZero(index) || host && IsAbsentFeature(index);
    }

    public static bool TrySet(ref Vcpu vcpu, uint index, ulong value, bool host)
    {
        ref MsrState msrs = ref vcpu.Msrs;
        return index switch
        {
            Msr.Efer => ControlRegisters<TVendor>.TrySetEfer(ref vcpu, value,
                host ? ControlRegisters<TVendor>.EferOfHost() : vcpu.Cpuid.EferAllowed),
            Msr.Lstar or Msr.Cstar or Msr.KernelGsBase or Msr.FsBase or Msr.GsBase =>
                Cr4.IsCanonical(TVendor.GetCr4(ref vcpu), value) && TVendor.TrySetMsr(ref vcpu, index, value),
            // Intel refuses what is not canonical, AMD keeps 32 bits: what survives either is kept.
            Msr.SysenterEsp or Msr.SysenterEip =>
                TVendor.TrySetMsr(ref vcpu, index, (ulong)((long)(value << 16) >> 16)),
            Msr.Pat => AreTypes(value, pat: true) && TVendor.TrySetMsr(ref vcpu, index, value),
            Msr.Tsc => SetTsc(ref vcpu, value, host),
            Msr.TscAdjust => SetTscAdjust(ref vcpu, value, host),
            Msr.TscAux => (host || HasTscAux(ref vcpu)) && Assign(ref vcpu.Shared.TscAux, (uint)value, ~0ul),
            Msr.ApicBase => TrySetApicBase(ref vcpu, value),
            Msr.MiscEnable => (host || ((value ^ msrs.MiscEnable) & MiscEnableReadOnly) == 0) && Assign(
                ref msrs.MiscEnable, value & ~MiscEnableReadOnly | msrs.MiscEnable & MiscEnableReadOnly, ~0ul),
            Msr.SpecCtrl => (host || vcpu.Cpuid.Has(Feature.Ibrs))
                && Assign(ref vcpu.Shared.SpecCtrl, value, SpecCtrlOfHost()),
            Msr.PredCmd => (host || vcpu.Cpuid.Has(Feature.Ibpb)) && TryFlushPredictors(value),
            Msr.MicrocodeRevision => !host || Assign(ref msrs.MicrocodeRevision, value, ~0ul),
            Msr.Hwcr => Assign(ref msrs.Hwcr, value & ~HwcrIgnored, HwcrStatusWritable),
            Msr.DeCfg => (host || value == msrs.DeCfg) && Assign(ref msrs.DeCfg, value, DeCfgLfence),
            Msr.MtrrDefType => AreTypes(value & 0xff) && Assign(ref msrs.MtrrDefType, value, 0xcff),
            Msr.McgCap => false,
            Msr.McgStatus => Assign(ref msrs.McgStatus, value, ~0ul),
            Msr.McgCtl => (msrs.McgCap & MsrState.McgCtlPresent) == 0 ? host && value == 0
                : value is 0 or ~0ul && Assign(ref msrs.McgCtl, value, ~0ul),
            _ => TrySetOther(ref vcpu, index, value, host),
        };
    }

    private static bool TrySetOther(ref Vcpu vcpu, uint index, ulong value, bool host)
    {
        if (MsrState.MtrrSlot(index) is >= 0 and int slot)
            return TrySetMtrr(ref vcpu, slot, value);
        if (TryFindBank(in vcpu.Msrs, index, out int register))
            return TrySetBank(ref vcpu.Msrs, register, value, host);
        return IgnoresWrites(index) || index == Msr.DebugCtl && (value & ~DebugCtlIgnored) == 0
            || value == 0 && (ReadsAsZero(index) || host && IsAbsentFeature(index))
            || TVendor.TrySetMsr(ref vcpu, index, value);
    }

    private static bool TrySetApicBase(ref Vcpu vcpu, ulong value)
    {
        if (!IsValidApicBase(ref vcpu, value))
            return false;
        vcpu.Msrs.ApicBase = value;
        ControlRegisters<TVendor>.UpdateCpuid(ref vcpu);
        return true;
    }

    private static bool TryFlushPredictors(ulong value)
    {
        if (value == 1)
            HostCpu.FlushPredictors();
        return value <= 1;
    }

    /// <summary>No reserved bits, an address that the guest can have, no x2APIC mode.</summary>
    public static bool IsValidApicBase(ref Vcpu vcpu, ulong value) =>
        (value & (vcpu.Cpuid.ReservedGpa | ApicBase.Reserved)) == 0;

    /// <summary>
    /// User space that writes nearly the same to several vCPUs within a second, or zero, means one common counter.
    /// </summary>
    private static bool SetTsc(ref Vcpu vcpu, ulong value, bool host)
    {
        ulong old = TVendor.GetTscOffset(ref vcpu), offset = value - HostCpu.Tsc();
        if (host)
        {
            ref ulong common = ref vcpu.Vm.Cpu.TscOffset;
            ulong second = HostCpu.TscKhz() * 1000ul;
            if (common != 0 && (value == 0 || offset - common + second < 2 * second))
                offset = common;
            common = offset;
        }
        else
        {
            vcpu.Msrs.TscAdjust += offset - old;
        }
        TVendor.SetTscOffset(ref vcpu, offset);
        return true;
    }

    /// <summary>The guest moves its counter with it; user space restores only the register.</summary>
    private static bool SetTscAdjust(ref Vcpu vcpu, ulong value, bool host)
    {
        if (!host)
            TVendor.SetTscOffset(ref vcpu, TVendor.GetTscOffset(ref vcpu) + value - vcpu.Msrs.TscAdjust);
        return Assign(ref vcpu.Msrs.TscAdjust, value, ~0ul);
    }

    private static bool TrySetMtrr(ref Vcpu vcpu, int slot, ulong value)
    {
        bool isMask = slot < MsrState.FirstFixed && (slot & 1) != 0;
        ulong reserved = slot >= MsrState.FirstFixed ? 0 : vcpu.Cpuid.ReservedGpa | (isMask ? 0x7fful : 0xf00);
        ulong types = isMask ? 0 : slot < MsrState.FirstFixed ? value & 0xff : value;
        return AreTypes(types) && Assign(ref vcpu.Msrs.Mtrrs[slot], value, ~reserved);
    }

    private static bool TryFindBank(in MsrState msrs, uint index, out int register)
    {
        register = (int)(index - Msr.MachineCheckBanks);
        return (uint)register < (uint)(msrs.BankCount * MsrState.RegistersPerBank);
    }

    /// <summary>CTL: all zeros or all ones; STATUS: zero, unless HWCR says otherwise (APM vol. 2, 9.3).</summary>
    private static bool TrySetBank(ref MsrState msrs, int register, ulong value, bool host)
    {
        bool allowed = (register % MsrState.RegistersPerBank) switch
        {
            0 => value == 0 || (value | McCtlOptional) == ~0ul,
            1 => host || value == 0 || (msrs.Hwcr & HwcrStatusWritable) != 0,
            _ => true,
        };
        return allowed && Assign(ref msrs.Banks[register], value, ~0ul);
    }

    private static bool Assign(ref ulong register, ulong value, ulong allowed)
    {
        if ((value & ~allowed) != 0)
            return false;
        register = value;
        return true;
    }

    private static bool HasTscAux(ref Vcpu vcpu) => vcpu.Cpuid.Has(Feature.Rdtscp) || vcpu.Cpuid.Has(Feature.Rdpid);

    /// <summary>IBRS, STIBP, SSBD, PSFD: the world switch loads them, so the host must know every bit.</summary>
    private static ulong SpecCtrlOfHost()
    {
        HostCpu.Cpuid(0x80000008, 0, out CpuidLeaf leaf);
        return leaf.Ebx >> 14 & 3 | (leaf.Ebx >> 24 & 1) << 2 | (leaf.Ebx >> 28 & 1) << 7;
    }

    /// <summary>Eight memory types: 0, 1, 4, 5, 6, and in the PAT 7 (SDM vol. 3, 12.11.2.1 and 12.12.2).</summary>
    private static bool AreTypes(ulong types, bool pat = false)
    {
        const ulong Each = 0x0101010101010101;
        ulong bit1 = types >> 1 & Each, bit2 = types >> 2 & Each;
        return (types & Each * 0xf8) == 0 && (bit1 & ~bit2) == 0 && (pat || (types & bit1) == 0);
    }

    /// <summary>Platform registers that guests probe and that have no meaning here.</summary>
    private static bool ReadsAsZero(uint index) => IgnoresWrites(index)
        || index is Msr.PlatformId or Msr.EblCrPowerOn or Msr.DebugCtl or (>= Msr.LastBranchFrom and <= Msr.LastIntTo)
            or Msr.TsegAddress or Msr.TsegAddress + 1 or Msr.VmCr or Msr.VmHsavePa or Msr.MmioConfigBase;

    private static bool IgnoresWrites(uint index) => index is (>= Msr.K7EventSelect and <= Msr.K7CounterLast)
        or Msr.Syscfg or (>= Msr.IorrBase and <= Msr.TopMem2) or Msr.NbCfg or Msr.PatchLoader or Msr.IntPendingMessage
        or (>= Msr.PstateCurrentLimit and <= Msr.PstateLast) or Msr.LsCfg or Msr.DcCfg or Msr.BuCfg2;

    /// <summary>
    /// MSRs of the APIC's and KVM's features: VMMs save and restore them whatever CPUID says. Zero is all they can be.
    /// </summary>
    private static bool IsAbsentFeature(uint index) =>
        index is Msr.TscDeadline or Msr.KvmWallClockOld or Msr.KvmSystemTimeOld or (>= Msr.KvmFirst and <= Msr.KvmLast);
}
