// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>KVM_FEATURE_*: bits of leaf 0x40000001, EAX.</summary>
internal enum ParavirtFeature
{
    OldClock = 0, Clock = 3, AsyncFault = 4, StealTime = 5, Eoi = 6, Unhalt = 7, SendIpi = 11, PollControl = 12,
    Yield = 13, AsyncFaultInterrupt = 14,
}

/// <summary>What a vCPU and its guest have agreed on: MSRs (an address; bit 0 enables) and what is under way.</summary>
internal struct ParavirtState
{
    public const ulong Enabled = 1;
    /// <summary>The record of stolen time is aligned to 64 bytes.</summary>
    public const ulong StealTimeReserved = 0x3e;
    public const ulong EoiReserved = 2;

    /// <summary>MSR_KVM_SYSTEM_TIME, MSR_KVM_STEAL_TIME, MSR_KVM_PV_EOI_EN, MSR_KVM_POLL_CONTROL.</summary>
    public ulong SystemTime, StealTime, Eoi, PollControl;
    /// <summary>How long the thread had waited for a CPU when the guest was last told.</summary>
    public ulong RunDelay;
    /// <summary>User space had paused the guest: its watchdogs are told with the next page.</summary>
    public bool WasStopped;
    /// <summary>The guest may end the interrupt in service without an exit.</summary>
    public bool EoiOffered;
    /// <summary>Woken by another vCPU before it halted.</summary>
    public bool Unhalted;

    public AsyncFaultState Faults;
    /// <summary>KVM_CAP_ENFORCE_PV_FEATURE_CPUID: the guest has no more than its CPUID says.</summary>
    public bool FollowsCpuid;

    /// <summary>The feature that an MSR belongs to.</summary>
    public static ParavirtFeature FeatureOf(uint msr) => msr switch
    {
        KvmMsr.WallClockOld or KvmMsr.SystemTimeOld => ParavirtFeature.OldClock,
        KvmMsr.WallClock or KvmMsr.SystemTime => ParavirtFeature.Clock,
        KvmMsr.StealTime => ParavirtFeature.StealTime,
        KvmMsr.Eoi => ParavirtFeature.Eoi,
        KvmMsr.AsyncFault => ParavirtFeature.AsyncFault,
        KvmMsr.AsyncFaultVector or KvmMsr.AsyncFaultAck => ParavirtFeature.AsyncFaultInterrupt,
        _ => ParavirtFeature.PollControl,
    };

    public readonly bool HasClock => (SystemTime & Enabled) != 0;
    public readonly bool HasStealTime => (StealTime & Enabled) != 0;
}
