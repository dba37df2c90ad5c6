// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Stack and branches.</summary>
internal ref partial struct Execution<TMachine>
{
    /// <summary>Width of the stack pointer: 8 in 64-bit code, else by SS.B.</summary>
    private int StackWidth => Long64 ? 8 : _machine.GetSegment(SegmentName.Ss).Big ? 4 : 2;

    private ulong StackPointer => Registers[Gpr.Rsp] & Alu.Mask(StackWidth);

    private void SetStackPointer(ulong value) => SetFull(Gpr.Rsp, StackWidth, value);

    /// <summary>Pushes below <paramref name="pointer"/>, a working copy of the stack pointer.</summary>
    private bool PushAt(ref ulong pointer, int size, ulong value)
    {
        pointer = (pointer - (uint)size) & Alu.Mask(StackWidth);
        return WriteMemory(SegmentName.Ss, pointer, size, value);
    }

    private bool PopAt(ref ulong pointer, int size, out ulong value)
    {
        bool done = ReadMemory(SegmentName.Ss, pointer, size, out value);
        pointer = (pointer + (uint)size) & Alu.Mask(StackWidth);
        return done;
    }

    private bool Push(int size, ulong value)
    {
        ulong pointer = StackPointer;
        if (!PushAt(ref pointer, size, value))
            return false;
        SetStackPointer(pointer);
        return true;
    }

    private bool Stack(Op operation)
    {
        int size = _i.OperandSize;
        ulong pointer = StackPointer;
        switch (operation)
        {
            case Op.Push: return Load(_i.Destination, size, out ulong value) && Push(size, value);
            case Op.Pop: return Pop(size);
            case Op.PushSeg:
                return Push(size, _machine.GetSegment((SegmentName)(_i.Opcode >> 3 & 7)).Selector);
            case Op.PopSeg:
                // POP SS changes the width of the next stack access, not of its own.
                int width = StackWidth;
                if (!PopAt(ref pointer, size, out value)
                    || !MoveToSegment((SegmentName)(_i.Opcode >> 3 & 7), value))
                    return false;
                SetFull(Gpr.Rsp, width, pointer);
                return true;
            case Op.Pusha:
                for (Gpr register = Gpr.Rax; register <= Gpr.Rdi; register++)
                    if (!PushAt(ref pointer, size, Registers[register]))
                        return false;
                SetStackPointer(pointer);
                return true;
            case Op.Popa: return PopAll(size, pointer);
            case Op.Pushf:
                return FlagsPermitted()
                    && Push(size, (Registers.Rflags & ~(Rflags.Vm | Rflags.Rf)) | Rflags.Fixed);
            case Op.Popf:
                if (!FlagsPermitted() || !PopAt(ref pointer, size, out value))
                    return false;
                SetFlags(value, size);
                SetStackPointer(pointer);
                return true;
            case Op.Enter: return Enter(size, pointer);
            default:
                pointer = Registers[Gpr.Rbp] & Alu.Mask(StackWidth);
                if (!PopAt(ref pointer, size, out value))
                    return false;
                SetStackPointer(pointer);
                SetFull(Gpr.Rbp, size, value);
                return true;
        }
    }

    private bool Pop(int size)
    {
        ulong pointer = StackPointer;
        if (!PopAt(ref pointer, size, out ulong value))
            return false;
        // An address based on RSP counts from after the increment (SDM vol. 2, POP).
        _beyond = _i.Base == (sbyte)Gpr.Rsp ? (uint)size : 0u;
        if (_i.IsMemory && !Store(_i.Destination, size, value))
            return false;
        // Before a register is written: of POP RSP the value stays.
        SetStackPointer(pointer);
        return _i.IsMemory || Store(_i.Destination, size, value);
    }

    private bool PopAll(int size, ulong pointer)
    {
        InlineArray8<ulong> values = default;
        for (int register = (int)Gpr.Rdi; register >= 0; register--)
            if (!PopAt(ref pointer, size, out values[register]))
                return false;
        for (Gpr register = Gpr.Rax; register <= Gpr.Rdi; register++)
            if (register != Gpr.Rsp)
                SetFull(register, size, values[(int)register]);
        SetStackPointer(pointer);
        return true;
    }

    private bool Enter(int size, ulong pointer)
    {
        int level = _i.Immediate2 & 31;
        ulong mask = Alu.Mask(StackWidth);
        ulong display = Registers[Gpr.Rbp] & mask;
        if (!PushAt(ref pointer, size, Registers[Gpr.Rbp]))
            return false;
        ulong frame = pointer;
        for (int n = 1; n < level; n++)
        {
            display = (display - (uint)size) & mask;
            if (!ReadMemory(SegmentName.Ss, display, size, out ulong outer) || !PushAt(ref pointer, size, outer))
                return false;
        }
        if (level > 0 && !PushAt(ref pointer, size, frame))
            return false;
        // The new stack pointer must be good for a write.
        pointer = (pointer - _i.Immediate) & mask;
        if (!Linear(SegmentName.Ss, pointer, size, true, out ulong linear)
            || !Check(_machine.Probe(new Gva(linear), size, Rights.Write, out _, ref Result.Fault)))
            return false;
        SetStackPointer(pointer);
        SetFull(Gpr.Rbp, size, frame);
        return true;
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
    private void SetFlags(ulong value, int size)
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
        ulong back = _next;
        ulong relative = _next + _i.Immediate;
        ulong count = (Registers[Gpr.Rcx] - 1) & AddressMask;
        bool zero = (Registers.Rflags & Rflags.Zf) != 0;
        switch (operation)
        {
            case Op.Jcc: return !Alu.Condition(_i.Opcode & 15, Registers.Rflags) || Jump(relative);
            case Op.Jcxz: return count != AddressMask || Jump(relative);
            case Op.Loop or Op.Loope or Op.Loopne:
                if (count != 0 && (operation == Op.Loop || zero == (operation == Op.Loope)) && !Jump(relative))
                    return false;
                SetFull(Gpr.Rcx, _i.AddressSize, count);
                return true;
            case Op.Jmp or Op.Call:
                ulong target = relative;
                if (_i.Destination != Op.ImmOperand && !Load(_i.Destination, size, out target))
                    return false;
                return Jump(target) && (operation == Op.Jmp || Push(size, back));
            case Op.Ret:
                ulong pointer = StackPointer;
                if (!PopAt(ref pointer, size, out target) || !Jump(target))
                    return false;
                SetStackPointer(pointer + _i.Immediate);
                return true;
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
