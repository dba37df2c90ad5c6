// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;
using Exits = SharpKvm.Vm.Exits<SharpKvm.Vmx.VmxVendor>;

namespace SharpKvm.Vmx;

/// <summary>One turn of a VMX guest: deliver events, enter, handle the exit (SDM vol. 3, chapters 27 to 29).</summary>
internal static class VmxExits
{
    /// <summary>Bit 12 of the exit's information: an IRET that failed had already lifted the block of NMIs.</summary>
    private const ulong UnblockedNmis = 1 << 12;

    [MethodImpl(AggressiveInlining)] public static VcpuAction Step(ref Vcpu vcpu)
    {
        ref VmxVcpu vmx = ref vcpu.Vmx;
        ref GuestRegisters registers = ref vcpu.Registers;
        if (!VmxHardware.HasEpt)
        {
            if (!Exits.HasRoot(ref vcpu))
                return VcpuAction.NoMemory;
            Vmcs.Write(VmcsField.Cr3, vcpu.Shadow.Root.Value);
        }
        else if (vmx.PdptesStale)
            VmxVendor.LoadPdptes(ref vcpu);
        bool quiet = EventDelivery<VmxVendor>.IsQuiet(ref vcpu) && vmx.Injection.Raw == 0 && !vmx.Held.Injected;
        if (!quiet)
            Deliver(ref vcpu);
        ulong rflags = registers.Rflags;
        Update(VmcsField.Rip, ref vmx.Rip, registers.Rip);
        Update(VmcsField.Rsp, ref vmx.Rsp, registers[Gpr.Rsp]);
        Update(VmcsField.Rflags, ref vmx.Rflags, vcpu.Debug.EntryRflags(rflags));
        KeepStep(ref vcpu, DebugBits.Dr6Bs);
        if (vcpu.Apic.IsVirtual)
        {
            if (vcpu.Apic.TakePosted())
                Vmcs.Write(VmcsField.InterruptStatus, vcpu.Apic.TakeStatus((uint)Vmcs.Read(VmcsField.InterruptStatus)));
        }
        else if (vmx.HasTpr && (vcpu.Events.Cr8 != 0 || vmx.TprThreshold != 0))
            ChooseThreshold(ref vcpu);
        if (vmx.Deadline != 0)
            LoadTimer(vmx.Deadline);

        // Whoever asks for another flush from here on, or takes the thread to another CPU, keeps it from entering.
        // Without a VPID, and so with shadow tables, the entry flushes by itself.
        if ((vcpu.Shared.Flags & EntryFlags.Flushes) != 0 && VmxHardware.HasEpt)
            HostCpu.FlushGuest(vmx.EptPointer, vmx.Vpid);
        bool entered = vcpu.Shared.Host.Enter();
        KeepStep(ref vcpu, 0);
        if (vcpu.Paravirt.EoiOffered)
            PvEoi<VmxVendor>.TakeBack(ref vcpu);
        if (!entered)
            return VcpuAction.Retry;

        vcpu.Shared.Flags &= ~EntryFlags.Flushes;
        uint reason = vcpu.Shared.ExitReason;
        if ((reason & ExitReason.EntryFailure) != 0)
            return Failed(ref vcpu, reason != uint.MaxValue ? reason : (uint)Vmcs.Read(VmcsField.InstructionError));
        ulong rip = Vmcs.Read(VmcsField.Rip), rsp = Vmcs.Read(VmcsField.Rsp), real = Vmcs.Read(VmcsField.Rflags);
        registers.Rip = vmx.Rip = rip;
        registers[Gpr.Rsp] = vmx.Rsp = rsp;
        registers.Rflags = vcpu.Debug.ExitRflags(vmx.Rflags = real, rflags);
        if (vmx.HasTpr && vcpu.Apic.Tpr is byte priority && priority >> 4 != vcpu.Events.Cr8)
            Apic<VmxVendor>.SetTpr(ref vcpu, priority);
        if (!vmx.Pml.IsNull && Vmcs.Read(VmcsField.PmlIndex) is ulong next and not LastLogged)
            TakeLog(ref vcpu, (ushort)(next + 1));
        ulong qualification = Vmcs.Read(VmcsField.Qualification);
        EventInjection interrupted = new((uint)Vmcs.Read(VmcsField.InterruptedEvent));
        if (!quiet || interrupted.Valid)
            interrupted = AfterDelivery(ref vcpu, interrupted);
        vcpu.Trace(reason, qualification, interrupted.Raw);
        return Handle(ref vcpu, reason, qualification, interrupted);
    }

    private static VcpuAction Failed(ref Vcpu vcpu, uint reason)
    {
        EntryFailure.Report(ref vcpu, reason);
        return Exits.EntryFailed(ref vcpu, reason);
    }

