// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>Fills the run page for an exit to user space.</summary>
internal static class UserExit
{
    public static VcpuAction Plain(ref Vcpu vcpu, Exit reason)
    {
        vcpu.Run.exit_reason = reason;
        return VcpuAction.UserSpace;
    }

    /// <summary>
    /// KVM_EXIT_IO; data is or will be in the page at KVM_PIO_PAGE_OFFSET, so many bytes from its start.
    /// </summary>
    public static VcpuAction Port(ref Vcpu vcpu, bool input, ushort port, byte size, uint count, uint offset = 0)
    {
        vcpu.Run.io = new kvm_run.Io
        {
            direction = input ? kvm_run.KVM_EXIT_IO_IN : kvm_run.KVM_EXIT_IO_OUT, size = size, port = port,
            count = count, data_offset = kvm_run.KVM_PIO_PAGE_OFFSET * Page.Size + offset,
        };
        return Plain(ref vcpu, Exit.KVM_EXIT_IO);
    }

    /// <summary>KVM_EXIT_MMIO of at most 8 bytes.</summary>
    public static VcpuAction Mmio(ref Vcpu vcpu, bool write, ulong address, uint length, ulong value)
    {
        vcpu.Run.mmio = new() { phys_addr = address, data = value, len = length, is_write = Flag.Of(write) };
        return Plain(ref vcpu, Exit.KVM_EXIT_MMIO);
    }

    /// <summary>KVM_EXIT_DEBUG at the instruction that is next.</summary>
    public static VcpuAction Debug<TVendor>(ref Vcpu vcpu, Vector exception, ulong dr6) where TVendor : struct, IVendor
    {
        ulong pc = Instructions<TVendor>.LinearRip(ref vcpu), dr7 = TVendor.GetDr7(ref vcpu);
        vcpu.Run.debug = new() { exception = exception.Value, pc = pc, dr6 = dr6, dr7 = dr7 };
        return Plain(ref vcpu, Exit.KVM_EXIT_DEBUG);
    }

    /// <summary>KVM_INTERNAL_ERROR_EMULATION with the bytes of the instruction that can't be emulated.</summary>
    public static VcpuAction EmulationFailure(ref Vcpu vcpu, ReadOnlySpan<byte> instruction)
    {
        ref kvm_run run = ref vcpu.Run;
        // The union's fixed part without the suberror and count: flags, then size and bytes; in units of 8 bytes.
        run.emulation_failure = new() { suberror = kvm_run.KVM_INTERNAL_ERROR_EMULATION, ndata = 3 };
        if (instruction.Length > 0)
        {
            run.emulation_failure.flags = kvm_run.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
            run.emulation_failure.insn_size = (byte)instruction.Length;
            instruction.CopyTo(run.emulation_failure.insn_bytes);
        }
        return Plain(ref vcpu, Exit.KVM_EXIT_INTERNAL_ERROR);
    }

    /// <summary>KVM_EXIT_INTERNAL_ERROR of another kind, with two words for whoever looks for the reason.</summary>
    public static VcpuAction InternalError(ref Vcpu vcpu, uint suberror, ulong first, ulong second)
    {
        ref kvm_run run = ref vcpu.Run;
        run.@internal = new() { suberror = suberror, ndata = 2 };
        run.@internal.data[0] = first;
        run.@internal.data[1] = second;
        return Plain(ref vcpu, Exit.KVM_EXIT_INTERNAL_ERROR);
    }
}
