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
        ulong value;
        switch (operation)
        {
            case Op.MovFromSeg:
                return _i.Reg > (int)SegmentName.Gs ? Raise(Fault.InvalidOpcode) : Store(Op.RmOperand,
                    _i.IsMemory ? 2 : _i.OperandSize, _machine.GetSegment((SegmentName)_i.Reg).Selector);
            case Op.MovToSeg:
                return _i.Reg == (int)SegmentName.Cs || _i.Reg > (int)SegmentName.Gs ? Raise(Fault.InvalidOpcode)
                    : Load(Op.RmOperand, 2, out value) && MoveToSegment((SegmentName)_i.Reg, value);
            case Op.LoadFar: return LoadFarSegment();
            // VMCALL and VMMCALL; what else has a register there is other instructions.
            case Op.Sgdt or Op.Lidt when !_i.IsMemory && _i.Rm == 1: return _machine.Hypercall();
            case Op.Sgdt or Op.Sidt or Op.Lgdt or Op.Lidt or Op.Invlpg when !_i.IsMemory: return Unsupported();
            case Op.Lldt or Op.Ltr:
                SegmentName name = operation == Op.Ltr ? SegmentName.Tr : SegmentName.Ldtr;
                // In long mode their descriptors are longer: not emulated.
                return !HasDescriptors ? Raise(Fault.InvalidOpcode) : IsLongMode ? Unsupported()
                    : Supervisor() && Load(Op.RmOperand, 2, out value) && LoadSegment(name, value, 0);
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
                if (operation == Op.Rdmsr && !Permit(_machine.TryReadMsr((uint)Registers[Gpr.Rcx], out value)))
                    return false;
                Registers[Gpr.Rax] = (uint)value;
                Registers[Gpr.Rdx] = value >> 32;
                return true;
            case Op.Wrmsr:
                value = Registers[Gpr.Rdx] << 32 | (uint)Registers[Gpr.Rax];
                return Permit(_machine.TryWriteMsr((uint)Registers[Gpr.Rcx], value));
            case Op.Cpuid: _machine.Cpuid(); return true;
            default: return Unsupported();
        }
    }

    /// <summary>MOV and POP: one to SS keeps interrupts away.</summary>
    private bool MoveToSegment(SegmentName name, ulong selector)
    {
        Result.Shadow = name == SegmentName.Ss ? Shadow.MovSs : Shadow.None;
        return LoadSegment(name, selector, _machine.Cpl);
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
        int size = _i.OperandSize, index = _i.Reg;
        bool control = operation is Op.MovFromControl or Op.MovToControl;
        // With LOCK, AMD's other name of CR8: not emulated.
        if (_i.Locked)
            return Unsupported();
        if (control ? index is not (0 or 2 or 3 or 4 or 8) : index > 7)
            return Raise(Fault.InvalidOpcode);
        ulong value = GetRegister(_i.Rm, size);
        return operation switch
        {
            Op.MovFromControl => SetRegister(_i.Rm, size, _machine.ReadControl(index)),
            Op.MovToControl => Permit(_machine.TryWriteControl(index, value)),
            Op.MovFromDebug => Permit(_machine.TryReadDebug(index, out value)) && SetRegister(_i.Rm, size, value),
            _ => Permit(_machine.TryWriteDebug(index, value)),
        };
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
            || !ReadMemory(_i.Segment, (offset + 2) & AddressMask, Long64 ? 8 : 4, out ulong address)
            || !Permit(!Long64 || Canonical(address)))
            return false;
        // The 16-bit form loads 24 bits.
        address &= !Long64 && (_code == CodeSize.Bits16) != _i.OperandPrefix ? 0xffffffUL : ulong.MaxValue;
        DescriptorTable table = new() { Base = address, Limit = (ushort)limit };
        if (global)
            _machine.Gdtr = table;
        else
            _machine.Idtr = table;
        return true;
    }
}
