// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Assembling with Iced.</summary>
static class MachineCode
{
    public static (byte[] Bytes, AssemblerResult Result) Assemble(int bits, ulong address, Action<Assembler> code)
    {
        var assembler = new Assembler(bits);
        code(assembler);
        using var stream = new MemoryStream();
        AssemblerResult result = assembler.Assemble(new StreamCodeWriter(stream), address,
            BlockEncoderOptions.ReturnNewInstructionOffsets);
        return (stream.ToArray(), result);
    }

    public static byte[] Bytes(int bits, ulong address, Action<Assembler> code) => Assemble(bits, address, code).Bytes;
}
