// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>Bytes of intercepted instructions, the first in the highest place.</summary>
internal static class Opcode
{
    public const uint Cpuid = 0x0fa2, Rdmsr = 0x0f32, Wrmsr = 0x0f30, Hlt = 0xf4, Vmmcall = 0x0f01d9, Vmcall = 0x0f01c1,
        Xsetbv = 0x0f01d1, Wbinvd = 0x0f09, Invd = 0x0f08, Monitor = 0x0f01c8, Mwait = 0x0f01c9,
        Invpcid = 0x0f3882;
}

/// <summary>What exits mean that both vendors have; each decodes its own (SvmExits, VmxExits).</summary>
internal static class Exits<TVendor> where TVendor : struct, IVendor
{
    /// <summary>The guest touched memory that is not mapped, or not for this access.</summary>
    /// <param name="vcpu">The vCPU.</param>
    /// <param name="address">What it touched.</param>
    /// <param name="write">It wrote.</param>
    /// <param name="present">There is a mapping that did not allow it.</param>
    /// <param name="final">It was the access itself, not one to a guest page table on the way.</param>
    /// <param name="interrupted">The delivery that made the access, if it was no instruction.</param>
    /// <param name="largest">The highest level of a mapping.</param>
    public static VcpuAction NestedPageFault<TFormat>(ref Vcpu vcpu, Gpa address, bool write, bool present, bool final,
        EventInjection interrupted, int largest = 3) where TFormat : struct, INestedFormat
    {
        bool tells = AsyncFaults<TVendor>.CanTell(ref vcpu);
        FaultOutcome outcome = NestedFault.Handle<TFormat>(ref vcpu, address, write, present, !tells, largest);
        if (outcome == FaultOutcome.NotYet)
        {
            if (AsyncFaults<TVendor>.TryTell(ref vcpu, address, write))
                return VcpuAction.Resume;
            outcome = NestedFault.Handle<TFormat>(ref vcpu, address, write, present, wait: true, largest);
        }
        return outcome switch
        {
            FaultOutcome.Mapped => VcpuAction.Resume,
            FaultOutcome.Retry => VcpuAction.Retry,
            // A stack or a table in device memory: no instruction made the access.
            FaultOutcome.Mmio or FaultOutcome.ReadOnlyWrite when interrupted.Valid => UserExit.InternalError(
                ref vcpu, kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV, interrupted.Raw, address.Value),
            // If a guest page table is no memory, the address is an entry's, not the operand's.
            FaultOutcome.Mmio or FaultOutcome.ReadOnlyWrite => InstructionEmulation<TVendor>.RunAfterFault(
                ref vcpu, address, write, device: final && outcome == FaultOutcome.Mmio),
            FaultOutcome.Interrupted => VcpuAction.Retry,
            FaultOutcome.NoMemory => VcpuAction.NoMemory,
            _ => VcpuAction.Fault,
        };
    }

    /// <summary>Shadow paging: the guest has a root to run with. False: no memory.</summary>
    public static bool HasRoot(ref Vcpu vcpu) => !vcpu.Shadow.MustLoad(in vcpu.Vm.Memory.Shadow)
        || ShadowVcpu.TryLoad(ref vcpu, GuestMachine<TVendor>.Paging(ref vcpu));

    /// <summary>Shadow paging: a #PF, which is the guest's own, or has to do with its shadow tables.</summary>
    public static VcpuAction PageFault(ref Vcpu vcpu, Gva address, PageFaultCode code, EventInjection interrupted)
    {
        PagingState paging = GuestMachine<TVendor>.Paging(ref vcpu);
        bool write = (code & PageFaultCode.Write) != 0;
        ulong kind = (ulong)code | (ulong)paging.Cpl << 16 | vcpu.Registers.Rflags & Rflags.Ac
            | (ulong)vcpu.Shared.Pkru << 32;
        if (!interrupted.Valid && vcpu.Shadow.Device.TryFind(in vcpu.Vm.Memory, address, kind, out Gpa device))
            return InstructionEmulation<TVendor>.RunAfterFault(ref vcpu, device, write, device: true);
        switch (ShadowFault.Handle(ref vcpu, in paging, address, code, out Translation found))
        {
            case FaultOutcome.Mapped: return VcpuAction.Resume;
            case FaultOutcome.NoMemory: return VcpuAction.NoMemory;
            case FaultOutcome.NotYet:
                vcpu.Shadow.Device.Note(ref vcpu.Vm.Memory, address, kind, found.Address);
                return NestedPageFault<Npt>(ref vcpu, found.Address, write, present: true, final: true, interrupted);
            case FaultOutcome.GuestFault:
                Exceptions<TVendor>.Queue(ref vcpu, Vector.PageFault, (uint)found.Fault, address.Value);
                return VcpuAction.Resume;
        }
        VcpuAction action = interrupted.Valid ? VcpuAction.UserSpace : InstructionEmulation<TVendor>.Run(ref vcpu);
        if (action != VcpuAction.UserSpace
            || !interrupted.Valid && vcpu.Run.exit_reason != Exit.KVM_EXIT_INTERNAL_ERROR)
            return action;
        // What cannot be emulated, the guest does itself when there is no shadow.
        ShadowTables.Forget(ref vcpu.Vm, found.Address.Frame, found.Address.Frame + 1);
        return VcpuAction.Resume;
    }

    /// <summary>INVPCID, of which each type flushes all there is; its descriptor is not looked at.</summary>
    public static VcpuAction InvalidatePcid(ref Vcpu vcpu, ulong type)
    {
        if (type > 3)
            return Raise(ref vcpu, Vector.GeneralProtection);
        vcpu.Shadow.IsStale = true;
        TVendor.FlushTlb(ref vcpu);
        return Instruction(ref vcpu, Opcode.Invpcid);
    }

