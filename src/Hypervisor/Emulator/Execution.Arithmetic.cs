// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Arithmetic, bits and data movement.</summary>
internal ref partial struct Execution<TMachine>
{
    /// <summary>
    /// What puts a function of destination, source and flags into the destination: arithmetic and logic of one and two
    /// operands, shifts, bit tests. CMP, TEST and BT keep only the flags.
    /// </summary>
    private bool Modify(Op operation)
    {
        int size = _i.OperandSize;
        bool stores = operation is not (Op.Cmp or Op.Test or Op.Bt);
        if (!LoadSource(out ulong b))
            return false;
        int bit = (int)b & (size * 8 - 1);
        // A bit in memory by a register's offset may lie beyond the operand (SDM vol. 1, 3.7.5 and vol. 2, BT).
        if (operation >= Op.Bt && _i.IsMemory && _i.Source == Op.RegOperand)
            _beyond = (ulong)((long)(Alu.SignExtend(b, size) - (uint)bit) >> 3);
        if (!Load(_i.Destination, size, out ulong a, stores ? Rights.Write : Rights.None))
            return false;
        ulong flags = Registers.Rflags;
        ulong result;
        switch (operation)
        {
            case <= Op.Test: result = Alu.Binary(operation, a, b, size, ref flags); break;
            case Op.Not: result = ~a; break;
            case Op.Neg: result = Alu.Subtract(0, a, false, size, ref flags); break;
            case <= Op.Dec: result = Alu.Step(a, operation == Op.Inc, size, ref flags); break;
            case <= Op.Sar: result = Alu.Shift(operation, a, (int)(b & 0xff), size, ref flags); break;
            case <= Op.Shrd:
                ulong count = (_i.Row & Op.ImmediateMask) != 0 ? _i.Immediate : Registers[Gpr.Rcx];
                result = Alu.DoubleShift(operation == Op.Shld, a, b, (int)(count & 0xff), size, ref flags);
                break;
            default:
                ulong mask = 1UL << bit;
                flags = (flags & ~Rflags.Cf) | (a >> bit & 1);
                result = operation == Op.Bts ? a | mask : operation == Op.Btr ? a & ~mask : a ^ mask;
                break;
        }
        if (stores && !StoreModified(result, _i.Locked))
            return false;
        Registers.Rflags = flags;
        return true;
    }

    /// <summary>MUL, IMUL, DIV and IDIV on the double accumulator: AX, or rDX:rAX.</summary>
    private bool WideArithmetic(Op operation)
    {
        int size = _i.OperandSize;
        if (!Load(Op.RmOperand, size, out ulong operand))
            return false;
        bool signed = operation is Op.Imul or Op.Idiv;
        ulong low = Registers[Gpr.Rax] & Alu.Mask(size);
        ulong high = (size == 1 ? Registers[Gpr.Rax] >> 8 : Registers[Gpr.Rdx]) & Alu.Mask(size);
        if (operation is Op.Mul or Op.Imul)
            low = Alu.Multiply(low, operand, size, signed, out high, ref Registers.Rflags);
        else if (!Alu.Divide(high, low, operand, size, signed, out low, out high))
            return Raise(Fault.DivideError);
        SetFull(Gpr.Rax, size == 1 ? 2 : size, size == 1 ? high << 8 | low : low);
        return size == 1 || SetFull(Gpr.Rdx, size, high);
    }

    private bool Product(Op operation)
    {
        if (!LoadSource(out ulong a))
            return false;
        ulong b = operation == Op.ImulThree ? _i.Immediate & Alu.Mask(_i.OperandSize)
            : GetRegister(_i.Reg, _i.OperandSize);
        ulong product = Alu.Multiply(a, b, _i.OperandSize, true, out _, ref Registers.Rflags);
        return SetRegister(_i.Reg, _i.OperandSize, product);
    }

    /// <summary>BSF, BSR, TZCNT, LZCNT and POPCNT. TZCNT and LZCNT are taken to exist in the host.</summary>
    private bool Count(Op operation)
    {
        int size = _i.OperandSize;
        ref ulong flags = ref Registers.Rflags;
        if (!LoadSource(out ulong value))
            return false;
        if (operation == Op.Popcnt)
            return SetRegister(_i.Reg, size, Alu.PopCount(value, ref flags));
        return !Alu.Scan(operation == Op.Bsf, _i.Repeat == 0xf3, value, size, ref flags, out ulong result)
            || SetRegister(_i.Reg, size, result);
    }

    private bool Move(Op operation)
    {
        int size = _i.OperandSize;
        return LoadSource(out ulong value)
            && Store(_i.Destination, size, operation == Op.Movbe ? Reverse(value, size) : value);
    }

    /// <summary>Moves between memory and an XMM register; a short load clears the rest of it.</summary>
    private bool MoveVector(Op operation)
    {
        bool store = _i.Source == Op.RegOperand;
        int size = operation switch { Op.MovDword => 4, Op.MovQword => 8, Op.MovLow => _i.OperandSize, _ => 16 };
        if (!_i.IsMemory)
            return Unsupported();
        bool exists = (_machine.Cr0 & Cr0.Em) == 0 && (_machine.Cr4 & Cr4.Osfxsr) != 0;
        if (!exists || (_machine.Cr0 & Cr0.Ts) != 0)
            return Raise(exists ? Fault.NoDevice : Fault.InvalidOpcode);
        if (!Locate(size, store))
            return false;
        Gva address = new(_fetched.Linear);
        if (operation == Op.MovAligned && address.Value % 16 != 0)
            return Raise(Fault.GeneralProtection);
        InlineArray2<ulong> loaded = default;
        Span<byte> data = MemoryMarshal.AsBytes(store ? _machine.Vector(_i.Reg) : loaded)[..size];
        if (!Check(store ? _machine.Write(address, data, Rights.None, ref Result.Fault)
            : _machine.Read(address, data, Rights.None, ref Result.Fault)))
            return false;
        if (!store)
            ((Span<ulong>)loaded).CopyTo(_machine.Vector(_i.Reg));
        return true;
    }

    /// <summary>FNINIT, FNSTCW and FNSTSW, by which boot code looks for an x87; nothing else of it.</summary>
    private bool Fpu()
    {
        bool initializes = _i.Opcode == 0xdb, inMemory = _i.Opcode is 0xd9 or 0xdd;
        if (_i.IsMemory != inMemory || !inMemory && _i.Rm != (initializes ? 3 : 0))
            return Unsupported();
        if ((_machine.Cr0 & (Cr0.Em | Cr0.Ts)) != 0)
            return Raise(Fault.NoDevice);
        uint words = _machine.FpuWords(initializes);
        return initializes || Store(Op.RmOperand, 2, _i.Opcode == 0xd9 ? words : words >> 16);
    }

    private bool MoveExtended(Op operation)
    {
        int from = operation is Op.MovzxByte or Op.MovsxByte ? 1 : operation is Op.MovzxWord or Op.MovsxWord ? 2
            : Math.Min((int)_i.OperandSize, 4);
        return Load(_i.Source, from, out ulong value) && SetRegister(_i.Reg, _i.OperandSize,
            operation >= Op.MovsxByte ? Alu.SignExtend(value, from) : value);
    }

    /// <summary>XCHG and XADD. XCHG with memory is locked always.</summary>
    private bool Exchange(Op operation)
    {
        int size = _i.OperandSize;
        // NOP is XCHG rAX, rAX by its opcode, but does not clear the upper half; with REX.B it is an exchange, unless
        // F3 makes it PAUSE.
        if (_i.Opcode == 0x90 && _i.Map == 0 && ((_i.Rex & 1) == 0 || _i.Repeat == 0xf3))
            return true;
        if (!LoadDestination(out ulong old) || !LoadSource(out ulong value))
            return false;
        ulong flags = Registers.Rflags;
        bool exchange = operation == Op.Xchg;
        ulong result = exchange ? value : Alu.Add(old, value, false, size, ref flags);
        if (_i.IsMemory && !StoreModified(result, exchange || _i.Locked))
            return false;
        SetRegister(_i.Source == Op.RegOperand ? _i.Reg : _i.Rm, size, old);
        // In registers the sum goes last: XADD of one with itself keeps it.
        if (!_i.IsMemory)
            Store(_i.Destination, size, result);
        Registers.Rflags = flags;
        return true;
    }

    private bool CompareExchange()
    {
        int size = _i.OperandSize;
        if (!LoadDestination(out ulong old))
            return false;
        ulong flags = Registers.Rflags;
        ulong accumulator = GetRegister((int)Gpr.Rax, size);
        Alu.Subtract(accumulator, old, false, size, ref flags);
        bool equal = accumulator == old;
        // Memory is written in either case, a register only when equal.
        if ((equal || _i.IsMemory) && !StoreModified(equal ? GetRegister(_i.Reg, size) : old, _i.Locked))
            return false;
        if (!equal)
            SetFull(Gpr.Rax, size, old);
        Registers.Rflags = flags;
        return true;
    }

    /// <summary>CMPXCHG8B and CMPXCHG16B.</summary>
    private bool CompareExchangeWide()
    {
        int half = _i.OperandSize;
        if (!Locate(half * 2, true))
            return false;
        if (half == 8 && (_fetched.Linear & 15) != 0)
            return Raise(Fault.GeneralProtection);
        UInt128 old = default;
        Span<byte> bytes = MemoryMarshal.AsBytes(new Span<UInt128>(ref old))[..(half * 2)];
        if (!Check(_machine.Read(new Gva(_fetched.Linear), bytes, Rights.Write, ref Result.Fault)))
            return false;
        bool equal = old == Pair(Gpr.Rdx, Gpr.Rax);
        UInt128 stored = equal ? Pair(Gpr.Rcx, Gpr.Rbx) : old;
        if (!Swap(half * 2, bytes, MemoryMarshal.AsBytes(new Span<UInt128>(ref stored))))
            return false;
        if (!equal)
        {
            SetFull(Gpr.Rax, half, (ulong)old);
            SetFull(Gpr.Rdx, half, (ulong)(old >> (half * 8)));
        }
        Registers.Rflags = (Registers.Rflags & ~Rflags.Zf) | (equal ? Rflags.Zf : 0);
        return true;
    }

    /// <summary>Two registers of the operand size as one value.</summary>
    private UInt128 Pair(Gpr high, Gpr low) =>
        (UInt128)GetRegister((int)high, _i.OperandSize) << (_i.OperandSize * 8) | GetRegister((int)low, _i.OperandSize);

    private bool Conditional(Op operation)
    {
        bool holds = Alu.Condition(_i.Opcode & 15, Registers.Rflags);
        if (operation == Op.Set)
            return Store(_i.Destination, 1, holds ? 1UL : 0);
        // CMOVcc reads its source in any case, and with 4 bytes clears the upper half in any case.
        return LoadSource(out ulong value)
            && SetRegister(_i.Reg, _i.OperandSize, holds ? value : GetRegister(_i.Reg, _i.OperandSize));
    }

    private bool Miscellaneous(Op operation)
    {
        int size = _i.OperandSize;
        ref ulong rax = ref Registers[Gpr.Rax];
        ref ulong flags = ref Registers.Rflags;
        const ulong inAh = Rflags.Cf | Rflags.Pf | Rflags.Af | Rflags.Zf | Rflags.Sf;
        ulong al = rax & 0xff;
        switch (operation)
        {
            case Op.Lea: return SetRegister(_i.Reg, size, EffectiveAddress());
            case Op.Xlat:
                return ReadMemory(_i.Segment, (Registers[Gpr.Rbx] + al) & AddressMask, 1, out ulong entry)
                    && SetFull(Gpr.Rax, 1, entry);
            case Op.Bswap:
                // With 2 bytes the result is undefined: processors give zero.
                return SetRegister(_i.Rm, size, size == 2 ? 0 : Reverse(GetRegister(_i.Rm, size), size));
            case Op.Cbw: return SetFull(Gpr.Rax, size, Alu.SignExtend(rax & Alu.Mask(size / 2), size / 2));
            case Op.Cwd:
                return SetFull(Gpr.Rdx, size, (ulong)((long)Alu.SignExtend(rax & Alu.Mask(size), size) >> 63));
            case Op.Lahf: return SetFull(Gpr.Rax, 2, ((flags & inAh) | Rflags.Fixed) << 8 | al);
            case Op.Sahf: flags = (flags & ~inAh) | (rax >> 8 & inAh); return true;
            case Op.Fence: return Fence();
            default: return true;
        }
    }

    /// <summary>LFENCE, MFENCE, SFENCE, CLFLUSH, CLFLUSHOPT, CLWB; their neighbours are others.</summary>
    private bool Fence()
    {
        int row = _i.Reg & 7;
        if (_i.Repeat != 0 || (_i.IsMemory ? row == 5 || row == 6 && !_i.OperandPrefix : _i.OperandPrefix))
            return Unsupported();
        return !_i.IsMemory || Locate(1, false)
            && Check(_machine.Probe(new Gva(_fetched.Linear), 1, Rights.None, out _, ref Result.Fault));
    }
}
