// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>Moves between memory or a device and XMM registers.</summary>
public class VectorTests
{
    private const ulong Low = 0x1122334455667788, High = 0x99aabbccddeeff00;

    /// <summary>The instruction has [RBX] and XMM9.</summary>
    private static FakeState State(string code, ulong address)
    {
        FakeState state = new FakeState(CodeSize.Bits64).Code(0x20000, Convert.FromHexString(code));
        state.Cr4 = Cr4.Osfxsr;
        state.Registers[Gpr.Rbx] = address;
        state.Vectors[18] = Low;
        state.Vectors[19] = High;
        return state;
    }

    [TestCase("440F100B", 16, false, TestName = "MOVUPS load")]
    [TestCase("66440F100B", 16, false, TestName = "MOVUPD load")]
    [TestCase("F3440F100B", 4, false, TestName = "MOVSS load")]
    [TestCase("F2440F100B", 8, false, TestName = "MOVSD load")]
    [TestCase("440F280B", 16, true, TestName = "MOVAPS load")]
    [TestCase("66440F6F0B", 16, true, TestName = "MOVDQA load")]
    [TestCase("F3440F6F0B", 16, false, TestName = "MOVDQU load")]
    [TestCase("66440F6E0B", 4, false, TestName = "MOVD load")]
    [TestCase("664C0F6E0B", 8, false, TestName = "MOVQ load by REX.W")]
    [TestCase("F3440F7E0B", 8, false, TestName = "MOVQ load")]
    [TestCase("F2440FF00B", 16, false, TestName = "LDDQU")]
    public void Loads(string code, int size, bool aligned)
    {
        foreach (ulong address in (ulong[])[FakeState.MmioStart, FakeState.MmioStart + 8, 0x40000, 0x40ffa])
        {
            FakeState state = State(code, address);
            for (int n = 0; address < FakeState.MmioStart && n < size; n++)
                state.At(address + (ulong)n, 1)[0] = (byte)(address + (ulong)n);
            Emulation result = state.RunServed();
            if (aligned && address % 16 != 0)
            {
                Assert.That((result.Outcome, result.Fault.Vector),
                    Is.EqualTo((Access.Fault, Fault.GeneralProtection)));
                Assert.That((state.Vectors[18], state.Vectors[19]), Is.EqualTo((Low, High)));
                continue;
            }
            byte[] expected = new byte[16];
            for (int n = 0; n < size; n++)
                expected[n] = (byte)(address + (ulong)n);
            Assert.That(result.Outcome, Is.EqualTo(Access.Done));
            Assert.That(System.Runtime.InteropServices.MemoryMarshal.AsBytes(state.Vectors.AsSpan(18, 2)).ToArray(),
                Is.EqualTo(expected));
        }
    }

    [TestCase("440F110B", 16, false, TestName = "MOVUPS store")]
    [TestCase("F3440F110B", 4, false, TestName = "MOVSS store")]
    [TestCase("F2440F110B", 8, false, TestName = "MOVSD store")]
    [TestCase("440F290B", 16, true, TestName = "MOVAPS store")]
    [TestCase("440F2B0B", 16, true, TestName = "MOVNTPS")]
    [TestCase("66440FE70B", 16, true, TestName = "MOVNTDQ")]
    [TestCase("66440F7F0B", 16, true, TestName = "MOVDQA store")]
    [TestCase("F3440F7F0B", 16, false, TestName = "MOVDQU store")]
    [TestCase("66440F7E0B", 4, false, TestName = "MOVD store")]
    [TestCase("664C0F7E0B", 8, false, TestName = "MOVQ store by REX.W")]
    [TestCase("66440FD60B", 8, false, TestName = "MOVQ store")]
    public void Stores(string code, int size, bool aligned)
    {
        foreach (ulong address in (ulong[])[FakeState.MmioStart, FakeState.MmioStart + 8, 0x40000])
        {
            FakeState state = State(code, address);
            Emulation result = state.RunServed();
            bool done = !aligned || address % 16 == 0;
            Assert.That(result.Outcome, Is.EqualTo(done ? Access.Done : Access.Fault));
            string value = $"{High:x16}{Low:x16}"[^(size * 2)..];
            if (address >= FakeState.MmioStart)
                Assert.That(state.Trace, Is.EqualTo(done ? [$"w {address:x} {size} {value}"] : Array.Empty<string>()));
            Assert.That((state.Vectors[18], state.Vectors[19]), Is.EqualTo((Low, High)));
        }
    }

    [TestCase(Cr0.Em, Cr4.Osfxsr, Fault.InvalidOpcode)]
    [TestCase(0ul, 0ul, Fault.InvalidOpcode)]
    [TestCase(Cr0.Ts, Cr4.Osfxsr, Fault.NoDevice)]
    public void OnlyWhereTheGuestsKernelAllowsIt(ulong cr0, ulong cr4, byte vector)
    {
        FakeState state = State("440F100B", FakeState.MmioStart);
        state.Cr0 |= cr0;
        state.Cr4 = cr4;
        Emulation result = state.RunServed();
        Assert.That((result.Outcome, result.Fault.Vector), Is.EqualTo((Access.Fault, vector)));
        Assert.That(state.Trace, Is.Empty);
    }

    [Test]
    public void BetweenRegistersIsNotEmulated([Values("440F10C9", "0F6FC1", "660F6EC0")] string code) =>
        Assert.That(State(code, 0).Run().Outcome, Is.EqualTo(Access.Unsupported));

    /// <summary>How Linux's set-up looks for an FPU.</summary>
    [TestCase("DBE3", 0x37fu, 0ul, TestName = "FNINIT")]
    [TestCase("D93B", 0xaaaa5555, 0x5555ul, TestName = "FNSTCW")]
    [TestCase("DD3B", 0xaaaa5555, 0xaaaaul, TestName = "FNSTSW")]
    [TestCase("DFE0", 0xaaaa5555, 0ul, TestName = "FNSTSW AX")]
    public void FpuWords(string code, uint words, ulong stored)
    {
        FakeState state = State(code, 0x40000);
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((state.Fpu, BitConverter.ToUInt64(state.At(0x40000, 8))), Is.EqualTo((words, stored)));
        Assert.That(state.Registers[Gpr.Rax], Is.EqualTo(code == "DFE0" ? 0xaaaaul : 0));
        state = State(code, 0x40000);
        state.Cr0 |= Cr0.Ts;
        Assert.That(state.Run().Fault.Vector, Is.EqualTo(Fault.NoDevice));
    }

    [Test]
    public void TheRestOfTheX87IsNotEmulated([Values("DBE2", "D9F8", "DB3B", "DFE1", "DF23", "D9C0")] string code) =>
        Assert.That(State(code, 0x40000).Run().Outcome, Is.EqualTo(Access.Unsupported));
}
