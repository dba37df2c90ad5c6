// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>Runs the emulator for the instruction at RIP and turns its result into what the run loop does.</summary>
internal static class InstructionEmulation<TVendor> where TVendor : struct, IVendor
{
    /// <summary>
    /// The instruction whose access to <paramref name="address"/> has no memory behind it; or, when
    /// <paramref name="device"/> is false, one that writes to memory that may only be read, or whose translation met
    /// what is no memory.
    /// </summary>
    public static VcpuAction RunAfterFault(ref Vcpu vcpu, Gpa address, bool write, bool device)
    {
        vcpu.Pending.Hint = new FaultHint { Address = address, Write = write, Valid = device };
        return Run(ref vcpu);
    }

    public static VcpuAction Run(ref Vcpu vcpu)
    {
        vcpu.Pending.Log.Position = 0;
        Execution<GuestMachine<TVendor>> execution = new(new(ref vcpu));
        execution.Run();
        return Finish(ref vcpu, in execution.Result);
    }

    public static VcpuAction Finish(ref Vcpu vcpu, in Emulation result)
    {
        const ulong LocalBreakpoints = 0x155;
        ref PendingIo pending = ref vcpu.Pending;
        if (result.Returned && (result.Outcome == Access.Done || result.TaskSwitched))
            TVendor.SetNmiMasked(ref vcpu, false);
        if (result.TaskSwitched)
        {
            Debugging<TVendor>.SetDr7(ref vcpu, Debugging<TVendor>.GetDr7(ref vcpu) & ~LocalBreakpoints);
            Debugging<TVendor>.Apply(ref vcpu);
        }
        switch (result.Outcome)
        {
            case Access.Done:
                pending.Steps = vcpu.Debug.SingleSteps || result.SingleStep;
                TVendor.SetInterruptShadow(ref vcpu, (int)result.Shadow);
                pending.Log.Clear();
                pending.Hint = default;
                pending.Kind = PendingKind.None;
                if (!pending.Writes.IsAtEnd)
                    return Post(ref vcpu);
                if (pending.Steps)
                    return Instructions<TVendor>.Stepped(ref vcpu);
                return result.Halted ? Halting<TVendor>.Halt(ref vcpu) : VcpuAction.Resume;
            case Access.UserSpace:
                pending.Kind = PendingKind.Instruction;
                // A REP instruction may have finished some iterations: what waits is at the RIP of now.
                pending.Rip = vcpu.Registers.Rip;
                return VcpuAction.UserSpace;
            case Access.Absent:
                // What user space has served already is not asked for again.
                pending.Kind = PendingKind.Absent;
                pending.Rip = vcpu.Registers.Rip;
                pending.Writes.Clear();
                pending.Hint = default;
                return VcpuAction.Fault;
            case Access.Fault:
                pending.Forget();
                // The debug-register access that DR7.GD forbids has queued its #DB with its cause already.
                if (result.Fault.Vector == Vector.Debug.Value)
                    return VcpuAction.Resume;
                Instructions<TVendor>.Raise(ref vcpu, in result.Fault);
                return VcpuAction.Resume;
            default:
                pending.Forget();
                ReadOnlySpan<byte> bytes = pending.Instruction.Bytes;
                return UserExit.EmulationFailure(ref vcpu, bytes[..pending.Instruction.ByteCount]);
        }
    }

    /// <summary>
    /// Hands the writes to their devices, up to the first that is user space's; without one the instruction is over.
    /// </summary>
    public static VcpuAction Post(ref Vcpu vcpu)
    {
        ref PendingIo pending = ref vcpu.Pending;
        while (!pending.Writes.IsAtEnd)
        {
            DeviceAccess write = pending.Writes.Take();
            if (write.Kind == AccessKind.Write
                && KernelDevices<TVendor>.TryWrite(ref vcpu, new Gpa(write.Address), write.Length, write.Data))
                continue;
            pending.Kind = PendingKind.Writes;
            return UserExit.Mmio(ref vcpu, write: true, write.Address, write.Length, write.Data);
        }
        pending.Forget();
        return pending.Steps ? Instructions<TVendor>.Stepped(ref vcpu) : VcpuAction.Resume;
    }
}
