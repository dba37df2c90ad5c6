// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>
/// State of the fake: flat memory from linear address <see cref="Base"/>, an MMIO window in it and ports that answer
/// UserSpace first and the logged answer when the instruction is run again.
/// </summary>
internal sealed class FakeState
{
    public const ulong Base = 0x10000;
    public const ulong MmioStart = 0xa0000, MmioEnd = 0xb0000;

    public GuestRegisters Registers;
    public int Cpl;
    public ulong Cr0 = 1, Cr4, Efer;
    public DescriptorTable Gdtr, Idtr;
    public readonly Segment[] Segments = new Segment[8];
    public readonly byte[] Memory = new byte[1 << 20];
    public ulong MemoryBase = Base;
    public byte[] Port = new byte[4096];
    /// <summary>What devices saw and gave, in words such as "w a0000 4 12345678".</summary>
    public readonly List<string> Trace = [];
    /// <summary>MMIO and port accesses that user space has served since the last retirement.</summary>
    public readonly List<(string What, byte[] Data)> Log = [];
    public int Replay;
    public int Retired;
    /// <summary>Pages that fault, by linear page number; true: only writes.</summary>
    public readonly Dictionary<ulong, bool> Faulting = [];
    public Func<ulong, int, byte[]> MmioRead = (address, size) =>
        [.. Enumerable.Range(0, size).Select(n => (byte)(address + (ulong)n))];
    public Func<ushort, int, byte[]> PortIn = (port, size) =>
        [.. Enumerable.Range(0, size).Select(n => (byte)(port + n))];
    public bool LoseRace;
    public bool Yield;
    public readonly ulong[] Control = new ulong[16];
    public readonly ulong[] Debug = new ulong[8];
    public uint Fpu = 0xaaaa5555;
    public readonly ulong[] Vectors = new ulong[16 * 2];
    public FetchedInstruction Fetched;

    public FakeState(CodeSize code, bool real = false) => Reset(code, real, 0);

    /// <summary>Everything but memory as after construction.</summary>
    public void Reset(CodeSize code, bool real, int cpl)
    {
        Log.Clear();
        Trace.Clear();
        (Replay, Retired, Cpl, Cr4, Registers) = (0, 0, cpl, 0, default);
        for (int n = 0; n < 6; n++)
        {
            bool cs = n == (int)SegmentName.Cs;
            Segments[n] = new Segment
            {
                Selector = (ushort)(real ? 0 : 8 + n * 8),
                Base = cs && code == CodeSize.Bits16 ? 0x20000u : 0,
                Limit = code == CodeSize.Bits16 ? 0xffffu : uint.MaxValue,
                Attributes = (ushort)(Segment.CodeOrData | Segment.PresentBit | (cs ? 0xb : 3)
                    | (code == CodeSize.Bits64 && cs ? Segment.LongBit : 0)
                    | (code == CodeSize.Bits32 || code == CodeSize.Bits64 && !cs ? Segment.BigBit : 0)),
            };
        }
        Efer = code == CodeSize.Bits64 ? 0x500u : 0;
        Cr0 = real ? 0x10u : 0x80000011u;
        Registers.Rflags = Rflags.Fixed;
    }

    public Span<byte> At(ulong linear, int length) => Memory.AsSpan((int)(linear - MemoryBase), length);

    public ref Segment this[SegmentName name] => ref Segments[(int)name];

    /// <summary>Places code at <paramref name="rip"/> (an offset in CS) and points RIP there.</summary>
    public FakeState Code(ulong rip, params byte[] code)
    {
        Registers.Rip = rip;
        code.CopyTo(At(rip + Segments[(int)SegmentName.Cs].Base, code.Length));
        return this;
    }

    public Emulation Run()
    {
        Replay = 0;
        Execution<FakeMachine> execution = new(new FakeMachine(this));
        execution.Run();
        return execution.Result;
    }

    /// <summary>Runs until user space is not needed any more.</summary>
    public Emulation RunServed()
    {
        Emulation result;
        do
        {
            result = Run();
        }
        while (result.Outcome == Access.UserSpace);
        return result;
    }
}

