// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>
/// What the guest is told of its vCPU's thread (struct kvm_steal_time): how long it waited for a physical CPU, and that
/// it does not run. In place of an interrupt to such a vCPU, others leave word that its TLB is to be flushed.
/// <para>
/// The word is left only while <see cref="kvm_steal_time.preempted"/> is set, which is between two instructions: one
/// that the emulator is in the middle of has translations that a flush would come too late for (CVE-2022-39189).
/// </para>
/// </summary>
internal static class StealTime<TVendor> where TVendor : struct, IVendor
{
    /// <summary>No time is stolen before the first look.</summary>
    private const ulong Never = ulong.MaxValue;

    /// <summary>MSR_KVM_STEAL_TIME was written.</summary>
    public static void Enable(ref Vcpu vcpu)
    {
        vcpu.Paravirt.RunDelay = Never;
        vcpu.Shared.OnLoad = vcpu.Paravirt.HasStealTime ? (uint)VcpuRequests.Steal : 0;
        vcpu.Shared.Request(VcpuRequests.Steal);
    }

    /// <summary>Adds what the thread has waited since the last look. Another thread has waited another time.</summary>
    public static void Update(ref Vcpu vcpu)
    {
        ref ParavirtState state = ref vcpu.Paravirt;
        ulong delay = vcpu.Shared.RunDelay, last = state.RunDelay;
        state.RunDelay = delay;
        Gpa record = Record(ref vcpu);
        // The first look fills the record in, so that its version tells the guest that it is kept.
        ulong stolen = last == Never || delay < last ? 0 : delay - last;
        if (!state.HasStealTime || stolen == 0 && last != Never
            || !GuestMemory.TryRead(ref vcpu.Vm, record, out ulong steal))
            return;
        VersionedRecord.Write(ref vcpu.Vm, record + kvm_steal_time.VersionOffset, record, steal + stolen);
    }

    /// <summary><see cref="HostVcpu.Work"/>, of which the guest knows.</summary>
    public static bool Work(ref Vcpu vcpu)
    {
        Leave(ref vcpu);
        bool goesOn = vcpu.Shared.Host.Work();
        Return(ref vcpu);
        return goesOn;
    }

    /// <summary><see cref="HostVcpu.Halt"/>, of which the guest knows.</summary>
    public static HaltEnd Halt(ref Vcpu vcpu, ulong pollEnd)
    {
        Leave(ref vcpu);
        HaltEnd end = vcpu.Shared.Host.Halt(pollEnd);
        Return(ref vcpu);
        return end;
    }

    private static void Leave(ref Vcpu vcpu)
    {
        if (vcpu.Paravirt.HasStealTime)
            GuestMemory.TryWrite(ref vcpu.Vm, Preempted(ref vcpu), kvm_steal_time.KVM_VCPU_PREEMPTED);
    }

    /// <summary>
    /// Whoever finds the byte cleared sends an interrupt again. If it is not what was written, someone relies on the
    /// flush, which comes before the guest runs: after the byte is cleared.
    /// </summary>
    private static void Return(ref Vcpu vcpu)
    {
        if (!vcpu.Paravirt.HasStealTime)
            return;
        GuestMemory.CompareExchange(ref vcpu.Vm, Preempted(ref vcpu), sizeof(byte),
            kvm_steal_time.KVM_VCPU_PREEMPTED, 0, out bool alone);
        if (alone)
            return;
        GuestMemory.TryWrite(ref vcpu.Vm, Preempted(ref vcpu), (byte)0);
        vcpu.Shadow.IsStale = true;
        TVendor.FlushTlb(ref vcpu);
    }

    private static Gpa Record(ref Vcpu vcpu) => new(vcpu.Paravirt.StealTime & ~ParavirtState.Enabled);
    private static Gpa Preempted(ref Vcpu vcpu) => Record(ref vcpu) + kvm_steal_time.PreemptedOffset;
}
