// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>Each instruction with a memory operand runs twice: on RAM, where the CPU executes it, and on MMIO, where
/// the hypervisor interprets it. Registers, flags, memory and exceptions have to be the same.</summary>
static class DifferentialTests
{
    /// <summary>Where the operand lies in its 64-byte window.</summary>
    const int Window = 64, Operand = 32;

    const ulong StatusFlags = 0x8D5;

    /// <summary>Instructions of the base set that a hypervisor may report instead of interpreting.</summary>
    static readonly Mnemonic[] MayBeReported =
    [
        Mnemonic.Popcnt, Mnemonic.Lzcnt, Mnemonic.Tzcnt, Mnemonic.Crc32, Mnemonic.Adcx, Mnemonic.Adox, Mnemonic.Movnti,
    ];

    /// <summary>Those whose effect is not the same on both kinds of memory, or that end the guest.</summary>
    static readonly Mnemonic[] NotComparable =
    [
        Mnemonic.Sgdt, Mnemonic.Sidt, Mnemonic.Lgdt, Mnemonic.Lidt, Mnemonic.Lmsw, Mnemonic.Ltr, Mnemonic.Lldt,
            Mnemonic.Invlpg,
        Mnemonic.Fxsave, Mnemonic.Fxrstor, Mnemonic.Fxsave64, Mnemonic.Fxrstor64, Mnemonic.Lds, Mnemonic.Les,
            Mnemonic.Lss,
        Mnemonic.Lfs, Mnemonic.Lgs, Mnemonic.Lea, Mnemonic.Smsw, Mnemonic.Sldt, Mnemonic.Str, Mnemonic.Verr,
            Mnemonic.Verw,
        Mnemonic.Bound, Mnemonic.Lar, Mnemonic.Lsl, Mnemonic.Arpl, Mnemonic.Reservednop, Mnemonic.Nop,
    ];

    static readonly (string Name, byte[] Prefix)[] LongPrefixes =
        [("plain", []), ("operand16", [0x66]), ("rexw", [0x48]), ("rex", [0x45]), ("lock", [0xF0]),
            ("lock_rexw", [0xF0, 0x48])];

    static readonly (string Name, byte[] Prefix)[] LegacyPrefixes =
        [("plain", []), ("other_size", [0x66]), ("lock", [0xF0])];

    public static IEnumerable<TestCase> All =>
    [
        .. LongPrefixes.Select(set => new TestCase($"differential/long_{set.Name}", () =>
            Compare(GuestMode.Long, set.Prefix))),
        .. new[] { GuestMode.Real, GuestMode.Protected }.SelectMany(mode => LegacyPrefixes.Select(set =>
            new TestCase($"differential/{mode.Label()}_{set.Name}", () => Compare(mode, set.Prefix)))),
    ];

    /// <summary>Every opcode of the three maps in question, with each value of ModRM's middle field.</summary>
    static IEnumerable<byte[]> Candidates(byte[] prefix, int bits)
    {
        byte[][] maps = [[], [0x0F], [0x0F, 0x38]];
        byte modrm = (byte)(bits == 16 ? 0x47 : 0x46); // [bx + disp8] or [rsi + disp8]
        foreach (byte[] map in maps)
        {
            for (int opcode = 0; opcode < 256; opcode++)
            {
                for (int field = 0; field < 8; field++)
                {
                    // With REX.B the base is r14, which holds the same.
                    yield return [.. prefix, .. map, (byte)opcode, (byte)(modrm | field << 3), Operand, 0x03, 0x85,
                        0x12, 0x21];
                }
            }
        }
    }

