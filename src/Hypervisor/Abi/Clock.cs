// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

// Clocks and what a guest shares with its hypervisor (linux/kvm.h, asm/kvm_para.h, asm/pvclock-abi.h).

/// <summary>KVM_GET_CLOCK, KVM_SET_CLOCK.</summary>
internal struct kvm_clock_data
{
    public const uint KVM_CLOCK_TSC_STABLE = 2, KVM_CLOCK_REALTIME = 1 << 2, KVM_CLOCK_HOST_TSC = 1 << 3,
        Flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

    public ulong clock;
    public uint flags, pad0;
    public ulong realtime, host_tsc;
    public InlineArray4<uint> pad;
}

/// <summary>MSR_KVM_STEAL_TIME's record.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
internal struct kvm_steal_time
{
    public const byte KVM_VCPU_PREEMPTED = 1 << 0, KVM_VCPU_FLUSH_TLB = 1 << 1;
    public const uint VersionOffset = 8, PreemptedOffset = 16;

    public ulong steal;
    public uint version, flags;
    public byte preempted;
}

/// <summary>
/// struct pvclock_vcpu_time_info behind the version: the guest's counter and clock at a moment, and the scale between.
/// </summary>
internal struct PvClockTime
{
    public const uint Offset = 8, FlagsOffset = 29;
    public const byte TscStable = 1, GuestStopped = 2;

    public ulong TscTimestamp, SystemTime;
    public uint Multiplier;
    public sbyte Shift;
    public byte Flags;
    public ushort Padding;
}
