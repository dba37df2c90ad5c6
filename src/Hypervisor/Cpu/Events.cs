// SPDX-License-Identifier: GPL-2.0-only
using static SharpKvm.Abi.kvm_vcpu_events;

namespace SharpKvm.Cpu;

/// <summary>An exception on its way to the guest.</summary>
internal struct QueuedException
{
    /// <summary>Raised, nothing of it delivered yet.</summary>
    public bool Pending;
    /// <summary>Its delivery has begun: CR2 and DR6 are written.</summary>
    public bool Injected;
    public Vector Vector;
    public bool HasErrorCode;
    public uint ErrorCode;
    /// <summary><see cref="Payload"/> goes to CR2 (#PF) or DR6 (#DB) at delivery.</summary>
    public bool HasPayload;
    public ulong Payload;
}

internal struct QueuedInterrupt
{
    public bool Injected;
    /// <summary>INT n.</summary>
    public bool Soft;
    public Vector Vector;
}

internal struct QueuedNmi
{
    public bool Injected;
    /// <summary>How many wait; one may be latched behind the one being handled.</summary>
    public byte Pending;
}

/// <summary>Events that wait for delivery to the guest, or whose delivery an exit interrupted.</summary>
internal struct EventState
{
    private const byte MaxNmis = 2;

    public QueuedException Exception;
    public QueuedInterrupt Interrupt;
    public QueuedNmi Nmi;
    /// <summary>Split mode: an interrupt of user space's PIC that waits for KVM_RUN to take it.</summary>
    public bool HasExternal;
    public Vector External;
    /// <summary>The guest shuts down: KVM_EXIT_SHUTDOWN.</summary>
    public bool TripleFault;
    /// <summary>Task priority; the vendor mirrors it into hardware.</summary>
    public byte Cr8;

    public readonly bool HasException => Exception.Pending || Exception.Injected;

    /// <summary>Something must be injected again before anything new.</summary>
    public readonly bool AnyInjected
    {
        [MethodImpl(AggressiveInlining)] get => Exception.Injected || Interrupt.Injected || Nmi.Injected;
    }

    /// <summary>The entry delivered what was injected.</summary>
    public void ClearInjected() => Exception.Injected = Interrupt.Injected = Nmi.Injected = false;

    public void ReinjectInterrupt(Vector vector) => Interrupt = new() { Injected = true, Vector = vector };

    public void QueueNmi(bool masked) =>
        Nmi.Pending = (byte)Math.Min(Nmi.Pending + 1, masked || Nmi.Injected ? 1 : MaxNmis);
}

/// <summary>Raising and delivering exceptions (SDM vol. 3, chapter 6).</summary>
internal static class Exceptions<TVendor> where TVendor : struct, IVendor
{
    private const uint ReportedFlags =
        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;

    /// <summary>
    /// An exception on top of one that is being delivered: table 6-5 of SDM vol. 3, 6.15 (double and triple faults).
    /// Otherwise the second takes the place of the first, which comes again when its instruction is repeated.
    /// </summary>
    /// <param name="vcpu">The vCPU.</param>
    /// <param name="vector">The exception.</param>
    /// <param name="errorCode">Of those that have one.</param>
    /// <param name="payload">Of #PF the address, for CR2; of #DB the bits of DR6 that tell the cause.</param>
    public static void Queue(ref Vcpu vcpu, Vector vector, uint errorCode = 0, ulong payload = 0)
    {
        QueuedException raised = new()
        {
            Vector = vector, HasErrorCode = vector.HasErrorCode, ErrorCode = errorCode,
            HasPayload = vector.Value == Vector.PageFault.Value || payload != 0, Payload = payload,
        };
        ref EventState events = ref vcpu.Events;
        if (events.HasException)
        {
            Vector first = events.Exception.Vector;
            bool isSerious = vector.IsContributory || vector.Value == Vector.PageFault.Value;
            if (isSerious && first.Value == Vector.DoubleFault.Value)
            {
                events.Exception = default;
                events.TripleFault = true;
                return;
            }
            if (first.IsContributory && vector.IsContributory || isSerious && first.Value == Vector.PageFault.Value)
                raised = new() { Vector = Vector.DoubleFault, HasErrorCode = true };
        }
        // Real mode pushes no error codes.
        raised.HasErrorCode &= (TVendor.GetCr0(ref vcpu) & Cr0.Pe) != 0;
        raised.Pending = true;
        events.Exception = raised;
    }

    /// <summary>
    /// The exception to inject with this entry, if there is one: new, with its effects on CR2, DR6, DR7 and RFLAGS.RF
    /// made now, or one whose delivery was interrupted.
    /// </summary>
    public static EventInjection Take(ref Vcpu vcpu)
    {
        ref QueuedException queued = ref vcpu.Events.Exception;
        if (queued.Pending)
        {
            DeliverPayload(ref vcpu);
            if (IsFault(in queued))
                vcpu.Registers.Rflags |= Rflags.Rf;
            if (queued.Vector.Value == Vector.Debug.Value)
                Debugging<TVendor>.SetDr7(ref vcpu, Debugging<TVendor>.GetDr7(ref vcpu) & ~DebugBits.Dr7Gd);
            queued.Pending = false;
            queued.Injected = true;
        }
        return !queued.Injected ? default
            : queued.HasErrorCode ? EventInjection.Of(queued.Vector.Value, queued.ErrorCode)
            : EventInjection.Of(EventInjection.EventType.Exception, queued.Vector.Value);
    }

    /// <summary>Faults return to the instruction itself; traps (#BP, #OF), #DB and aborts leave RF alone.</summary>
    private static bool IsFault(in QueuedException exception) => exception.Vector.Value is not (1 or 3 or 4 or 8 or 18);