    static bool IsCandidate(in Instruction instruction, ReadOnlySpan<byte> bytes)
    {
        if (instruction.IsInvalid || instruction.FlowControl != FlowControl.Next || instruction.IsStringInstruction)
            return false;
        if (instruction.Encoding != EncodingKind.Legacy || instruction.IsPrivileged
            || NotComparable.Contains(instruction.Mnemonic))
            return false;
        // QEMU's emulated CPU takes the operand-size prefix wrongly here, and stock KVM does not know the form.
        if (instruction.Mnemonic == Mnemonic.Movbe && bytes[0] == 0x66 | instruction.MemorySize == MemorySize.UInt16)
            return false;
        bool memory = false;
        for (int i = 0; i < instruction.OpCount; i++)
        {
            memory |= instruction.GetOpKind(i) == OpKind.Memory;
            if (instruction.GetOpKind(i) != OpKind.Register)
                continue;
            Register register = instruction.GetOpRegister(i);
            // The base differs between the two runs, and a bit index has to stay small.
            if (!register.IsGPR() || register.GetFullRegister() is Register.RSI or Register.R14
                || register.GetFullRegister() is Register.RSP or Register.RBX && IsBitTest(instruction.Mnemonic))
                return false;
        }
        // Only the base instruction set: no vector, x87 or MMX operand hides in the memory forms either.
        return memory && instruction.MemoryBase is Register.RSI or Register.R14 or Register.ESI or Register.BX
            && instruction.MemoryDisplacement64 == Operand
            && instruction.MemorySize is >= MemorySize.UInt8 and <= MemorySize.UInt64
                or MemorySize.Int8 or MemorySize.Int16 or MemorySize.Int32 or MemorySize.Int64
            && !instruction.CpuidFeatures.Any(feature =>
                feature is CpuidFeature.FPU or CpuidFeature.MMX or CpuidFeature.SSE or CpuidFeature.SSE2
                or CpuidFeature.SSE3 or CpuidFeature.SSSE3 or CpuidFeature.SSE4_1);
    }

    static void Compare(GuestMode mode, byte[] prefix)
    {
        using var guest = new Guest(mode, [0xF4]);
        KvmSregs sregs = guest.Vcpu.Sregs;
        Random random = TestEnvironment.FixedRandom;
        var wrong = new List<string>();
        var reported = new HashSet<Mnemonic>();
        int compared = 0;
        foreach (byte[] bytes in Candidates(prefix, mode.CodeBits()))
        {
            var decoder = Decoder.Create(mode.CodeBits(), new ByteArrayCodeReader(bytes));
            Instruction instruction = decoder.Decode();
            if (!IsCandidate(instruction, bytes))
                continue;
            KvmRegs regs = RandomRegs(random, instruction);
            byte[] memory = new byte[Window];
            random.NextBytes(memory);
            Result onRam = Execute(guest, sregs, regs, bytes.AsSpan(0, instruction.Length), memory, GuestLayout.Data);
            if (onRam.Exit != KvmExit.Hlt)
                throw new TestFailure($"{instruction}: on RAM it ended with {onRam.Exit}");
            Result onMmio = Execute(guest, sregs, regs, bytes.AsSpan(0, instruction.Length), memory, GuestLayout.Mmio);
            compared++;
            if (onMmio.Exit == KvmExit.InternalError)
                reported.Add(instruction.Mnemonic);
            else if (Differences(instruction, onRam, onMmio) is { Length: > 0 } differences)
                wrong.Add($"{instruction} ({Convert.ToHexString(bytes.AsSpan(0, instruction.Length))}): {differences}");
        }
        Check.That(compared > 0, "no instruction was compared");
        string unexpected = string.Join(' ', reported.Except(MayBeReported));
        Check.Equal("", unexpected, "instructions that have to be interpreted, but were reported");
        if (wrong.Count > 0)
            throw new TestFailure($"{wrong.Count} of {compared} differ: {string.Join("; ", wrong.Take(4))}");
    }

    static bool IsBitTest(Mnemonic mnemonic) => mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc;

    static KvmRegs RandomRegs(Random random, in Instruction instruction)
    {
        KvmRegs regs = default;
        foreach (ref ulong register in MemoryMarshal.Cast<KvmRegs, ulong>(new Span<KvmRegs>(ref regs)))
            register = (ulong)random.NextInt64() ^ ((ulong)random.NextInt64() << 1);
        if (IsBitTest(instruction.Mnemonic))
        {
            // A bit index in a register reaches beyond the operand: keep it inside of the window.
            foreach (ref ulong register in MemoryMarshal.Cast<KvmRegs, ulong>(new Span<KvmRegs>(ref regs)))
                register &= 0x3F;
        }
        // A shift by more than the operand's width is undefined.
        if (instruction.Mnemonic is Mnemonic.Shld or Mnemonic.Shrd)
            regs.Rcx &= 0xF;
        if (instruction.Mnemonic is Mnemonic.Cmpxchg or Mnemonic.Cmpxchg8b && random.Next(2) == 0)
            regs.Rax = regs.Rdx = 0;
        regs.Rsp = GuestLayout.StackTop - 0x100;
        regs.Rip = GuestLayout.Code;
        regs.Rflags = 2 | ((ulong)random.Next() & StatusFlags);
        return regs;
    }

    readonly record struct Result(KvmExit Exit, KvmRegs Regs, byte[] Memory, byte[] Stack);

