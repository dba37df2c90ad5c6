// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>Steps over intercepted instructions that the core has carried out.</summary>
internal static class Instructions<TVendor> where TVendor : struct, IVendor
{
    /// <summary>
    /// Finds the end of the instruction at RIP by its bytes, for CPUs that do not report it. False: it can't be read or
    /// is not what hardware said, because another CPU changed it meanwhile; an exception may be queued.
    /// </summary>
    public static bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end)
    {
        Unsafe.SkipInit(out InlineArray15<byte> window);
        Span<byte> bytes = window;
        end = vcpu.Registers.Rip;
        var machine = new GuestMachine<TVendor>(ref vcpu);
        Segment cs = TVendor.GetSegment(ref vcpu, SegmentName.Cs);
        CodeSize size = cs.Long && (machine.Efer & Efer.Lma) != 0 ? CodeSize.Bits64
            : cs.Big ? CodeSize.Bits32 : CodeSize.Bits16;
        var address = new Gva(size == CodeSize.Bits64 ? end : (uint)(cs.Base + end));
        Fault fault = default;
        int length = 0;
        // Never across a page that the instruction may not touch.
        int from = 0, to = Math.Min(bytes.Length, Page.Size - (int)address.Offset);
        while (length == 0 && from < to
            && machine.Fetch(address + (ulong)from, bytes[from..to], ref fault) == Access.Done)
        {
            length = Decoder.LengthOf(bytes[..to], opcode, size);
            from = to;
            to = bytes.Length;
        }
        if (fault.Vector != 0)
            Raise(ref vcpu, in fault);
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
        return traps ? Stepped(ref vcpu) : VcpuAction.Resume;
    }

    /// <summary>The trap after an instruction that software completed while TF was set.</summary>
    public static VcpuAction Stepped(ref Vcpu vcpu)
    {
        if (vcpu.Debug.SingleSteps)
            return UserExit.Debug<TVendor>(ref vcpu, Vector.Debug, DebugBits.Dr6Fixed | DebugBits.Dr6Bs);
        Exceptions<TVendor>.Queue(ref vcpu, Vector.Debug, payload: DebugBits.Dr6Bs);
        return VcpuAction.Resume;
    }

    public static ulong LinearRip(ref Vcpu vcpu)
    {
        ulong rip = vcpu.Registers.Rip;
        return TVendor.Is64Bit(ref vcpu) ? rip : (uint)(TVendor.GetSegment(ref vcpu, SegmentName.Cs).Base + rip);
    }

    /// <summary>The exception that an instruction met.</summary>
    public static void Raise(ref Vcpu vcpu, in Fault fault) =>
        Exceptions<TVendor>.Queue(ref vcpu, new Vector(fault.Vector), fault.ErrorCode, fault.Address);
}
