// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>
/// A machine in protected or long mode with descriptor tables: a GDT of flat segments for all four levels, an IDT, and
/// TSSs whose inner stacks lie apart.
/// </summary>
internal sealed class ProtectedMachine
{
    public const ulong Gdt = 0x50000, Idt = 0x51000, Tss = 0x52000, OtherTss = 0x53000, CodeAt = 0x20000,
        StackTop = 0x60000, InnerTop = 0x70000, Target = 0x21000;
    /// <summary>Of level 0; those of level n are 16n further, with RPL n.</summary>
    private const ushort Code0 = 0x08, Data0 = 0x10;
    /// <summary>Entries for a test's own descriptors, each of 16 bytes.</summary>
    public const ushort Free = 0x60, Free2 = 0x70, TssSelector = 0x80, OtherTssSelector = 0x90;

    public FakeState State { get; }
    private readonly CodeSize _size;

    public ProtectedMachine(CodeSize size, int cpl = 0)
    {
        _size = size;
        State = new FakeState(size) { Cpl = cpl, MemoryBase = 0 };
        State.Gdtr = new DescriptorTable { Base = Gdt, Limit = 0x9f };
        State.Idtr = new DescriptorTable { Base = Idt, Limit = 0x7ff };
        for (int level = 0; level < 4; level++)
        {
            Put(Gdt + Code0 + 16u * (ulong)level, Entry(0x1b, level, code: true));
            Put(Gdt + Data0 + 16u * (ulong)level, Entry(0x13, level));
        }
        bool wide = size != CodeSize.Bits16;
        State[SegmentName.Tr] = new Segment
        {
            Selector = TssSelector, Base = Tss, Limit = 0x67, Attributes = (ushort)(0x83 | (wide ? 8 : 0)),
        };
        Put(Gdt + TssSelector, System(wide ? 11 : 3, 0, Tss, 0x67));
        Put(Gdt + OtherTssSelector, System(wide ? 9 : 1, 0, OtherTss, 0x67));
        for (uint level = 0; level < 3; level++)
        {
            ulong top = InnerTop + 0x1000 * level;
            if (wide)
                Put(Tss + 4 + 8 * level, top | (ulong)DataOf((int)level) << 32);
            else
                Put(Tss + 2 + 4 * level, (uint)(ushort)top | (uint)DataOf((int)level) << 16, 4);
        }
        Enter(cpl);
    }

    public static ushort CodeOf(int level) => (ushort)(Code0 + 16 * level | level);
    public static ushort DataOf(int level) => (ushort)(Data0 + 16 * level | level);

    /// <summary>As if code of this level had always run.</summary>
    public void Enter(int cpl)
    {
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
        {
            bool code = name == SegmentName.Cs;
            State[name] = new Segment
            {
                Selector = code ? CodeOf(cpl) : DataOf(cpl), Limit = uint.MaxValue,
                Attributes = (ushort)(Entry(code ? 0x1b : 0x13, cpl, code) >> 40 & 0xff | Flags(code)),
            };
        }
        State.Cpl = cpl;
        State.Registers.Rip = CodeAt;
        State.Registers[Gpr.Rsp] = StackTop;
        State.Registers.Rflags = Rflags.Fixed;
    }

    private ulong Flags(bool code) => code && _size == CodeSize.Bits64 ? 0xa00u
        : _size == CodeSize.Bits16 ? 0x800u : 0xc00;

    /// <summary>A flat descriptor; <paramref name="type"/> with S as bit 4.</summary>
    public ulong Entry(int type, int dpl, bool code = false, bool present = true) =>
        0x000f00000000ffff | Flags(code) << 44 | (ulong)type << 40 | (ulong)dpl << 45 | (present ? 1ul << 47 : 0);

    public static ulong System(int type, int dpl, ulong address, uint limit, bool present = true) =>
        limit | (address & 0xffffff) << 16 | (ulong)type << 40 | (ulong)dpl << 45 | (present ? 1ul << 47 : 0)
        | (address >> 24 & 0xff) << 56;

    public static ulong Gate(int type, int dpl, ushort selector, ulong offset, bool present = true) =>
        (offset & 0xffff) | (ulong)selector << 16 | (ulong)type << 40 | (ulong)dpl << 45
        | (present ? 1ul << 47 : 0) | (offset >> 16 & 0xffff) << 48;

    public void Put(ulong address, ulong value, int size = 8) =>
        BitConverter.GetBytes(value).AsSpan(0, size).CopyTo(State.At(address, size));

    public ulong Get(ulong address, int size)
    {
        Span<byte> bytes = stackalloc byte[8];
        State.At(address, size).CopyTo(bytes);
        return BinaryPrimitives.ReadUInt64LittleEndian(bytes);
    }

    public void PutIdt(int vector, ulong gate) => Put(Idt + (ulong)vector * 8, gate);

    /// <summary>What was pushed last, first.</summary>
    public ulong[] Stack(int count, int size) => [.. Enumerable.Range(0, count)
        .Select(n => Get(State.Registers[Gpr.Rsp] + (ulong)(n * size), size))];

    public Emulation Run(params byte[] code)
    {
        State.Code(State.Registers.Rip, code);
        return State.Run();
    }

    public Emulation Deliver(in Fault raised, bool software = false)
    {
        Execution<FakeMachine> execution = new(new FakeMachine(State));
        execution.Deliver(in raised, software);
        return execution.Result;
    }

    /// <summary>CS, SS, CPL, RIP, RSP and the flags, to be compared.</summary>
    public (ushort, ushort, int, ulong, ulong, ulong) Place => (State[SegmentName.Cs].Selector,
        State[SegmentName.Ss].Selector, State.Cpl, State.Registers.Rip, State.Registers[Gpr.Rsp],
        State.Registers.Rflags);

    public static void Faulted(in Emulation result, int vector, uint error, string what = "")
    {
        Assert.That(result.Outcome, Is.EqualTo(Access.Fault), what);
        Assert.That(((int)result.Fault.Vector, result.Fault.ErrorCode), Is.EqualTo((vector, error)), what);
    }
}
