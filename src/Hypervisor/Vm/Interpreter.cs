// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// What hardware does while it runs a guest, where it cannot: instructions one after the other, events between them,
/// and tasks.
/// </summary>
internal static class Interpreter<TVendor> where TVendor : struct, IVendor
{
    /// <summary>Instructions before signals and the scheduler have their turn.</summary>
    private const int Turn = 64;

    /// <summary>Until hardware can run the guest, something else is to be looked at, or the turn is over.</summary>
    public static VcpuAction Run(ref Vcpu vcpu)
    {
        for (int n = 0; n < Turn; n++)
        {
            VcpuAction action = Deliver(ref vcpu);
            // The delivery of an exception may fail, and that of the next one.
            if (action == VcpuAction.Resume && !vcpu.Events.HasException && !vcpu.Events.TripleFault)
                action = InstructionEmulation<TVendor>.Run(ref vcpu);
            if (action != VcpuAction.Resume)
                return action;
            if (vcpu.Shared.RequestBits != 0 || vcpu.Run.request_interrupt_window != 0 || vcpu.Events.TripleFault
                || vcpu.MpState != MpState.Runnable || TVendor.CanRun(ref vcpu))
                break;
        }
        return VcpuAction.Retry;
    }

    private static VcpuAction Deliver(ref Vcpu vcpu)
    {
        EventInjection next = EventDelivery<TVendor>.Next(ref vcpu);
        if (vcpu.Paravirt.EoiOffered)
            PvEoi<TVendor>.TakeBack(ref vcpu);
        if (!next.Valid)
            return VcpuAction.Resume;
        Execution<GuestMachine<TVendor>> execution = new(new(ref vcpu));
        execution.Deliver(FaultOf(next), next.Type == EventInjection.EventType.SoftInterrupt);
        return Delivered(ref vcpu, in execution.Result, next);
    }

    /// <summary>A task switch, which no vendor carries out.</summary>
    /// <param name="vcpu">The vCPU.</param>
    /// <param name="selector">The new task's.</param>
    /// <param name="cause">What asked for it.</param>
    /// <param name="interrupted">The event that it delivers, if it is one.</param>
    /// <param name="end">RIP behind the instruction that asked.</param>
    public static VcpuAction SwitchTask(ref Vcpu vcpu, ulong selector, TaskSwitchCause cause,
        EventInjection interrupted, ulong end)
    {
        Execution<GuestMachine<TVendor>> execution = new(new(ref vcpu));
        execution.SwitchTask(selector, cause, interrupted.IsEvent ? vcpu.Registers.Rip : end, FaultOf(interrupted));
        return Delivered(ref vcpu, in execution.Result, interrupted);
    }

    private static Fault FaultOf(EventInjection next) =>
        new() { Vector = next.Vector, HasErrorCode = next.HasErrorCode, ErrorCode = next.ErrorCode };

    private static VcpuAction Delivered(ref Vcpu vcpu, in Emulation result, EventInjection delivered)
    {
        bool done = result.Outcome == Access.Done || result.TaskSwitched;
        if (done && delivered.IsEvent)
        {
            if (delivered.Type == EventInjection.EventType.Nmi)
                TVendor.SetNmiMasked(ref vcpu, true);
            vcpu.Events.ClearInjected();
        }
        // A table in device memory.
        if (result.Outcome == Access.UserSpace)
            return UserExit.InternalError(ref vcpu, kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV, delivered.Raw, 0);
        return InstructionEmulation<TVendor>.Finish(ref vcpu, in result);
    }
}
