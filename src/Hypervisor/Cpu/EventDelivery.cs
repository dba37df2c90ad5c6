// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>
/// Which exception, interrupt or NMI an entry injects, and what becomes of one that an exit cut short.
/// </summary>
internal static class EventDelivery<TVendor> where TVendor : struct, IVendor
{
    /// <summary>There is nothing to inject, and nothing that waits until it can be.</summary>
    [MethodImpl(AggressiveInlining)] public static bool IsQuiet(ref Vcpu vcpu) =>
        !vcpu.Events.Exception.Pending && !vcpu.Events.AnyInjected && vcpu.Events.Nmi.Pending == 0
        && vcpu.Run.request_interrupt_window == 0 && !PendingInterrupts.Any(ref vcpu);

    /// <summary>
    /// Decides what this entry injects. May be called again before the guest has run: it comes out the same.
    /// </summary>
    [MethodImpl(AggressiveInlining)] public static EventInjection Next(ref Vcpu vcpu)
    {
        ref EventState events = ref vcpu.Events;
        EventInjection next = default;
        if (Exceptions<TVendor>.CanTakeNmi(ref vcpu))
        {
            events.Nmi.Pending--;
            events.Nmi.Injected = true;
        }
        if (events.HasException)
        {
            next = Exceptions<TVendor>.Take(ref vcpu);
        }
        else if (events.Nmi.Injected)
        {
            next = EventInjection.Of(EventInjection.EventType.Nmi, Vector.Nmi.Value);
        }
        else if (events.Interrupt.Injected)
        {
            EventInjection.EventType type = events.Interrupt.Soft
                ? EventInjection.EventType.SoftInterrupt
                : EventInjection.EventType.Interrupt;
            next = EventInjection.Of(type, events.Interrupt.Vector.Value);
        }
        else if (events.Nmi.Pending != 0)
        {
            TVendor.OpenNmiWindow(ref vcpu);
        }
        else if (PendingInterrupts.Any(ref vcpu) && Exceptions<TVendor>.CanAcceptInterrupt(ref vcpu))
        {
            events.ReinjectInterrupt(PendingInterrupts.Take(ref vcpu));
            next = EventInjection.Of(EventInjection.EventType.Interrupt, events.Interrupt.Vector.Value);
            PvEoi<TVendor>.Offer(ref vcpu);
        }
        // What waits behind what is injected comes as soon as the guest can take it.
        if (PendingInterrupts.Any(ref vcpu)
            || vcpu.Run.request_interrupt_window != 0 && PendingInterrupts.AreTakenFromUser(ref vcpu))
            TVendor.OpenInterruptWindow(ref vcpu);
        return next;
    }

    /// <summary>The entry has delivered what was injected; what the exit interrupted is injected again.</summary>
    public static void AfterExit(ref EventState events, EventInjection interrupted)
    {
        events.ClearInjected();
        if (!interrupted.Valid)
            return;
        Vector vector = new(interrupted.Vector);
        if (interrupted.Type == EventInjection.EventType.Nmi)
            events.Nmi.Injected = true;
        else if (interrupted.Type == EventInjection.EventType.Interrupt)
            events.ReinjectInterrupt(vector);
        // INT n, INT3, INTO: RIP is still at the instruction, which runs again.
        else if (interrupted.Type == EventInjection.EventType.Exception)
            events.Exception = vector.IsSoftException ? default : new()
            {
                Injected = true, Vector = vector,
                HasErrorCode = interrupted.HasErrorCode, ErrorCode = interrupted.ErrorCode,
            };
    }
}
