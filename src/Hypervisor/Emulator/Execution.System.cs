// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Flags, segment registers and system instructions.</summary>
internal ref partial struct Execution<TMachine>
{
    private bool Flags(Op operation)
    {
        ref ulong flags = ref Registers.Rflags;
        switch (operation)
        {
            case Op.Clc: flags &= ~Rflags.Cf; return true;
            case Op.Stc: flags |= Rflags.Cf; return true;
            case Op.Cmc: flags ^= Rflags.Cf; return true;
            case Op.Cld: flags &= ~Rflags.Df; return true;
            case Op.Std: flags |= Rflags.Df; return true;
            case Op.Hlt: Result.Halted = true; return true;
        }
        // CLI and STI. The virtual interrupt flag of VME and PVI is not emulated.
        if (_protected && _machine.Cpl > (int)(flags >> 12 & 3))
        {
            ulong virtualFlag = _virtual8086 ? Cr4.Vme : Cr4.Pvi;
            return (_machine.Cr4 & virtualFlag) != 0 && _machine.Cpl == 3
                ? Unsupported() : Raise(Fault.GeneralProtection);
        }
        Result.Shadow = operation == Op.Sti && (flags & Rflags.If) == 0 ? Shadow.Sti : Shadow.None;
        flags = operation == Op.Sti ? flags | Rflags.If : flags & ~Rflags.If;
        return true;
    }

    private bool System(Op operation)
    {
        ref GuestRegisters registers = ref Registers;
        ulong value;
        switch (operation)
        {
            case Op.MovFromSeg:
                return _i.Reg > (int)SegmentName.Gs ? Raise(Fault.InvalidOpcode) : Store(Op.RmOperand,
                    _i.IsMemory ? 2 : _i.OperandSize, _machine.GetSegment((SegmentName)_i.Reg).Selector);
            case Op.MovToSeg:
                return _i.Reg == (int)SegmentName.Cs || _i.Reg > (int)SegmentName.Gs ? Raise(Fault.InvalidOpcode)
                    : Load(Op.RmOperand, 2, out value) && LoadSegment((SegmentName)_i.Reg, (ushort)value);
            case Op.LoadFar: return LoadFarSegment();
            case Op.Sgdt or Op.Sidt or Op.Lgdt or Op.Lidt or Op.Invlpg when !_i.IsMemory:
                return Unsupported();
            case Op.Sgdt or Op.Sidt: return StoreTable(operation == Op.Sgdt ? _machine.Gdtr : _machine.Idtr);
            case Op.Lgdt or Op.Lidt: return LoadTable(operation == Op.Lgdt);
            case Op.Smsw:
                return UserMayLook() && Store(Op.RmOperand, _i.IsMemory ? 2 : _i.OperandSize, _machine.Cr0);
            case Op.Lmsw:
                // Sets PE, MP, EM, TS; cannot clear PE (SDM vol. 2, LMSW).
                return Supervisor() && Load(Op.RmOperand, 2, out value)
                    && Permit(_machine.TryWriteControl(0, (_machine.Cr0 & ~14UL) | (value & 15)));
            case Op.Clts: return Permit(_machine.TryWriteControl(0, _machine.Cr0 & ~8UL));
            case Op.Invlpg:
                // A non-canonical address is not an error here.
                Translate(_i.Segment, EffectiveAddress(), 1, false, out ulong linear);
                if (!Supervisor())
                    return false;
                _machine.InvalidatePage(new Gva(linear));
                return true;
            case Op.Wbinvd: return true;
            case >= Op.MovFromControl and <= Op.MovToDebug: return MoveControl(operation);
            case Op.Rdmsr or Op.Rdtsc:
                if (operation == Op.Rdtsc && (_machine.Cr4 & Cr4.Tsd) != 0 && !Supervisor())
                    return false;
                value = _machine.Tsc;
                if (operation == Op.Rdmsr && !Permit(_machine.TryReadMsr((uint)registers[Gpr.Rcx], out value)))
                    return false;
                registers[Gpr.Rax] = (uint)value;
                registers[Gpr.Rdx] = value >> 32;
                return true;
            case Op.Wrmsr:
                value = registers[Gpr.Rdx] << 32 | (uint)registers[Gpr.Rax];
                return Permit(_machine.TryWriteMsr((uint)registers[Gpr.Rcx], value));
            case Op.Cpuid: _machine.Cpuid(); return true;
            default: return Unsupported();
        }
    }

    private bool Permit(bool permitted) => permitted || Raise(Fault.GeneralProtection);

    private bool Permit(DebugAccess access) => access switch
    {
        DebugAccess.Done => true,
        DebugAccess.Undefined => Raise(Fault.InvalidOpcode),
        DebugAccess.Protection => Raise(Fault.GeneralProtection),
        _ => Raise(Vector.Debug.Value),
    };

    private bool Supervisor() => Permit(_machine.Cpl == 0);

    /// <summary>UMIP: SGDT, SIDT and SMSW only at CPL 0.</summary>
    private bool UserMayLook() => (_machine.Cr4 & Cr4.Umip) == 0 || Supervisor();

    private bool MoveControl(Op operation)
    {
        int size = _i.OperandSize;
        int index = _i.Reg;
        bool control = operation is Op.MovFromControl or Op.MovToControl;
        // With LOCK, AMD's other name of CR8: not emulated.
        if (_i.Locked)
            return Unsupported();
        if (control ? index is not (0 or 2 or 3 or 4 or 8) : index > 7)
            return Raise(Fault.InvalidOpcode);
        if (operation is Op.MovToControl or Op.MovToDebug)
        {
            ulong source = GetRegister(_i.Rm, size);
            return control ? Permit(_machine.TryWriteControl(index, source))
                : Permit(_machine.TryWriteDebug(index, source));
        }
        ulong value = control ? _machine.ReadControl(index) : 0;
        if (!control && !Permit(_machine.TryReadDebug(index, out value)))
            return false;
        SetRegister(_i.Rm, size, value);
        return true;
    }

    private bool StoreTable(DescriptorTable table)
    {
        ulong offset = EffectiveAddress();
        return UserMayLook() && WriteMemory(_i.Segment, offset, 2, table.Limit)
            && WriteMemory(_i.Segment, (offset + 2) & AddressMask, Long64 ? 8 : 4, table.Base);
    }

    private bool LoadTable(bool global)
    {
        ulong offset = EffectiveAddress();
        if (!Supervisor() || !ReadMemory(_i.Segment, offset, 2, out ulong limit)
            || !ReadMemory(_i.Segment, (offset + 2) & AddressMask, Long64 ? 8 : 4, out ulong address))
            return false;
        if (Long64 && !Canonical(address))
            return Raise(Fault.GeneralProtection);
        // The 16-bit form loads 24 bits.
        address &= !Long64 && (_code == CodeSize.Bits16) != _i.OperandPrefix ? 0xffffffUL : ulong.MaxValue;
        DescriptorTable table = new() { Base = address, Limit = (ushort)limit };
        if (global)
            _machine.Gdtr = table;
        else
            _machine.Idtr = table;
        return true;
    }

    /// <summary>LES, LDS, LSS, LFS, LGS.</summary>
    private bool LoadFarSegment()
    {
        SegmentName name = _i.Map == 0 ? _i.Opcode == 0xc4 ? SegmentName.Es : SegmentName.Ds
            : (SegmentName)(_i.Opcode & 7);
        if (!LoadFarPointer(out ulong offset, out ulong selector) || !LoadSegment(name, (ushort)selector))
            return false;
        SetRegister(_i.Reg, _i.OperandSize, offset);
        return true;
    }

    private void SetRealSegment(SegmentName name, ushort selector)
    {
        Segment segment = _machine.GetSegment(name);
        segment.Selector = selector;
        segment.Base = (uint)selector << 4;
        _machine.SetSegment(name, segment);
    }

    /// <summary>
    /// Loads ES, SS, DS, FS or GS (SDM vol. 2, MOV). The last step of its instruction as far as faults go.
    /// </summary>
    private bool LoadSegment(SegmentName name, ushort selector)
    {
        bool stack = name == SegmentName.Ss;
        Result.Shadow = stack && _i.Operation != Op.LoadFar ? Shadow.MovSs : Shadow.None;
        if (!_protected || _virtual8086)
        {
            SetRealSegment(name, selector);
            return true;
        }
        int rpl = selector & 3;
        int cpl = _machine.Cpl;
        Segment segment = default;
        if ((selector & ~3) == 0)
        {
            // A null SS is for 64-bit code below CPL 3 only.
            if (stack && (!Long64 || cpl == 3 || rpl != cpl))
                return Raise(Fault.GeneralProtection);
            if (stack)
            {
                segment.Attributes = (ushort)(Segment.CodeOrData | 3 | cpl << Segment.DplShift | Segment.PresentBit
                    | Segment.BigBit | Segment.GranularityBit);
                segment.Limit = uint.MaxValue;
            }
        }
        else if (!ReadDescriptor(selector, stack, out segment))
            return false;
        segment.Selector = selector;
        _machine.SetSegment(name, segment);
        return true;
    }

    /// <summary>Reads and checks the descriptor of a data or stack segment, and marks it accessed.</summary>
    private bool ReadDescriptor(ushort selector, bool stack, out Segment segment)
    {
        segment = default;
        uint error = selector & 0xfffcu;
        uint index = selector & 0xfff8u;
        Segment table = _machine.GetSegment(SegmentName.Ldtr);
        if ((selector & 4) == 0)
            table = new() { Base = _machine.Gdtr.Base, Limit = _machine.Gdtr.Limit, Attributes = Segment.PresentBit };
        if (!table.Present || index + 7 > table.Limit)
            return Raise(Fault.GeneralProtection, error);
        if (!ReadLinear(table.Base + index, 8, Rights.System, out ulong descriptor))
            return false;
        segment.Attributes = (ushort)((descriptor >> 40 & 0xff) | (descriptor >> 44 & 0xf00));
        segment.Base = (descriptor >> 16 & 0xffffff) | (descriptor >> 32 & 0xff000000);
        uint pages = (uint)((descriptor & 0xffff) | (descriptor >> 32 & 0xf0000));
        segment.Limit = segment.Granularity ? pages << 12 | 0xfff : pages;

        int rpl = selector & 3;
        int cpl = _machine.Cpl;
        bool writable = (segment.Type & 2) != 0;
        // Code must be readable (bit 1); conforming code (bit 2) has no privilege check.
        bool conforming = segment.IsCode && (segment.Type & 4) != 0;
        bool permitted = segment.IsCodeOrData && (stack
            ? !segment.IsCode && writable && rpl == cpl && segment.Dpl == cpl
            : (!segment.IsCode || writable) && (conforming || segment.Dpl >= Math.Max(rpl, cpl)));
        if (!permitted)
            return Raise(Fault.GeneralProtection, error);
        if (!segment.Present)
            return Raise(stack ? Fault.StackSegment : Fault.SegmentNotPresent, error);
        if ((segment.Attributes & 1) != 0)
            return true;
        segment.Attributes |= 1;
        byte access = (byte)segment.Attributes;
        return Check(_machine.Write(new Gva(table.Base + index + 5), new ReadOnlySpan<byte>(ref access), Rights.System,
            ref Result.Fault));
    }
}
