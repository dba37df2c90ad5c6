// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Instruction lengths, to step over an intercepted instruction without a next-RIP.</summary>
internal static class InstructionLength
{
    /// <summary>
    /// Length of the instruction at the start of <paramref name="bytes"/>, which the caller expects to be
    /// <paramref name="opcode"/> (0xf4 HLT, 0x0fa2 CPUID, 0x0f01d9 VMMCALL …). 0 when it cannot be told.
    /// </summary>
    public static int Skip(ReadOnlySpan<byte> bytes, uint opcode, CodeSize code)
    {
        int length = opcode > 0xffff ? 3 : opcode > 0xff ? 2 : 1;
        if (bytes.Length >= length)
        {
            uint found = bytes[0];
            for (int n = 1; n < length; n++)
                found = found << 8 | bytes[n];
            if (found == opcode)
                return length;
        }
        return Decode(bytes, code);
    }

    /// <summary>Length of the instruction at the start of <paramref name="bytes"/>; 0 when it cannot be told.</summary>
    public static int Decode(ReadOnlySpan<byte> bytes, CodeSize code) =>
        Decoder.Decode(bytes, code, out Instruction instruction) == Decoding.Done ? instruction.Length : 0;
}