    /// <summary>
    /// A priority below that of the interrupt that it holds back exits. An entry takes no higher threshold than the
    /// priority (SDM vol. 3, 27.2.1.1).
    /// </summary>
    private static void ChooseThreshold(ref Vcpu vcpu)
    {
        int request = vcpu.Apic.HighestRequest() >> 4;
        ulong threshold = request > 0 && request <= vcpu.Events.Cr8 ? (ulong)request : 0;
        Update(VmcsField.TprThreshold, ref vcpu.Vmx.TprThreshold, threshold);
    }

    private static void LoadTimer(ulong deadline)
    {
        // The first of its ticks may be a short one: one more, or it ends the turn for nothing.
        ulong now = HostCpu.Tsc(), ticks = deadline > now ? (deadline - now >> VmxHardware.TimerShift) + 1 : 0;
        Vmcs.Write(VmcsField.PreemptionTimer, Math.Min(ticks, uint.MaxValue));
    }

    /// <summary>Where the CPU puts the first page that it logs; it counts down (SDM vol. 3, 29.3.6).</summary>
    public const ulong LastLogged = KernelPages.EntriesPerTable - 1;

    private static void TakeLog(ref Vcpu vcpu, int first)
    {
        ref readonly MemorySlot slot = ref vcpu.Vm.Memory.Slots.Recent;
        foreach (ulong logged in KernelPages.Entries(vcpu.Vmx.Pml)[first..])
        {
            Gpa page = new(logged);
            if (!slot.Contains(page))
                slot = ref vcpu.Vm.Memory.Slots.Find(page);
            if (slot.Contains(page))
                DirtyLog.Mark(ref vcpu, in slot, page);
        }
        Vmcs.Write(VmcsField.PmlIndex, LastLogged);
    }

    [MethodImpl(AggressiveInlining)] private static void Update(VmcsField field, ref ulong known, ulong value)
    {
        if (known != value)
            Vmcs.Write(field, known = value);
    }

    private static void Deliver(ref Vcpu vcpu)
    {
        ref EventInjection known = ref vcpu.Vmx.Injection;
        EventInjection next = EventDelivery<VmxVendor>.Next(ref vcpu);
        if (next is { Valid: true, Type: EventInjection.EventType.Interrupt } && !CanEnterWithInterrupt(ref vcpu))
        {
            next = default;
            VmxVendor.OpenInterruptWindow(ref vcpu);
        }
        bool isInterrupt = next is
            { Valid: true, Type: EventInjection.EventType.Interrupt or EventInjection.EventType.SoftInterrupt };
        vcpu.Vmx.Held = isInterrupt ? default : vcpu.Events.Interrupt;
        // The entry blocks NMIs itself, and refuses to when they are: an NMI cut short in its delivery comes again.
        if (next.Valid && next.Type == EventInjection.EventType.Nmi)
            VmxVendor.SetNmiMasked(ref vcpu, false);
        if (next.Raw == known.Raw)
            return;
        known = next;
        Vmcs.Write(VmcsField.EntryInterruption, (uint)next.Raw);
        if (next.HasErrorCode)
            Vmcs.Write(VmcsField.EntryErrorCode, next.ErrorCode);
    }

    /// <summary>
    /// An entry refuses an interrupt that the guest cannot take (SDM vol. 3, 27.3.1.4 and 27.3.1.5), but user space may
    /// have queued it all the same.
    /// </summary>
    private static bool CanEnterWithInterrupt(ref Vcpu vcpu) => (vcpu.Registers.Rflags & Rflags.If) != 0
        && VmxVendor.GetInterruptShadow(ref vcpu) == InterruptShadow.None;

    /// <summary>
    /// A step that waits for the end of an interrupt shadow must stand in the VMCS for an entry, and may not when there
    /// is none (SDM vol. 3, 27.3.1.5): user space may stop to step in between.
    /// </summary>
    [MethodImpl(AggressiveInlining)] private static void KeepStep(ref Vcpu vcpu, ulong step)
    {
        if ((vcpu.Vmx.Rflags & Rflags.Tf) != 0 && VmxVendor.GetInterruptShadow(ref vcpu) != InterruptShadow.None)
            Vmcs.Write(VmcsField.PendingDebug, Vmcs.Read(VmcsField.PendingDebug) & ~DebugBits.Dr6Bs | step);
    }

    /// <summary>Something was to be delivered, or its delivery was cut short: that event with its error code.</summary>
    private static EventInjection AfterDelivery(ref Vcpu vcpu, EventInjection interrupted)
    {
        if (interrupted is { Valid: true, HasErrorCode: true })
            interrupted = new(interrupted.Raw | Vmcs.Read(VmcsField.InterruptedErrorCode) << 32);
        // The exit has taken the valid bit away.
        vcpu.Vmx.Injection = default;
        EventDelivery<VmxVendor>.AfterExit(ref vcpu.Events, interrupted);
        if (vcpu.Vmx.Held.Injected)
            vcpu.Events.Interrupt = vcpu.Vmx.Held;
        return interrupted;
    }

