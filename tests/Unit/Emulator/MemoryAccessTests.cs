// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>Device accesses: what user space sees, that it sees it once, and what the guest gets.</summary>
public class MemoryAccessTests
{
    private static FakeState Long(params byte[] code) => new FakeState(CodeSize.Bits64).Code(0x20000, code);

    private static void Completed(FakeState state, int length)
    {
        Emulation result = state.RunServed();
        Assert.That(result.Outcome, Is.EqualTo(Access.Done));
        Assert.That(state.Registers.Rip, Is.EqualTo(0x20000 + (ulong)length));
    }

    [TestCase(new byte[] { 0x88, 0x03 }, "w a0000 1 88")]
    [TestCase(new byte[] { 0x66, 0x89, 0x03 }, "w a0000 2 7788")]
    [TestCase(new byte[] { 0x89, 0x03 }, "w a0000 4 55667788")]
    [TestCase(new byte[] { 0x48, 0x89, 0x03 }, "w a0000 8 1122334455667788")]
    [TestCase(new byte[] { 0xc7, 0x03, 1, 2, 3, 0x84 }, "w a0000 4 84030201")]
    [TestCase(new byte[] { 0x48, 0xc7, 0x03, 1, 2, 3, 0x84 }, "w a0000 8 ffffffff84030201")]
    [TestCase(new byte[] { 0x0f, 0xc3, 0x03 }, "w a0000 4 55667788")]
    [TestCase(new byte[] { 0x0f, 0x38, 0xf1, 0x03 }, "w a0000 4 88776655")]
    [TestCase(new byte[] { 0xa2, 4, 0, 0xa, 0, 0, 0, 0, 0 }, "w a0004 1 88")]
    [TestCase(new byte[] { 0xaa }, "w a0010 1 88")]
    public void AWriteReachesTheDevice(byte[] code, string expected)
    {
        FakeState state = Long(code);
        state.Registers[Gpr.Rax] = 0x1122334455667788;
        state.Registers[Gpr.Rbx] = 0xa0000;
        state.Registers[Gpr.Rdi] = 0xa0010;
        Emulation result = state.Run();
        Assert.That(result.Outcome, Is.EqualTo(Access.UserSpace));
        Assert.That(state.Registers.Rip, Is.EqualTo(0x20000));
        Assert.That(state.Registers[Gpr.Rdi], Is.EqualTo(0xa0010));
        Completed(state, code.Length);
        Assert.That(state.Trace, Is.EqualTo(new[] { expected }));
    }

    [TestCase(new byte[] { 0x8a, 0x03 }, 0xffffffffffffff80)]
    [TestCase(new byte[] { 0x66, 0x8b, 0x03 }, 0xffffffffffff8180)]
    [TestCase(new byte[] { 0x8b, 0x03 }, 0x83828180ul)]
    [TestCase(new byte[] { 0x48, 0x8b, 0x03 }, 0x8786858483828180)]
    [TestCase(new byte[] { 0x0f, 0xb6, 0x03 }, 0x80ul)]
    [TestCase(new byte[] { 0x48, 0x0f, 0xb7, 0x03 }, 0x8180ul)]
    [TestCase(new byte[] { 0x0f, 0xbe, 0x03 }, 0xffffff80ul)]
    [TestCase(new byte[] { 0x48, 0x0f, 0xbf, 0x03 }, 0xffffffffffff8180)]
    [TestCase(new byte[] { 0x48, 0x63, 0x03 }, 0xffffffff83828180)]
    [TestCase(new byte[] { 0x0f, 0x38, 0xf0, 0x03 }, 0x80818283ul)]
    [TestCase(new byte[] { 0x0f, 0x44, 0x03 }, 0xfffffffful)]
    public void AReadFillsTheRegister(byte[] code, ulong expected)
    {
        FakeState state = Long(code);
        state.Registers[Gpr.Rax] = ulong.MaxValue;
        state.Registers[Gpr.Rbx] = 0xa0080;
        Completed(state, code.Length);
        Assert.That(state.Registers[Gpr.Rax], Is.EqualTo(expected));
        Assert.That(state.Trace, Has.Count.EqualTo(1));
    }

    [TestCase(new byte[] { 0x83, 0x0b, 1 }, new[] { "r a0080 4", "w a0080 4 83828181" }, TestName = "OR")]
    [TestCase(new byte[] { 0xf0, 0x83, 0x0b, 1 }, new[] { "r a0080 4", "w a0080 4 83828181" }, TestName = "LOCK OR")]
    [TestCase(new byte[] { 0x87, 0x03 }, new[] { "r a0080 4", "w a0080 4 ffffffff" }, TestName = "XCHG")]
    [TestCase(new byte[] { 0x0f, 0xba, 0x2b, 3 }, new[] { "r a0080 4", "w a0080 4 83828188" }, TestName = "BTS")]
    [TestCase(new byte[] { 0xff, 0x03 }, new[] { "r a0080 4", "w a0080 4 83828181" }, TestName = "INC")]
    [TestCase(new byte[] { 0x39, 0x03 }, new[] { "r a0080 4" }, TestName = "CMP")]
    [TestCase(new byte[] { 0xf7, 0x03, 1, 0, 0, 0 }, new[] { "r a0080 4" }, TestName = "TEST")]
    [TestCase(new byte[] { 0xff, 0x33 }, new[] { "r a0080 8" }, TestName = "PUSH")]
    public void AReadModifyWriteIsAReadAndAWrite(byte[] code, string[] expected)
    {
        FakeState state = Long(code);
        state.Registers[Gpr.Rax] = ulong.MaxValue;
        state.Registers[Gpr.Rbx] = 0xa0080;
        state.Registers[Gpr.Rsp] = 0x30000;
        Completed(state, code.Length);
        Assert.That(state.Trace, Is.EqualTo(expected));
    }

