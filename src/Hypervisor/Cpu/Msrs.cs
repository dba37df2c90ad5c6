// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>MSRs that hardware does not switch for the guest.</summary>
internal struct MsrState
{
    /// <summary>Machine-check banks, the value of KVM_CAP_MCE.</summary>
    public const int MaxBanks = 32;
    public const int RegistersPerBank = 4;
    private const ulong McgRecovery = 1 << 24;
    public const ulong McgCtlPresent = 1 << 8, McgSupported = McgCtlPresent | McgRecovery;
    public const int VariableMtrrCount = 16;
    /// <summary>Eight variable pairs, fixed ranges, write-combining (SDM vol. 3, 12.11.1).</summary>
    public const ulong MtrrCapabilities = 0x500 | VariableMtrrCount / 2;

    [InlineArray(MaxBanks * RegistersPerBank)] internal struct McBanks { private ulong _first; }

    public ulong ApicBase, MiscEnable, TscAdjust, Hwcr, DeCfg, MicrocodeRevision, MtrrCap, MtrrDefType;
    public ulong McgCap, McgStatus, McgCtl, PlatformInfo;
    /// <summary>Base and mask of each variable MTRR.</summary>
    public InlineArray16<ulong> VariableMtrrs;
    /// <summary>Eleven of them: one of 64 KiB ranges, two of 16 KiB, eight of 4 KiB.</summary>
    public InlineArray16<ulong> FixedMtrrs;
    /// <summary>CTL, STATUS, ADDR, MISC of each bank.</summary>
    public McBanks Banks;

    /// <summary>What those hold that have no value of their own.</summary>
    public ulong Zero;

    public readonly int BankCount => (int)(McgCap & 0xff);
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
    private const ulong MiscEnableMwait = 1 << 18;
    private const ulong DebugCtlIgnored = 0x3f;
    /// <summary>PLATFORM_INFO: CPUID can be made to fault. It cannot here.</summary>
    private const ulong CpuidFaulting = 1ul << 31;
    private const ulong McCtlOptional = 1 << 10 | 1;

    /// <summary>A register without side effects, and what a write may do to it.</summary>
    private readonly ref struct Plain(ref ulong value, ulong writable = 0, ulong ignored = 0, bool takes = true)
    {
        public readonly ref ulong Value = ref value;
        public readonly ulong Writable = writable, Ignored = ignored;
        public readonly bool Takes = takes, Exists = true;
    }

    /// <summary>RDMSR and KVM_GET_MSRS; false is #GP(0), or the end of the ioctl's list.</summary>
    public static bool TryRead(ref Vcpu vcpu, uint index, out ulong value, bool host = false) =>
        TryGet(ref vcpu, index, host, out value) || Parameters.IgnoreMsrs();

    /// <summary>WRMSR and KVM_SET_MSRS. Only unknown MSRs are ignored, not values that an MSR cannot take.</summary>
    public static bool TryWrite(ref Vcpu vcpu, uint index, ulong value, bool host = false) =>
        TrySet(ref vcpu, index, value, host) || Parameters.IgnoreMsrs() && !TryGet(ref vcpu, index, host, out _);

    public static bool TryGet(ref Vcpu vcpu, uint index, bool host, out ulong value)
    {
        switch (index)
        {
            case Msr.Efer: value = vcpu.Efer; return true;
            case Msr.Tsc: value = HostCpu.Tsc() + vcpu.TscOffset; return true;
            case Msr.TscDeadline when vcpu.HasApic: value = vcpu.Apic.Timer.Deadline; return true;
            case >= Msr.X2apic and <= Msr.X2apicLast:
                value = 0;
                return vcpu.HasApic && Apic<TVendor>.TryReadMsr(ref vcpu, index, out value);
            case Msr.SpecCtrl when host || vcpu.Cpuid.Has(Feature.Ibrs): value = vcpu.Shared.SpecCtrl; return true;
        }
        if (TVendor.TryGetMsr(ref vcpu, index, out value))
            return true;
        Plain register = Find(ref vcpu, index, 0, host);
        value = register.Exists ? register.Value : 0;
        return register.Exists;
    }