    /// <summary>
    /// An intercepted instruction is carried out; one that has no effect here is only skipped.
    /// </summary>
    /// <param name="vcpu">The vCPU.</param>
    /// <param name="opcode">The instruction, one of <see cref="Opcode"/>.</param>
    public static VcpuAction Instruction(ref Vcpu vcpu, uint opcode) =>
        TVendor.TryFindEnd(ref vcpu, opcode, out ulong end) ? Instruction(ref vcpu, opcode, end) : VcpuAction.Resume;

    /// <summary>The same, where RIP behind it is known. The opcode should be a constant.</summary>
    [MethodImpl(AggressiveInlining)] public static VcpuAction Instruction(ref Vcpu vcpu, uint opcode, ulong end)
    {
        switch (opcode)
        {
            case Opcode.Rdmsr: return MsrAccess<TVendor>.Read(ref vcpu, end);
            case Opcode.Wrmsr: return MsrAccess<TVendor>.Write(ref vcpu, end);
            case Opcode.Cpuid: CpuidTable.Execute(ref vcpu); break;
            case Opcode.Vmcall or Opcode.Vmmcall: Hypercalls<TVendor>.Execute(ref vcpu); break;
            case Opcode.Xsetbv when !ControlRegisters<TVendor>.TrySetXcr0(
                ref vcpu, (uint)vcpu.Registers[Gpr.Rcx], vcpu.Registers.RdxRax):
                return Raise(ref vcpu, Vector.GeneralProtection);
        }
        VcpuAction action = Instructions<TVendor>.Advance(ref vcpu, end);
        return opcode == Opcode.Hlt && action == VcpuAction.Resume ? Halting<TVendor>.Halt(ref vcpu) : action;
    }

    /// <summary>
    /// The other vendor's hypercall becomes the one that this CPU has; only the last byte differs. Where code cannot be
    /// written it is carried out. Anything else is the guest's affair (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).
    /// </summary>
    public static VcpuAction InvalidOpcode(ref Vcpu vcpu)
    {
        uint foreign = Opcode.Vmcall ^ Opcode.Vmmcall ^ TVendor.Hypercall;
        var start = new Gva(Instructions<TVendor>.LinearRip(ref vcpu));
        if (!vcpu.Vm.Cpu.Has(Quirks.FixHypercall) || !IsAt(ref vcpu, start, foreign))
            return Raise(ref vcpu, Vector.InvalidOpcode);
        PagingState paging = GuestMachine<TVendor>.Paging(ref vcpu);
        Translation last = GuestWalker.Translate(ref vcpu.Vm, in paging, start + 2, PageAccess.Write);
        if (last.Succeeded && GuestMemory.Write(ref vcpu.Vm, last.Address, [unchecked((byte)TVendor.Hypercall)])
            == MemoryAccess.Done)
            return VcpuAction.Resume;
        if (!Instructions<TVendor>.TryFindEnd(ref vcpu, foreign, out ulong end))
            return VcpuAction.Resume;
        Hypercalls<TVendor>.Execute(ref vcpu);
        return Instructions<TVendor>.Advance(ref vcpu, end);
    }

    /// <summary>Whether the three bytes at an address are this instruction.</summary>
    private static bool IsAt(ref Vcpu vcpu, Gva address, uint opcode)
    {
        var machine = new GuestMachine<TVendor>(ref vcpu);
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
        return found == opcode;
    }

    /// <summary>
    /// Without effect, as on a CPU whose monitor never waits, even where the guest's CPU has none
    /// (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS).
    /// </summary>
    public static VcpuAction MonitorOrWait(ref Vcpu vcpu, uint opcode) =>
        vcpu.Vm.Cpu.Has(Quirks.MwaitNeverFaults) || vcpu.Cpuid.HasMonitor
            ? Instruction(ref vcpu, opcode) : Raise(ref vcpu, Vector.InvalidOpcode);

    /// <summary>
    /// A write to CR8 that lowers the priority goes to user space, if that holds back interrupts by it.
    /// </summary>
    public static VcpuAction ControlOrDebugAccess(ref Vcpu vcpu)
    {
        byte before = vcpu.Events.Cr8;
        VcpuAction action = InstructionEmulation<TVendor>.Run(ref vcpu);
        return action == VcpuAction.Resume && vcpu.Events.Cr8 < before && !vcpu.HasApic
            ? UserExit.Plain(ref vcpu, Exit.KVM_EXIT_SET_TPR)
            : action;
    }

    /// <summary>#DB, with the bits of DR6 that say why.</summary>
    public static VcpuAction Debug(ref Vcpu vcpu, ulong causes)
    {
        if (vcpu.Debug.SingleSteps || vcpu.Debug.HardwareBreakpoints)
            return UserExit.Debug<TVendor>(ref vcpu, Vector.Debug, causes ^ DebugBits.Dr6Fixed);
        Exceptions<TVendor>.Queue(ref vcpu, Vector.Debug, payload: causes);
        return VcpuAction.Resume;
    }

    public static VcpuAction Breakpoint(ref Vcpu vcpu) => UserExit.Debug<TVendor>(ref vcpu, Vector.Breakpoint, dr6: 0);

    public static VcpuAction EntryFailed(ref Vcpu vcpu, ulong reason)
    {
        vcpu.Run.fail_entry = new() { hardware_entry_failure_reason = reason };
        return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_FAIL_ENTRY);
    }

    public static VcpuAction Raise(ref Vcpu vcpu, Vector vector)
    {
        Exceptions<TVendor>.Queue(ref vcpu, vector);
        return VcpuAction.Resume;
    }
}
