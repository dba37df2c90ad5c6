// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using static SharpKvm.Tests.Emulator.ProtectedMachine;

namespace SharpKvm.Tests.Emulator;

/// <summary>Far branches, interrupts and returns in protected and long mode.</summary>
public class FarTests
{
    private const int Gp = Fault.GeneralProtection, Np = Fault.SegmentNotPresent, Ts = Fault.InvalidTss,
        Ss = Fault.StackSegment, Pf = Fault.PageFault;

    private static byte[] FarPointer(byte opcode, ushort selector, ulong offset) =>
        [opcode, .. BitConverter.GetBytes((uint)offset), .. BitConverter.GetBytes(selector)];

    /// <summary>Every descriptor that is no gate and no TSS, as SDM vol. 2 has it for JMP and CALL.</summary>
    [Test]
    public void JumpsAndCallsToCode() =>
        Gen.Select(Gen.Int[0, 31], Gen.Int[0, 3], Gen.Int[0, 3], Gen.Int[0, 3], Gen.Bool, Gen.Bool).Sample(
            (type, dpl, rpl, cpl, present, call) =>
            {
                if (type is 1 or 4 or 5 or 9 or 12)
                    return;
                ProtectedMachine machine = new(CodeSize.Bits32, cpl);
                machine.Put(Gdt + Free, machine.Entry(type, dpl, true, present));
                ushort selector = (ushort)(Free | rpl);
                var before = machine.Place;
                Emulation result = machine.Run(FarPointer(call ? (byte)0x9a : (byte)0xea, selector, Target));
                string what = $"type {type:x} dpl {dpl} rpl {rpl} cpl {cpl} {present}";
                bool code = type >= 0x18, conforming = (type & 4) != 0;
                if (!code || (conforming ? dpl > cpl : rpl > cpl || dpl != cpl))
                    Faulted(in result, Gp, Free, what);
                else if (!present)
                    Faulted(in result, Np, Free, what);
                else
                {
                    Assert.That(result.Outcome, Is.EqualTo(Access.Done), what);
                    ulong stack = StackTop - (call ? 8u : 0);
                    Assert.That(machine.Place, Is.EqualTo(((ushort)(Free | cpl), DataOf(cpl), cpl, Target, stack,
                        Rflags.Fixed)));
                    Assert.That(machine.Get(Gdt + Free + 5, 1) & 1, Is.EqualTo(1), "accessed");
                    if (call)
                        Assert.That(machine.Stack(2, 4), Is.EqualTo(new ulong[] { CodeAt + 7, CodeOf(cpl) }));
                    return;
                }
                Assert.That(machine.Place, Is.EqualTo(before), what);
            }, iter: 20_000);

    [TestCase(0, 0ul, 0u, TestName = "a null selector")]
    [TestCase(0xa0, Target, 0xa0u, TestName = "beyond the table")]
    [TestCase(0x0c, Target, 0x0cu, TestName = "without an LDT")]
    [TestCase(0x08, 0x40_0000ul, 0u, TestName = "beyond the limit")]
    public void JumpsNowhere(int selector, ulong offset, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        machine.Put(Gdt + 8, 0x00409b000000ffff | 3ul << 48);
        Faulted(machine.Run(FarPointer(0xea, (ushort)selector, offset)), Gp, error);
    }

