// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>
/// Instructions that the native comparison cannot run: branches, 16- and 32-bit code, ports, system instructions. A
/// row: bits, code, state before, state after. States are words name=hex; mN.S is memory of S bytes at N; what is not
/// named keeps its value; rip is relative to the code's start and by default behind the instruction.
/// </summary>
public class ExecutionTests
{
    private const ulong Start = 0x20000;

    // Branches, 64-bit.
    [TestCase(64, "EB10", "", "rip=12")]
    [TestCase(64, "EBFE", "", "rip=0")]
    [TestCase(64, "E900010000", "", "rip=105")]
    [TestCase(64, "7410", "flags=42", "rip=12")]
    [TestCase(64, "7410", "flags=2", "")]
    [TestCase(64, "0F8500010000", "flags=2", "rip=106")]
    [TestCase(64, "7C10", "flags=82", "rip=12")]
    [TestCase(64, "7C10", "flags=882", "")]
    [TestCase(64, "E8FB000000", "rsp=40008", "rip=100 rsp=40000 m40000.8=20005")]
    [TestCase(64, "FFE0", "rax=20100", "rip=100")]
    [TestCase(64, "FFD0", "rax=20100 rsp=40008", "rip=100 rsp=40000 m40000.8=20002")]
    [TestCase(64, "FF23", "rbx=40000 m40000.8=20100", "rip=100")]
    [TestCase(64, "FF542408", "rsp=40008 m40010.8=20100", "rip=100 rsp=40000 m40000.8=20004")]
    [TestCase(64, "C3", "rsp=40000 m40000.8=20100", "rip=100 rsp=40008")]
    [TestCase(64, "C21000", "rsp=40000 m40000.8=20100", "rip=100 rsp=40018")]
    [TestCase(64, "E2FE", "rcx=2", "rip=0 rcx=1")]
    [TestCase(64, "E2FE", "rcx=1", "rcx=0")]
    [TestCase(64, "67E2FD", "rcx=100000001", "rcx=0")]
    [TestCase(64, "E1FE", "rcx=2 flags=42", "rip=0 rcx=1")]
    [TestCase(64, "E1FE", "rcx=2 flags=2", "rcx=1")]
    [TestCase(64, "E0FE", "rcx=2 flags=2", "rip=0 rcx=1")]
    [TestCase(64, "E310", "rcx=0", "rip=12")]
    [TestCase(64, "E310", "rcx=100000000", "")]
    [TestCase(64, "67E310", "rcx=100000000", "rip=13")]
    // RIP-relative operands and 32-bit addresses.
    [TestCase(64, "8B05F0000000", "m200f6.4=12345678", "rax=12345678")]
    [TestCase(64, "678B03", "rbx=ffffffff00040000 m40000.4=11", "rax=11")]
    [TestCase(64, "65488B042510000000", "gs=40000 m40010.8=77", "rax=77")]
    // 16-bit code.
    [TestCase(16, "B83412", "rax=ffffffff", "rax=ffff1234")]
    [TestCase(16, "66B878563412", "rax=ffffffffffffffff", "rax=12345678")]
    [TestCase(16, "8B4602", "rbp=1000 ss=30000 m31002.2=abcd", "rax=abcd")]
    [TestCase(16, "8B4702", "rbx=1000 ds=30000 m31002.2=abcd", "rax=abcd")]
    [TestCase(16, "8B3E3412", "ds=30000 m31234.2=abcd", "rdi=abcd")]
    [TestCase(16, "67668B1C8E", "rsi=1000 rcx=4 ds=30000 m31010.4=12345678", "rbx=12345678")]
    [TestCase(16, "50", "rax=abcd rsp=0 ss=30000", "rsp=fffe m3fffe.2=abcd")]
    [TestCase(16, "58", "rsp=fffe ss=30000 m3fffe.2=abcd", "rax=abcd rsp=0")]
    [TestCase(16, "60", "rax=1 rcx=2 rdx=3 rbx=4 rsp=100 rbp=6 rsi=7 rdi=8 ss=30000",
        "rsp=f0 m300fe.2=1 m300fc.2=2 m300fa.2=3 m300f8.2=4 m300f6.2=100 m300f4.2=6 m300f2.2=7 m300f0.2=8")]
    [TestCase(16, "61",
        "rsp=f0 ss=30000 m300fe.2=1 m300fc.2=2 m300fa.2=3 m300f8.2=4 m300f6.2=9999 m300f4.2=6 m300f2.2=7 m300f0.2=8",
        "rax=1 rcx=2 rdx=3 rbx=4 rbp=6 rsi=7 rdi=8 rsp=100")]
    [TestCase(16, "E8FD0F", "rsp=100 ss=30000", "rip=1000 rsp=fe m300fe.2=3")]
    [TestCase(16, "C3", "rsp=fe ss=30000 m300fe.2=1000", "rip=1000 rsp=100")]
    [TestCase(16, "EBFD", "", "rip=ffff")]
    [TestCase(16, "C8040001", "rbp=aaaa rsp=100 ss=30000", "rbp=fe rsp=f8 m300fe.2=aaaa m300fc.2=fe")]
    [TestCase(16, "C9", "rbp=fe rsp=10 ss=30000 m300fe.2=aaaa", "rbp=aaaa rsp=100")]
    [TestCase(16, "9C", "flags=246 rsp=100 ss=30000", "rsp=fe m300fe.2=246")]
    [TestCase(16, "9D", "rsp=fe ss=30000 m300fe.2=ed7", "rsp=100 flags=ed7")]
    [TestCase(16, "A03412", "ds=30000 m31234.1=ab", "rax=ab")]
    [TestCase(16, "A33412", "ds=30000 rax=abcd", "m31234.2=abcd")]
    [TestCase(16, "D7", "rbx=fff0 rax=20 ds=30000 m30010.1=7", "rax=7")]
    [TestCase(16, "F3A4", "rcx=3 rsi=fffe rdi=10 ds=30000 es=40000 m3fffe.2=2211 m30000.1=33",
        "rcx=0 rsi=1 rdi=13 m40010.2=2211 m40012.1=33")]
    [TestCase(16, "66AB", "rax=12345678 rdi=10 es=40000", "rdi=14 m40010.4=12345678")]
    [TestCase(16, "F2AE", "rcx=10 rax=42 rdi=0 es=40000 m40000.4=42410000", "rcx=c rdi=4 flags=46")]
    [TestCase(16, "0F01E0", "", "rax=10")]
    [TestCase(16, "0F01F0", "rax=2", "cr0=12")]
    // 32-bit code.
    [TestCase(32, "40", "rax=ffffffff", "rax=0 flags=56")]
    [TestCase(32, "4F", "rdi=1", "rdi=0 flags=46")]
    [TestCase(32, "60", "rax=1 rcx=2 rdx=3 rbx=4 rsp=40100 rbp=6 rsi=7 rdi=8",
        "rsp=400e0 m400fc.4=1 m400f8.4=2 m400f4.4=3 m400f0.4=4 m400ec.4=40100 m400e8.4=6 m400e4.4=7 m400e0.4=8")]
    [TestCase(32, "8F0424", "rsp=40000 m40000.4=77", "rsp=40004 m40004.4=77")]
    [TestCase(32, "8F442404", "rsp=40000 m40000.4=77", "rsp=40004 m40008.4=77")]
    [TestCase(32, "5C", "rsp=40000 m40000.4=77", "rsp=77")]
    [TestCase(32, "54", "rsp=40004", "rsp=40000 m40000.4=40004")]
    [TestCase(32, "6AFF", "rsp=40004", "rsp=40000 m40000.4=ffffffff")]
    [TestCase(32, "6668FFFF", "rsp=40004", "rsp=40002 m40002.2=ffff")]
    [TestCase(32, "A100000400", "m40000.4=12345678", "rax=12345678")]
    [TestCase(32, "8CD8", "rax=ffffffff", "rax=20")]
    [TestCase(32, "8C1B", "rbx=40000 m40000.4=ffffffff", "m40000.4=ffff0020")]
    [TestCase(32, "1E", "rsp=40004", "rsp=40000 m40000.4=20")]
    [TestCase(32, "0FC70B", "rbx=40000 rcx=4 rax=1 rdx=2 m40000.8=200000001", "m40000.8=400040000 flags=42")]
    [TestCase(32, "0FC70B", "rbx=40000 rcx=4 rax=1 rdx=3 m40000.8=200000001", "rax=1 rdx=2 flags=2")]
    // Ports.
    [TestCase(64, "E460", "rax=ffffffffffffffff", "rax=ffffffffffffff60")]
    [TestCase(64, "66ED", "rdx=70", "rax=7170")]
    [TestCase(64, "ED", "rdx=70 rax=ffffffffffffffff", "rax=73727170")]
    [TestCase(64, "48ED", "rdx=70 rax=ffffffffffffffff", "rax=73727170")]
    // System.
    [TestCase(64, "0F0103", "rbx=40000 gdtr=123456789a", "m40000.2=7f m40002.8=123456789a")]
    [TestCase(64, "0F010B", "rbx=40000 idtr=123456789a", "m40000.2=7f m40002.8=123456789a")]
    [TestCase(64, "0F0113", "rbx=40000 m40000.2=7f m40002.8=123456789a", "gdtr=123456789a")]
    [TestCase(32, "660F0113", "rbx=40000 m40000.2=7f m40002.4=ff123456", "gdtr=123456")]
    [TestCase(32, "0F011B", "rbx=40000 m40000.2=7f m40002.4=ff123456", "idtr=ff123456")]
    [TestCase(64, "0F20C0", "", "rax=80000011")]
    [TestCase(64, "0F22C3", "rbx=80000013", "cr0=80000013")]
    [TestCase(64, "440F22C3", "rbx=7", "cr8=7")]
    [TestCase(64, "0F22DB", "rbx=12345", "cr3=12345")]
    [TestCase(64, "0F23FB", "rbx=455", "dr7=455")]
    [TestCase(64, "0F21F8", "dr7=455", "rax=455")]
    [TestCase(64, "0F06", "cr0=8000001b", "cr0=80000013")]
    [TestCase(64, "0F32", "rax=ffffffffffffffff", "rax=55667788 rdx=11223344")]
    [TestCase(64, "0F31", "", "rax=3456789a rdx=12")]
    [TestCase(64, "0FA2", "rax=ffffffff00000007 rcx=1", "rax=8 rbx=2 rcx=4 rdx=4")]
    [TestCase(64, "FA", "flags=202", "flags=2")]
    [TestCase(64, "0F01E0", "rax=ffffffffffffffff", "rax=80000011")]
    [TestCase(64, "0F01F0", "rax=0 cr0=8000001f", "cr0=80000011")]
    [TestCase(64, "0F09", "", "")]
    [TestCase(64, "F4", "", "")]
    [TestCase(64, "F3900F", "", "rip=2")]
    public void DoesWhatTheManualSays(int bits, string code, string before, string after)
    {
        var size = (CodeSize)(bits / 8);
        bool real = bits == 16;
        FakeState state = new(size, real);
        state.Registers.Rflags = Rflags.Fixed;
        state.Gdtr.Limit = state.Idtr.Limit = 0x7f;
        ulong origin = real ? 0 : Start;
        byte[] bytes = Convert.FromHexString(code);
        state.Code(origin, bytes);
        Dictionary<string, ulong> expected = [];
        foreach ((string name, ulong value) in Words(before))
        {
            Named(state, name, value);
        }
        for (Gpr r = Gpr.Rax; r <= Gpr.R15; r++)
        {
            expected[r.ToString().ToLowerInvariant()] = state.Registers[r];
        }
        expected["rip"] = (ulong)bytes.Length;
        expected["cr0"] = state.Cr0;
        expected["flags"] = state.Registers.Rflags;
        foreach ((string name, ulong value) in Words(after))
        {
            expected[name] = value;
        }
        // Arithmetic flags count where a row names them.
        bool flags = after.Contains("flags=") || !before.Contains("flags=");
        Emulation result = state.RunServed();
        Assert.That(result.Outcome, Is.EqualTo(Access.Done));
        Assert.That(result.Halted, Is.EqualTo(code == "F4"));
        foreach ((string name, ulong value) in expected)
        {
            ulong actual = name == "rip" ? state.Registers.Rip - origin : Named(state, name);
            if (name != "flags" || flags && after.Contains("flags="))
            {
                Assert.That(actual.ToString("x"), Is.EqualTo(value.ToString("x")), name);
            }
        }
    }

