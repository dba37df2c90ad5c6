// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>The instruction that was decoded last is not decoded again; what only resembles it is.</summary>
public class RepeatedInstructionTests
{
    private const ulong Here = 0x20000, LastOfPage = 0x20ffe;

    private static readonly byte[] Short = [0xb8, 1, 2, 3, 4], // mov eax, 04030201
        Long = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], // mov rax, 0807060504030201
        Wide = [0x48, 0xff, 0xc0]; // inc rax; in 32 bits: dec eax, inc eax

    [Test]
    public void EachByteCounts([Values] bool isLong)
    {
        byte[] code = isLong ? Long : Short;
        // From the first byte of the immediate on: each changes the outcome.
        for (int at = code.Length - (isLong ? 8 : 4); at < code.Length; at++)
        {
            byte[] other = [.. code];
            other[at] ^= 0x10;
            ulong after = After(Run(CodeSize.Bits64, other));
            FakeState state = Run(CodeSize.Bits64, code);
            Assert.That(After(state), Is.Not.EqualTo(after));
            Again(state, other);
            Assert.That(After(state), Is.EqualTo(after), $"byte {at}");
        }
    }

    [Test]
    public void WhatFollowsDoesNotCount()
    {
        FakeState state = Run(CodeSize.Bits64, [.. Short, 0x90]);
        Again(state, [.. Short, 0xcc]);
        Assert.That((After(state), state.Registers.Rip), Is.EqualTo((0x04030201ul, Here + 5)));
    }

    [Test]
    public void TheSizeOfCodeCounts()
    {
        FakeState state = Run(CodeSize.Bits64, Wide);
        Assert.That(state.Registers.Rip, Is.EqualTo(Here + 3));
        FakeState narrow = new(CodeSize.Bits32) { Fetched = state.Fetched };
        narrow.Code(Here, Wide);
        Assert.That(narrow.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((narrow.Registers.Rip, After(narrow)), Is.EqualTo((Here + 1, (ulong)uint.MaxValue)));
    }

    [Test]
    public void BytesOfAPageThatCannotBeReadDoNotCount()
    {
        FakeState state = Run(CodeSize.Bits64, Short);
        state.Code(LastOfPage, Short);
        state.Faulting[(LastOfPage >> 12) + 1] = false;
        Emulation result = state.Run();
        Assert.That((result.Outcome, result.Fault.Vector), Is.EqualTo((Access.Fault, Fault.PageFault)));
    }

    [Test]
    public void WhatCannotBeDoneStaysSo([Values(new byte[] { 0x0f, 0xff, 0xc0 }, new byte[] { 0xd9, 0xc0 })] byte[] code)
    {
        FakeState state = new FakeState(CodeSize.Bits64).Code(Here, code);
        Access first = state.Run().Outcome;
        Assert.That(first, Is.Not.EqualTo(Access.Done));
        Assert.That(state.Run().Outcome, Is.EqualTo(first));
    }

    private static FakeState Run(CodeSize size, byte[] code)
    {
        FakeState state = new FakeState(size).Code(Here, code);
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        return state;
    }

    private static void Again(FakeState state, byte[] code)
    {
        state.Registers[Gpr.Rax] = 0;
        state.Code(Here, code);
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
    }

    private static ulong After(FakeState state) => state.Registers[Gpr.Rax];
}
