// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Iced.Intel;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using CodeSize = SharpKvm.Emulator.CodeSize;
using Decoder = SharpKvm.Emulator.Decoder;
using Instruction = SharpKvm.Emulator.Instruction;

namespace SharpKvm.Tests.Emulator;

/// <summary>
/// Random unprivileged instructions with random operands, in registers and in memory, executed by the emulator and by
/// the processor: same registers, XMM registers included, same memory, same defined flags.
/// </summary>
public class NativeTests
{
    private const int Rounds = 200_000;
    private const int Low = 0x8000, High = 0x18000;
    private const ulong CodeAt = NativeCpu.Window + 0xf0000;

    private static readonly Op[] Covered =
    [
        .. Enumerable.Range((int)Op.Add, (int)(Op.Sahf - Op.Add) + 1).Select(n => (Op)n),
        Op.Movs, Op.Cmps, Op.Stos, Op.Lods, Op.Scas, Op.Push, Op.Pop, Op.Pushf, Op.Enter, Op.Leave,
        Op.Clc, Op.Stc, Op.Cmc, Op.Cld, Op.Std, Op.Fence,
    ];

    [Test]
    public void TheEmulatorDoesWhatTheProcessorDoes()
    {
        using NativeCpu? cpu = NativeCpu.TryCreate();
        if (cpu == null)
        {
            Assert.Ignore("no executable memory for this process");
        }
        Random random = new(20_260_101);
        FakeState state = new(CodeSize.Bits64) { MemoryBase = NativeCpu.Window, Cr4 = Cr4.Osfxsr };
        random.NextBytes(state.Memory.AsSpan(Low, High - Low));
        byte[] pristine = state.Memory.AsSpan(Low, High - Low).ToArray();
        Dictionary<Op, int> executed = [];
        List<string> wrong = [];

        for (int round = 0; round < Rounds; round++)
        {
            byte[] bytes = RandomInstruction(random);
            if (Decoder.Decode(bytes, CodeSize.Bits64, out Instruction instruction) != Decoding.Done
                || Array.IndexOf(Covered, instruction.Operation) < 0 || !Prepare(random, ref instruction, bytes, state))
            {
                continue;
            }
            // With F3 and REX.B some processors pause, and others exchange.
            if (instruction is { Operation: Op.Xchg, Opcode: 0x90, Repeat: 0xf3 })
            {
                continue;
            }
            byte[] code = bytes[..instruction.Length];
            GuestRegisters before = state.Registers;
            random.NextBytes(MemoryMarshal.AsBytes(state.Vectors.AsSpan()));
            ulong[] vectors = [.. state.Vectors];
            pristine.CopyTo(state.Memory, Low);
            state.Code(CodeAt, bytes);
            Emulation result = state.RunServed();
            if (result.Outcome != Access.Done)
            {
                continue;
            }
            executed[instruction.Operation] = executed.GetValueOrDefault(instruction.Operation) + 1;
            // Twice before it counts: a signal of the runtime may have landed on the test's stack.
            string? difference = Compare(cpu!, code, before, vectors, pristine, state);
            difference = difference == null ? null : Compare(cpu!, code, before, vectors, pristine, state);
            if (difference != null)
            {
                wrong.Add(difference);
            }
        }
        TestContext.Out.WriteLine(string.Join(", ", executed.Select(pair => $"{pair.Key} {pair.Value}")));
        Assert.That(wrong.Count, Is.Zero, string.Join('\n', wrong.Take(30)));
        Assert.That(Covered.Except(executed.Keys), Is.Empty, "never executed");
    }

    private static readonly ulong[] Corners =
        [0, 1, ulong.MaxValue, 0x80, 0x7fff, 0x80000000, 0x8000000000000000, 31, 64];

    private static ulong Value(Random random)
    {
        ulong value = (ulong)random.NextInt64(long.MinValue, long.MaxValue);
        return random.Next(4) switch
        {
            0 => value,
            1 => value >> random.Next(64),
            2 => (ulong)((long)value >> random.Next(64)),
            _ => Corners[random.Next(Corners.Length)],
        };
    }

