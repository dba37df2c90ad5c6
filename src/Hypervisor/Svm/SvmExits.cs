// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Abi;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using SharpKvm.Host;
using SharpKvm.Mmu;
using SharpKvm.Paravirt;
using SharpKvm.Vm;

namespace SharpKvm.Svm;

/// <summary>One turn of an SVM guest: deliver events, enter, and handle the exit.</summary>
internal static class SvmExits
{
    private const uint OpcodeCpuid = 0x0fa2, OpcodeRdmsr = 0x0f32, OpcodeWrmsr = 0x0f30, OpcodeHlt = 0xf4,
        OpcodeVmmcall = 0x0f01d9, OpcodeVmcall = 0x0f01c1, OpcodeXsetbv = 0x0f01d1, OpcodeWbinvd = 0x0f09,
        OpcodeInvd = 0x0f08, OpcodeMonitor = 0x0f01c8, OpcodeMwait = 0x0f01c9;

    public static VcpuAction Step(ref Vcpu vcpu)
    {
        ref Vmcb vmcb = ref SvmVendor.Control(ref vcpu);
        ref GuestRegisters registers = ref vcpu.Registers;
        SvmEvents.Deliver(ref vcpu, ref vmcb);

        ulong rflags = registers.Rflags;
        vmcb.Rax = registers[Gpr.Rax];
        vmcb.Rsp = registers[Gpr.Rsp];
        vmcb.Rip = registers.Rip;
        vmcb.Rflags = vcpu.Svm.StepsOverIret ? rflags | Rflags.Tf : vcpu.Debug.EntryRflags(rflags);
        vmcb.VirtualInterrupt = vmcb.VirtualInterrupt & ~VirtualInterrupt.TprMask | (VirtualInterrupt)vcpu.Events.Cr8;
        if (!vcpu.Svm.Asid.IsOwn)
            SvmVendor.FlushTlb(ref vcpu);

        bool entered = vcpu.Shared.Host.Enter();
        if (vcpu.Paravirt.EoiOffered)
            PvEoi<SvmVendor>.TakeBack(ref vcpu);
        if (!entered)
            return VcpuAction.Retry;

        vmcb.TlbControl = TlbControl.Nothing;
        vcpu.Shared.Flags &= ~EntryFlags.Flushes;
        registers[Gpr.Rax] = vmcb.Rax;
        registers[Gpr.Rsp] = vmcb.Rsp;
        registers.Rip = vmcb.Rip;
        registers.Rflags = vcpu.Svm.StepsOverIret
            ? vmcb.Rflags & ~Rflags.Tf | rflags & Rflags.Tf
            : vcpu.Debug.ExitRflags(vmcb.Rflags, rflags);
        byte priority = (byte)(vmcb.VirtualInterrupt & VirtualInterrupt.TprMask);
        if (priority != vcpu.Events.Cr8)
            ControlRegisters<SvmVendor>.TrySetCr8(ref vcpu, priority);
        vcpu.Trace((uint)vmcb.ExitCode, vmcb.ExitInfo1, vmcb.ExitInfo2);
        SvmEvents.AfterExit(ref vcpu, ref vmcb);
        return Handle(ref vcpu, ref vmcb);
    }

