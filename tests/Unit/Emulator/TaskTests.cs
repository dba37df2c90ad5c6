// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using static SharpKvm.Tests.Emulator.ProtectedMachine;

namespace SharpKvm.Tests.Emulator;

/// <summary>Hardware task switches (SDM vol. 3, 8.3 and tables 8-1 and 8-2).</summary>
public class TaskTests
{
    private const int Gp = Fault.GeneralProtection, Np = Fault.SegmentNotPresent, Ts = Fault.InvalidTss;
    private const ulong NewStack = 0x68000;

    private static byte[] Far(byte opcode, ushort selector) => [opcode, 0, 0, 0, 0, .. BitConverter.GetBytes(selector)];

    /// <summary>Field <paramref name="index"/> of those that begin with the instruction pointer.</summary>
    private static ulong At(ulong tss, bool wide, int index) =>
        tss + (wide ? 0x20u + 4 * (uint)index : 0x0e + 2 * (uint)index);

    /// <summary>A machine whose other TSS holds a task of <paramref name="level"/> with these registers.</summary>
    private static ProtectedMachine Machine(bool wide, int level, ushort[] general, int cpl = 0)
    {
        ProtectedMachine machine = new(CodeSize.Bits32, cpl);
        int size = wide ? 4 : 2;
        // Within 64 KiB for tasks of 16 bits.
        machine.Put(Gdt + OtherTssSelector, ProtectedMachine.System(wide ? 9 : 1, 3, OtherTss, wide ? 0x67u : 0x2b));
        machine.Put(At(OtherTss, wide, 0), wide ? Target : Target & 0xffff, size);
        machine.Put(At(OtherTss, wide, 1), Rflags.Fixed | Rflags.Cf, size);
        for (int n = 0; n < 8; n++)
            machine.Put(At(OtherTss, wide, 2 + n), n == 4 ? NewStack : general[n], size);
        for (int n = 0; n < (wide ? 6 : 4); n++)
            machine.Put(At(OtherTss, wide, 10 + n), n == 1 ? CodeOf(level) : DataOf(level), size);
        machine.Put(At(OtherTss, wide, wide ? 16 : 14), 0, size);
        machine.Put(OtherTss + 0x1c, wide ? 0xabc000ul : machine.Get(OtherTss + 0x1c, 4), 4);
        return machine;
    }

    private static int TypeOf(ProtectedMachine machine, ushort selector) =>
        (int)machine.Get(Gdt + selector + 5, 1) & 15;

