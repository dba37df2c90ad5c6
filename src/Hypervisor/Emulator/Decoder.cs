// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>How decoding ended.</summary>
internal enum Decoding : byte
{
    Done,
    /// <summary>The bytes end before the instruction does.</summary>
    Incomplete,
    /// <summary>Not in the opcode maps: its length is not known.</summary>
    Unknown,
    /// <summary>#UD whatever the operands are.</summary>
    Invalid,
}

/// <summary>Instruction decoder (SDM vol. 2, chapter 2). Reads bytes, knows nothing of machine state.</summary>
internal ref struct Decoder
{
    private readonly ReadOnlySpan<byte> _bytes;
    private int _position;
    private bool _exhausted;

    private Decoder(ReadOnlySpan<byte> bytes) => _bytes = bytes;

    /// <summary>Decodes the instruction at the start of <paramref name="bytes"/>, of which 15 are looked at.</summary>
    public static Decoding Decode(ReadOnlySpan<byte> bytes, CodeSize code, out Instruction instruction)
    {
        Decoder decoder = new(bytes[..Math.Min(bytes.Length, InstructionBytes.Limit)]);
        instruction = default;
        Decoding result = decoder.Decode(code, ref instruction);
        return decoder._exhausted ? Decoding.Incomplete : result;
    }

    /// <summary>
    /// Length of the instruction at the start of <paramref name="bytes"/>, which the caller expects to be
    /// <paramref name="opcode"/> (0xf4 HLT, 0x0fa2 CPUID, 0x0f01d9 VMMCALL …). 0 when it cannot be told.
    /// </summary>
    public static int LengthOf(ReadOnlySpan<byte> bytes, uint opcode, CodeSize code)
    {
        int length = opcode > 0xffff ? 3 : opcode > 0xff ? 2 : 1;
        uint found = 0;
        for (int n = 0; n < Math.Min(length, bytes.Length); n++)
            found = found << 8 | bytes[n];
        if (found == opcode)
            return length;
        return Decode(bytes, code, out Instruction instruction) == Decoding.Done ? instruction.Length : 0;
    }

    private Decoding Decode(CodeSize code, ref Instruction i)
    {
        byte opcode = Prefixes(code, ref i, out bool addressPrefix, out int overridden);
        while (opcode == (i.Map == 0 ? 0x0f : 0x38) && i.Map < 2)
        {
            i.Map++;
            opcode = (byte)Next(1);
        }
        i.Opcode = opcode;
        i.Row = OpcodeMap.Row(in i, opcode);
        bool long64 = code == CodeSize.Bits64;
        i.AddressSize = (byte)(!addressPrefix ? (int)code : code == CodeSize.Bits32 ? 2 : 4);

        i.Base = i.Index = Instruction.NoRegister;
        // Without a ModRM byte the opcode itself may name a register.
        bool hasModRm = i.HasModRm;
        byte modRm = hasModRm ? (byte)Next(1) : opcode;
        i.Reg = (byte)((modRm >> 3 & 7) | (i.Rex & 4) << 1);
        i.Rm = (byte)((modRm & 7) | (i.Rex & 1) << 3);
        if ((i.Row & Op.Group) != 0)
        {
            Op row = OpcodeMap.Groups[((int)(i.Row & Op.OperationMask) << 3) + (modRm >> 3 & 7)];
            i.Row = (i.Row & ~(Op.Group | Op.OperationMask)) | row;
        }

        // VEX takes the place of LES and LDS with a register operand.
        bool isVex = i.Operation == Op.LoadFar && i.Map == 0 && (long64 || modRm >= 0xc0);
        if (i.Operation == Op.Unknown || isVex)
            return Decoding.Unknown;
        // 63 is ARPL outside 64-bit code.
        if ((i.Row & (long64 ? Op.No64 : Op.Only64)) != 0)
            return long64 ? Decoding.Invalid : Decoding.Unknown;

        i.OperandSize = OperandSize(i.Row & Op.SizeMask, code, i);
        // Moves to and from control and debug registers take any ModRM.mod for a register.
        if (hasModRm && modRm < 0xc0 && i.Operation is < Op.MovFromControl or > Op.MovToDebug)
            MemoryOperand(modRm, long64, ref i);
        bool stackBase = i.Base is (sbyte)Gpr.Rsp or (sbyte)Gpr.Rbp;
        i.Segment = overridden >= 0 ? (SegmentName)overridden : stackBase ? SegmentName.Ss : SegmentName.Ds;
        Immediates(ref i);
        i.Length = (byte)_position;
        return i.Operation == Op.Ud ? Decoding.Invalid : Decoding.Done;
    }

    [MethodImpl(AggressiveInlining)]
    private byte Prefixes(CodeSize code, ref Instruction i, out bool addressPrefix, out int overridden)
    {
        bool long64 = code == CodeSize.Bits64;
        addressPrefix = false;
        overridden = -1;
        while (true)
        {
            byte value = (byte)Next(1);
            switch (value)
            {
                case 0x26 or 0x2e or 0x36 or 0x3e:
                    // ES, CS, SS and DS overrides mean nothing in 64-bit code.
                    overridden = long64 ? overridden : value >> 3 & 3;
                    break;
                case 0x64 or 0x65: overridden = value & 7; break;
                case 0x66: i.OperandPrefix = true; break;
                case 0x67: addressPrefix = true; break;
                case 0xf0: i.Locked = true; break;
                case 0xf2 or 0xf3: i.Repeat = value; break;
                default:
                    if (!long64 || (value & 0xf0) != 0x40)
                        return value;
                    i.Rex = value;
                    continue;
            }
            // REX counts only directly before the opcode.
            i.Rex = 0;
        }
    }

    [MethodImpl(AggressiveInlining)] private static byte OperandSize(Op kind, CodeSize code, in Instruction i)
    {
        bool long64 = code == CodeSize.Bits64;
        bool wide = (i.Rex & 8) != 0;
        int byPrefix = wide ? 8 : (code == CodeSize.Bits16) == i.OperandPrefix ? 4 : 2;
        return (byte)(kind switch
        {
            Op.b => 1,
            Op.v => byPrefix,
            Op.w => 2,
            Op.y => wide ? 8 : 4,
            Op.s => !long64 ? byPrefix : i.OperandPrefix && !wide ? 2 : 8,
            Op.n => long64 ? 8 : 4,
            Op.z => Math.Min(byPrefix, 4),
            _ => long64 ? 8 : byPrefix,
        });
    }

    [MethodImpl(AggressiveInlining)] private void MemoryOperand(byte modRm, bool long64, ref Instruction i)
    {
        i.IsMemory = true;
        int mod = modRm >> 6, rm = modRm & 7;
        if (i.AddressSize == 2)
        {
            // BX+SI, BX+DI, BP+SI, BP+DI, SI, DI, BP, BX.
            ReadOnlySpan<byte> bases = [3, 3, 5, 5, 6, 7, 5, 3];
            i.Base = mod == 0 && rm == 6 ? Instruction.NoRegister : (sbyte)bases[rm];
            i.Index = rm < 4 ? (sbyte)(6 + (rm & 1)) : Instruction.NoRegister;
            i.Displacement = mod == 1 ? Signed(1) : mod == 2 || rm == 6 && mod == 0 ? Signed(2) : 0;
            return;
        }

        i.Base = (sbyte)i.Rm;
        if (rm == 4)
        {
            byte sib = (byte)Next(1);
            int index = (sib >> 3 & 7) | (i.Rex & 2) << 2;
            i.Index = index == 4 ? Instruction.NoRegister : (sbyte)index;
            i.Scale = (byte)(sib >> 6);
            i.Base = (sbyte)((sib & 7) | (i.Rex & 1) << 3);
            rm = sib & 7;
        }
        else if (mod == 0 && rm == 5)
            i.RipRelative = long64;
        if (mod == 0 && rm == 5)
            i.Base = Instruction.NoRegister;
        i.Displacement = mod == 1 ? Signed(1) : mod == 2 || mod == 0 && rm == 5 ? Signed(4) : 0;
    }

    [MethodImpl(AggressiveInlining)] private void Immediates(ref Instruction i)
    {
        switch (i.Row & Op.ImmediateMask)
        {
            case Op.Ib: i.Immediate = Signed(1); break;
            case Op.Iz: i.Immediate = Signed(Math.Min((int)i.OperandSize, 4)); break;
            case Op.Iv: i.Immediate = Signed(i.OperandSize); break;
            case Op.Iw: i.Immediate = Next(2); break;
            case Op.Iwb:
                i.Immediate = Next(2);
                i.Immediate2 = (ushort)Next(1);
                break;
            case Op.Ap:
                i.Immediate = Next(i.OperandSize);
                i.Immediate2 = (ushort)Next(2);
                break;
        }
        if (i.Destination == Op.OffsetOperand || i.Source == Op.OffsetOperand)
            i.Displacement = Next(i.AddressSize);
    }

    private ulong Signed(int size) => Alu.SignExtend(Next(size), size);

    /// <summary>The next little-endian value; 0 and a note when the bytes end before it.</summary>
    [MethodImpl(AggressiveInlining)] private ulong Next(int size)
    {
        if (_exhausted || _bytes.Length - _position < size)
        {
            _exhausted = true;
            return 0;
        }
        ulong value = 0;
        for (int n = 0; n < size; n++)
            value |= (ulong)_bytes[_position + n] << (n * 8);
        _position += size;
        return value;
    }
}
