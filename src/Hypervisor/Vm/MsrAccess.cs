// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// RDMSR and WRMSR that hardware has intercepted. Those that fail raise #GP(0), or go to user space when it has asked
/// for their kind (KVM_CAP_X86_USER_SPACE_MSR).
/// </summary>
internal static class MsrAccess<TVendor> where TVendor : struct, IVendor
{
    public static VcpuAction Read(ref Vcpu vcpu, ulong nextRip)
    {
        uint index = (uint)vcpu.Registers[Gpr.Rcx];
        bool allowed = vcpu.Vm.MsrFilter.Allows(index, write: false);
        return allowed && Msrs<TVendor>.TryRead(ref vcpu, index, out ulong value)
            ? CompleteRead(ref vcpu, value, nextRip)
            : Fail(ref vcpu, Exit.KVM_EXIT_X86_RDMSR, index, 0, allowed, nextRip);
    }

    public static VcpuAction Write(ref Vcpu vcpu, ulong nextRip)
    {
        uint index = (uint)vcpu.Registers[Gpr.Rcx];
        ulong value = vcpu.Registers.RdxRax;
        bool allowed = vcpu.Vm.MsrFilter.Allows(index, write: true);
        return allowed && Msrs<TVendor>.TryWrite(ref vcpu, index, value)
            ? Instructions<TVendor>.Advance(ref vcpu, nextRip)
            : Fail(ref vcpu, Exit.KVM_EXIT_X86_WRMSR, index, value, allowed, nextRip);
    }

    /// <summary>User space has answered.</summary>
    public static VcpuAction Finish(ref Vcpu vcpu)
    {
        kvm_run.Msr answer = vcpu.Run.msr;
        if (answer.error != 0)
            return Exits<TVendor>.Raise(ref vcpu, Vector.GeneralProtection);
        return vcpu.Pending.IsInput
            ? CompleteRead(ref vcpu, answer.data, vcpu.Pending.NextRip)
            : Instructions<TVendor>.Advance(ref vcpu, vcpu.Pending.NextRip);
    }

    private static VcpuAction CompleteRead(ref Vcpu vcpu, ulong value, ulong nextRip)
    {
        vcpu.Registers[Gpr.Rax] = (uint)value;
        vcpu.Registers[Gpr.Rdx] = value >> 32;
        return Instructions<TVendor>.Advance(ref vcpu, nextRip);
    }

    private static VcpuAction Fail(
        ref Vcpu vcpu, Exit exit, uint index, ulong value, bool allowed, ulong nextRip)
    {
        uint reason = !allowed ? kvm_run.Msr.KVM_MSR_EXIT_REASON_FILTER
            : Msrs<TVendor>.TryGet(ref vcpu, index, host: true, out _) ? kvm_run.Msr.KVM_MSR_EXIT_REASON_INVAL
            : kvm_run.Msr.KVM_MSR_EXIT_REASON_UNKNOWN;
        if ((vcpu.Vm.Cpu.UserMsrReasons & reason) == 0)
            return Exits<TVendor>.Raise(ref vcpu, Vector.GeneralProtection);
        vcpu.Pending.Kind = PendingKind.Msr;
        vcpu.Pending.Rip = vcpu.Registers.Rip;
        vcpu.Pending.NextRip = nextRip;
        vcpu.Pending.IsInput = exit == Exit.KVM_EXIT_X86_RDMSR;
        vcpu.Run.msr = new kvm_run.Msr { reason = reason, index = index, data = value };
        return UserExit.Plain(ref vcpu, exit);
    }
}