    /// <summary>There and back: by CALL, INT or an exception, then IRET.</summary>
    [Test]
    public void ATaskNestsAndReturns() =>
        Gen.Select(Gen.Bool, Gen.Int[0, 3], Gen.Int[0, 3], Gen.Int[0, 3], Gen.UShort.Array[8], Gen.UInt.Array[8])
            .Sample((wide, level, cpl, kind, general, old) =>
            {
                ProtectedMachine machine = Machine(wide, level, general, cpl);
                machine.Put(Gdt + Free, Gate(5, 3, OtherTssSelector, 0));
                machine.PutIdt(0x40, Gate(5, 3, OtherTssSelector, 0));
                for (Gpr r = Gpr.Rax; r <= Gpr.Rdi; r++)
                    machine.State.Registers[r] = r == Gpr.Rsp ? StackTop : old[(int)r];
                machine.State.Registers.Rflags |= Rflags.Zf;
                GuestRegisters before = machine.State.Registers;
                var place = machine.Place;
                // 0: CALL TSS, 1: CALL through a task gate, 2: INT n, 3: an exception with an error code.
                Emulation result = kind switch
                {
                    0 => machine.Run(Far(0x9a, OtherTssSelector)),
                    1 => machine.Run(Far(0x9a, Free)),
                    2 => machine.Run(0xcd, 0x40),
                    _ => machine.Deliver(new Fault { Vector = 0x40, HasErrorCode = true, ErrorCode = 0x1234 }),
                };
                string what = $"{wide} level {level} cpl {cpl} kind {kind}";
                Assert.That((result.Outcome, result.TaskSwitched), Is.EqualTo((Access.Done, true)), what);
                FakeState state = machine.State;
                int size = wide ? 4 : 2;
                ulong stack = wide ? NewStack : StackTop & ~0xfffful | NewStack & 0xffff;
                Assert.That(machine.Place, Is.EqualTo((CodeOf(level), DataOf(level), level,
                    wide ? Target : Target & 0xffff, kind == 3 ? stack - (uint)size : stack,
                    Rflags.Fixed | Rflags.Cf | Rflags.Nt)), what);
                foreach (Gpr r in (Gpr[])[Gpr.Rax, Gpr.Rcx, Gpr.Rdx, Gpr.Rbx, Gpr.Rbp, Gpr.Rsi, Gpr.Rdi])
                {
                    Assert.That(state.Registers[r], Is.EqualTo(wide ? general[(int)r]
                        : before[r] & 0xffff0000 | general[(int)r]), what);
                }
                if (kind == 3)
                    Assert.That(machine.Stack(1, size)[0], Is.EqualTo(0x1234));
                Assert.That(machine.Get(OtherTss, 2), Is.EqualTo(TssSelector), "back link");
                Assert.That((TypeOf(machine, TssSelector), TypeOf(machine, OtherTssSelector)),
                    Is.EqualTo((11, wide ? 11 : 3)), "both are busy");
                Assert.That(state[SegmentName.Tr].Selector, Is.EqualTo(OtherTssSelector));
                Assert.That(state.Cr0 & Cr0.Ts, Is.EqualTo(Cr0.Ts));
                Assert.That(state.Control[3], Is.EqualTo(wide ? 0xabc000u : 0));
                Assert.That(machine.Get(Tss + 0x24, 4), Is.EqualTo(before.Rflags));

                int length = kind switch { < 2 => 7, 2 => 2, _ => 0 };
                result = machine.Run(0xcf);
                Assert.That((result.Outcome, result.Returned), Is.EqualTo((Access.Done, true)), what);
                Assert.That(machine.Place, Is.EqualTo(place with { Item4 = CodeAt + (uint)length }), what);
                for (Gpr r = Gpr.Rax; r <= Gpr.Rdi; r++)
                    Assert.That(state.Registers[r], Is.EqualTo(before[r]), what);
                Assert.That((TypeOf(machine, TssSelector), TypeOf(machine, OtherTssSelector)),
                    Is.EqualTo((11, wide ? 9 : 1)), "the other is free again");
                Assert.That(machine.Get(At(OtherTss, wide, 1), 2) & Rflags.Nt, Is.Zero, "it nests no more");
            }, iter: 5_000);

    [Test]
    public void AJumpLeavesTheOldTask()
    {
        ProtectedMachine machine = Machine(true, 0, new ushort[8]);
        Assert.That(machine.Run(Far(0xea, OtherTssSelector)).Outcome, Is.EqualTo(Access.Done));
        Assert.That((TypeOf(machine, TssSelector), TypeOf(machine, OtherTssSelector)), Is.EqualTo((9, 11)));
        Assert.That(machine.State.Registers.Rflags & Rflags.Nt, Is.Zero);
        Assert.That(machine.Run(Far(0xea, TssSelector)).Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.State.Registers.Rip, Is.EqualTo(CodeAt + 7));
        Assert.That(machine.Get(At(OtherTss, true, 0), 4), Is.EqualTo(Target + 7));
    }