    static Result Execute(Guest guest, KvmSregs sregs, KvmRegs regs, ReadOnlySpan<byte> code, byte[] initial,
        ulong place)
    {
        byte[] memory = [.. initial];
        guest.Memory.Write(GuestLayout.Code, code);
        guest.Memory.Write<byte>(GuestLayout.Code + (ulong)code.Length, 0xF4);
        guest.Memory.Slice(GuestLayout.StackTop - 0x180, 0x100).Fill(0x5A);
        if (guest.Mode == GuestMode.Long)
            regs.Rsi = regs.R14 = place;
        else
        {
            sregs.Ds.Base = place;
            guest.Vcpu.Sregs = sregs;
            regs.Rsi = regs.Rbx = 0;
        }
        guest.Vcpu.Regs = regs;
        if (place == GuestLayout.Data)
            guest.Memory.Write(place, memory);
        KvmExit exit = Serve(guest, place, memory);
        if (place == GuestLayout.Data)
            guest.Memory.Slice(place, Window).CopyTo(memory);
        KvmRegs after = guest.Vcpu.Regs;
        if (guest.Mode == GuestMode.Long)
        {
            // The registers that named the place hold different places, unless the instruction changed them.
            if (after.Rsi == place)
                after.Rsi = 0;
            if (after.R14 == place)
                after.R14 = 0;
        }
        return new(exit, after, memory, guest.Memory.Slice(GuestLayout.StackTop - 0x180, 0x100).ToArray());
    }

    /// <summary>Runs to the end and plays the device: memory of <see cref="Window"/> bytes.</summary>
    static KvmExit Serve(Guest guest, ulong place, byte[] memory)
    {
        for (int accesses = 0; accesses < 20; accesses++)
        {
            KvmExit exit = guest.Vcpu.RunOnce();
            if (exit != KvmExit.Mmio)
                return exit;
            ref KvmRunMmio mmio = ref guest.Run.Mmio;
            int at = (int)(mmio.PhysAddr - place), length = (int)mmio.Len;
            Check.That(at >= 0 && at + length <= Window,
                $"access of {length} bytes at offset {at} of the operand's window");
            if (mmio.IsWrite != 0)
                ((ReadOnlySpan<byte>)mmio.Data)[..length].CopyTo(memory.AsSpan(at));
            else
                memory.AsSpan(at, length).CopyTo(mmio.Data);
        }
        throw new TestFailure("more than twenty MMIO accesses for one instruction");
    }

    static string Differences(in Instruction instruction, Result ram, Result mmio)
    {
        var found = new List<string>();
        ulong undefined = FlagBits(instruction.RflagsUndefined);
        KvmRegs left = ram.Regs, right = mmio.Regs;
        if (((left.Rflags ^ right.Rflags) & ~undefined & (StatusFlags | 0x600)) != 0)
            found.Add($"flags {left.Rflags:x} and {right.Rflags:x}");
        left.Rflags = right.Rflags = 0;
        ReadOnlySpan<ulong> leftWords = MemoryMarshal.Cast<KvmRegs, ulong>(new ReadOnlySpan<KvmRegs>(in left));
        ReadOnlySpan<ulong> rightWords = MemoryMarshal.Cast<KvmRegs, ulong>(new ReadOnlySpan<KvmRegs>(in right));
        for (int i = 0; i < leftWords.Length; i++)
        {
            if (leftWords[i] != rightWords[i])
                found.Add($"register {i} {leftWords[i]:x} and {rightWords[i]:x}");
        }
        if (!ram.Memory.AsSpan().SequenceEqual(mmio.Memory))
            found.Add($"memory {Around(ram.Memory)} and {Around(mmio.Memory)}");
        if (!MaskFlags(ram.Stack).SequenceEqual(MaskFlags(mmio.Stack)))
            found.Add("stack");
        if (ram.Exit != mmio.Exit)
            found.Add($"exit {mmio.Exit}");
        return string.Join(", ", found);

        static string Around(byte[] memory) => Convert.ToHexString(memory.AsSpan(Operand - 8, 24));

        // An exception's frame holds flags that may be undefined.
        Span<byte> MaskFlags(byte[] stack) => undefined == 0 ? stack : Span<byte>.Empty;
    }

    static ulong FlagBits(RflagsBits bits)
    {
        ulong result = 0;
        foreach ((RflagsBits bit, ulong value) in new[]
            {
                (RflagsBits.OF, 0x800ul), (RflagsBits.SF, 0x80ul), (RflagsBits.ZF, 0x40ul), (RflagsBits.AF, 0x10ul),
                (RflagsBits.CF, 1ul), (RflagsBits.PF, 4ul),
            })
        {
            if ((bits & bit) != 0)
                result |= value;
        }
        return result;
    }
}