    [Test]
    public void RepMovsToADeviceCountsEachElementOnce()
    {
        FakeState state = Long(0xf3, 0xa5);
        state.Registers[Gpr.Rsi] = 0x40000;
        state.Registers[Gpr.Rdi] = 0xa0000;
        state.Registers[Gpr.Rcx] = 3;
        new byte[] { 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0 }.CopyTo(state.At(0x40000, 12));
        Completed(state, 2);
        string[] expected = ["w a0000 4 00000001", "w a0004 4 00000002", "w a0008 4 00000003"];
        Assert.That(state.Trace, Is.EqualTo(expected));
        Assert.That(state.Registers[Gpr.Rcx], Is.Zero);
        Assert.That(state.Registers[Gpr.Rdi], Is.EqualTo(0xa000c));
    }

    [Test]
    public void MovsFromDeviceToDeviceReplaysTheRead()
    {
        FakeState state = Long(0xa5);
        state.Registers[Gpr.Rsi] = 0xa0040;
        state.Registers[Gpr.Rdi] = 0xa0080;
        Completed(state, 1);
        Assert.That(state.Trace, Is.EqualTo(new[] { "r a0040 4", "w a0080 4 43424140" }));
    }

    [Test]
    public void RepInsGoesInBatchesUpToAPage()
    {
        FakeState state = Long(0xf3, 0x6d);
        state.Registers[Gpr.Rdx] = 0x1f0;
        state.Registers[Gpr.Rdi] = 0x40ff8;
        state.Registers[Gpr.Rcx] = 6;
        Completed(state, 2);
        Assert.That(state.Trace, Is.EqualTo(new[] { "in 1f0 4 2", "in 1f0 4 4" }));
        Assert.That(state.At(0x40ff8, 4).ToArray(), Is.EqualTo(new byte[] { 0xf0, 0xf1, 0xf2, 0xf3 }));
        Assert.That(state.Registers[Gpr.Rdi], Is.EqualTo(0x41010));
    }

    [Test]
    public void RepOutsSendsMemory()
    {
        FakeState state = Long(0xf3, 0x6e);
        state.Registers[Gpr.Rdx] = 0x3f8;
        state.Registers[Gpr.Rsi] = 0x40000;
        state.Registers[Gpr.Rcx] = 3;
        "abc"u8.CopyTo(state.At(0x40000, 3));
        Completed(state, 2);
        Assert.That(state.Trace, Is.EqualTo(new[] { "out 3f8 1 3 616263" }));
        Assert.That(state.Registers[Gpr.Rcx], Is.Zero);
    }

    [Test]
    public void InsToAnUnmappedPageFaultsBeforeThePortIsRead()
    {
        FakeState state = Long(0x6c);
        state.Faulting[0x40] = true;
        state.Registers[Gpr.Rdi] = 0x40000;
        Emulation result = state.Run();
        Assert.That(result.Outcome, Is.EqualTo(Access.Fault));
        Fault fault = result.Fault;
        Assert.That((fault.Vector, fault.ErrorCode, fault.Address), Is.EqualTo((14, 2u, 0x40000ul)));
        Assert.That(state.Trace, Is.Empty);
    }

    [Test]
    public void BytesThatAnotherCpuChangesMeanwhileDoNotCount()
    {
        FakeState state = Long(0x8b, 0x03);
        state.Registers[Gpr.Rbx] = 0xa0000;
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.UserSpace));
        new byte[] { 0x0f, 0x22, 0xc0 }.CopyTo(state.At(0x20000, 3));
        Completed(state, 2);
        Assert.That(state.Registers[Gpr.Rax], Is.EqualTo(0x03020100));
        Assert.That(state.Trace, Is.EqualTo(new[] { "r a0000 4" }));
    }

    [TestCase(new byte[] { 0x0f, 0xab, 0x03 }, 33ul, new[] { "r a0004 4", "w a0004 4 07060506" },
        TestName = "BTS of a bit string")]
    [TestCase(new byte[] { 0x8f, 0x03 }, 0ul, new[] { "w a0000 8 1122334455667788" }, TestName = "POP to a device")]
    [TestCase(new byte[] { 0x0f, 0xc1, 0x03 }, 1ul, new[] { "r a0000 4", "w a0000 4 03020101" }, TestName = "XADD")]
    public void AResumedInstructionKeepsItsAddress(byte[] code, ulong rax, string[] expected)
    {
        FakeState state = Long(code);
        state.Registers[Gpr.Rax] = rax;
        state.Registers[Gpr.Rbx] = 0xa0000;
        state.Registers[Gpr.Rsp] = 0x30000;
        BitConverter.TryWriteBytes(state.At(0x30000, 8), 0x1122334455667788);
        Completed(state, code.Length);
        Assert.That(state.Trace, Is.EqualTo(expected));
    }

    [Test]
    public void ALostRaceRunsTheInstructionAgain()
    {
        FakeState state = Long(0xf0, 0xff, 0x03);
        state.Registers[Gpr.Rbx] = 0x40000;
        state.LoseRace = true;
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That(state.Registers.Rip, Is.EqualTo(0x20000));
        state.LoseRace = false;
        Completed(state, 3);
        Assert.That(state.At(0x40000, 1)[0], Is.EqualTo(1));
    }
}