    [TestCase(0xea, 11, 3, true, 0x67u, Gp, TestName = "JMP to a busy task")]
    [TestCase(0x9a, 11, 3, true, 0x67u, Gp, TestName = "CALL of a busy task")]
    [TestCase(0xea, 9, 0, true, 0x67u, Gp, TestName = "the kernel's task")]
    [TestCase(0xea, 9, 3, false, 0x67u, Np, TestName = "a task that is not present")]
    [TestCase(0xea, 9, 3, true, 0x66u, Ts, TestName = "a TSS that is too small")]
    [TestCase(0xea, 1, 3, true, 0x2au, Ts, TestName = "a TSS of 16 bits that is too small")]
    [TestCase(0xcf, 9, 3, true, 0x67u, Ts, TestName = "IRET to a task that is not busy")]
    public void WhatIsNoTaskIsRefused(int opcode, int type, int dpl, bool present, uint limit, int vector)
    {
        ProtectedMachine machine = Machine(true, 3, new ushort[8], cpl: 3);
        machine.Put(Gdt + OtherTssSelector, ProtectedMachine.System(type, dpl, OtherTss, limit, present));
        machine.State.Registers.Rflags |= opcode == 0xcf ? Rflags.Nt : 0;
        machine.Put(Tss, OtherTssSelector, 2);
        var before = machine.Place;
        Emulation result = machine.Run(Far((byte)opcode, OtherTssSelector));
        Faulted(in result, vector, OtherTssSelector);
        Assert.That(result.TaskSwitched, Is.False);
        Assert.That(machine.Place, Is.EqualTo(before));
        Assert.That(TypeOf(machine, TssSelector), Is.EqualTo(11));
    }

    [TestCase(11, 0, Ts, 0u, TestName = "a task without code")]
    [TestCase(11, 0x10, Ts, 0x10u, TestName = "a task whose code is data")]
    [TestCase(11, Free, Np, (uint)Free, TestName = "a task whose code is not present")]
    [TestCase(12, 0, Ts, 0u, TestName = "a task without a stack")]
    [TestCase(12, 0x13, Ts, 0x10u, TestName = "a task with a stack of another level")]
    [TestCase(13, 0x88, Ts, 0x88u, TestName = "a task whose DS is no segment")]
    [TestCase(16, 0x10, Ts, 0x10u, TestName = "a task whose LDT is none")]
    public void FaultsAfterTheSwitchAreTheNewTasks(int field, int selector, int vector, uint error)
    {
        ProtectedMachine machine = Machine(true, 0, new ushort[8]);
        machine.Put(Gdt + Free, machine.Entry(0x1a, 0, true, present: false));
        machine.Put(At(OtherTss, true, field), (ulong)selector, 4);
        Emulation result = machine.Run(Far(0xea, OtherTssSelector));
        Faulted(in result, vector, error);
        Assert.That(result.TaskSwitched, Is.True);
        Assert.That((machine.State.Registers.Rip, machine.State[SegmentName.Tr].Selector),
            Is.EqualTo((Target, OtherTssSelector)));
    }

    /// <summary>As an exit of hardware has it: the instruction is known by its length only.</summary>
    [TestCase((byte)TaskSwitchCause.Call, true)]
    [TestCase((byte)TaskSwitchCause.Jump, false)]
    public void ASwitchThatHardwareHandsOver(byte cause, bool nests)
    {
        ProtectedMachine machine = Machine(true, 0, new ushort[8]);
        Execution<FakeMachine> execution = new(new FakeMachine(machine.State));
        execution.SwitchTask(OtherTssSelector, (TaskSwitchCause)cause, CodeAt + 5, default);
        Emulation result = execution.Result;
        Assert.That((result.Outcome, result.TaskSwitched), Is.EqualTo((Access.Done, true)));
        Assert.That(machine.Get(At(Tss, true, 0), 4), Is.EqualTo(CodeAt + 5));
        Assert.That(machine.State.Registers.Rip, Is.EqualTo(Target));
        Assert.That((machine.State.Registers.Rflags & Rflags.Nt) != 0, Is.EqualTo(nests));
    }

    [Test]
    public void AFaultBeforeTheSwitchLeavesTheOldTask()
    {
        ProtectedMachine machine = Machine(true, 0, new ushort[8]);
        machine.State.Faulting[OtherTss >> 12] = true;
        var before = machine.Place;
        Emulation result = machine.Run(Far(0x9a, OtherTssSelector));
        Faulted(in result, Fault.PageFault, 2);
        Assert.That((result.TaskSwitched, result.Fault.Address), Is.EqualTo((false, OtherTss)));
        Assert.That(machine.Place, Is.EqualTo(before));
    }
}
