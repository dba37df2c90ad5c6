// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>The clock that guests read from memory: a page for each vCPU, and the time of day at zero.</summary>
internal static class PvClock<TVendor> where TVendor : struct, IVendor
{
    private const uint NanosecondsPerSecond = 1_000_000_000;

    /// <summary>Writes the vCPU's page (struct pvclock_vcpu_time_info), if the guest has given it one.</summary>
    public static void Update(ref Vcpu vcpu)
    {
        ref ParavirtState state = ref vcpu.Paravirt;
        if (!state.HasClock)
            return;
        ref Vm.Vm vm = ref vcpu.Vm;
        ulong offset = vcpu.TscOffset;
        ClockPoint start = VmClock.Choose(ref vm, IsCommon(ref vm, offset));
        Gpa page = new(state.SystemTime & ~ParavirtState.Enabled);
        if (!GuestMemory.TryRead(ref vm, page + PvClockTime.FlagsOffset, out byte flags))
            return;
        // The guest clears this one when it has seen it.
        flags &= PvClockTime.GuestStopped;
        if (state.WasStopped)
            flags |= PvClockTime.GuestStopped;
        state.WasStopped = false;
        VersionedRecord.Write(ref vm, page, page + PvClockTime.Offset, new PvClockTime
        {
            TscTimestamp = start.Tsc + offset, SystemTime = start.Nanoseconds,
            Multiplier = vm.Clock.Scale.Multiplier, Shift = vm.Clock.Scale.Shift,
            Flags = (byte)(flags | (start.IsMaster ? PvClockTime.TscStable : 0)),
        });
    }

    /// <summary>The thread is on another physical CPU, whose counter may be another.</summary>
    public static void Migrated(ref Vcpu vcpu)
    {
        if (vcpu.Paravirt.HasClock && !(HostCpu.TscIsStable() && VmClock.Now(ref vcpu.Vm).IsMaster))
            Update(ref vcpu);
    }

    /// <summary>A vCPU's time-stamp counter was set: the clock goes on from it without a jump.</summary>
    public static void TscChanged(ref Vcpu vcpu)
    {
        VmClock.Choose(ref vcpu.Vm, IsCommon(ref vcpu.Vm, vcpu.TscOffset));
        VmClock.RequestAll(ref vcpu.Vm);
    }

    /// <summary>KVM_KVMCLOCK_CTRL; EINVAL when the guest has no clock.</summary>
    public static int NoteStopped(ref Vcpu vcpu)
    {
        if (!vcpu.Paravirt.HasClock)
            return Errno.EINVAL;
        vcpu.Paravirt.WasStopped = true;
        vcpu.Shared.Request(VcpuRequests.Clock);
        return Errno.Ok;
    }

    /// <summary>MSR_KVM_WALL_CLOCK: struct pvclock_wall_clock, written only now.</summary>
    public static void WriteWallClock(ref Vm.Vm vm)
    {
        Gpa record = new(vm.Clock.WallClock);
        if (record.Value == 0)
            return;
        ulong start = HostCpu.RealNanoseconds() - VmClock.Now(ref vm).Nanoseconds;
        ulong seconds = start / NanosecondsPerSecond, rest = start % NanosecondsPerSecond;
        VersionedRecord.Write(ref vm, record, record + sizeof(uint), rest << 32 | (uint)seconds);
    }

    /// <summary>Whether all vCPUs have this offset between the host's time-stamp counter and theirs.</summary>
    private static bool IsCommon(ref Vm.Vm vm, ulong offset)
    {
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
        {
            if (vcpu.Value.TscOffset != offset)
                return false;
        }
        return true;
    }
}