    public static bool TrySet(ref Vcpu vcpu, uint index, ulong value, bool host) => index switch
    {
        Msr.Efer => ControlRegisters<TVendor>.TrySetEfer(ref vcpu, value,
            host ? ControlRegisters<TVendor>.EferOfHost() : vcpu.Cpuid.EferAllowed),
        Msr.Lstar or Msr.Cstar or Msr.KernelGsBase or Msr.FsBase or Msr.GsBase =>
            Cr4.IsCanonical(TVendor.GetCr4(ref vcpu), value) && TVendor.TrySetMsr(ref vcpu, index, value),
        // Intel refuses what is not canonical, AMD keeps 32 bits: what survives either is kept.
        Msr.SysenterEsp or Msr.SysenterEip => TVendor.TrySetMsr(ref vcpu, index, (ulong)((long)(value << 16) >> 16)),
        Msr.Pat => AreTypes(value, pat: true) && TVendor.TrySetMsr(ref vcpu, index, value),
        Msr.Tsc => SetTsc(ref vcpu, value, host),
        Msr.ApicBase when vcpu.HasApic => Apic<TVendor>.TrySetBase(ref vcpu, value, host),
        Msr.TscDeadline when vcpu.HasApic => TrySetDeadline(ref vcpu, value, host),
        >= Msr.X2apic and <= Msr.X2apicLast => vcpu.HasApic && Apic<TVendor>.TryWriteMsr(ref vcpu, index, value),
        Msr.PredCmd => (host || vcpu.Cpuid.Has(Feature.Ibpb)) && TryFlushPredictors(value),
        _ => TrySetPlain(ref vcpu, index, value, host),
    };

    private static bool TrySetPlain(ref Vcpu vcpu, uint index, ulong value, bool host)
    {
        Plain register = Find(ref vcpu, index, value, host);
        if (!register.Exists)
            return TVendor.TrySetMsr(ref vcpu, index, value);
        ulong changed = value ^ register.Value;
        if (!register.Takes || (changed & ~(register.Writable | register.Ignored)) != 0)
            return false;
        // The guest moves its counter with the adjustment; user space restores only the register.
        if (index == Msr.TscAdjust && !host)
            SetTscOffset(ref vcpu, vcpu.TscOffset + value - register.Value);
        register.Value ^= changed & register.Writable;
        switch (index)
        {
            case Msr.ApicBase: ControlRegisters<TVendor>.UpdateDependents(ref vcpu); break;
            case Msr.MiscEnable when !vcpu.Vm.Cpu.Has(Quirks.MiscEnableNoMwait):
                vcpu.Cpuid.HasMonitor = (value & MiscEnableMwait) != 0;
                break;
            case KvmMsr.WallClock or KvmMsr.WallClockOld: PvClock<TVendor>.WriteWallClock(ref vcpu.Vm); break;
            case KvmMsr.SystemTime or KvmMsr.SystemTimeOld: vcpu.Shared.Request(VcpuRequests.Clock); break;
            case KvmMsr.StealTime: StealTime<TVendor>.Enable(ref vcpu); break;
            case KvmMsr.AsyncFault: AsyncFaults<TVendor>.Enable(ref vcpu, host); break;
            case KvmMsr.AsyncFaultAck: AsyncFaults<TVendor>.Acknowledge(ref vcpu, value); break;
        }
        return true;
    }

