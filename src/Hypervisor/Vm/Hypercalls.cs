// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;

namespace SharpKvm.Vm;

/// <summary>VMMCALL and VMCALL: the number in RAX, the result too (UAPI linux/kvm_para.h).</summary>
internal static class Hypercalls<TVendor> where TVendor : struct, IVendor
{
    private const ulong KVM_HC_VAPIC_POLL_IRQ = 1;
    private const long KVM_ENOSYS = 1000;
    private const long KVM_EPERM = 1;

    public static void Execute(ref Vcpu vcpu)
    {
        bool wide = TVendor.GetSegment(ref vcpu, SegmentName.Cs).Long && (TVendor.GetEfer(ref vcpu) & Efer.Lma) != 0;
        ref ulong rax = ref vcpu.Registers[Gpr.Rax];
        ulong number = wide ? rax : (uint)rax;
        long result = TVendor.GetCpl(ref vcpu) != 0 ? -KVM_EPERM
            : number == KVM_HC_VAPIC_POLL_IRQ ? 0
            : -KVM_ENOSYS;
        rax = wide ? (ulong)result : (uint)result;
    }
}