    /// <summary>Writes CR2 or DR6: at delivery, or before user space reads state without the payload.</summary>
    public static void DeliverPayload(ref Vcpu vcpu)
    {
        ref QueuedException queued = ref vcpu.Events.Exception;
        if (!queued.HasPayload)
            return;
        queued.HasPayload = false;
        if (queued.Vector.Value == Vector.PageFault.Value)
            TVendor.Cr2(ref vcpu) = queued.Payload;
        else if (queued.Vector.Value == Vector.Debug.Value)
            vcpu.Debug.Dr6 = vcpu.Debug.Dr6 & ~DebugBits.Dr6Traps | queued.Payload;
        queued.Payload = 0;
    }

    /// <summary>Whether an external interrupt could be injected now.</summary>
    public static bool CanAcceptInterrupt(ref Vcpu vcpu) =>
        (vcpu.Registers.Rflags & Rflags.If) != 0 && !vcpu.Events.HasException && !vcpu.Events.AnyInjected
        && TVendor.GetInterruptShadow(ref vcpu) == 0;

    /// <summary>Whether an NMI waits and could be injected now.</summary>
    [MethodImpl(AggressiveInlining)] public static bool CanTakeNmi(ref Vcpu vcpu) =>
        vcpu.Events.Nmi.Pending != 0 && !vcpu.Events.HasException && !vcpu.Events.AnyInjected
        && !TVendor.GetNmiMasked(ref vcpu) && TVendor.GetInterruptShadow(ref vcpu) == 0;

    /// <summary>KVM_GET_VCPU_EVENTS.</summary>
    public static int Get(ref Vcpu vcpu, out kvm_vcpu_events events)
    {
        ref EventState state = ref vcpu.Events;
        bool payloads = vcpu.Vm.Cpu.ExceptionPayload;
        if (!payloads && state.Exception.Pending)
            DeliverPayload(ref vcpu);
        // INT3 and INTO are executed again instead, because the ABI does not carry their length.
        bool reported = !state.Exception.Vector.IsSoftException, pending = reported && state.Exception.Pending;
        events = new()
        {
            exception_injected = Flag.Of(reported && state.Exception.Injected || !payloads && pending),
            exception_pending = Flag.Of(pending),
            exception_nr = state.Exception.Vector.Value,
            exception_has_error_code = Flag.Of(state.Exception.HasErrorCode),
            exception_error_code = state.Exception.ErrorCode,
            exception_has_payload = Flag.Of(state.Exception.HasPayload), exception_payload = state.Exception.Payload,
            interrupt_injected = Flag.Of(state.Interrupt.Injected && !state.Interrupt.Soft),
            interrupt_nr = state.Interrupt.Vector.Value,
            interrupt_shadow = (byte)TVendor.GetInterruptShadow(ref vcpu),
            nmi_injected = Flag.Of(state.Nmi.Injected), nmi_pending = Flag.Of(state.Nmi.Pending != 0),
            nmi_masked = Flag.Of(TVendor.GetNmiMasked(ref vcpu)),
            triple_fault_pending = Flag.Of(vcpu.Vm.Cpu.TripleFaultEvent && state.TripleFault),
            flags = ReportedFlags | EnabledFlags(in vcpu.Vm.Cpu),
        };
        return 0;
    }

    /// <summary>
    /// KVM_SET_VCPU_EVENTS. EINVAL for flags that are not enabled, an impossible exception, or any trace of SMM.
    /// </summary>
    public static int Set(ref Vcpu vcpu, in kvm_vcpu_events events)
    {
        uint allowed = ReportedFlags | KVM_VCPUEVENT_VALID_SIPI_VECTOR | EnabledFlags(in vcpu.Vm.Cpu);
        bool payloads = (events.flags & KVM_VCPUEVENT_VALID_PAYLOAD) != 0;
        bool pending = payloads && events.exception_pending != 0;
        bool injected = !pending && events.exception_injected != 0;
        bool inSmm = (events.smi_smm | events.smi_pending | events.smi_smm_inside_nmi) != 0;
        if ((events.flags & ~allowed) != 0 || (pending || injected) && events.exception_nr is > 31 or 2
            || inSmm && (events.flags & KVM_VCPUEVENT_VALID_SMM) != 0)
            return Errno.EINVAL;

        ref EventState state = ref vcpu.Events;
        state.Exception = new()
        {
            Pending = pending, Injected = injected, Vector = new Vector(events.exception_nr),
            HasErrorCode = events.exception_has_error_code != 0, ErrorCode = events.exception_error_code,
            HasPayload = pending && events.exception_has_payload != 0, Payload = events.exception_payload,
        };
        state.Interrupt = new()
        {
            Injected = events.interrupt_injected != 0, Soft = events.interrupt_soft != 0,
            Vector = new Vector(events.interrupt_nr),
        };
        if ((events.flags & KVM_VCPUEVENT_VALID_SHADOW) != 0)
            TVendor.SetInterruptShadow(ref vcpu, events.interrupt_shadow);
        state.Nmi.Injected = events.nmi_injected != 0;
        if ((events.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) != 0)
            state.Nmi.Pending = Flag.Of(events.nmi_pending != 0);
        TVendor.SetNmiMasked(ref vcpu, events.nmi_masked != 0);
        if ((events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0)
            state.TripleFault = events.triple_fault_pending != 0;
        return 0;
    }

    private static uint EnabledFlags(in VmCpuState vm) =>
        (vm.ExceptionPayload ? KVM_VCPUEVENT_VALID_PAYLOAD : 0)
        | (vm.TripleFaultEvent ? KVM_VCPUEVENT_VALID_TRIPLE_FAULT : 0);
}
