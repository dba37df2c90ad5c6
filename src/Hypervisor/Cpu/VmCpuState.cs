// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>KVM_X86_QUIRK_*: what differs from real CPUs unless user space disables it.</summary>
[Flags] internal enum Quirks : uint
{
    /// <summary>CPUID's MONITOR bit does not follow IA32_MISC_ENABLE.</summary>
    MiscEnableNoMwait = 1 << 4,
    FixHypercall = 1 << 5,
    MwaitNeverFaults = 1 << 6,
    /// <summary>Those that can be disabled.</summary>
    All = MiscEnableNoMwait | FixHypercall | MwaitNeverFaults,
}

/// <summary>CPU state that the vCPUs of a VM share; zero is the default of each.</summary>
internal struct VmCpuState
{
    private const uint TolerancePerMillion = 250;

    /// <summary>KVM_CAP_EXCEPTION_PAYLOAD was enabled.</summary>
    public bool ExceptionPayload;
    /// <summary>KVM_CAP_X86_TRIPLE_FAULT_EVENT was enabled.</summary>
    public bool TripleFaultEvent;
    public Quirks DisabledQuirks;
    /// <summary>KVM_CAP_MSR_PLATFORM_INFO was disabled.</summary>
    public bool HidesPlatformInfo;
    /// <summary>KVM_CAP_X86_USER_SPACE_MSR: the KVM_MSR_EXIT_REASON_* for which accesses go to user space.</summary>
    public uint UserMsrReasons;
    /// <summary>
    /// The offset last given to a time-stamp counter, 0 when none was: TSCs written to about the same value are one.
    /// </summary>
    public ulong TscOffset;

    public readonly bool Has(Quirks quirk) => (DisabledQuirks & quirk) == 0;

    /// <summary>
    /// The rate of guests' time-stamp counters in kHz is the host's: no scaling. EINVAL for another, 0 means any.
    /// </summary>
    public static int SetTscKhz(uint khz)
    {
        ulong host = HostCpu.TscKhz(), wanted = khz == 0 ? host : khz;
        ulong difference = wanted > host ? wanted - host : host - wanted;
        return difference * 1_000_000 <= host * TolerancePerMillion ? 0 : Errno.EINVAL;
    }
}
