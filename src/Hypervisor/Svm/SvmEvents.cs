// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Paravirt;
using SharpKvm.Vm;

namespace SharpKvm.Svm;

/// <summary>Delivery of exceptions, interrupts and NMIs through EVENTINJ, and what an exit cut short.</summary>
internal static class SvmEvents
{
    /// <summary>
    /// Decides what this entry injects. May be called again before the guest has run: it comes out the same.
    /// </summary>
    public static void Deliver(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        ref EventState events = ref vcpu.Events;
        vmcb.Inject = default;
        if (events.HasException)
        {
            if (Exceptions<SvmVendor>.TakePending(ref vcpu, out QueuedException exception))
            {
                vmcb.Inject = exception.HasErrorCode
                    ? EventInjection.Of(exception.Vector.Value, exception.ErrorCode)
                    : EventInjection.Of(EventInjection.EventType.Exception, exception.Vector.Value);
            }
        }
        else if (events.Nmi.Injected)
        {
            InjectNmi(ref vcpu, ref vmcb);
        }
        else if (events.Interrupt.Injected)
        {
            EventInjection.EventType type = events.Interrupt.Soft
                ? EventInjection.EventType.SoftInterrupt
                : EventInjection.EventType.Interrupt;
            vmcb.Inject = EventInjection.Of(type, events.Interrupt.Vector.Value);
        }
        else if (events.Nmi.Pending != 0)
        {
            if (Exceptions<SvmVendor>.CanTakeNmi(ref vcpu))
            {
                events.Nmi.Pending--;
                events.Nmi.Injected = true;
                InjectNmi(ref vcpu, ref vmcb);
            }
            else if (vcpu.Svm.IretRunning || !vcpu.Svm.NmiMasked)
            {
                // Come back after the IRET, or after the instruction in the interrupt shadow.
                vcpu.Svm.StepsOverIret = true;
            }
        }
        else if (PendingInterrupts.Any(ref vcpu) && Exceptions<SvmVendor>.CanAcceptInterrupt(ref vcpu))
        {
            events.ReinjectInterrupt(PendingInterrupts.Take(ref vcpu), soft: false);
            vmcb.Inject = EventInjection.Of(EventInjection.EventType.Interrupt, events.Interrupt.Vector.Value);
            PvEoi<SvmVendor>.Offer(ref vcpu);
        }
        // Delivery pushes RFLAGS: without the TF that is not the guest's.
        if (vmcb.Inject.Valid)
            vcpu.Svm.StepsOverIret = false;
        // What waits behind what is injected comes as soon as the guest can take it.
        if (PendingInterrupts.Any(ref vcpu)
            || vcpu.Run.request_interrupt_window != 0 && PendingInterrupts.AreTakenFromUser(ref vcpu))
            OpenInterruptWindow(ref vmcb);
    }

    /// <summary>
    /// Notes what the exit interrupted, so that it is injected again, and when an IRET has completed.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AfterExit(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        ref EventState events = ref vcpu.Events;
        if (vcpu.Svm.IretRunning && vcpu.Registers.Rip != vcpu.Svm.IretRip)
            vcpu.Svm.IretRunning = false;
        if (events.AnyInjected)
            events.ClearInjected();
        EventInjection interrupted = vmcb.ExitInterrupt;
        if (interrupted.Valid)
            Reinject(ref events, interrupted);
    }

    private static void Reinject(ref EventState events, EventInjection interrupted)
    {
        switch (interrupted.Type)
        {
            case EventInjection.EventType.Nmi:
                events.ReinjectNmi();
                break;
            case EventInjection.EventType.Exception:
                events.ReinjectException(new Vector(interrupted.Vector), interrupted.HasErrorCode,
                    interrupted.ErrorCode);
                break;
            case EventInjection.EventType.Interrupt:
                events.ReinjectInterrupt(new Vector(interrupted.Vector), soft: false);
                break;
            default:
                // INT n: RIP is still at the instruction, which runs again.
                break;
        }
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
    private static void OpenInterruptWindow(ref Vmcb vmcb)
    {
        vmcb.Intercept3 |= Intercept3.Vintr;
        vmcb.VirtualVector = 0;
        vmcb.VirtualInterrupt |= VirtualInterrupt.Pending | VirtualInterrupt.HighestPriority
            | VirtualInterrupt.IgnoreTpr;
    }

    private static void InjectNmi(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        SvmVendor.SetNmiMasked(ref vcpu, true);
        vmcb.Inject = EventInjection.Of(EventInjection.EventType.Nmi, Vector.Nmi.Value);
    }
}