    private static VcpuAction Handle(ref Vcpu vcpu, uint reason, ulong qualification, EventInjection interrupted)
    {
        // The compiler makes a tree of comparisons of the switch: what comes most is asked first.
        if (reason == ExitReason.EptViolation)
            return EptViolation(ref vcpu, qualification, interrupted);
        if (reason == ExitReason.Port)
            return PortAccess(ref vcpu, qualification);
        if (reason == ExitReason.Hlt)
            return Exits.Instruction(ref vcpu, Opcode.Hlt, VmxVendor.FindEnd(ref vcpu));
        if (reason == ExitReason.Wrmsr)
            return Exits.Instruction(ref vcpu, Opcode.Wrmsr, VmxVendor.FindEnd(ref vcpu));
        switch (reason)
        {
            case ExitReason.Exception: return Exception(ref vcpu, qualification, interrupted);
            // What waited for a lower priority is found by the next turn.
            case ExitReason.Interrupt or ExitReason.Init or ExitReason.StartUp or ExitReason.TprBelowThreshold:
                return VcpuAction.Resume;
            case ExitReason.PreemptionTimer:
                ApicTimer<VmxVendor>.Expired(ref vcpu);
                return VcpuAction.Resume;
            case ExitReason.PmlFull:
                KeepNmiBlock(ref vcpu, qualification, interrupted);
                return VcpuAction.Resume;
            case ExitReason.InterruptWindow: return CloseWindow(ref vcpu, PrimaryControls.InterruptWindow);
            case ExitReason.NmiWindow: return CloseWindow(ref vcpu, PrimaryControls.NmiWindow);
            case ExitReason.Cpuid: return Exits.Instruction(ref vcpu, Opcode.Cpuid, VmxVendor.FindEnd(ref vcpu));
            case ExitReason.Vmcall: return Exits.Instruction(ref vcpu, Opcode.Vmcall, VmxVendor.FindEnd(ref vcpu));
            case ExitReason.Rdmsr: return Exits.Instruction(ref vcpu, Opcode.Rdmsr, VmxVendor.FindEnd(ref vcpu));
            case ExitReason.Invlpg:
                new GuestMachine<VmxVendor>(ref vcpu).InvalidatePage(new Gva(qualification));
                return Instructions<VmxVendor>.Advance(ref vcpu, VmxVendor.FindEnd(ref vcpu));
            // Bits 28-31: the register that has its type (SDM vol. 3, table 28-9).
            case ExitReason.Invpcid: return Exits.InvalidatePcid(ref vcpu,
                vcpu.Registers[(Gpr)(Vmcs.Read(VmcsField.InstructionInformation) >> 28)]);
            case ExitReason.Xsetbv: return Exits.Instruction(ref vcpu, Opcode.Xsetbv);
            case ExitReason.Wbinvd: return Exits.Instruction(ref vcpu, Opcode.Wbinvd);
            case ExitReason.Invd: return Exits.Instruction(ref vcpu, Opcode.Invd);
            case ExitReason.Monitor: return Exits.MonitorOrWait(ref vcpu, Opcode.Monitor);
            case ExitReason.Mwait: return Exits.MonitorOrWait(ref vcpu, Opcode.Mwait);
            case ExitReason.Rdpmc: return Exits.Raise(ref vcpu, Vector.GeneralProtection);
            // MOV to CR3 in 64-bit mode, and the register that has the value (SDM vol. 3, table 28-3).
            case ExitReason.ControlRegister when (qualification & 0x3f) == 3 && VmxVendor.Is64Bit(ref vcpu):
                return ControlRegisters<VmxVendor>.TrySetCr3(ref vcpu, vcpu.Registers[(Gpr)(qualification >> 8 & 15)])
                    ? Instructions<VmxVendor>.Advance(ref vcpu, VmxVendor.FindEnd(ref vcpu))
                    : Exits.Raise(ref vcpu, Vector.GeneralProtection);
            case ExitReason.ControlRegister or ExitReason.DebugRegister: return Exits.ControlOrDebugAccess(ref vcpu);
            case (>= ExitReason.Vmclear and <= ExitReason.Vmxon) or ExitReason.Invept or ExitReason.Invvpid:
                return Exits.Raise(ref vcpu, Vector.InvalidOpcode);
            case ExitReason.ApicAccess: return ApicAccessed(ref vcpu, qualification, interrupted);
            case ExitReason.ApicWrite:
                Apic<VmxVendor>.Written(ref vcpu, (uint)qualification);
                return VcpuAction.Resume;
            case ExitReason.EndOfInterrupt:
                Apic<VmxVendor>.Ended(ref vcpu, (int)qualification);
                return VcpuAction.Resume;
            case ExitReason.TripleFault: return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_SHUTDOWN);
            case ExitReason.TaskSwitch: return TaskSwitch(ref vcpu, qualification, interrupted);
            default:
                return UserExit.InternalError(ref vcpu, kvm_run.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, reason,
                    qualification);
        }
    }

    /// <summary>
    /// Qualification: access in bits 0-2, rights of the mapping in bits 3-5 (SDM vol. 3, table 28-7).
    /// </summary>
    private static VcpuAction EptViolation(ref Vcpu vcpu, ulong qualification, EventInjection interrupted)
    {
        const ulong Write = 1 << 1, Fetch = 1 << 2, Rights = 7 << 3, Translated = 1 << 8;
        KeepNmiBlock(ref vcpu, qualification, interrupted);
        Gpa address = new(Vmcs.Read(VmcsField.GuestPhysicalAddress));
        if (ApicAccess.TryMap(ref vcpu, address))
            return VcpuAction.Resume;
        return Exits.NestedPageFault<Ept>(ref vcpu, address, (qualification & Write) != 0, (qualification & Rights) != 0,
            (qualification & Translated) != 0, interrupted, Ept.LargestFor((qualification & Fetch) != 0));
    }

    /// <summary>
    /// What the CPU does not do with the APIC's page. Qualification: offset in bits 0-11, kind of access, of which 0
    /// and 1 are reads and writes of data (SDM vol. 3, table 28-6).
    /// </summary>
    private static VcpuAction ApicAccessed(ref Vcpu vcpu, ulong qualification, EventInjection interrupted)
    {
        ulong kind = qualification >> 12 & 0xf;
        return Exits.NestedPageFault<Ept>(ref vcpu, ApicAccess.Address + (qualification & Page.OffsetMask),
            write: kind == 1, present: false, final: kind <= 1, interrupted);
    }

    private static void KeepNmiBlock(ref Vcpu vcpu, ulong information, EventInjection interrupted)
    {
        if ((information & UnblockedNmis) != 0 && !interrupted.Valid)
            VmxVendor.SetNmiMasked(ref vcpu, true);
    }

    /// <summary>Qualification: size, direction, string, port (SDM vol. 3, table 28-5).</summary>
    private static VcpuAction PortAccess(ref Vcpu vcpu, ulong qualification)
    {
        const ulong Size = 7, Input = 1 << 3, String = 1 << 4;
        if ((qualification & String) != 0)
            return InstructionEmulation<VmxVendor>.Run(ref vcpu);
        ulong end = VmxVendor.FindEnd(ref vcpu);
        return PortAccess<VmxVendor>.Start(ref vcpu, (qualification & Input) != 0, (ushort)(qualification >> 16),
            (byte)((qualification & Size) + 1), end);
    }

    /// <summary>An intercepted exception, or an event of the host that its handler has seen already.</summary>
    private static VcpuAction Exception(ref Vcpu vcpu, ulong qualification, EventInjection interrupted)
    {
        const ulong Causes = DebugBits.Dr6Traps | DebugBits.Dr6Bd | DebugBits.Dr6Bs;
        ulong information = Vmcs.Read(VmcsField.ExitInterruption);
        KeepNmiBlock(ref vcpu, information, interrupted);
        switch ((byte)information)
        {
            case 1:
                // INT1 is a trap, and its exit a fault.
                if (new EventInjection(information).Type == EventInjection.EventType.PrivilegedException)
                    vcpu.Registers.Rip += Vmcs.Read(VmcsField.InstructionLength);
                return Exits.Debug(ref vcpu, qualification & Causes);
            case 3: return Exits.Breakpoint(ref vcpu);
            case 6: return Exits.InvalidOpcode(ref vcpu);
            case 14: return Exits.PageFault(ref vcpu, new Gva(qualification),
                (PageFaultCode)Vmcs.Read(VmcsField.ExitErrorCode), interrupted);
            case 17: return Exits.Raise(ref vcpu, Vector.AlignmentCheck);
            default: return VcpuAction.Resume;
        }
    }

    /// <summary>Qualification: selector, and what asked for it in bits 30-31 (SDM vol. 3, table 28-6).</summary>
    private static VcpuAction TaskSwitch(ref Vcpu vcpu, ulong qualification, EventInjection interrupted)
    {
        ulong end = VmxVendor.FindEnd(ref vcpu);
        return Interpreter<VmxVendor>.SwitchTask(ref vcpu, (ushort)qualification,
            (TaskSwitchCause)(qualification >> 30 & 3), interrupted, end);
    }

    private static VcpuAction CloseWindow(ref Vcpu vcpu, PrimaryControls window)
    {
        VmxVendor.SetControl(ref vcpu, window, false);
        return VcpuAction.Resume;
    }
}
