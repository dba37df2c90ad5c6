// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>VMMCALL and VMCALL: the number in RAX, the result too (UAPI linux/kvm_para.h).</summary>
internal static class Hypercalls<TVendor> where TVendor : struct, IVendor
{
    private const ulong KVM_HC_VAPIC_POLL_IRQ = 1, KVM_HC_KICK_CPU = 5, KVM_HC_SEND_IPI = 10, KVM_HC_SCHED_YIELD = 11;
    private const long KVM_ENOSYS = 1000, KVM_EPERM = 1;

    public static void Execute(ref Vcpu vcpu)
    {
        bool wide = TVendor.Is64Bit(ref vcpu);
        ref ulong rax = ref vcpu.Registers[Gpr.Rax];
        ulong mask = wide ? ~0ul : uint.MaxValue;
        ulong arg0 = vcpu.Registers[Gpr.Rbx] & mask, arg1 = vcpu.Registers[Gpr.Rcx] & mask;
        ulong number = rax & mask;
        long result = TVendor.GetCpl(ref vcpu) != 0 ? -KVM_EPERM : number switch
        {
            KVM_HC_VAPIC_POLL_IRQ => 0,
            KVM_HC_KICK_CPU when Paravirtual<TVendor>.MayUse(ref vcpu, ParavirtFeature.Unhalt) =>
                Paravirtual<TVendor>.Help(ref vcpu.Vm, arg1, yields: false),
            KVM_HC_SEND_IPI when Paravirtual<TVendor>.MayUse(ref vcpu, ParavirtFeature.SendIpi) =>
                Paravirtual<TVendor>.SendIpi(ref vcpu, arg0, arg1, vcpu.Registers[Gpr.Rdx] & mask,
                    vcpu.Registers[Gpr.Rsi] & mask, wide ? 64 : 32),
            KVM_HC_SCHED_YIELD when Paravirtual<TVendor>.MayUse(ref vcpu, ParavirtFeature.Yield) =>
                Paravirtual<TVendor>.Help(ref vcpu.Vm, arg0, yields: true),
            _ => -KVM_ENOSYS,
        };
        rax = (ulong)result & mask;
    }
}
