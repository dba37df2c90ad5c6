// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using Iced.Intel;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using CodeSize = SharpKvm.Emulator.CodeSize;
using Decoder = SharpKvm.Emulator.Decoder;
using IcedInstruction = Iced.Intel.Instruction;
using Instruction = SharpKvm.Emulator.Instruction;

namespace SharpKvm.Tests.Emulator;

/// <summary>The decoder against Iced: every opcode, every ModRM byte, prefixes, all three modes.</summary>
public class DecoderTests
{
    /// <summary>Instructions that the emulator claims, by Iced's names; MOV, IMUL … with all integer forms.</summary>
    private static readonly HashSet<Mnemonic> Claimed = [.. (
        "Add Or Adc Sbb And Sub Xor Cmp Test Inc Dec Not Neg Mul Imul Div Idiv Rol Ror Rcl Rcr Shl Sal Shr Sar Shld "
        + "Shrd Bt Bts Btr Btc Bsf Bsr Tzcnt Lzcnt Popcnt Mov Movbe Movnti Movzx Movsx Movsxd Xchg Cmpxchg "
        + "Cmpxchg8b Cmpxchg16b Xadd Cmovo Cmovno Cmovb Cmovae Cmove Cmovne Cmovbe Cmova Cmovs Cmovns Cmovp Cmovnp "
        + "Cmovl Cmovge Cmovle Cmovg Seto Setno Setb Setae Sete Setne Setbe Seta Sets Setns Setp Setnp Setl Setge "
        + "Setle Setg Lea Xlatb Bswap Cbw Cwde Cdqe Cwd Cdq Cqo Lahf Sahf Nop Pause Lfence Mfence Sfence Clflush "
        + "Clflushopt Clwb Prefetchnta Prefetcht0 Prefetcht1 Prefetcht2 Prefetchw Movsb Movsw Movsd Movsq Cmpsb Cmpsw "
        + "Cmpsd Cmpsq Stosb Stosw Stosd Stosq Lodsb Lodsw Lodsd Lodsq Scasb Scasw Scasd Scasq Insb Insw Insd Outsb "
        + "Outsw Outsd In Out Push Pop Pusha Pushad Popa Popad Pushf Pushfd Pushfq Popf Popfd Popfq Enter Leave Call "
        + "Jmp Ret Retf Jo Jno Jb Jae Je Jne Jbe Ja Js Jns Jp Jnp Jl Jge Jle Jg Loop Loope Loopne Jcxz Jecxz Jrcxz "
        + "Iret Iretd Iretq Int Int3 Into Int1 Clc Stc Cmc Cld Std Cli Sti Hlt Les Lds Lss Lfs Lgs Lldt Ltr Sgdt Sidt "
        + "Lgdt Lidt Smsw Lmsw Clts Invlpg Invd Wbinvd Rdmsr Wrmsr Rdtsc Cpuid Endbr64 Endbr32 "
        + "Movups Movupd Movss Movaps Movapd Movntps Movntpd Movd Movq Movdqa Movdqu Movntdq Lddqu Fninit Fnstcw Fnstsw "
        + "Vmcall Vmmcall Vmlaunch Vmresume Vmrun Vmload Vmsave Stgi Clgi Skinit Invlpga Xgetbv Xsetbv Rdtscp Swapgs")
        .Split(' ').Select(Enum.Parse<Mnemonic>)];

    private static readonly byte[][] PrefixSets =
        [[], [0x66], [0x67], [0xf2], [0xf3], [0xf0], [0x66, 0x67], [0x64], [0x36, 0x66], [0x66, 0xf2], [0x66, 0xf3]];

    private static readonly byte[][] RexSets =
    [
        [0x40], [0x48], [0x41], [0x44], [0x42], [0x4f], [0x66, 0x48], [0x67, 0x47], [0x48, 0x66], [0xf3, 0x48],
        [0x45, 0x65],
    ];

    private static CodeSize Code(int bitness) => (CodeSize)(bitness / 8);

    private static IEnumerable<byte[]> Forms(byte[] prefixes, Random random)
    {
        byte[][] maps = [[], [0x0f], [0x0f, 0x38]];
        foreach (byte[] map in maps)
        {
            for (int opcode = 0; opcode < 256; opcode++)
            {
                for (int modRm = 0; modRm < 256; modRm++)
                {
                    byte[] rest = new byte[10];
                    random.NextBytes(rest);
                    yield return [.. prefixes, .. map, (byte)opcode, (byte)modRm, .. rest];
                }
            }
        }
    }