    private static VcpuAction Handle(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        // The compiler makes a tree of comparisons of the switch: what comes most is asked first.
        if (vmcb.ExitCode == ExitCode.NestedPageFault)
            return NestedPageFault(ref vcpu, ref vmcb);
        if (vmcb.ExitCode == ExitCode.Ioio)
            return PortAccess(ref vcpu, ref vmcb);
        if (vmcb.ExitCode == ExitCode.Msr)
            return vmcb.ExitInfo1 != 0 ? WriteMsr(ref vcpu) : ReadMsr(ref vcpu);
        switch (vmcb.ExitCode)
        {
            case ExitCode.Intr:
            case ExitCode.Nmi:
            case ExitCode.Smi:
            case ExitCode.Init:
            // The machine check itself went to the host's handler when its interrupt was taken.
            case ExitCode.MachineCheck:
                return VcpuAction.Resume;
            case ExitCode.Cpuid: return ExecuteCpuid(ref vcpu);
            case ExitCode.Hlt: return Halt(ref vcpu);
            case ExitCode.Vintr: return SvmEvents.CloseInterruptWindow(ref vmcb);
            case ExitCode.Iret: return SvmEvents.InterceptIret(ref vcpu, ref vmcb);
            case ExitCode.Vmmcall: return Hypercall(ref vcpu);
            case ExitCode.Debug: return Debug(ref vcpu, ref vmcb);
            case ExitCode.Breakpoint: return Breakpoint(ref vcpu, ref vmcb);
            case ExitCode.InvalidOpcode: return InvalidOpcode(ref vcpu);
            case ExitCode.AlignmentCheck: return Raise(ref vcpu, Vector.AlignmentCheck, withErrorCode: true);
            case ExitCode.Xsetbv: return SetExtendedControl(ref vcpu);
            case ExitCode.Wbinvd: return Skip(ref vcpu, OpcodeWbinvd);
            case ExitCode.Invd: return Skip(ref vcpu, OpcodeInvd);
            case ExitCode.Monitor: return MonitorOrWait(ref vcpu, OpcodeMonitor);
            case ExitCode.Mwait:
            case ExitCode.MwaitArmed: return MonitorOrWait(ref vcpu, OpcodeMwait);
            case ExitCode.Rdpmc: return Raise(ref vcpu, Vector.GeneralProtection, withErrorCode: true);
            case ExitCode.Shutdown: return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_SHUTDOWN);
            case ExitCode.Vmrun:
            case ExitCode.Vmload:
            case ExitCode.Vmsave:
            case ExitCode.Stgi:
            case ExitCode.Clgi:
            case ExitCode.Skinit:
            case ExitCode.Invlpga:
            case ExitCode.Rsm:
            case ExitCode.Rdtscp:
            case ExitCode.Rdpru: return Raise(ref vcpu, Vector.InvalidOpcode, withErrorCode: false);
            // Hardware task switches (32-bit TSS and task gates) are not carried out.
            case ExitCode.TaskSwitch: return UserExit.EmulationFailure(ref vcpu, default);
            case ExitCode.Invalid: return EntryFailed(ref vcpu, ref vmcb);
            case >= ExitCode.ReadCr0 and <= ExitCode.WriteDr15: return ControlOrDebugAccess(ref vcpu);
            default:
                return UserExit.InternalError(ref vcpu, kvm_run.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                    vmcb.ExitCode, vmcb.ExitInfo1);
        }
    }

    private static VcpuAction NestedPageFault(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        const ulong Present = 1 << 0, Write = 1 << 1, Final = 1ul << 32;
        var address = new Gpa(vmcb.ExitInfo2);
        bool write = (vmcb.ExitInfo1 & Write) != 0;
        bool present = (vmcb.ExitInfo1 & Present) != 0, tells = AsyncFaults<SvmVendor>.CanTell(ref vcpu);
        FaultOutcome outcome = NestedFault.Handle<Npt>(ref vcpu, address, write, present, wait: !tells);
        if (outcome == FaultOutcome.NotYet)
        {
            if (AsyncFaults<SvmVendor>.TryTell(ref vcpu, address, write))
                return VcpuAction.Resume;
            outcome = NestedFault.Handle<Npt>(ref vcpu, address, write, present, wait: true);
        }
        return outcome switch
        {
            FaultOutcome.Mapped => VcpuAction.Resume,
            FaultOutcome.Retry => VcpuAction.Retry,
            // The access was the delivery's own, a stack or a table in device memory: no instruction made it.
            FaultOutcome.Mmio or FaultOutcome.ReadOnlyWrite when vmcb.ExitInterrupt.Valid => UserExit.InternalError(
                ref vcpu, kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV, vmcb.ExitInterrupt.Raw, vmcb.ExitCode),
            FaultOutcome.Mmio or FaultOutcome.ReadOnlyWrite when (vmcb.ExitInfo1 & Final) != 0 =>
                InstructionEmulation<SvmVendor>.RunAfterFault(ref vcpu, address, write,
                    device: outcome == FaultOutcome.Mmio),
            // A guest page table is no memory: the address is an entry's, not the operand's.
            FaultOutcome.Mmio or FaultOutcome.ReadOnlyWrite => InstructionEmulation<SvmVendor>.Run(ref vcpu),
            FaultOutcome.Interrupted => VcpuAction.Retry,
            FaultOutcome.NoMemory => VcpuAction.NoMemory,
            _ => VcpuAction.Fault,
        };
    }

    /// <summary>
    /// EXITINFO1 of IOIO: direction, string, size, port (APM vol. 2, 15.10.2); EXITINFO2 is the next RIP.
    /// </summary>
    private static VcpuAction PortAccess(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        const ulong Input = 1, String = 1 << 2;
        ulong info = vmcb.ExitInfo1;
        if ((info & String) != 0)
            return InstructionEmulation<SvmVendor>.Run(ref vcpu);
        return PortAccess<SvmVendor>.Start(ref vcpu, (info & Input) != 0, (ushort)(info >> 16),
            (byte)((info >> 4) & 7), vmcb.ExitInfo2);
    }

    private static VcpuAction ExecuteCpuid(ref Vcpu vcpu)
    {
        if (!TryFindEnd(ref vcpu, OpcodeCpuid, out ulong end))
            return VcpuAction.Resume;
        CpuidTable.Execute(ref vcpu);
        return Instructions<SvmVendor>.Advance(ref vcpu, end);
    }

    private static VcpuAction ReadMsr(ref Vcpu vcpu) => TryFindEnd(ref vcpu, OpcodeRdmsr, out ulong end)
        ? MsrAccess<SvmVendor>.Read(ref vcpu, end)
        : VcpuAction.Resume;

    private static VcpuAction WriteMsr(ref Vcpu vcpu) => TryFindEnd(ref vcpu, OpcodeWrmsr, out ulong end)
        ? MsrAccess<SvmVendor>.Write(ref vcpu, end)
        : VcpuAction.Resume;

    private static VcpuAction Halt(ref Vcpu vcpu)
    {
        if (!TryFindEnd(ref vcpu, OpcodeHlt, out ulong end))
            return VcpuAction.Resume;
        VcpuAction action = Instructions<SvmVendor>.Advance(ref vcpu, end);
        return action == VcpuAction.Resume ? Halting<SvmVendor>.Halt(ref vcpu) : action;
    }

    private static VcpuAction Hypercall(ref Vcpu vcpu)
    {
        if (!TryFindEnd(ref vcpu, OpcodeVmmcall, out ulong end))
            return VcpuAction.Resume;
        Hypercalls<SvmVendor>.Execute(ref vcpu);
        return Instructions<SvmVendor>.Advance(ref vcpu, end);
    }

    /// <summary>
    /// VMCALL, Intel's hypercall, becomes the one that this CPU has; only the last byte differs. Where code cannot be
    /// written it is carried out. Anything else is the guest's affair (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).
    /// </summary>
    private static VcpuAction InvalidOpcode(ref Vcpu vcpu)
    {
        var start = new Gva(SingleStep.LinearRip<SvmVendor>(ref vcpu));
        if (!vcpu.Vm.Cpu.Has(Quirks.FixHypercall) || !IsVmcall(ref vcpu, start))
            return Raise(ref vcpu, Vector.InvalidOpcode, withErrorCode: false);
        PagingState paging = GuestMachine<SvmVendor>.Paging(ref vcpu);
        Translation last = GuestWalker.Translate(ref vcpu.Vm, in paging, start + 2, PageAccess.Write);
        if (last.Succeeded && GuestMemory.Write(ref vcpu.Vm, last.Address, [unchecked((byte)OpcodeVmmcall)])
            == MemoryAccess.Done)
            return VcpuAction.Resume;
        if (!Instructions<SvmVendor>.TryFindEnd(ref vcpu, OpcodeVmcall, out ulong end))
            return VcpuAction.Resume;
        Hypercalls<SvmVendor>.Execute(ref vcpu);
        return Instructions<SvmVendor>.Advance(ref vcpu, end);
    }

    private static bool IsVmcall(ref Vcpu vcpu, Gva address)
    {
        var machine = new GuestMachine<SvmVendor>(ref vcpu);
        Fault fault = default;
        byte value = 0;
        uint found = 0;
        // One by one: it may lie across a page's end.
        for (ulong i = 0; i < 3; i++)
        {
            if (machine.Fetch(address + i, new Span<byte>(ref value), ref fault) != Access.Done)
                return false;
            found = found << 8 | value;
        }
        return found == OpcodeVmcall;
    }

    /// <summary>
    /// Without effect, as on a CPU whose monitor never waits, even where the guest's CPU has none
    /// (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS).
    /// </summary>
    private static VcpuAction MonitorOrWait(ref Vcpu vcpu, uint opcode) =>
        vcpu.Vm.Cpu.Has(Quirks.MwaitNeverFaults) || vcpu.Cpuid.HasMonitor
            ? Skip(ref vcpu, opcode) : Raise(ref vcpu, Vector.InvalidOpcode, withErrorCode: false);

    private static VcpuAction SetExtendedControl(ref Vcpu vcpu)
    {
        if (!TryFindEnd(ref vcpu, OpcodeXsetbv, out ulong end))
            return VcpuAction.Resume;
        ref GuestRegisters registers = ref vcpu.Registers;
        ulong value = registers[Gpr.Rdx] << 32 | (uint)registers[Gpr.Rax];
        return ControlRegisters<SvmVendor>.TrySetXcr0(ref vcpu, (uint)registers[Gpr.Rcx], value)
            ? Instructions<SvmVendor>.Advance(ref vcpu, end)
            : Raise(ref vcpu, Vector.GeneralProtection, withErrorCode: true);
    }

    /// <summary>
    /// A write to CR8 that lowers the priority goes to user space, if that holds back interrupts by it.
    /// </summary>
    private static VcpuAction ControlOrDebugAccess(ref Vcpu vcpu)
    {
        byte before = vcpu.Events.Cr8;
        VcpuAction action = InstructionEmulation<SvmVendor>.Run(ref vcpu);
        return action == VcpuAction.Resume && vcpu.Events.Cr8 < before && !vcpu.HasApic
            ? UserExit.Plain(ref vcpu, Exit.KVM_EXIT_SET_TPR)
            : action;
    }

    private static VcpuAction Debug(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        ulong causes = vmcb.Dr6 ^ DebugBits.Dr6Fixed;
        vmcb.Dr6 = DebugBits.Dr6Fixed;
        if (vcpu.Svm.StepsOverIret)
        {
            vcpu.Svm.StepsOverIret = false;
            // The step is ours alone; a breakpoint that it met is not.
            if (!vcpu.Debug.SingleSteps && (vcpu.Registers.Rflags & Rflags.Tf) == 0)
                causes &= ~DebugBits.Dr6Bs;
            if (causes == 0)
                return VcpuAction.Resume;
        }
        if (vcpu.Debug.SingleSteps || vcpu.Debug.HardwareBreakpoints)
        {
            return UserExit.Debug(ref vcpu, Vector.Debug.Value, SingleStep.LinearRip<SvmVendor>(ref vcpu),
                causes ^ DebugBits.Dr6Fixed, vmcb.Dr7);
        }
        Exceptions<SvmVendor>.QueueDebug(ref vcpu, causes);
        return VcpuAction.Resume;
    }

    private static VcpuAction Breakpoint(ref Vcpu vcpu, ref Vmcb vmcb) =>
        UserExit.Debug(ref vcpu, Vector.Breakpoint.Value, SingleStep.LinearRip<SvmVendor>(ref vcpu), 0, vmcb.Dr7);

    private static VcpuAction EntryFailed(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        ref kvm_run run = ref vcpu.Run;
        run.exit_reason = Exit.KVM_EXIT_FAIL_ENTRY;
        run.fail_entry = new kvm_run.FailEntry { hardware_entry_failure_reason = vmcb.ExitCode };
        return VcpuAction.UserSpace;
    }

    private static VcpuAction Skip(ref Vcpu vcpu, uint opcode) => TryFindEnd(ref vcpu, opcode, out ulong end)
        ? Instructions<SvmVendor>.Advance(ref vcpu, end)
        : VcpuAction.Resume;

    private static VcpuAction Raise(ref Vcpu vcpu, Vector vector, bool withErrorCode)
    {
        if (withErrorCode)
            Exceptions<SvmVendor>.QueueError(ref vcpu, vector, 0);
        else
            Exceptions<SvmVendor>.Queue(ref vcpu, vector);
        return VcpuAction.Resume;
    }

    private static bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end)
    {
        if (!SvmHardware.HasNextRip)
            return Instructions<SvmVendor>.TryFindEnd(ref vcpu, opcode, out end);
        end = SvmVendor.Control(ref vcpu).NextRip;
        return true;
    }
}