    [Test]
    public void AnLdtServesLikeTheGdt()
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        machine.State[SegmentName.Ldtr] = new Segment { Base = 0x54000, Limit = 0xf, Attributes = 0x82 };
        machine.Put(0x54008, machine.Entry(0x1a, 0, true));
        Assert.That(machine.Run(FarPointer(0xea, 0x0c, Target)).Outcome, Is.EqualTo(Access.Done));
        Assert.That((machine.Place.Item1, machine.Place.Item4), Is.EqualTo(((ushort)0x0c, Target)));
    }

    /// <summary>From real mode to protected mode and back, as firmware does it.</summary>
    [Test]
    public void IntoProtectedModeAndBack()
    {
        ProtectedMachine machine = new(CodeSize.Bits16);
        machine.State.Cr0 = 0x10;
        machine.State[SegmentName.Cs].Base = 0x20000;
        machine.State.Registers.Rip = 0;
        machine.Put(Gdt + Free, 0x00cf9a000000ffff);
        machine.Put(Gdt + Free2, 0x00009a020000ffff);
        // MOV CR0, EAX with PE; JMP 60:2100h; JMP 70:100h; MOV CR0, EAX without PE; JMP 2000:200h.
        machine.State.Registers[Gpr.Rax] = 0x11;
        Assert.That(machine.Run(0x0f, 0x22, 0xc0).Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.Run([0x66, .. FarPointer(0xea, Free, Target)]).Outcome, Is.EqualTo(Access.Done));
        Assert.That((machine.State[SegmentName.Cs].Base, machine.State[SegmentName.Cs].Big), Is.EqualTo((0ul, true)));
        Assert.That(machine.Run(FarPointer(0xea, Free2, 0x100)).Outcome, Is.EqualTo(Access.Done));
        Assert.That((machine.State[SegmentName.Cs].Base, machine.State[SegmentName.Cs].Big),
            Is.EqualTo((0x20000ul, false)));
        machine.State.Registers[Gpr.Rax] = 0x10;
        machine.State.Code(0x100, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x02, 0x00, 0x20);
        Assert.That(machine.State.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.State.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((machine.Place.Item1, machine.Place.Item4), Is.EqualTo(((ushort)0x2000, 0x200ul)));
        Assert.That(machine.State[SegmentName.Cs].Limit, Is.EqualTo(0xffff), "limits stay");
    }

    /// <summary>Through a gate and back: at each level, to each level (SDM vol. 3, 5.8.3 to 5.8.6 and 6.12).</summary>
    [Test]
    public void ThroughAGateAndBack() =>
        Gen.Select(Gen.Int[0, 3], Gen.Int[0, 3], Gen.Int[0, 3], Gen.Int[0, 3], Gen.Bool).Sample(
            (cpl, target, gateDpl, kind, conforming) =>
            {
                ProtectedMachine machine = new(CodeSize.Bits32, cpl);
                machine.Put(Gdt + Free, machine.Entry(conforming ? 0x1e : 0x1a, target, true));
                // 0, 1: INT n through an interrupt or trap gate; 2: a call gate; 3: an exception.
                bool isCall = kind == 2, software = kind != 3;
                ulong gate = Gate(isCall ? 12 : kind == 1 ? 15 : 14, gateDpl, Free, Target);
                machine.PutIdt(0x40, gate);
                machine.Put(Gdt + Free2, gate);
                machine.State.Registers.Rflags |= Rflags.If | Rflags.Tf | Rflags.Cf | (3ul << 12);
                var before = machine.Place;
                Emulation result = isCall ? machine.Run(FarPointer(0x9a, Free2, 0))
                    : software ? machine.Run(0xcd, 0x40) : machine.Deliver(new Fault { Vector = 0x40 });
                string what = $"cpl {cpl} to {target} gate {gateDpl} kind {kind} {conforming}";
                if (software && gateDpl < cpl)
                    Faulted(in result, Gp, isCall ? Free2 : 0x40u * 8 + 2, what);
                else if (target > cpl)
                    Faulted(in result, Gp, Free | (software ? 0u : 1), what);
                else
                {
                    Assert.That(result.Outcome, Is.EqualTo(Access.Done), what);
                    int level = conforming ? cpl : target;
                    bool inner = level != cpl;
                    int length = isCall ? 7 : software ? 2 : 0, words = (isCall ? 2 : 3) + (inner ? 2 : 0);
                    ulong top = inner ? InnerTop + 0x1000 * (uint)level : StackTop;
                    ulong cleared = isCall ? 0 : Rflags.Tf | (kind == 1 ? 0 : Rflags.If);
                    Assert.That(machine.Place, Is.EqualTo(((ushort)(Free | level), DataOf(level), level, Target,
                        top - (uint)(words * 4), before.Item6 & ~cleared)), what);
                    ulong[] frame = [CodeAt + (uint)length, CodeOf(cpl), before.Item6, StackTop, DataOf(cpl)];
                    frame = isCall ? [frame[0], frame[1], frame[3], frame[4]] : frame;
                    Assert.That(machine.Stack(words, 4), Is.EqualTo(frame[..words]), what);
                    Assert.That(result.SingleStep, Is.EqualTo(isCall), "an interrupt clears TF");

                    Segment data = machine.State[SegmentName.Ds];
                    result = machine.Run(isCall ? (byte)0xcb : (byte)0xcf);
                    Assert.That((result.Outcome, result.Returned), Is.EqualTo((Access.Done, !isCall)), what);
                    Assert.That(machine.Place, Is.EqualTo(before with { Item4 = CodeAt + (uint)length }), what);
                    Assert.That(machine.State[SegmentName.Ds], Is.EqualTo(data), "as visible as before");
                    return;
                }
                Assert.That(machine.Place, Is.EqualTo(before), what);
            }, iter: 20_000);

    [TestCase(14, 0, false, Np, 0x40u * 8 + 2, TestName = "a gate that is not present")]
    [TestCase(12, 0, true, Gp, 0x40u * 8 + 2, TestName = "a call gate in the IDT")]
    [TestCase(0x1a, 0, true, Gp, 0x40u * 8 + 2, TestName = "code in the IDT")]
    [TestCase(14, 0x18, true, Gp, 0x18u, TestName = "a gate to data")]
    [TestCase(14, 0xa0, true, Gp, 0xa0u, TestName = "a gate beyond the table")]
    public void GatesThatLeadNowhere(int type, int selector, bool present, int vector, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        machine.Put(Gdt + 0x18, machine.Entry(0x12, 0));
        machine.PutIdt(0x40, Gate(type, 3, (ushort)(selector == 0 ? Free : selector), Target, present));
        machine.Put(Gdt + Free, machine.Entry(0x1a, 0, true));
        Faulted(machine.Run(0xcd, 0x40), vector, error);
        Faulted(machine.Deliver(new Fault { Vector = 0x40 }), vector, error | 1);
        machine.State.Idtr = machine.State.Idtr with { Limit = 0x40 * 8 + 6 };
        Faulted(machine.Run(0xcd, 0x40), Gp, 0x40 * 8 + 2);
    }

    [Test]
    public void ErrorCodesArePushedLast()
    {
        ProtectedMachine machine = new(CodeSize.Bits32, 3);
        machine.PutIdt(14, Gate(14, 0, CodeOf(0), Target));
        machine.Deliver(new Fault { Vector = 14, HasErrorCode = true, ErrorCode = 6 });
        Assert.That(machine.Stack(2, 4), Is.EqualTo(new ulong[] { 6, CodeAt }));
        Assert.That(machine.State.Cpl, Is.Zero);
    }

    [Test]
    public void AGateOf16BitsPushesWords()
    {
        ProtectedMachine machine = new(CodeSize.Bits16);
        machine.State[SegmentName.Cs].Base = machine.State[SegmentName.Ss].Base = 0x20000;
        machine.State.Registers.Rip = 0x8000;
        machine.State.Registers[Gpr.Rsp] = 0xfff0;
        machine.State.Registers.Rflags |= Rflags.If;
        machine.Put(Gdt + Free, 0x00009a020000ffff);
        machine.Put(Gdt + 8, 0x00009b020000ffff);
        machine.PutIdt(0x40, Gate(6, 0, Free, 0x1234));
        machine.State.Code(0x8000, 0xcd, 0x40);
        machine.State.Code(0x1234, 0xcf).Registers.Rip = 0x8000;
        Assert.That(machine.State.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.State.Registers[Gpr.Rsp], Is.EqualTo(0xfff0 - 6));
        Assert.That(machine.Get(0x2fff0 - 6, 6), Is.EqualTo(0x0202_0008_8002));
        Assert.That(machine.State.Registers.Rip, Is.EqualTo(0x1234));
        Assert.That(machine.State.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((machine.State.Registers.Rip, machine.State.Registers[Gpr.Rsp]), Is.EqualTo((0x8002ul, 0xfff0ul)));
    }

    [TestCase(0x1b, 0x10, Gp, 0x1bu & ~3u, TestName = "RPL below the level: no")]
    [TestCase(0x0b, 0, Gp, 0x08u, TestName = "code of another level")]
    [TestCase(0x00, 0, Gp, 0u, TestName = "null code")]
    [TestCase(0x3b, 0x10, Gp, 0x10u, TestName = "a stack of another level")]
    [TestCase(0x3b, 0, Gp, 0u, TestName = "a null stack")]
    [TestCase(0x3b, 0x43, -1, 0u, TestName = "to level 3")]
    public void ReturnsAreChecked(int code, int stack, int vector, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits32, code == 0x1b ? 3 : 0);
        machine.Put(Gdt + 0x18, machine.Entry(0x1a, 1, true));
        if (code == 0x1b)
            code = 0x18;
        ulong[] frame = [Target, (ulong)code, StackTop + 0x100, (ulong)stack];
        for (uint n = 0; n < 4; n++)
            machine.Put(StackTop + 4 * n + (n > 1 ? 8u : 0), frame[n], 4);
        var before = machine.Place;
        Emulation result = machine.Run(0xca, 8, 0);
        if (vector >= 0)
        {
            Faulted(in result, vector, error);
            Assert.That(machine.Place, Is.EqualTo(before));
            return;
        }
        Assert.That(machine.Place, Is.EqualTo(((ushort)code, (ushort)stack, 3, Target, StackTop + 0x108,
            Rflags.Fixed)));
        Assert.That(machine.State[SegmentName.Ds].Present, Is.False, "the kernel's data is out of sight");
    }

    [Test]
    public void IretChangesFlagsByTheOldPrivilege([Values(0, 3)] int cpl)
    {
        ProtectedMachine machine = new(CodeSize.Bits32, cpl);
        ulong[] frame = [Target, CodeOf(cpl), 0x3f7fd7 & ~Rflags.Vm & ~Rflags.Nt];
        for (uint n = 0; n < 3; n++)
            machine.Put(StackTop + 4 * n, frame[n], 4);
        machine.Run(0xcf);
        ulong expected = cpl == 0 ? frame[2]
            : frame[2] & ~(Rflags.If | Rflags.Iopl | Rflags.Vif | Rflags.Vip);
        Assert.That(machine.State.Registers.Rflags, Is.EqualTo(expected));
    }

    /// <summary>A page fault on the inner stack leaves everything as it was, and comes again.</summary>
    [Test]
    public void AFaultOnTheInnerStackChangesNothing()
    {
        ProtectedMachine machine = new(CodeSize.Bits32, 3);
        machine.PutIdt(0x40, Gate(14, 3, CodeOf(0), Target));
        machine.State.Faulting[InnerTop - 1 >> 12] = true;
        var before = machine.Place;
        Segment stack = machine.State[SegmentName.Ss];
        Emulation result = machine.Run(0xcd, 0x40);
        Faulted(in result, Pf, 2);
        Assert.That(machine.Place, Is.EqualTo(before));
        Assert.That(machine.State[SegmentName.Ss], Is.EqualTo(stack));
        machine.State.Faulting.Clear();
        Assert.That(machine.State.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.State.Cpl, Is.Zero);
    }

    [TestCase(0x5b, Ts, 0x58u, TestName = "an inner stack of another level")]
    [TestCase(0, Ts, 0u, TestName = "no inner stack")]
    [TestCase(0x60, Ss, 0x60u, TestName = "an inner stack that is not present")]
    public void InnerStacksAreChecked(int stack, int vector, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits32, 3);
        machine.Put(Gdt + Free, machine.Entry(0x12, 0, present: false));
        machine.PutIdt(0x40, Gate(14, 3, CodeOf(0), Target));
        machine.Put(Tss + 8, (ulong)stack, 2);
        Faulted(machine.Run(0xcd, 0x40), vector, error);
        machine.State[SegmentName.Tr].Limit = 8;
        Faulted(machine.Run(0xcd, 0x40), Ts, TssSelector);
    }

    [Test]
    public void LongModeLeavesForCompatibilityMode()
    {
        ProtectedMachine machine = new(CodeSize.Bits64);
        machine.Put(Gdt + Free, 0x00cf9a000000ffff);
        // RETF with 48:, to 32-bit code.
        machine.Put(StackTop, Target);
        machine.Put(StackTop + 8, Free);
        Assert.That(machine.Run(0x48, 0xcb).Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.Place, Is.EqualTo((Free, DataOf(0), 0, Target, StackTop + 16, Rflags.Fixed)));
        // And back.
        Assert.That(machine.Run(FarPointer(0xea, CodeOf(0), CodeAt)).Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.State[SegmentName.Cs].Long, Is.True);
        machine.Put(Gdt + Free, 0x00ef9a000000ffff);
        machine.Put(StackTop + 24, Free);
        Faulted(machine.Run(0x48, 0xcb), Gp, Free, "L and D");
    }

    [TestCase(0x82ul, 0x60, -1, 0u, TestName = "LLDT")]
    [TestCase(0x82ul, 0, -1, 0u, TestName = "LLDT null")]
    [TestCase(0x02ul, 0x60, Np, 0x60u, TestName = "LLDT not present")]
    [TestCase(0x89ul, 0x60, Gp, 0x60u, TestName = "LLDT of a TSS")]
    [TestCase(0x82ul, 0x64, Gp, 0x64u, TestName = "LLDT from the LDT")]
    public void LoadLdt(ulong access, int selector, int vector, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        machine.Put(Gdt + Free, 0x0000_0005_4000_0fff | access << 40);
        machine.State.Registers[Gpr.Rax] = (ulong)selector;
        Emulation result = machine.Run(0x0f, 0x00, 0xd0);
        if (vector >= 0)
        {
            Faulted(in result, vector, error);
            return;
        }
        Segment ldt = machine.State[SegmentName.Ldtr];
        Assert.That((result.Outcome, ldt.Selector, ldt.Present), Is.EqualTo((Access.Done, selector, selector != 0)));
        Assert.That(ldt.Base, Is.EqualTo(selector != 0 ? 0x54000ul : 0));
    }

    [TestCase(9, -1, 0u)]
    [TestCase(1, -1, 0u)]
    [TestCase(11, Gp, 0x60u, TestName = "LTR of a busy task")]
    [TestCase(2, Gp, 0x60u, TestName = "LTR of an LDT")]
    public void LoadTaskRegister(int type, int vector, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        machine.Put(Gdt + Free, ProtectedMachine.System(type, 0, OtherTss, 0x67));
        machine.State.Registers[Gpr.Rax] = Free;
        Emulation result = machine.Run(0x0f, 0x00, 0xd8);
        if (vector >= 0)
        {
            Faulted(in result, vector, error);
            return;
        }
        Assert.That(machine.State[SegmentName.Tr].Type, Is.EqualTo(type | 2));
        Assert.That((int)machine.Get(Gdt + Free + 5, 1) & 15, Is.EqualTo(type | 2), "busy");
    }

    [TestCase("CE", true, 4)]
    [TestCase("CE", false, -1)]
    [TestCase("CC", false, 3)]
    [TestCase("F1", false, 1)]
    public void ShortForms(string code, bool overflow, int vector)
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        for (int n = 0; n < 8; n++)
            machine.PutIdt(n, Gate(15, 3, CodeOf(0), Target + (uint)n));
        machine.State.Registers.Rflags |= overflow ? Rflags.Of : 0;
        machine.Run(Convert.FromHexString(code));
        Assert.That(machine.State.Registers.Rip, Is.EqualTo(vector < 0 ? CodeAt + 1 : Target + (uint)vector));
    }

    /// <summary>IRETQ always takes a stack from the stack; level 3 has no null one.</summary>
    [TestCase(0, 0, 0, -1, 0u)]
    [TestCase(0, 3, 0x43, -1, 0u)]
    [TestCase(0, 3, 3, Gp, 0u)]
    [TestCase(0, 1, 0, Gp, 0u)]
    [TestCase(0, 1, 1, -1, 0u)]
    [TestCase(3, 3, 0x43, -1, 0u)]
    [TestCase(3, 0, 0, Gp, 8u)]
    public void LongModeReturns(int cpl, int level, int stack, int vector, uint error)
    {
        ProtectedMachine machine = new(CodeSize.Bits64, cpl);
        ulong[] frame = [Target, CodeOf(level), Rflags.Fixed | Rflags.Cf | Rflags.Rf, 0x60808, (ulong)stack];
        for (uint n = 0; n < 5; n++)
            machine.Put(StackTop + 8 * n, frame[n]);
        var before = machine.Place;
        Emulation result = machine.Run(0x48, 0xcf);
        if (vector >= 0)
        {
            Faulted(in result, vector, error);
            Assert.That(machine.Place, Is.EqualTo(before));
            return;
        }
        Assert.That(machine.Place, Is.EqualTo((CodeOf(level), (ushort)stack, level, Target, frame[3], frame[2])));
    }

    [TestCase("CD40", TestName = "INT n in long mode")]
    [TestCase("0F00D0", TestName = "LLDT in long mode")]
    [TestCase("FF1B", TestName = "CALL of a gate in long mode")]
    public void LongModeHasLongerDescriptors(string code)
    {
        ProtectedMachine machine = new(CodeSize.Bits64);
        machine.Put(Gdt + Free, Gate(12, 0, CodeOf(0), Target));
        machine.Put(0x40004, Free);
        machine.State.Registers[Gpr.Rbx] = 0x40000;
        var before = machine.Place;
        Assert.That(machine.Run(Convert.FromHexString(code)).Outcome, Is.EqualTo(Access.Unsupported));
        Assert.That(machine.Place, Is.EqualTo(before));
    }

    /// <summary>IRET with VM set, an interrupt in there, and IRET again.</summary>
    [TestCase(true, -1)]
    [TestCase(false, -1, TestName = "an exception in virtual-8086 mode")]
    [TestCase(false, 3, TestName = "a gate of virtual-8086 mode that leads to level 3")]
    public void VirtualModeAndBack(bool software, int wrong)
    {
        ProtectedMachine machine = new(CodeSize.Bits32);
        machine.PutIdt(0x40, Gate(14, 3, wrong < 0 ? CodeOf(0) : CodeOf(wrong), Target));
        ulong flags = Rflags.Fixed | Rflags.Vm | Rflags.Iopl | Rflags.If;
        ulong[] frame = [0x100, 0x2000, flags, 0x1000, 0x3000, 0x3001, 0x3002, 0x3003, 0x3004];
        for (uint n = 0; n < 9; n++)
            machine.Put(StackTop + 4 * n, frame[n], 4);
        Assert.That(machine.Run(0xcf).Outcome, Is.EqualTo(Access.Done));
        Assert.That(machine.Place, Is.EqualTo(((ushort)0x2000, (ushort)0x3000, 3, 0x100ul, 0x1000ul, flags)));
        SegmentName[] order = [SegmentName.Ss, SegmentName.Es, SegmentName.Ds, SegmentName.Fs, SegmentName.Gs];
        Segment[] virtuals = [.. order.Select(name => machine.State[name])];
        Assert.That(virtuals.Select(s => (ulong)s.Selector), Is.EqualTo(frame[4..]));
        Assert.That(virtuals.All(s => s.Base == (ulong)s.Selector << 4 && s is { Limit: 0xffff, Attributes: 0xf3 }));

        machine.State.Code(0x100, 0xcd, 0x40);
        Emulation result = software ? machine.State.Run() : machine.Deliver(new Fault { Vector = 0x40 });
        if (wrong >= 0)
        {
            Faulted(in result, Gp, CodeOf(wrong) & 0xfcu | 1);
            Assert.That(order.Select(name => machine.State[name]), Is.EqualTo(virtuals));
            return;
        }
        Assert.That(machine.Place, Is.EqualTo((CodeOf(0), DataOf(0), 0, Target, InnerTop - 36,
            Rflags.Fixed | Rflags.Iopl)));
        Assert.That(machine.Stack(9, 4), Is.EqualTo((ulong[])[software ? 0x102u : 0x100u, .. frame[1..]]));
        Assert.That(order[1..].All(name => machine.State[name] is { Present: false, Selector: 0 }));
        Assert.That(machine.Run(0xcf).Outcome, Is.EqualTo(Access.Done));
        Assert.That(order.Select(name => machine.State[name]), Is.EqualTo(virtuals));
    }

    [Test]
    public void SystemSegmentsAreTheKernels()
    {
        ProtectedMachine machine = new(CodeSize.Bits32, 3);
        Faulted(machine.Run(0x0f, 0x00, 0xd0), Gp, 0);
        Faulted(machine.Run(0x0f, 0x00, 0xd8), Gp, 0);
        machine.State.Cr0 = 0;
        Faulted(machine.Run(0x0f, 0x00, 0xd0), Fault.InvalidOpcode, 0);
    }
}