    /// <summary>
    /// The MSRs that are no more than a register, a row for each: where it is kept, which bits software can change,
    /// which bits of a write do not matter, and whether it takes <paramref name="value"/>, which a reader leaves 0.
    /// </summary>
    private static Plain Find(ref Vcpu vcpu, uint index, ulong value, bool host)
    {
        ref MsrState msrs = ref vcpu.Msrs;
        switch (index)
        {
            case Msr.TscAdjust: return new(ref msrs.TscAdjust, ~0ul);
            case Msr.TscAux when host || vcpu.Cpuid.HasTscAux:
                return new(ref vcpu.Shared.TscAux, uint.MaxValue, ignored: ~0ul);
            case Msr.SpecCtrl when host || vcpu.Cpuid.Has(Feature.Ibrs):
                return new(ref vcpu.Shared.SpecCtrl, ~0ul, takes: (value & ~SpecCtrlOfHost()) == 0);
            case Msr.ApicBase: return new(ref msrs.ApicBase, ~0ul, takes: Apic<TVendor>.IsValidBase(ref vcpu, value));
            case Msr.PlatformInfo when host || !vcpu.Vm.Cpu.HidesPlatformInfo:
                return new(ref msrs.PlatformInfo, host ? ~CpuidFaulting : 0);
            case (KvmMsr.WallClockOld or KvmMsr.SystemTimeOld or (>= KvmMsr.WallClock and <= KvmMsr.AsyncFaultAck))
                when !host && !Paravirtual<TVendor>.MayUse(ref vcpu, ParavirtState.FeatureOf(index)):
                return default;
            case Msr.MicrocodeRevision: return new(ref msrs.MicrocodeRevision, host ? ~0ul : 0, ignored: ~0ul);
            case Msr.MiscEnable: return new(ref msrs.MiscEnable, ~MiscEnableReadOnly, ignored: host ? ~0ul : 0);
            case Msr.Hwcr: return new(ref msrs.Hwcr, HwcrStatusWritable, HwcrIgnored);
            case Msr.DeCfg: return new(ref msrs.DeCfg, host ? DeCfgLfence : 0);
            case Msr.MtrrCap: return new(ref msrs.MtrrCap, takes: false);
            case Msr.MtrrDefType: return new(ref msrs.MtrrDefType, 0xcff, takes: AreTypes(value & 0xff));
            case >= Msr.MtrrVariable and < Msr.MtrrVariable + MsrState.VariableMtrrCount:
                return VariableMtrr(ref vcpu, index - Msr.MtrrVariable, value);
            case Msr.MtrrFix64K: return FixedMtrr(ref msrs, 0, value);
            case Msr.MtrrFix16K or Msr.MtrrFix16K + 1: return FixedMtrr(ref msrs, 1 + index - Msr.MtrrFix16K, value);
            case >= Msr.MtrrFix4K and < Msr.MtrrFix4K + 8: return FixedMtrr(ref msrs, 3 + index - Msr.MtrrFix4K, value);
            case Msr.McgCap: return new(ref msrs.McgCap, takes: false);
            case Msr.McgStatus: return new(ref msrs.McgStatus, ~0ul);
            case Msr.McgCtl when (msrs.McgCap & MsrState.McgCtlPresent) != 0:
                return new(ref msrs.McgCtl, ~0ul, takes: value is 0 or ~0ul);
            case >= Msr.MachineCheckBanks
                when index - Msr.MachineCheckBanks < msrs.BankCount * MsrState.RegistersPerBank:
                return BankRegister(ref msrs, (int)(index - Msr.MachineCheckBanks), value, host);
            // Platform registers that guests probe and that have no meaning here.
            case Msr.PlatformId or Msr.EblCrPowerOn or (>= Msr.LastBranchFrom and <= Msr.LastIntTo)
                or Msr.TsegAddress or Msr.TsegAddress + 1 or Msr.VmCr or Msr.VmHsavePa or Msr.MmioConfigBase:
                return new(ref msrs.Zero);
            case Msr.DebugCtl: return new(ref msrs.Zero, ignored: DebugCtlIgnored);
            case Msr.PowerCtl or (>= Msr.K7EventSelect and <= Msr.K7CounterLast) or Msr.Syscfg
                or (>= Msr.IorrBase and <= Msr.TopMem2) or Msr.NbCfg or Msr.PatchLoader or Msr.IntPendingMessage
                or (>= Msr.PstateCurrentLimit and <= Msr.PstateLast) or Msr.LsCfg or Msr.DcCfg or Msr.BuCfg2:
                return new(ref msrs.Zero, ignored: ~0ul);
            case KvmMsr.WallClock or KvmMsr.WallClockOld: return new(ref vcpu.Vm.Clock.WallClock, ~0ul);
            case KvmMsr.SystemTime or KvmMsr.SystemTimeOld: return new(ref vcpu.Paravirt.SystemTime, ~0ul);
            case KvmMsr.StealTime: return new(ref vcpu.Paravirt.StealTime, ~ParavirtState.StealTimeReserved);
            case KvmMsr.Eoi: return new(ref vcpu.Paravirt.Eoi, ~ParavirtState.EoiReserved);
            case KvmMsr.PollControl: return new(ref vcpu.Paravirt.PollControl, 1);
            case KvmMsr.AsyncFault:
                return new(ref vcpu.Paravirt.Faults.Control, vcpu.HasApic ? ~AsyncFaultState.Reserved : 0);
            case KvmMsr.AsyncFaultVector: return new(ref vcpu.Paravirt.Faults.Vector, vcpu.HasApic ? 0xfful : 0);
            case KvmMsr.AsyncFaultAck: return new(ref msrs.Zero, ignored: vcpu.HasApic ? ~0ul : 0);
            // Features that are absent: VMMs save and restore their MSRs all the same. Zero is all they can be.
            case Msr.McgCtl or Msr.TscDeadline when host: return new(ref msrs.Zero);
            default: return default;
        }
    }

