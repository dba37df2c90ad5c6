// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// vCPUs that do not run: after HLT, and before they are started. Only with a local APIC in the kernel.
/// </summary>
internal static class Halting<TVendor> where TVendor : struct, IVendor
{
    private const ulong FirstPoll = 10_000;

    /// <summary>HLT: sleeps in the kernel, or in user space when that has the interrupt controllers.</summary>
    public static VcpuAction Halt(ref Vcpu vcpu)
    {
        if (!vcpu.HasApic)
            return HasWork(ref vcpu) ? VcpuAction.Resume : UserExit.Plain(ref vcpu, Exit.KVM_EXIT_HLT);
        // Whether there is work is what Wait begins with.
        if (!Paravirtual<TVendor>.TakeUnhalt(ref vcpu))
            vcpu.MpState = MpState.Halted;
        return VcpuAction.Resume;
    }

    /// <summary>What ends a halt.</summary>
    [MethodImpl(AggressiveInlining)] private static bool HasWork(ref Vcpu vcpu) =>
        vcpu.Events.Exception.Pending || vcpu.Events.AnyInjected || vcpu.Events.TripleFault
        || Exceptions<TVendor>.CanTakeNmi(ref vcpu)
        || (vcpu.Registers.Rflags & Rflags.If) != 0 && (PendingInterrupts.Any(ref vcpu) || vcpu.Apic.WillDeliver);

    /// <summary>
    /// Waits until the vCPU has something to do. Resume: look again, it may run. Retry: the thread's work comes first, a
    /// signal among it.
    /// </summary>
    public static VcpuAction Wait(ref Vcpu vcpu)
    {
        if (vcpu.MpState == MpState.Halted && HasWork(ref vcpu))
        {
            vcpu.MpState = MpState.Runnable;
            return VcpuAction.Resume;
        }
        bool polls = vcpu.MpState == MpState.Halted && vcpu.Paravirt.PollControl != 0;
        ulong start = HostCpu.Nanoseconds(), poll = polls ? vcpu.HaltPoll : 0;
        TVendor.SetTimer(ref vcpu, vcpu.Apic.Timer.Target, start, halts: true);
        HaltEnd end = StealTime<TVendor>.Halt(ref vcpu, poll == 0 ? 0 : start + poll);
        if (polls)
            vcpu.HaltPoll = NextPoll(poll, end, HostCpu.Nanoseconds() - start, Parameters.HaltPollNanoseconds());
        // Who has slept comes back with work for its thread, at least what another thread's turn leaves behind.
        return end == HaltEnd.Polled ? VcpuAction.Resume : VcpuAction.Retry;
    }

    /// <summary>
    /// Polling spares the sleep where waits are short: it grows while they would have fitted, and ends when one was
    /// longer than polling may ever be.
    /// </summary>
    private static ulong NextPoll(ulong poll, HaltEnd end, ulong waited, ulong limit)
    {
        if (end == HaltEnd.Polled)
            return Math.Min(poll, limit);
        return waited > limit ? 0 : Math.Min(Math.Max(poll * 2, FirstPoll), limit);
    }

    private const VcpuRequests Messages = VcpuRequests.Nmi | VcpuRequests.Init | VcpuRequests.StartUp;

    /// <summary>Other CPUs' messages take effect before user space looks at the vCPU's state.</summary>
    [MethodImpl(AggressiveInlining)] public static void AcceptMessages(ref Vcpu vcpu)
    {
        if ((vcpu.Shared.Requests & Messages) != 0)
            Accept(ref vcpu, (VcpuRequests)Interlocked.And(ref vcpu.Shared.RequestBits, ~(uint)Messages));
    }

    /// <summary>NMI, INIT and start-up messages; INIT before a start-up, whose order they are always in.</summary>
    public static void Accept(ref Vcpu vcpu, VcpuRequests requests)
    {
        if ((requests & VcpuRequests.Nmi) != 0)
            vcpu.Events.QueueNmi(TVendor.GetNmiMasked(ref vcpu));
        if ((requests & VcpuRequests.Init) != 0)
            Initialize(ref vcpu);
        if ((requests & VcpuRequests.StartUp) != 0)
            StartUp(ref vcpu);
    }

    /// <summary>INIT: the boot processor starts over, others wait to be started.</summary>
    private static void Initialize(ref Vcpu vcpu)
    {
        Reset<TVendor>.Init(ref vcpu);
        IrqChip.ForgetInService(ref vcpu.Vm);
        vcpu.MpState = (vcpu.Msrs.ApicBase & ApicBase.Bsp) != 0 ? MpState.Runnable : MpState.InitReceived;
    }

    /// <summary>
    /// A start-up message: real mode, at the page that its vector names. Others than those who wait ignore it.
    /// </summary>
    private static void StartUp(ref Vcpu vcpu)
    {
        if (vcpu.MpState != MpState.InitReceived)
            return;
        Segment code = TVendor.GetSegment(ref vcpu, SegmentName.Cs);
        code.Selector = (ushort)(vcpu.Apic.StartUpVector << 8);
        code.Base = (ulong)vcpu.Apic.StartUpVector << Page.Shift;
        TVendor.SetSegment(ref vcpu, SegmentName.Cs, in code);
        vcpu.Registers.Rip = 0;
        vcpu.MpState = MpState.Runnable;
    }

    /// <summary>KVM_SET_MP_STATE. Without a local APIC in the kernel a vCPU is always runnable.</summary>
    public static int Set(ref Vcpu vcpu, MpState wanted)
    {
        if (wanted > MpState.SipiReceived || wanted != MpState.Runnable && !vcpu.HasApic)
            return Errno.EINVAL;
        bool starts = wanted == MpState.SipiReceived;
        vcpu.MpState = starts ? MpState.InitReceived : wanted;
        if (starts)
            vcpu.Shared.Request(VcpuRequests.StartUp);
        return Errno.Ok;
    }
}
