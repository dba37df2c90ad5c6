// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>KVM_RUN: enters the guest until something needs user space.</summary>
internal static class RunLoop<TVendor> where TVendor : struct, IVendor
{
    public static int Run(ref Vcpu vcpu)
    {
        ref kvm_run run = ref vcpu.Run;
        ulong wanted = run.kvm_valid_regs, dirty = run.kvm_dirty_regs;
        if (((wanted | dirty) & ~kvm_run.KVM_SYNC_X86_VALID_FIELDS) != 0)
            return Errno.EINVAL;
        if (dirty != 0)
        {
            if (StateIoctls<TVendor>.LoadFromRun(ref vcpu, dirty) is int error and not 0)
                return error;
            // A call that a signal ends is repeated: what it has brought about stays.
            run.kvm_dirty_regs = 0;
        }
        if (!vcpu.HasApic && run.cr8 != vcpu.Events.Cr8 && !ControlRegisters<TVendor>.TrySetCr8(ref vcpu, run.cr8))
            return Errno.EINVAL;
        if (!vcpu.Cpuid.Locked)
        {
            vcpu.Cpuid.Locked = true;
            TVendor.ApplyCpuid(ref vcpu);
        }

        VcpuAction action = vcpu.Pending.Kind != PendingKind.None ? FinishPending(ref vcpu) : VcpuAction.Resume;
        // Checked after what was pending is finished: this is how user space completes it without running the guest.
        if (action == VcpuAction.Resume)
            action = run.immediate_exit != 0 ? VcpuAction.Interrupted : Loop(ref vcpu);

        run.if_flag = (vcpu.Registers.Rflags & Rflags.If) != 0 ? (byte)1 : (byte)0;
        run.cr8 = vcpu.Events.Cr8;
        run.apic_base = vcpu.Msrs.ApicBase;
        // With the PIC in the kernel the question does not arise, and KVM's answer is yes.
        bool ready = vcpu.Vm.Irqchip.Mode == IrqchipMode.Kernel || CanTakeFromUser(ref vcpu);
        run.ready_for_interrupt_injection = ready ? (byte)1 : (byte)0;
        if (wanted != 0)
            StateIoctls<TVendor>.StoreToRun(ref vcpu, wanted);
        return action == VcpuAction.UserSpace ? 0 : action == VcpuAction.Interrupted ? Errno.EINTR
            : action == VcpuAction.NoMemory ? Errno.ENOMEM : Errno.EFAULT;
    }

