// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Default operand and address size of a code segment.</summary>
internal enum CodeSize : byte
{
    Bits16 = 2, Bits32 = 4, Bits64 = 8,
}

/// <summary>An instruction as it was fetched and decoded.</summary>
internal struct FetchedInstruction
{
    public Instruction Decoded;
    /// <summary>What <see cref="Decoded"/> was decoded for; 0 while it is nothing.</summary>
    public CodeSize Code;
    private InstructionBytes _decodedBytes;
    /// <summary>The bytes that were read, <see cref="ByteCount"/> of them.</summary>
    public InstructionBytes Bytes;
    public byte ByteCount;
    /// <summary>The linear address of the memory operand is known and checked.</summary>
    public bool IsLocated;
    public ulong Linear;

    /// <summary>
    /// Decodes the bytes, unless they begin with the instruction that was decoded last: a guest speaks to a device by
    /// the same few instructions again and again.
    /// </summary>
    [MethodImpl(AggressiveInlining)] public Decoding Decode(CodeSize code) =>
        code == Code && ByteCount >= Decoded.Length && BeginsAsBefore() ? Decoding.Done : DecodeAnew(code);

    /// <summary>By words; what is behind the decoded instruction is shifted out.</summary>
    private readonly bool BeginsAsBefore()
    {
        ReadOnlySpan<byte> now = Bytes, before = _decodedBytes;
        ulong low = MemoryMarshal.Read<ulong>(now) ^ MemoryMarshal.Read<ulong>(before);
        if (Decoded.Length <= sizeof(ulong))
            return low << 64 - 8 * Decoded.Length == 0;
        ulong high = MemoryMarshal.Read<ulong>(now[8..]) ^ MemoryMarshal.Read<ulong>(before[8..]);
        return low == 0 && high << 128 - 8 * Decoded.Length == 0;
    }

    private Decoding DecodeAnew(CodeSize code)
    {
        ReadOnlySpan<byte> bytes = Bytes;
        Decoding result = Decoder.Decode(bytes[..ByteCount], code, out Decoded);
        Code = result == Decoding.Done ? code : default;
        _decodedBytes = Bytes;
        return result;
    }
}

/// <summary>A decoded instruction. Register numbers include the REX extension; sizes are in bytes.</summary>
internal struct Instruction
{
    public const sbyte NoRegister = -1;

    public Op Row;
    public byte Length;
    /// <summary>0: one-byte opcodes, 1: after 0F, 2: after 0F 38.</summary>
    public byte Map;
    public byte Opcode;
    public byte Rex;
    /// <summary>The last of F2 and F3, or 0.</summary>
    public byte Repeat;
    public bool Locked, OperandPrefix;
    /// <summary>ModRM names a memory operand.</summary>
    public bool IsMemory;
    public bool RipRelative;
    public byte OperandSize, AddressSize;
    /// <summary>Segment of the memory operand, or of a string instruction's source.</summary>
    public SegmentName Segment;
    public byte Reg, Rm;
    public sbyte Base, Index;
    public byte Scale;
    /// <summary>Displacement, or the whole offset of a moffs operand.</summary>
    public ulong Displacement;
    /// <summary>Sign-extended to 64 bits.</summary>
    public ulong Immediate;
    /// <summary>Second immediate: ENTER's level, a far pointer's selector.</summary>
    public ushort Immediate2;

    public readonly Op Operation => Row & Op.OperationMask;
    public readonly Op Destination => (Op)((uint)Row >> (int)Op.DestinationShift) & Op.OperandMask;
    public readonly Op Source => (Op)((uint)Row >> (int)Op.SourceShift) & Op.OperandMask;
    public readonly bool HasModRm => Destination == Op.RmOperand || Source == Op.RmOperand;
}