    private static byte[] RandomInstruction(Random random)
    {
        List<byte> bytes = [];
        byte[] prefixes = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e];
        while (random.Next(3) == 0)
        {
            bytes.Add(prefixes[random.Next(prefixes.Length)]);
        }
        if (random.Next(2) == 0)
        {
            bytes.Add((byte)(0x40 | random.Next(16)));
        }
        switch (random.Next(9))
        {
            case < 4:
                bytes.Add((byte)random.Next(256));
                break;
            case < 8:
                bytes.AddRange([0x0f, (byte)random.Next(256)]);
                break;
            default:
                bytes.AddRange([0x0f, 0x38, (byte)(0xf0 | random.Next(2))]);
                break;
        }
        byte[] rest = new byte[14];
        random.NextBytes(rest);
        bytes.AddRange(rest);
        return [.. bytes.Take(15)];
    }

    /// <summary>Sets registers so that memory operands lie in the window. False: the form does not suit.</summary>
    private static bool Prepare(Random random, ref Instruction i, byte[] bytes, FakeState state)
    {
        // FS and GS have bases of the process here; RIP differs; a lone displacement cannot be steered.
        bool steerable = !i.IsMemory || i.Base >= 0 && i.Base != i.Index || i.Base < 0 && i.Index >= 0;
        if (i.RipRelative || i.Segment >= SegmentName.Fs || !steerable)
        {
            return false;
        }
        ref GuestRegisters registers = ref state.Registers;
        registers = default;
        for (Gpr r = Gpr.Rax; r <= Gpr.R15; r++)
        {
            registers[r] = Value(random);
        }
        registers.Rflags = 0x202 | (ulong)random.Next(0x1000) & 0x8d5 | (random.Next(4) == 0 ? Rflags.Df : 0);
        ulong target = NativeCpu.Window + (ulong)random.Next(Low + 0x2000, High - 0x2000);
        // Atomic accesses across a cache line are trapped by some kernels.
        target &= i.Locked || i.Operation is Op.Xchg or Op.Cmpxchg8b ? ~15ul : ~0ul;
        registers[Gpr.Rsp] = NativeCpu.Window + (ulong)random.Next(Low + 0x4000, High - 0x2000);
        switch (i.Operation)
        {
            case >= Op.Movs and <= Op.Scas:
                registers[Gpr.Rsi] = NativeCpu.Window + (ulong)random.Next(Low + 0x1000, High - 0x1000);
                registers[Gpr.Rdi] = target;
                registers[Gpr.Rcx] = (ulong)random.Next(20);
                break;
            case Op.Xlat:
                registers[Gpr.Rbx] = target;
                break;
            case Op.Leave or Op.Enter:
                registers[Gpr.Rbp] = target;
                break;
            case >= Op.Bt and <= Op.Btc when i.IsMemory && i.Source == Op.RegOperand && !i.Locked:
                registers[(Gpr)i.Reg] = (ulong)random.Next(-0x4000, 0x4000);
                break;
            case >= Op.Bt and <= Op.Btc when i.IsMemory && i.Source == Op.RegOperand:
                registers[(Gpr)i.Reg] = 0;
                break;
            case Op.Cmpxchg8b or Op.Cmpxchg when random.Next(2) == 0:
                // The window's contents where the operand will be.
                registers[Gpr.Rax] = BinaryPrimitives.ReadUInt64LittleEndian(state.At(target, 8));
                registers[Gpr.Rdx] = BinaryPrimitives.ReadUInt64LittleEndian(state.At(target + 8, 8));
                if (i.OperandSize == 4 && i.Operation == Op.Cmpxchg8b)
                {
                    registers[Gpr.Rdx] = registers[Gpr.Rax] >> 32;
                }
                break;
        }
        if (i.Source == Op.OffsetOperand || i.Destination == Op.OffsetOperand)
        {
            BitConverter.GetBytes(target).AsSpan(0, i.AddressSize).CopyTo(bytes.AsSpan(i.Length - i.AddressSize));
        }
        if (i.IsMemory)
        {
            ulong mask = Alu.Mask(i.AddressSize);
            if (i.Base < 0)
            {
                registers[(Gpr)i.Index] = ((target - i.Displacement) & mask) >> i.Scale;
            }
            else
            {
                ulong index = 0;
                if (i.Index >= 0)
                {
                    index = (ulong)random.Next(-200, 200) * 16;
                    registers[(Gpr)i.Index] = index;
                }
                registers[(Gpr)i.Base] = (target - i.Displacement - (index << i.Scale)) & mask;
            }
        }
        return true;
    }

    private static string? Compare(NativeCpu cpu, byte[] code, GuestRegisters before, ulong[] vectors,
        byte[] pristine, FakeState state)
    {
        GuestRegisters native = before;
        ulong[] nativeVectors = [.. vectors];
        pristine.CopyTo(NativeCpu.Memory[Low..]);
        cpu.Run(code, ref native, nativeVectors);
        var iced = Iced.Intel.Decoder.Create(64, new ByteArrayCodeReader(code));
        iced.Decode(out Iced.Intel.Instruction theirs);
        string what = $"{Convert.ToHexString(code)} '{theirs}' flags before {before.Rflags:x}: ";
        for (Gpr r = Gpr.Rax; r <= Gpr.R15; r++)
        {
            if (native[r] != state.Registers[r] && !IsUndefined(theirs, r, before))
            {
                return what + $"{r} {before[r]:x} -> {state.Registers[r]:x}, not {native[r]:x}";
            }
        }
        ulong undefined = IsWideShift(theirs, before) ? ulong.MaxValue : Undefined(theirs.RflagsUndefined);
        ulong differing = (native.Rflags ^ state.Registers.Rflags) & 0xcd5 & ~undefined;
        if (differing != 0)
        {
            return what + $"flags {state.Registers.Rflags:x}, not {native.Rflags:x}, rax {before[Gpr.Rax]:x} "
                + $"rcx {before[Gpr.Rcx]:x} rdx {before[Gpr.Rdx]:x}";
        }
        if (!nativeVectors.AsSpan().SequenceEqual(state.Vectors))
        {
            return what + "an XMM register";
        }
        ReadOnlySpan<byte> ours = state.Memory.AsSpan(Low, High - Low);
        int at = ours.CommonPrefixLength(NativeCpu.Memory[Low..High]);
        return at == ours.Length || IsWideShift(theirs, before) ? null : what + $"memory at {Low + at:x}";
    }

    /// <summary>SHLD and SHRD of words by more than their width.</summary>
    private static bool IsWideShift(in Iced.Intel.Instruction theirs, GuestRegisters before)
    {
        bool word = theirs.Code is Code.Shld_rm16_r16_CL or Code.Shld_rm16_r16_imm8 or Code.Shrd_rm16_r16_CL
            or Code.Shrd_rm16_r16_imm8;
        ulong count = theirs.GetOpKind(2) == OpKind.Immediate8 ? theirs.Immediate8 : before[Gpr.Rcx];
        return word && (count & 31) > 16;
    }

    private static bool IsUndefined(in Iced.Intel.Instruction theirs, Gpr register, GuestRegisters before)
    {
        return theirs.Code == Code.Bswap_r16 || theirs.Mnemonic is Mnemonic.Bsf or Mnemonic.Bsr
            || IsWideShift(theirs, before);
    }

    private static ulong Undefined(RflagsBits bits)
    {
        ulong flags = 0;
        flags |= (bits & RflagsBits.OF) != 0 ? Rflags.Of : 0;
        flags |= (bits & RflagsBits.SF) != 0 ? Rflags.Sf : 0;
        flags |= (bits & RflagsBits.ZF) != 0 ? Rflags.Zf : 0;
        flags |= (bits & RflagsBits.AF) != 0 ? Rflags.Af : 0;
        flags |= (bits & RflagsBits.PF) != 0 ? Rflags.Pf : 0;
        flags |= (bits & RflagsBits.CF) != 0 ? Rflags.Cf : 0;
        return flags;
    }
}
