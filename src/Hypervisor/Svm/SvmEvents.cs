// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Svm;

/// <summary>Events through EVENTINJ, and the windows that SVM has no intercept of its own for.</summary>
internal static class SvmEvents
{
    public static void Deliver(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        EventInjection next = EventDelivery<SvmVendor>.Next(ref vcpu);
        vmcb.Inject = next;
        if (!next.Valid)
            return;
        if (next.Type == EventInjection.EventType.Nmi)
            SvmVendor.SetNmiMasked(ref vcpu, true);
        // Delivery pushes RFLAGS: without the TF that is not the guest's.
        vcpu.Svm.StepsOverIret = false;
    }

    /// <summary>The guest leaves its NMI handler; NMIs stay away until the IRET has completed.</summary>
    public static VcpuAction InterceptIret(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        vmcb.Intercept3 &= ~Intercept3.Iret;
        vcpu.Svm.NmiMasked = false;
        vcpu.Svm.IretRunning = true;
        vcpu.Svm.IretRip = vcpu.Registers.Rip;
        return VcpuAction.Resume;
    }

    /// <summary>The guest can take an interrupt: the run loop asks user space for one.</summary>
    public static VcpuAction CloseInterruptWindow(ref Vmcb vmcb)
    {
        vmcb.Intercept3 &= ~Intercept3.Vintr;
        vmcb.VirtualInterrupt &= ~(VirtualInterrupt.Pending | VirtualInterrupt.HighestPriority
            | VirtualInterrupt.IgnoreTpr);
        return VcpuAction.Resume;
    }

    /// <summary>A virtual interrupt that is intercepted: the guest exits as soon as it could take one.</summary>
    public static void OpenInterruptWindow(ref Vmcb vmcb)
    {
        vmcb.Intercept3 |= Intercept3.Vintr;
        vmcb.VirtualVector = 0;
        vmcb.VirtualInterrupt |= VirtualInterrupt.Pending | VirtualInterrupt.HighestPriority
            | VirtualInterrupt.IgnoreTpr;
    }
}