    private static IEnumerable<(string Name, ulong Value)> Words(string text) =>
        text.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(word => word.Split('='))
            .Select(parts => (parts[0], ulong.Parse(parts[1], NumberStyles.HexNumber)));

    /// <summary>Gets, or first sets, what a word names.</summary>
    private static ulong Named(FakeState state, string name, ulong? value = null)
    {
        if (name[0] == 'm')
        {
            string[] parts = name[1..].Split('.');
            Span<byte> memory = state.At(ulong.Parse(parts[0], NumberStyles.HexNumber), int.Parse(parts[1]));
            byte[] whole = BitConverter.GetBytes(value ?? 0);
            if (value != null)
            {
                whole.AsSpan(0, memory.Length).CopyTo(memory);
            }
            memory.CopyTo(whole);
            return BitConverter.ToUInt64(whole);
        }
        if (Enum.TryParse(name, true, out SegmentName segment) && segment <= SegmentName.Tr)
        {
            return Put(ref state[segment].Base, value);
        }
        int number = char.IsDigit(name[^1]) ? name[^1] - '0' : 0;
        switch (name)
        {
            case "flags":
                return Put(ref state.Registers.Rflags, value);
            case "gdtr":
                return Put(ref state.Gdtr.Base, value);
            case "idtr":
                return Put(ref state.Idtr.Base, value);
            case "cr0":
                return Put(ref state.Cr0, value);
            case ['c', 'r', _]:
                return Put(ref state.Control[number], value);
            case ['d', 'r', _]:
                return Put(ref state.Debug[number], value);
            default:
                return Put(ref state.Registers[Enum.Parse<Gpr>(name, true)], value);
        }
    }