    [Test]
    public void EveryFormAgrees([Values(16, 32, 64)] int bitness)
    {
        Random random = new(bitness);
        IEnumerable<byte[]> prefixSets = bitness == 64 ? PrefixSets.Concat(RexSets) : PrefixSets;
        HashSet<Mnemonic> seen = [];
        List<string> wrong = [];
        foreach (byte[] bytes in prefixSets.SelectMany(prefixes => Forms(prefixes, random)))
        {
            string? difference = Difference(bytes, bitness, out Mnemonic mnemonic);
            seen.Add(mnemonic);
            if (difference != null)
            {
                wrong.Add(difference);
            }
        }
        Assert.That(wrong.Count, Is.Zero, string.Join('\n', wrong.Take(30)));
        if (bitness == 64)
        {
            string[] elsewhere = ["Into", "Les", "Lds", "Pusha", "Pushad", "Popa", "Popad", "Jcxz",
                "Pushfd", "Popfd", "Sal"];
            Assert.That(Claimed.Except(seen).Select(m => m.ToString()).Except(elsewhere), Is.Empty, "never met");
        }
    }

    [Test]
    public void RandomBytesAreDecodedWithinFifteen()
    {
        Gen.Select(Gen.Byte.Array[0, 20], Gen.OneOfConst(16, 32, 64)).Sample((bytes, bitness) =>
        {
            string? difference = Difference(bytes, bitness, out _);
            return difference == null ? true : throw new AssertionException(difference);
        }, iter: 300_000);
    }

    /// <summary>What differs between the two decoders; null when nothing does or the form is not claimed.</summary>
    private static string? Difference(byte[] bytes, int bitness, out Mnemonic mnemonic)
    {
        Decoding decoding = Decoder.Decode(bytes, Code(bitness), out Instruction ours);
        var iced = Iced.Intel.Decoder.Create(bitness, new ByteArrayCodeReader(bytes), DecoderOptions.NoInvalidCheck);
        iced.Decode(out IcedInstruction theirs);
        mnemonic = theirs.Mnemonic;
        string what = $"{bitness} {Convert.ToHexString(bytes)} '{theirs}' {theirs.Code} {decoding} {ours.Operation}";
        if (ours.Length > 15)
        {
            return what + ": too long";
        }
        if (decoding != Decoding.Done)
        {
            bool integer = theirs.CpuidFeatures().All(feature => feature != CpuidFeature.MMX
                && !feature.ToString().StartsWith("SSE")
                || theirs.Mnemonic is Mnemonic.Movnti or Mnemonic.Sfence or Mnemonic.Lfence
                    or Mnemonic.Mfence or Mnemonic.Pause);
            return Claimed.Contains(mnemonic) && integer && !theirs.IsInvalid ? what + ": not decoded" : null;
        }
        if (theirs.IsInvalid || IsElsewhere(ours, theirs))
        {
            return null;
        }
        return theirs.Length != ours.Length ? what + $": length {ours.Length}, not {theirs.Length}"
            : !Claimed.Contains(mnemonic) ? what + ": not claimed"
            : Operands(ours, theirs, bitness) is { } text ? what + ": " + text : null;
    }

    /// <summary>Forms whose row stands for another instruction here; the executor refuses those.</summary>
    private static bool IsElsewhere(in Instruction ours, in IcedInstruction theirs)
    {
        return (ours.Row & Op.Mem) != 0 && !ours.IsMemory
            || ours.Operation is Op.Fence or Op.Nop or Op.Fpu
            || ours.Operation is Op.Sgdt or Op.Sidt or Op.Lgdt or Op.Lidt or Op.Invlpg && !ours.IsMemory
            || ours.Operation == Op.Popcnt && ours.Repeat != 0xf3
            || ours.Operation == Op.Wbinvd
            || ours.Operation is Op.Rdmsr or Op.Rdtsc or Op.Cpuid or Op.Wrmsr && theirs.Mnemonic == Mnemonic.INVALID;
    }