    [MethodImpl(AggressiveInlining)] private static VcpuAction Loop(ref Vcpu vcpu)
    {
        while (true)
        {
            if (vcpu.Shared.Requests != VcpuRequests.None && HandleRequests(ref vcpu) == VcpuAction.UserSpace)
                return VcpuAction.UserSpace;
            if (vcpu.Run.request_interrupt_window != 0 && CanTakeFromUser(ref vcpu))
                return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_IRQ_WINDOW_OPEN);
            if (vcpu.Events.TripleFault)
            {
                vcpu.Events.TripleFault = false;
                return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_SHUTDOWN);
            }
            if (vcpu.VirtualTpr.Value != 0 && vcpu.MpState == MpState.Runnable)
                VirtualTpr<TVendor>.Load(ref vcpu);
            VcpuAction action = vcpu.MpState != MpState.Runnable ? Halting<TVendor>.Wait(ref vcpu)
                : TVendor.CanRun(ref vcpu) ? TVendor.Step(ref vcpu) : Interpreter<TVendor>.Run(ref vcpu);
            if (vcpu.VirtualTpr.Value != 0)
                VirtualTpr<TVendor>.Store(ref vcpu);
            if (action == VcpuAction.Resume)
                continue;
            if (action != VcpuAction.Retry)
                return action;
            if (!StealTime<TVendor>.Work(ref vcpu))
            {
                vcpu.Run.exit_reason = Exit.KVM_EXIT_INTR;
                return VcpuAction.Interrupted;
            }
        }
    }

    /// <summary>Whether an interrupt by KVM_INTERRUPT would be taken now.</summary>
    private static bool CanTakeFromUser(ref Vcpu vcpu) =>
        PendingInterrupts.AreTakenFromUser(ref vcpu) && Exceptions<TVendor>.CanAcceptInterrupt(ref vcpu);

    /// <summary>Clears and serves the requests. UserSpace: the VM is dead, or user space is told something.</summary>
    private static VcpuAction HandleRequests(ref Vcpu vcpu)
    {
        // Cleared before what they stand for is looked at: what comes in between sets them again.
        var requests = (VcpuRequests)Interlocked.Exchange(ref vcpu.Shared.RequestBits, 0);
        // The next turn looks for interrupts in any case.
        if (requests == VcpuRequests.Event)
            return VcpuAction.Resume;
        if ((requests & VcpuRequests.Dead) != 0)
            return VcpuAction.UserSpace;
        if ((requests & VcpuRequests.RingFull) != 0 && vcpu.DirtyRing.IsSoftFull)
        {
            vcpu.Shared.Request(requests);
            return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_DIRTY_RING_FULL);
        }
        if ((requests & VcpuRequests.Trap) != 0)
            vcpu.Exits[ExitTrace.Length + (int)vcpu.Id] = default;
        if ((requests & VcpuRequests.RenewSlots) != 0)
            vcpu.Shared.Host.RenewSlots();
        if ((requests & (VcpuRequests.FlushTlb | VcpuRequests.Migrated)) != 0)
            TVendor.FlushTlb(ref vcpu);
        if ((requests & VcpuRequests.Ends) != 0)
            TVendor.UpdateApic(ref vcpu);
        if ((requests & VcpuRequests.MsrFilter) != 0)
            TVendor.UpdateMsrFilter(ref vcpu);
        Paravirtual<TVendor>.HandleRequests(ref vcpu, requests);
        if ((requests & VcpuRequests.Timer) != 0)
            ApicTimer<TVendor>.Expired(ref vcpu);
        Halting<TVendor>.Accept(ref vcpu, requests);
        if ((requests & VcpuRequests.EoiExit) == 0)
            return VcpuAction.Resume;
        vcpu.Run.eoi.vector = vcpu.EoiVector;
        return UserExit.Plain(ref vcpu, Exit.KVM_EXIT_IOAPIC_EOI);
    }

    /// <summary>User space has served an access: completes its instruction, unless RIP has moved since.</summary>
    private static VcpuAction FinishPending(ref Vcpu vcpu)
    {
        ref PendingIo pending = ref vcpu.Pending;
        if (pending.Kind == PendingKind.Writes)
            return InstructionEmulation<TVendor>.Post(ref vcpu);
        if (pending.Rip != vcpu.Registers.Rip)
        {
            pending.Forget();
            return VcpuAction.Resume;
        }
        if (pending.Kind is PendingKind.Port or PendingKind.Msr)
        {
            bool isPort = pending.Kind == PendingKind.Port;
            pending.Kind = PendingKind.None;
            return isPort ? PortAccess<TVendor>.Finish(ref vcpu) : MsrAccess<TVendor>.Finish(ref vcpu);
        }
        if (pending.Kind == PendingKind.Instruction)
            pending.Log.Answer(vcpu.Run.mmio.data);
        return InstructionEmulation<TVendor>.Run(ref vcpu);
    }
}

/// <summary>IN and OUT of a single item that hardware has decoded.</summary>
internal static class PortAccess<TVendor> where TVendor : struct, IVendor
{
    public static VcpuAction Start(ref Vcpu vcpu, bool input, ushort port, byte size, ulong nextRip)
    {
        uint value = (uint)vcpu.Registers[Gpr.Rax] & ~0u >> (32 - 8 * size);
        bool isChip = vcpu.Vm.Irqchip.OwnsPort(port);
        if (!isChip && !input && KernelDevices<TVendor>.TryTake(ref vcpu.Vm, port: true, port, size, value))
            return Instructions<TVendor>.Advance(ref vcpu, nextRip);
        ref PendingIo pending = ref vcpu.Pending;
        pending.NextRip = nextRip;
        pending.IsInput = input;
        pending.Size = size;
        Span<byte> data = vcpu.Shared.Port.Value;
        if (!input)
            BinaryPrimitives.WriteUInt32LittleEndian(data, value);
        if (isChip)
        {
            KernelDevices<TVendor>.Ports(ref vcpu.Vm, !input, port, size, 1, data);
            return Finish(ref vcpu);
        }
        pending.Kind = PendingKind.Port;
        pending.Rip = vcpu.Registers.Rip;
        return UserExit.Port(ref vcpu, input, port, size, 1);
    }

    public static VcpuAction Finish(ref Vcpu vcpu)
    {
        ref PendingIo pending = ref vcpu.Pending;
        if (pending.IsInput)
        {
            uint value = BinaryPrimitives.ReadUInt32LittleEndian(vcpu.Shared.Port.Value);
            ref ulong rax = ref vcpu.Registers[Gpr.Rax];
            // Only a write of 32 bits clears the upper half.
            ulong kept = pending.Size == sizeof(uint) ? 0 : ~0ul << 8 * pending.Size;
            rax = rax & kept | value & ~kept;
        }
        return Instructions<TVendor>.Advance(ref vcpu, pending.NextRip);
    }
}
