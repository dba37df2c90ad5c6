// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Operands: registers, effective and linear addresses, memory.</summary>
internal ref partial struct Execution<TMachine>
{
    private ulong AddressMask => Alu.Mask(_i.AddressSize);

    private readonly bool HighByte(int register) => _i.Rex == 0 && register is >= 4 and < 8;

    [MethodImpl(AggressiveInlining)] private ulong GetRegister(int register, int size) =>
        size == 1 && HighByte(register)
            ? Registers[(Gpr)(register - 4)] >> 8 & 0xff
            : Registers[(Gpr)register] & Alu.Mask(size);

    /// <summary>True, as the end of an instruction.</summary>
    private bool SetRegister(int register, int size, ulong value)
    {
        if (size != 1 || !HighByte(register))
            return SetFull((Gpr)register, size, value);
        ref ulong whole = ref Registers[(Gpr)(register - 4)];
        whole = (whole & ~0xff00UL) | (value & 0xff) << 8;
        return true;
    }

    /// <summary>Writes the low part of a register; 4 bytes clear the upper half. True.</summary>
    [MethodImpl(AggressiveInlining)] private bool SetFull(Gpr register, int size, ulong value)
    {
        ref ulong whole = ref Registers[register];
        ulong mask = Alu.Mask(size);
        whole = (size == 4 ? 0 : whole & ~mask) | (value & mask);
        return true;
    }

    [MethodImpl(AggressiveInlining)] private ulong EffectiveAddress()
    {
        ulong address = _i.Displacement + _beyond;
        if (_i.RipRelative)
            address += _next;
        if (_i.Base != Instruction.NoRegister)
            address += Registers[(Gpr)_i.Base];
        if (_i.Index != Instruction.NoRegister)
            address += Registers[(Gpr)_i.Index] << _i.Scale;
        return address & AddressMask;
    }

    /// <summary>Segmentation without raising: the fault's vector, or 0 and the linear address.</summary>
    [MethodImpl(AggressiveInlining)]
    private byte Translate(SegmentName name, ulong offset, int size, bool write, out ulong linear)
    {
        byte vector = name == SegmentName.Ss ? Fault.StackSegment : Fault.GeneralProtection;
        if (Long64)
        {
            linear = offset + (name >= SegmentName.Fs ? _machine.GetSegment(name).Base : 0);
            return Canonical(linear) && Canonical(linear + (uint)(size - 1)) ? (byte)0 : vector;
        }
        Segment segment = _machine.GetSegment(name);
        linear = (uint)(segment.Base + offset);
        if (_protected && !_virtual8086)
        {
            // Data: bit 1 writable. Code: bit 1 readable, never writable.
            bool permitted = segment.IsCode ? !write && (segment.Type & 2) != 0 : !write || (segment.Type & 2) != 0;
            if (!segment.Present || !permitted)
                return Fault.GeneralProtection;
        }
        ulong last = offset + (uint)(size - 1);
        bool expandsDown = segment.IsCodeOrData && !segment.IsCode && (segment.Type & 4) != 0;
        bool inside = expandsDown
            ? offset > segment.Limit && last <= (segment.Big ? uint.MaxValue : ushort.MaxValue)
            : last <= segment.Limit;
        return inside ? (byte)0 : vector;
    }

    /// <summary>Segmentation and alignment: offset to linear address.</summary>
    private bool Linear(SegmentName name, ulong offset, int size, bool write, out ulong linear)
    {
        byte vector = Translate(name, offset, size, write, out linear);
        if (vector != 0)
            return Raise(vector);
        bool aligned = (linear & (uint)(size - 1)) == 0 || (size & (size - 1)) != 0;
        bool checks = !aligned && (Registers.Rflags & Rflags.Ac) != 0 && (_machine.Cr0 & Cr0.Am) != 0;
        return !checks || _machine.Cpl != 3 || Raise(Fault.AlignmentCheck);
    }

    [MethodImpl(AggressiveInlining)] private bool ReadLinear(ulong linear, int size, Rights rights, out ulong value)
    {
        ulong buffer = 0;
        bool done = Check(_machine.Read(new Gva(linear), MemoryMarshal.AsBytes(new Span<ulong>(ref buffer))[..size],
            rights, ref Result.Fault));
        value = buffer;
        return done;
    }

    [MethodImpl(AggressiveInlining)]
    private bool WriteLinear(ulong linear, int size, ulong value, Rights rights = Rights.None) =>
        Check(_machine.Write(new Gva(linear), MemoryMarshal.AsBytes(new Span<ulong>(ref value))[..size],
            rights, ref Result.Fault));

    private bool ReadMemory(SegmentName segment, ulong offset, int size, out ulong value)
    {
        value = 0;
        return Linear(segment, offset, size, false, out ulong linear)
            && ReadLinear(linear, size, Rights.None, out value);
    }

    private bool WriteMemory(SegmentName segment, ulong offset, int size, ulong value) =>
        Linear(segment, offset, size, true, out ulong linear) && WriteLinear(linear, size, value);

    private bool IsMemory(Op operand) => operand == Op.OffsetOperand || operand == Op.RmOperand && _i.IsMemory;

    /// <summary>Finds the linear address of the memory operand, once.</summary>
    [MethodImpl(AggressiveInlining)]
    private bool Locate(int size, bool write) => _fetched.IsLocated || FirstLocate(size, write);

    private bool FirstLocate(int size, bool write)
    {
        ulong offset = EffectiveAddress();
        SegmentName name = _i.Segment;
        ulong start = Long64 && name < SegmentName.Fs ? 0 : _machine.GetSegment(name).Base;
        ulong linear = Long64 ? start + offset : (uint)(start + offset);
        _fetched.Linear = linear;
        return _fetched.IsLocated = _i.Operation < Op.Lea && _machine.IsChecked(new Gva(linear), size, write)
            || Linear(name, offset, size, write, out _fetched.Linear);
    }

    private bool Load(Op operand, int size, out ulong value, Rights rights = Rights.None)
    {
        if (IsMemory(operand))
        {
            value = 0;
            bool done = Locate(size, rights != Rights.None) && ReadLinear(_fetched.Linear, size, rights, out value);
            _loaded = value;
            return done;
        }
        value = operand switch
        {
            Op.RmOperand or Op.OpcodeOperand => GetRegister(_i.Rm, size),
            Op.RegOperand => GetRegister(_i.Reg, size),
            Op.AccOperand => GetRegister((int)Gpr.Rax, size),
            Op.OneOperand => 1,
            Op.ClOperand => Registers[Gpr.Rcx] & 0xff,
            _ => _i.Immediate & Alu.Mask(size),
        };
        return true;
    }

    /// <summary>Source operand at the instruction's operand size.</summary>
    private bool LoadSource(out ulong value) => Load(_i.Source, _i.OperandSize, out value);

    /// <summary>Destination operand, to be stored again.</summary>
    private bool LoadDestination(out ulong value) => Load(_i.Destination, _i.OperandSize, out value, Rights.Write);

    private bool Store(Op operand, int size, ulong value)
    {
        if (IsMemory(operand))
            return Locate(size, true) && WriteLinear(_fetched.Linear, size, value);
        int register = operand == Op.RegOperand ? _i.Reg : operand == Op.AccOperand ? (int)Gpr.Rax : _i.Rm;
        return SetRegister(register, size, value);
    }

    /// <summary>Stores the result of a read-modify-write; atomically under LOCK.</summary>
    private bool StoreModified(ulong value, bool locked) =>
        locked && _i.IsMemory
            ? Swap(_i.OperandSize, MemoryMarshal.AsBytes(new Span<ulong>(ref _loaded)),
                MemoryMarshal.AsBytes(new Span<ulong>(ref value)))
            : Store(_i.Destination, _i.OperandSize, value);

    /// <summary>Replaces what was loaded. When another CPU came between, the instruction is run again later.</summary>
    private bool Swap(int size, scoped ReadOnlySpan<byte> expected, scoped ReadOnlySpan<byte> replacement) =>
        Check(_machine.CompareExchange(new Gva(_fetched.Linear), expected[..size], replacement[..size],
            out bool exchanged, ref Result.Fault)) && exchanged;

    private static ulong Reverse(ulong value, int size) => BinaryPrimitives.ReverseEndianness(value) >> (64 - size * 8);
}