internal readonly struct FakeMachine(FakeState state) : IMachine
{
    public ref GuestRegisters Registers => ref state.Registers;
    public int Cpl { get => state.Cpl; set => state.Cpl = value; }
    public ulong Cr0 => state.Cr0;
    public ulong Cr4 => state.Cr4;
    public ulong Efer => state.Efer;
    public DescriptorTable Gdtr { get => state.Gdtr; set => state.Gdtr = value; }
    public DescriptorTable Idtr { get => state.Idtr; set => state.Idtr = value; }
    public Segment GetSegment(SegmentName name) => state.Segments[(int)name];
    public void SetSegment(SegmentName name, in Segment segment) => state.Segments[(int)name] = segment;
    public bool IsChecked(Gva address, int size, bool write) => false;

    public bool MustYield => state.Yield;
    public ref FetchedInstruction Fetched => ref state.Fetched;
    public bool Resumes => state.Log.Count != 0;
    public Span<byte> PortData => state.Port;

    public void Retire()
    {
        state.Retired++;
        state.Log.Clear();
        state.Replay = 0;
    }

    private Access Translate(ulong address, int length, bool write, ref Fault fault)
    {
        int pages = (int)(address & 4095) + length > 4096 ? 2 : 1;
        foreach (ulong page in Enumerable.Range(0, pages).Select(n => (address >> 12) + (ulong)n))
        {
            bool outside = page < state.MemoryBase >> 12
                || page >= state.MemoryBase + (ulong)state.Memory.Length >> 12;
            if (outside || state.Faulting.TryGetValue(page, out bool onlyWrites) && (write || !onlyWrites))
            {
                fault = new Fault
                {
                    Vector = Fault.PageFault,
                    ErrorCode = (write ? 2u : 0) | (state.Cpl == 3 ? 4u : 0),
                    Address = Math.Max(address, page << 12),
                };
                return Access.Fault;
            }
        }
        return Access.Done;
    }

    private static bool IsMmio(ulong address) => address is >= FakeState.MmioStart and < FakeState.MmioEnd;

    private Access Serve(string what, Func<byte[]> answer, out byte[] data)
    {
        if (state.Replay < state.Log.Count)
        {
            (string logged, data) = state.Log[state.Replay++];
            NUnit.Framework.Assert.That(what, NUnit.Framework.Is.EqualTo(logged), "replayed another access");
            return Access.Done;
        }
        state.Trace.Add(what);
        data = answer();
        state.Log.Add((what, data));
        return Access.UserSpace;
    }

    public Access Fetch(Gva address, scoped Span<byte> bytes, ref Fault fault)
    {
        NUnit.Framework.Assert.That(address.Offset + bytes.Length, NUnit.Framework.Is.LessThanOrEqualTo(4096));
        Access access = Translate(address.Value, bytes.Length, false, ref fault);
        if (access == Access.Done)
        {
            state.At(address.Value, bytes.Length).CopyTo(bytes);
        }
        return access;
    }

    public Access Read(Gva address, scoped Span<byte> data, Rights rights, ref Fault fault)
    {
        Access access = Translate(address.Value, data.Length, (rights & Rights.Write) != 0, ref fault);
        if (access != Access.Done)
        {
            return access;
        }
        if (!IsMmio(address.Value))
        {
            state.At(address.Value, data.Length).CopyTo(data);
            return Access.Done;
        }
        int length = data.Length;
        FakeState devices = state;
        access = Serve($"r {address.Value:x} {length}", () => devices.MmioRead(address.Value, length),
            out byte[] answer);
        answer.CopyTo(data);
        return access;
    }

    public Access Write(Gva address, scoped ReadOnlySpan<byte> data, Rights rights, ref Fault fault)
    {
        Access access = Translate(address.Value, data.Length, true, ref fault);
        if (access != Access.Done)
        {
            return access;
        }
        if (!IsMmio(address.Value))
        {
            data.CopyTo(state.At(address.Value, data.Length));
            return Access.Done;
        }
        byte[] bytes = data.ToArray();
        Array.Reverse(bytes);
        string value = Convert.ToHexStringLower(bytes);
        return Serve($"w {address.Value:x} {data.Length} {value}", () => [], out _);
    }

    public Access Probe(Gva address, int length, Rights rights, out bool memory, ref Fault fault)
    {
        memory = !IsMmio(address.Value);
        return Translate(address.Value, length, (rights & Rights.Write) != 0, ref fault);
    }

    public Access CompareExchange(Gva address, scoped ReadOnlySpan<byte> expected,
        scoped ReadOnlySpan<byte> replacement, out bool exchanged, ref Fault fault)
    {
        exchanged = true;
        Access access = Translate(address.Value, expected.Length, true, ref fault);
        if (access != Access.Done)
        {
            return access;
        }
        if (IsMmio(address.Value))
        {
            return Write(address, replacement, Rights.None, ref fault);
        }
        Span<byte> memory = state.At(address.Value, expected.Length);
        exchanged = !state.LoseRace && memory.SequenceEqual(expected);
        if (exchanged)
        {
            replacement.CopyTo(memory);
        }
        return Access.Done;
    }

    public Access Port(bool write, ushort port, int size, int count)
    {
        if (write)
        {
            string data = Convert.ToHexStringLower(state.Port.AsSpan(0, size * count));
            return Serve($"out {port:x} {size} {count} {data}", () => [], out _);
        }
        FakeState devices = state;
        Access access = Serve($"in {port:x} {size} {count}",
            () => [.. Enumerable.Range(0, count).SelectMany(_ => devices.PortIn(port, size))], out byte[] answer);
        if (access == Access.Done)
        {
            answer.CopyTo(state.Port, 0);
        }
        return access;
    }

    public uint FpuWords(bool initialize) => state.Fpu = initialize ? 0x37f : state.Fpu;

    public Span<ulong> Vector(int register) => state.Vectors.AsSpan(register * 2, 2);

    public ulong ReadControl(int index) => index == 0 ? state.Cr0 : state.Control[index];

    public bool TryWriteControl(int index, ulong value)
    {
        if (index == 0)
        {
            state.Cr0 = value;
        }
        state.Control[index] = value;
        return true;
    }

    public DebugAccess TryReadDebug(int index, out ulong value)
    {
        value = state.Debug[index];
        return DebugAccess.Done;
    }

    public DebugAccess TryWriteDebug(int index, ulong value)
    {
        state.Debug[index] = value;
        return DebugAccess.Done;
    }

    public bool TryReadMsr(uint index, out ulong value)
    {
        value = 0x1122334455667788;
        return true;
    }

    public bool TryWriteMsr(uint index, ulong value)
    {
        state.Trace.Add($"wrmsr {index:x} {value:x}");
        return true;
    }

    public bool Hypercall()
    {
        state.Trace.Add("hypercall");
        return true;
    }

    public void Cpuid()
    {
        ref GuestRegisters registers = ref Registers;
        registers[Gpr.Rax] = (uint)registers[Gpr.Rax] + 1;
        registers[Gpr.Rbx] = 2;
        registers[Gpr.Rcx] = (uint)registers[Gpr.Rcx] + 3;
        registers[Gpr.Rdx] = 4;
    }

    public ulong Tsc => 0x123456789a;

    public void InvalidatePage(Gva address) => state.Trace.Add($"invlpg {address.Value:x}");
}