    private static Plain VariableMtrr(ref Vcpu vcpu, uint register, ulong value)
    {
        bool isMask = (register & 1) != 0;
        ulong reserved = vcpu.Cpuid.ReservedGpa | (isMask ? 0x7fful : 0xf00);
        return new(ref vcpu.Msrs.VariableMtrrs[(int)register], ~0ul,
            takes: (value & reserved) == 0 && (isMask || AreTypes(value & 0xff)));
    }

    private static Plain FixedMtrr(ref MsrState msrs, uint register, ulong value) =>
        new(ref msrs.FixedMtrrs[(int)register], ~0ul, takes: AreTypes(value));

    /// <summary>CTL: all zeros or all ones; STATUS: zero, unless HWCR says otherwise (APM vol. 2, 9.3).</summary>
    private static Plain BankRegister(ref MsrState msrs, int register, ulong value, bool host) =>
        new(ref msrs.Banks[register], ~0ul, takes: (register % MsrState.RegistersPerBank) switch
        {
            0 => value == 0 || (value | McCtlOptional) == ~0ul,
            1 => host || value == 0 || (msrs.Hwcr & HwcrStatusWritable) != 0,
            _ => true,
        });

    private static bool TrySetDeadline(ref Vcpu vcpu, ulong value, bool host)
    {
        if (!host && !vcpu.Cpuid.Has(Feature.TscDeadline))
            return false;
        ApicTimer<TVendor>.SetDeadline(ref vcpu, value);
        return true;
    }

    private static bool TryFlushPredictors(ulong value)
    {
        if (value == 1 && FeatureWords.IsSupported(Feature.Ibpb))
            HostCpu.FlushPredictors();
        return value <= 1;
    }

    /// <summary>
    /// User space that writes nearly the same to several vCPUs within a second, or zero, means one common counter.
    /// </summary>
    private static bool SetTsc(ref Vcpu vcpu, ulong value, bool host)
    {
        ulong old = vcpu.TscOffset, offset = value - HostCpu.Tsc();
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
        SetTscOffset(ref vcpu, offset);
        return true;
    }

    public static void SetTscOffset(ref Vcpu vcpu, ulong offset)
    {
        vcpu.TscOffset = offset;
        TVendor.UpdateTscOffset(ref vcpu);
        PvClock<TVendor>.TscChanged(ref vcpu);
        // The deadline is a value of the counter that has just jumped.
        if (vcpu.Apic.Timer.Deadline != 0)
            ApicTimer<TVendor>.SetDeadline(ref vcpu, vcpu.Apic.Timer.Deadline);
    }

    /// <summary>IBRS, STIBP, SSBD, PSFD: the world switch loads them, so the host must know every bit.</summary>
    private static ulong SpecCtrlOfHost()
    {
        uint features = CpuidLeaf.OfHost(0x80000008).Ebx;
        return features >> 14 & 3 | (features >> 24 & 1) << 2 | (features >> 28 & 1) << 7;
    }

    /// <summary>Eight memory types: 0, 1, 4, 5, 6, and in the PAT 7 (SDM vol. 3, 12.11.2.1 and 12.12.2).</summary>
    private static bool AreTypes(ulong types, bool pat = false)
    {
        const ulong Each = 0x0101010101010101;
        ulong bit1 = types >> 1 & Each, bit2 = types >> 2 & Each;
        return (types & Each * 0xf8) == 0 && (bit1 & ~bit2) == 0 && (pat || (types & bit1) == 0);
    }
}
