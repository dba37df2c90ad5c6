// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Stack and branches.</summary>
internal ref partial struct Execution<TMachine>
{
    /// <summary>Width of the stack pointer: 8 in 64-bit code, else by SS.B.</summary>
    private int StackWidth => Long64 ? 8 : _machine.GetSegment(SegmentName.Ss).Big ? 4 : 2;

    private bool SetStackPointer(ulong value) => SetFull(Gpr.Rsp, StackWidth, value);

    private bool Push(int size, ulong value)
    {
        ulong pointer = (Registers[Gpr.Rsp] - (uint)size) & Alu.Mask(StackWidth);
        return WriteMemory(SegmentName.Ss, pointer, size, value) && SetStackPointer(pointer);
    }

    private bool Pop(int size, out ulong value)
    {
        ulong pointer = Registers[Gpr.Rsp] & Alu.Mask(StackWidth);
        return ReadMemory(SegmentName.Ss, pointer, size, out value) && SetStackPointer(pointer + (uint)size);
    }

    /// <summary>These change registers as they go; when one fails, the registers are as they were.</summary>
    private bool StackOrBranch(Op operation)
    {
        GuestRegisters before = Registers;
        if (operation <= Op.Leave ? Stack(operation) : Branch(operation))
            return true;
        if (!Result.TaskSwitched)
            Registers = before;
        return false;
    }

    private bool Stack(Op operation)
    {
        int size = _i.OperandSize;
        ulong pointer = Registers[Gpr.Rsp];
        var segment = (SegmentName)(_i.Opcode >> 3 & 7);
        switch (operation)
        {
            case Op.Push: return Load(_i.Destination, size, out ulong value) && Push(size, value);
            // An address based on RSP counts from after the increment; of POP RSP the value stays (SDM vol. 2, POP).
            case Op.Pop: return Pop(size, out value) && Store(_i.Destination, size, value);
            case Op.PushSeg: return Push(size, Selector(segment));
            case Op.PopSeg: return Pop(size, out value) && MoveToSegment(segment, value);
            case Op.Pusha:
                for (Gpr register = Gpr.Rax; register <= Gpr.Rdi; register++)
                    if (!Push(size, register == Gpr.Rsp ? pointer : Registers[register]))
                        return false;
                return true;
            case Op.Popa:
                for (int register = (int)Gpr.Rdi; register >= 0; register--)
                    if (!Pop(size, out value) || register != (int)Gpr.Rsp && !SetFull((Gpr)register, size, value))
                        return false;
                return true;
            case Op.Pushf:
                return FlagsPermitted() && Push(size, (Registers.Rflags & ~(Rflags.Vm | Rflags.Rf)) | Rflags.Fixed);
            case Op.Popf: return FlagsPermitted() && Pop(size, out value) && SetFlags(value, size);
            case Op.Enter: return Enter(size);
            default:
                return SetStackPointer(Registers[Gpr.Rbp]) && Pop(size, out value) && SetFull(Gpr.Rbp, size, value);
        }
    }

    private bool Enter(int size)
    {
        int level = _i.Immediate2 & 31;
        ulong mask = Alu.Mask(StackWidth), display = Registers[Gpr.Rbp];
        if (!Push(size, display))
            return false;
        ulong frame = Registers[Gpr.Rsp] & mask;
        for (int n = 1; n < level; n++)
        {
            display = (display - (uint)size) & mask;
            if (!ReadMemory(SegmentName.Ss, display, size, out ulong outer) || !Push(size, outer))
                return false;
        }
        if (level > 0 && !Push(size, frame))
            return false;
        // The new stack pointer must be good for a write.
        SetStackPointer(Registers[Gpr.Rsp] - _i.Immediate);
        SetFull(Gpr.Rbp, size, frame);
        return Linear(SegmentName.Ss, Registers[Gpr.Rsp] & mask, size, true, out ulong linear)
            && Check(_machine.Probe(new Gva(linear), size, Rights.Write, out _, ref Result.Fault));
    }

    /// <summary>PUSHF, POPF, INT and IRET in virtual-8086 mode need IOPL 3 (VME is not emulated).</summary>
    private bool FlagsPermitted()
    {
        if (!_virtual8086 || (Registers.Rflags & Rflags.Iopl) == Rflags.Iopl)
            return true;
        return (_machine.Cr4 & Cr4.Vme) != 0 ? Unsupported() : Raise(Fault.GeneralProtection);
    }

    /// <summary>
    /// POPF and IRET (SDM vol. 2): IOPL only at CPL 0, IF only at CPL up to IOPL; RF, VIF and VIP by IRET.
    /// </summary>
    private bool SetFlags(ulong value, int size)
    {
        ulong change = Rflags.Cf | Rflags.Pf | Rflags.Af | Rflags.Zf | Rflags.Sf | Rflags.Tf | Rflags.Df | Rflags.Of
            | Rflags.Nt | Rflags.Ac | Rflags.Id;
        ulong flags = Registers.Rflags;
        int cpl = _machine.Cpl;
        change |= cpl == 0 ? Rflags.Iopl : 0;
        if (_i.Operation == Op.Iret)
            change |= cpl == 0 ? Rflags.Rf | Rflags.Vif | Rflags.Vip : Rflags.Rf;
        change |= cpl <= (int)(flags >> 12 & 3) ? Rflags.If : 0;
        change &= size == 2 ? 0xffffUL : ulong.MaxValue;
        Registers.Rflags = (flags & ~change) | (value & change) | Rflags.Fixed;
        return true;
    }

    /// <summary>Checks a near branch's target and goes there at the end of the instruction.</summary>
    private bool Jump(ulong target)
    {
        target &= Alu.Mask(_i.OperandSize);
        if (Long64 ? !Canonical(target) : target > _machine.GetSegment(SegmentName.Cs).Limit)
            return Raise(Fault.GeneralProtection);
        _next = target;
        return true;
    }

    private bool Branch(Op operation)
    {
        int size = _i.OperandSize;
        ulong back = _next, relative = _next + _i.Immediate;
        ulong count = (Registers[Gpr.Rcx] - 1) & AddressMask;
        bool zero = (Registers.Rflags & Rflags.Zf) != 0;
        switch (operation)
        {
            case Op.Jcc: return !Alu.Condition(_i.Opcode & 15, Registers.Rflags) || Jump(relative);
            case Op.Jcxz: return count != AddressMask || Jump(relative);
            case Op.Loop or Op.Loope or Op.Loopne:
                bool ends = count == 0 || operation != Op.Loop && zero != (operation == Op.Loope);
                return (ends || Jump(relative)) && SetFull(Gpr.Rcx, _i.AddressSize, count);
            case Op.Jmp or Op.Call:
                ulong target = relative;
                if (_i.Destination != Op.ImmOperand && !Load(_i.Destination, size, out target))
                    return false;
                return Jump(target) && (operation == Op.Jmp || Push(size, back));
            case Op.Ret:
                return Pop(size, out target) && Jump(target) && SetStackPointer(Registers[Gpr.Rsp] + _i.Immediate);
            case Op.CallFar or Op.JmpFar or Op.RetFar or Op.Iret: return Transfer(operation, default);
            default: return RaiseByInstruction(operation);
        }
    }

    /// <summary>Offset and selector in memory; the operand size is the offset's.</summary>
    private bool LoadFarPointer(out ulong offset, out ulong selector)
    {
        selector = 0;
        offset = EffectiveAddress();
        ulong at = (offset + _i.OperandSize) & AddressMask;
        return ReadMemory(_i.Segment, offset, _i.OperandSize, out offset)
            && ReadMemory(_i.Segment, at, 2, out selector);
    }
}