    private static ulong Put(ref ulong place, ulong? value)
    {
        place = value ?? place;
        return place;
    }

    [Test]
    public void OutSendsTheAccumulator()
    {
        FakeState state = new FakeState(CodeSize.Bits64).Code(Start, 0xe6, 0x80, 0xef);
        state.Registers[Gpr.Rax] = 0x12345678;
        state.Registers[Gpr.Rdx] = 0xcf8;
        state.RunServed();
        state.RunServed();
        Assert.That(state.Trace, Is.EqualTo(new[] { "out 80 1 1 78", "out cf8 4 1 78563412" }));
    }

    [Test]
    public void WrmsrAndInvlpgReachTheMachine()
    {
        FakeState state = new FakeState(CodeSize.Bits64).Code(Start, 0x0f, 0x30, 0x0f, 0x01, 0x3b);
        state.Registers[Gpr.Rcx] = 0xffffffff00000277;
        state.Registers[Gpr.Rax] = 0x55667788;
        state.Registers[Gpr.Rdx] = 0x11223344;
        state.Registers[Gpr.Rbx] = 0x123456;
        state.RunServed();
        state.RunServed();
        Assert.That(state.Trace, Is.EqualTo(new[] { "wrmsr 277 1122334455667788", "invlpg 123456" }));
    }
}
