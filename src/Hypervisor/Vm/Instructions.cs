// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using SharpKvm.Host;

namespace SharpKvm.Vm;

/// <summary>Steps over intercepted instructions that the core has carried out.</summary>
internal static class Instructions<TVendor> where TVendor : struct, IVendor
{
    [InlineArray(InstructionBytes.Limit)]
    private struct Window
    {
        private byte _first;
    }

    /// <summary>
    /// Finds the end of the instruction at RIP by its bytes, for CPUs that do not report it. False: it can't be read or
    /// is not what hardware said, because another CPU changed it meanwhile; an exception may be queued.
    /// </summary>
    public static bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end)
    {
        Unsafe.SkipInit(out Window window);
        Span<byte> bytes = window;
        end = vcpu.Registers.Rip;
        var machine = new GuestMachine<TVendor>(ref vcpu);
        Segment cs = TVendor.GetSegment(ref vcpu, SegmentName.Cs);
        CodeSize size = cs.Long && (machine.Efer & Efer.Lma) != 0 ? CodeSize.Bits64
            : cs.Big ? CodeSize.Bits32 : CodeSize.Bits16;
        var address = new Gva(size == CodeSize.Bits64 ? end : (uint)(cs.Base + end));
        // Never across a page that the instruction may not touch.
        int inPage = Math.Min(bytes.Length, Page.Size - (int)address.Offset);
        Fault fault = default;
        if (machine.Fetch(address, bytes[..inPage], ref fault) != Access.Done)
            return Failed(ref vcpu, in fault);
        int length = Decoder.LengthOf(bytes[..inPage], opcode, size);
        if (length == 0 && inPage < bytes.Length)
        {
            if (machine.Fetch(address + (ulong)inPage, bytes[inPage..], ref fault) != Access.Done)
                return Failed(ref vcpu, in fault);
            length = Decoder.LengthOf(bytes, opcode, size);
        }
        end += (ulong)length;
        if (size != CodeSize.Bits64)
            end = (uint)end;
        return length != 0;
    }

    /// <summary>
    /// Moves RIP past a completed instruction: the interrupt shadow and RF end, and a set TF traps as on hardware.
    /// </summary>
    public static VcpuAction Advance(ref Vcpu vcpu, ulong nextRip)
    {
        ref GuestRegisters registers = ref vcpu.Registers;
        registers.Rip = nextRip;
        TVendor.SetInterruptShadow(ref vcpu, InterruptShadow.None);
        bool traps = vcpu.Debug.SingleSteps || (registers.Rflags & Rflags.Tf) != 0;
        registers.Rflags &= ~Rflags.Rf;
        return traps ? SingleStep.Completed<TVendor>(ref vcpu) : VcpuAction.Resume;
    }

    private static bool Failed(ref Vcpu vcpu, in Fault fault)
    {
        if (fault.Vector != 0)
        {
            Exceptions<TVendor>.Queue(ref vcpu, new Vector(fault.Vector), fault.HasErrorCode, fault.ErrorCode,
                new Gva(fault.Address));
        }
        return false;
    }
}