    private static string? Operands(in Instruction ours, in IcedInstruction theirs, int bitness)
    {
        if (ours.IsMemory)
        {
            Register index = theirs.MemoryIndex;
            int scale = index == Register.None ? 0 : int.Log2(theirs.MemoryIndexScale);
            ulong mask = ulong.MaxValue >> (64 - ours.AddressSize * 8);
            ulong displacement = ours.RipRelative
                ? (ours.Displacement + ours.Length) & mask : ours.Displacement & mask;
            string mine = $"{ours.Base} {ours.Index} {(ours.Index < 0 ? 0 : ours.Scale)} {displacement:x} "
                + Override(ours.Segment, bitness);
            Register from = theirs.IsIPRelativeMemoryOperand ? Register.None : theirs.MemoryBase;
            string other = $"{Number(from)} {Number(index)} {scale} {theirs.MemoryDisplacement64 & mask:x} "
                + Override((SegmentName)(theirs.MemorySegment - Register.ES), bitness);
            if (mine != other && theirs.OpKinds().Any(kind => kind == OpKind.Memory))
            {
                return $"memory {mine}, not {other}";
            }
        }
        for (int n = 0; n < theirs.OpCount; n++)
        {
            OpKind kind = theirs.GetOpKind(n);
            if (kind is OpKind.NearBranch16 or OpKind.NearBranch32 or OpKind.NearBranch64)
            {
                ulong target = (ours.Immediate + ours.Length) & (ulong.MaxValue >> (64 - ours.OperandSize * 8));
                if (target != theirs.NearBranchTarget)
                {
                    return $"target {target:x}, not {theirs.NearBranchTarget:x}";
                }
            }
            else if (kind == OpKind.Register && ours.HasModRm && !ours.IsMemory)
            {
                Op operand = n == 0 ? ours.Destination : n == 1 ? ours.Source : 0;
                Register register = theirs.GetOpRegister(n);
                int number = operand == Op.RmOperand ? ours.Rm : operand == Op.RegOperand ? ours.Reg : -1;
                bool general = register.IsGPR();
                if (number >= 0 && general && number != HighNumber(register))
                {
                    return $"operand {n} register {number}, not {register}";
                }
                if (number >= 0 && general && ours.Operation is not (Op.MovzxByte or Op.MovzxWord or Op.MovsxByte
                        or Op.MovsxWord or Op.Movsxd or Op.MovToSeg or Op.Lmsw or Op.Lldt or Op.Ltr)
                    && register.GetSize() != ours.OperandSize)
                {
                    return $"operand {n} size {ours.OperandSize}, not {register}";
                }
            }
            else if (kind is >= OpKind.Immediate8 and <= OpKind.Immediate32to64 && kind != OpKind.Immediate8_2nd)
            {
                ulong mask = ulong.MaxValue >> (64 - Math.Max(1, (int)ours.OperandSize) * 8);
                mask = kind == OpKind.Immediate8 ? 0xff : kind == OpKind.Immediate16 ? 0xffff : mask;
                if ((theirs.GetImmediate(n) & mask) != (ours.Immediate & mask)
                    && ours.Source != Op.OneOperand && ours.Operation != Op.Int3)
                {
                    return $"immediate {ours.Immediate:x}, not {theirs.GetImmediate(n):x}";
                }
            }
        }
        return null;
    }

    private static int Number(Register register) => register == Register.None ? -1 : register.GetNumber();

    /// <summary>AH … BH have the numbers 4 to 7 in an encoding.</summary>
    private static int HighNumber(Register register) => register is >= Register.AH and <= Register.BH
        ? register - Register.AH + 4 : register.GetFullRegister().GetNumber();

    /// <summary>In 64-bit code only FS and GS make a difference; Iced reports the ignored prefixes too.</summary>
    private static SegmentName Override(SegmentName name, int bitness) =>
        bitness == 64 && name < SegmentName.Fs ? SegmentName.Ds : name;

    [TestCase("0FA2", 0x0fa2u, 2)]
    [TestCase("F4", 0xf4u, 1)]
    [TestCase("0F01D9", 0x0f01d9u, 3)]
    [TestCase("0F32", 0x0f32u, 2)]
    [TestCase("660FA2", 0x0fa2u, 3)]
    [TestCase("480F32", 0x0f32u, 3)]
    [TestCase("0F", 0x0fa2u, 0)]
    [TestCase("", 0xf4u, 0)]
    public void AKnownInstructionIsSkipped(string bytes, uint opcode, int length)
    {
        Assert.That(Decoder.LengthOf(Convert.FromHexString(bytes), opcode, CodeSize.Bits64), Is.EqualTo(length));
    }

    [Test]
    public void SixteenBytesAreTooMany()
    {
        byte[] bytes = [.. Enumerable.Repeat((byte)0x66, 14), 0x8b, 0x03];
        Assert.That(Decoder.Decode(bytes, CodeSize.Bits64, out _), Is.EqualTo(Decoding.Incomplete));
        Decoding decoding = Decoder.Decode(bytes[1..], CodeSize.Bits64, out Instruction instruction);
        Assert.That(decoding, Is.EqualTo(Decoding.Done));
        Assert.That(instruction.Length, Is.EqualTo(15));
    }
}

internal static class IcedExtensions
{
    public static IEnumerable<OpKind> OpKinds(this IcedInstruction instruction) =>
        Enumerable.Range(0, instruction.OpCount).Select(instruction.GetOpKind);

    public static IEnumerable<CpuidFeature> CpuidFeatures(this IcedInstruction instruction) =>
        instruction.Code.CpuidFeatures();
}
