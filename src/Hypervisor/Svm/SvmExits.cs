// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;
using Exits = SharpKvm.Vm.Exits<SharpKvm.Svm.SvmVendor>;

namespace SharpKvm.Svm;

/// <summary>One turn of an SVM guest: deliver events, enter, and handle the exit.</summary>
internal static class SvmExits
{
    [MethodImpl(AggressiveInlining)] public static VcpuAction Step(ref Vcpu vcpu)
    {
        ref Vmcb vmcb = ref SvmVendor.Control(ref vcpu);
        ref GuestRegisters registers = ref vcpu.Registers;
        if (vcpu.Vm.Memory.Shadow.IsActive)
        {
            if (!Exits.HasRoot(ref vcpu))
                return VcpuAction.NoMemory;
            vmcb.Cr3 = vcpu.Shadow.Root.Value;
        }
        bool quiet = EventDelivery<SvmVendor>.IsQuiet(ref vcpu);
        vmcb.Inject = default;
        if (!quiet)
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
        if (vcpu.Svm.IretRunning && registers.Rip != vcpu.Svm.IretRip)
            vcpu.Svm.IretRunning = false;
        if (!quiet || vmcb.ExitInterrupt.Valid)
            EventDelivery<SvmVendor>.AfterExit(ref vcpu.Events, vmcb.ExitInterrupt);
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
            return Exits.Instruction(ref vcpu, vmcb.ExitInfo1 != 0 ? Opcode.Wrmsr : Opcode.Rdmsr);
        switch (vmcb.ExitCode)
        {
            case ExitCode.PageFault when vcpu.Vm.Memory.Shadow.IsActive: return Exits.PageFault(
                ref vcpu, new Gva(vmcb.ExitInfo2), (PageFaultCode)vmcb.ExitInfo1, vmcb.ExitInterrupt);
            // The machine check itself went to the host's handler when its interrupt was taken.
            case ExitCode.Intr or ExitCode.Nmi or ExitCode.Smi or ExitCode.Init or ExitCode.MachineCheck:
                return VcpuAction.Resume;
            case ExitCode.Cpuid: return Exits.Instruction(ref vcpu, Opcode.Cpuid);
            case ExitCode.Hlt: return Exits.Instruction(ref vcpu, Opcode.Hlt);
            case ExitCode.Invlpg: return InstructionEmulation<SvmVendor>.Run(ref vcpu);
            case ExitCode.Invpcid: return Exits.InvalidatePcid(ref vcpu, vmcb.ExitInfo2);
            case ExitCode.Vintr: return SvmEvents.CloseInterruptWindow(ref vmcb);
            case ExitCode.Iret: return SvmEvents.InterceptIret(ref vcpu, ref vmcb);
            case ExitCode.Vmmcall: return Exits.Instruction(ref vcpu, Opcode.Vmmcall);
            case ExitCode.Debug: return Debug(ref vcpu, ref vmcb);
            case ExitCode.Breakpoint: return Exits.Breakpoint(ref vcpu);
            case ExitCode.InvalidOpcode: return Exits.InvalidOpcode(ref vcpu);
            case ExitCode.AlignmentCheck: return Exits.Raise(ref vcpu, Vector.AlignmentCheck);
            case ExitCode.Xsetbv: return Exits.Instruction(ref vcpu, Opcode.Xsetbv);
            case ExitCode.Wbinvd: return Exits.Instruction(ref vcpu, Opcode.Wbinvd);
            case ExitCode.Invd: return Exits.Instruction(ref vcpu, Opcode.Invd);
            case ExitCode.Monitor: return Exits.MonitorOrWait(ref vcpu, Opcode.Monitor);
            case ExitCode.Mwait or ExitCode.MwaitArmed: return Exits.MonitorOrWait(ref vcpu, Opcode.Mwait);
            case ExitCode.Rdpmc: return Exits.Raise(ref vcpu, Vector.GeneralProtection);
            case ExitCode.Shutdown: return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_SHUTDOWN);
            case ExitCode.Vmrun or ExitCode.Vmload or ExitCode.Vmsave or ExitCode.Stgi or ExitCode.Clgi
                or ExitCode.Skinit or ExitCode.Invlpga or ExitCode.Rsm or ExitCode.Rdtscp or ExitCode.Rdpru:
                return Exits.Raise(ref vcpu, Vector.InvalidOpcode);
            case ExitCode.TaskSwitch: return TaskSwitch(ref vcpu, ref vmcb);
            case ExitCode.Invalid: return Exits.EntryFailed(ref vcpu, vmcb.ExitCode);
            case >= ExitCode.ReadCr0 and <= ExitCode.WriteDr15: return Exits.ControlOrDebugAccess(ref vcpu);
            default:
                return UserExit.InternalError(ref vcpu, kvm_run.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                    vmcb.ExitCode, vmcb.ExitInfo1);
        }
    }

    private static VcpuAction NestedPageFault(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        const ulong Present = 1 << 0, Write = 1 << 1, Final = 1ul << 32;
        ulong info = vmcb.ExitInfo1;
        return Exits.NestedPageFault<Npt>(ref vcpu, new Gpa(vmcb.ExitInfo2), (info & Write) != 0,
            (info & Present) != 0, (info & Final) != 0, vmcb.ExitInterrupt);
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

    /// <summary>EXITINFO1: the selector; EXITINFO2: what asked for it (APM vol. 2, 15.14.1).</summary>
    private static VcpuAction TaskSwitch(ref Vcpu vcpu, ref Vmcb vmcb)
    {
        const ulong Iret = 1ul << 36, Jump = 1ul << 38;
        EventInjection interrupted = vmcb.ExitInterrupt;
        TaskSwitchCause cause = interrupted.Valid ? TaskSwitchCause.Gate
            : (vmcb.ExitInfo2 & Iret) != 0 ? TaskSwitchCause.Iret
            : (vmcb.ExitInfo2 & Jump) != 0 ? TaskSwitchCause.Jump : TaskSwitchCause.Call;
        ulong end = 0;
        return interrupted.IsEvent || Instructions<SvmVendor>.TryFindEnd(ref vcpu, 0, out end)
            ? Interpreter<SvmVendor>.SwitchTask(ref vcpu, (ushort)vmcb.ExitInfo1, cause, interrupted, end)
            : VcpuAction.Resume;
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
        return Exits.Debug(ref vcpu, causes);
    }
}
