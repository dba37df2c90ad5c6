// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>Numbers of the MSRs that KVM has and no CPU (asm/kvm_para.h).</summary>
internal static class KvmMsr
{
    public const uint WallClockOld = 0x11, SystemTimeOld = 0x12, WallClock = 0x4b564d00, SystemTime = 0x4b564d01,
        AsyncFault = 0x4b564d02, StealTime = 0x4b564d03, Eoi = 0x4b564d04, PollControl = 0x4b564d05,
        AsyncFaultVector = 0x4b564d06, AsyncFaultAck = 0x4b564d07;
}
