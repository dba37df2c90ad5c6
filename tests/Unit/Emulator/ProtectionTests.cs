// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;

namespace SharpKvm.Tests.Emulator;

/// <summary>Exceptions as the processor gives them: segments, privilege, paging, alignment, illegal forms.</summary>
public class ProtectionTests
{
    private const int Ud = Fault.InvalidOpcode, Gp = Fault.GeneralProtection, Ss = Fault.StackSegment,
        Pf = Fault.PageFault, Ac = Fault.AlignmentCheck, De = Fault.DivideError, Np = Fault.SegmentNotPresent;

    private static FakeState State(CodeSize code, params byte[] bytes) =>
        new FakeState(code).Code(0x20000 & Top(code), bytes);

    /// <summary>16-bit code lies at the bottom of a segment based at 20000h.</summary>
    private static ulong Top(CodeSize code) => code == CodeSize.Bits16 ? 0u : ulong.MaxValue;

    private static FakeState Real(params byte[] bytes)
    {
        FakeState state = new(CodeSize.Bits16, real: true);
        state[SegmentName.Cs].Selector = 0x2000;
        state[SegmentName.Cs].Base = 0x20000;
        state[SegmentName.Ss].Base = state[SegmentName.Ds].Base = state[SegmentName.Es].Base = 0x30000;
        return state.Code(0x100, bytes);
    }

    /// <summary>Runs, expects this exception, and that nothing of the registers changed.</summary>
    private static void Raises(FakeState state, int vector, uint code = 0)
    {
        GuestRegisters before = state.Registers;
        Emulation result = state.RunServed();
        Assert.That(result.Outcome, Is.EqualTo(Access.Fault));
        bool hasCode = vector is Gp or Ss or Pf or Ac or Np or Fault.InvalidTss;
        Assert.That((result.Fault.Vector, new Vector(result.Fault.Vector).HasErrorCode, result.Fault.ErrorCode),
            Is.EqualTo(((byte)vector, hasCode, code)));
        Same(state.Registers, before);
    }

    private static void Same(GuestRegisters after, GuestRegisters before)
    {
        for (Gpr r = Gpr.Rax; r <= Gpr.R15; r++)
        {
            Assert.That(after[r], Is.EqualTo(before[r]), r.ToString());
        }
        Assert.That((after.Rip, after.Rflags), Is.EqualTo((before.Rip, before.Rflags)));
    }

    private static void Done(FakeState state, int length)
    {
        ulong rip = state.Registers.Rip;
        Assert.That(state.RunServed().Outcome, Is.EqualTo(Access.Done));
        Assert.That(state.Registers.Rip, Is.EqualTo(rip + (ulong)length));
    }

    [TestCase("0F0B", Ud, TestName = "UD2")]
    [TestCase("F08903", Ud, TestName = "LOCK MOV")]
    [TestCase("F001C3", Ud, TestName = "LOCK ADD with a register")]
    [TestCase("F00303", Ud, TestName = "LOCK ADD to a register")]
    [TestCase("F03903", Ud, TestName = "LOCK CMP")]
    [TestCase("8DC3", Ud, TestName = "LEA of a register")]
    [TestCase("0FC7C8", Ud, TestName = "CMPXCHG8B of a register")]
    [TestCase("8EC8", Ud, TestName = "MOV CS")]
    [TestCase("8EF0", Ud, TestName = "MOV to segment 6")]
    [TestCase("0F20C8", Ud, TestName = "MOV from CR1")]
    [TestCase("06", Ud, TestName = "PUSH ES")]
    [TestCase("60", Ud, TestName = "PUSHA")]
    [TestCase("F7F1", De, TestName = "DIV by zero")]
    [TestCase("66666666666666666666666666668B03", Gp, TestName = "16 bytes")]
    public void IllegalIn64Bits(string code, int vector) =>
        Raises(State(CodeSize.Bits64, Convert.FromHexString(code)), vector);

    [TestCase("F4", TestName = "HLT")]
    [TestCase("0F20C0", TestName = "MOV from CR0")]
    [TestCase("0F22C0", TestName = "MOV to CR0")]
    [TestCase("0F21F8", TestName = "MOV from DR7")]
    [TestCase("0F23F8", TestName = "MOV to DR7")]
    [TestCase("0F32", TestName = "RDMSR")]
    [TestCase("0F30", TestName = "WRMSR")]
    [TestCase("0F06", TestName = "CLTS")]
    [TestCase("0F09", TestName = "WBINVD")]
    [TestCase("0F013B", TestName = "INVLPG")]
    [TestCase("0F0113", TestName = "LGDT")]
    [TestCase("0F011B", TestName = "LIDT")]
    [TestCase("0F01F0", TestName = "LMSW")]
    [TestCase("FA", TestName = "CLI")]
    [TestCase("FB", TestName = "STI")]
    [TestCase("EC", TestName = "IN")]
    [TestCase("EE", TestName = "OUT")]
    [TestCase("6C", TestName = "INS")]
    [TestCase("6E", TestName = "OUTS")]
    public void UserModeMayNot(string code)
    {
        FakeState state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Cpl = 3;
        state.Registers[Gpr.Rbx] = 0x40000;
        Raises(state, Gp);
        Assert.That(state.Trace, Is.Empty);
    }

    [TestCase("0F0103")]
    [TestCase("0F010B")]
    [TestCase("0F0123")]
    public void UmipHidesTheTables(string code)
    {
        FakeState state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Registers[Gpr.Rbx] = 0x40000;
        state.Cpl = 3;
        Done(state, 3);
        state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Cpl = 3;
        state.Cr4 = 1 << 11;
        Raises(state, Gp);
    }

    [Test]
    public void UserMayUsePortsByIopl()
    {
        FakeState state = State(CodeSize.Bits64, 0xec);
        state.Cpl = 3;
        state.Registers.Rflags |= Rflags.Iopl;
        state.Registers[Gpr.Rdx] = 0x60;
        Done(state, 1);
        Assert.That(state.Registers[Gpr.Rax], Is.EqualTo(0x60));
    }

    [TestCase(0x60, "EC", false)]
    [TestCase(0x61, "EC", true)]
    [TestCase(0x60, "ED", true)]
    [TestCase(0x3ff, "EC", true, TestName = "beyond the limit")]
    public void UserMayUsePortsByTheBitmap(int port, string code, bool faults)
    {
        FakeState state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Cpl = 3;
        state[SegmentName.Tr] = new Segment { Base = 0x50000, Limit = 0x68 + 0x20, Attributes = 0x8b };
        state.At(0x50066, 1)[0] = 0x68;
        state.At(0x50068 + 0x60 / 8, 1)[0] = 2;
        state.Registers[Gpr.Rdx] = (ulong)port;
        if (faults)
        {
            Raises(state, Gp);
        }
        else
        {
            Done(state, 1);
        }
    }

    [TestCase("8B03", 0x0000800000000000ul, Gp, TestName = "MOV beyond the lower half")]
    [TestCase("8B03", 0x00007ffffffffffdul, Gp, TestName = "MOV across the border")]
    [TestCase("368B03", 0x0000800000000000ul, Gp, TestName = "an ignored SS override")]
    [TestCase("FF23", 0x40000ul, Gp, TestName = "JMP to a non-canonical address")]
    [TestCase("FF13", 0x40000ul, Gp, TestName = "CALL to a non-canonical address")]
    public void NonCanonical(string code, ulong rbx, int vector)
    {
        FakeState state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Registers[Gpr.Rbx] = rbx;
        state.Registers[Gpr.Rsp] = 0x60000;
        BitConverter.TryWriteBytes(state.At(0x40000, 8), 0x1234567812345678);
        Raises(state, vector);
    }

    [Test]
    public void ANonCanonicalStackIsAStackFault()
    {
        FakeState state = State(CodeSize.Bits64, 0x50);
        state.Registers[Gpr.Rsp] = 0x8000000000000000;
        Raises(state, Ss);
        state = State(CodeSize.Bits64, 0x8b, 0x45, 0x00);
        state.Registers[Gpr.Rbp] = 0x8000000000000000;
        Raises(state, Ss);
    }

    [Test]
    public void ReturnToANonCanonicalAddressFaultsAtTheReturn()
    {
        FakeState state = State(CodeSize.Bits64, 0xc3);
        state.Registers[Gpr.Rsp] = 0x40000;
        BitConverter.TryWriteBytes(state.At(0x40000, 8), 0x8123456789abcdef);
        Raises(state, Gp);
    }

    [TestCase(0xfffcu, true)]
    [TestCase(0xfffdu, false)]
    public void TheLimitHoldsForTheLastByte(uint offset, bool inside)
    {
        FakeState state = State(CodeSize.Bits32, 0x8b, 0x03);
        state[SegmentName.Ds].Limit = 0xffff;
        state[SegmentName.Ds].Base = 0x30000;
        state.Registers[Gpr.Rbx] = offset;
        if (inside)
        {
            Done(state, 2);
        }
        else
        {
            Raises(state, Gp);
        }
    }

    [TestCase(0xffffu, false)]
    [TestCase(0x10000u, true)]
    public void AnExpandDownSegmentIsAboveItsLimit(uint offset, bool inside)
    {
        FakeState state = State(CodeSize.Bits32, 0x8a, 0x03);
        state[SegmentName.Ds].Attributes |= 4;
        state[SegmentName.Ds].Limit = 0xffff;
        state.Registers[Gpr.Rbx] = offset;
        if (inside)
        {
            Done(state, 2);
        }
        else
        {
            Raises(state, Gp);
        }
    }

    [TestCase(1, "8903", TestName = "write to read-only data")]
    [TestCase(0x9, "8B03", TestName = "read of execute-only code")]
    [TestCase(0xb, "8903", TestName = "write to code")]
    [TestCase(1, "F60303", true, TestName = "TEST of read-only data")]
    [TestCase(1, "800301", TestName = "ADD to read-only data")]
    [TestCase(1, "0FBA2301", true, TestName = "BT of read-only data")]
    public void TheSegmentTypeCounts(int type, string code, bool permitted = false)
    {
        byte[] bytes = Convert.FromHexString(code);
        FakeState state = State(CodeSize.Bits32, bytes);
        state[SegmentName.Ds].Attributes = (ushort)(state[SegmentName.Ds].Attributes & ~15 | type);
        state.Registers[Gpr.Rbx] = 0x40000;
        if (permitted)
        {
            Done(state, bytes.Length);
        }
        else
        {
            Raises(state, Gp);
        }
    }

    [Test]
    public void ANullSegmentFaults()
    {
        FakeState state = State(CodeSize.Bits32, 0x8b, 0x03);
        state[SegmentName.Ds] = default;
        Raises(state, Gp);
    }

    [TestCase("0103", 2u, TestName = "ADD says write")]
    [TestCase("0303", 0u, TestName = "ADD from memory says read")]
    [TestCase("0FB10B", 2u, TestName = "CMPXCHG says write")]
    [TestCase("8703", 2u, TestName = "XCHG says write")]
    public void APageFaultSaysWhatItWas(string code, uint error)
    {
        FakeState state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Registers[Gpr.Rbx] = 0x40ffe;
        state.Faulting[0x41] = false;
        Raises(state, Pf, error);
        Assert.That(state.Run().Fault.Address, Is.EqualTo(0x41000));
    }

    [Test]
    public void AnInstructionAtAPagesEndDoesNotTouchTheNext()
    {
        FakeState state = State(CodeSize.Bits64);
        state.Faulting[0x21] = false;
        state.Code(0x20ffe, 0x89, 0xd8);
        Done(state, 2);
        state.Code(0x20ffe, 0x89, 0x83);
        Raises(state, Pf);
        Assert.That(state.Run().Fault.Address, Is.EqualTo(0x21000));
    }

    [Test]
    public void AlignmentIsCheckedForUsers()
    {
        FakeState state = State(CodeSize.Bits64, 0x8b, 0x03);
        state.Cr0 |= 1 << 18;
        state.Registers.Rflags |= Rflags.Ac;
        state.Registers[Gpr.Rbx] = 0x40002;
        Done(state, 2);
        state.Registers.Rip = 0x20000;
        state.Cpl = 3;
        Raises(state, Ac);
    }

    [Test]
    public void Cmpxchg16bMustBeAligned()
    {
        FakeState state = State(CodeSize.Bits64, 0x48, 0x0f, 0xc7, 0x0b);
        state.Registers[Gpr.Rbx] = 0x40008;
        Raises(state, Gp);
    }

    [TestCase(0x80000000u, 0xffffffffu, "F7F9", TestName = "IDIV of the least number by -1")]
    [TestCase(0u, 1u, "F7F1", TestName = "DIV with a quotient of 33 bits")]
    public void DivideOverflowIsTheGuests(uint eax, uint ecxOrEdx, string code)
    {
        FakeState state = State(CodeSize.Bits64, Convert.FromHexString(code));
        state.Registers[Gpr.Rax] = eax;
        state.Registers[Gpr.Rcx] = ecxOrEdx;
        state.Registers[Gpr.Rdx] = ecxOrEdx;
        Raises(state, De);
    }

    /// <summary>Descriptor 10h of a table at 50000h.</summary>
    private static FakeState Descriptor(byte[] code, ushort selector, ulong descriptor, int cpl = 0)
    {
        FakeState state = State(CodeSize.Bits32, code);
        state.Gdtr = new DescriptorTable { Base = 0x50000, Limit = 0x17 };
        BitConverter.TryWriteBytes(state.At(0x50010, 8), descriptor);
        state.Registers[Gpr.Rax] = selector;
        state.Cpl = cpl;
        return state;
    }

    private const ulong FlatData = 0x00cf92000000ffff, FlatCode = 0x00cf9a000000ffff;

    [TestCase(0x10, FlatData, 0, -1, 0u, TestName = "DS flat")]
    [TestCase(0x0, FlatData, 0, -1, 0u, TestName = "DS null")]
    [TestCase(0x10, FlatCode, 0, -1, 0u, TestName = "DS readable code")]
    [TestCase(0x10, 0x00cf98000000fffful, 0, Gp, 0x10u, TestName = "DS execute-only code")]
    [TestCase(0x13, FlatData, 0, Gp, 0x10u, TestName = "DS with an RPL above its DPL")]
    [TestCase(0x10, FlatData, 3, Gp, 0x10u, TestName = "DS of the kernel for a user")]
    [TestCase(0x10, 0x00cf12000000fffful, 0, Np, 0x10u, TestName = "DS not present")]
    [TestCase(0x18, FlatData, 0, Gp, 0x18u, TestName = "DS beyond the table")]
    [TestCase(0x14, FlatData, 0, Gp, 0x14u, TestName = "DS from no LDT")]
    [TestCase(0x10, 0x0000890000000067ul, 0, Gp, 0x10u, TestName = "DS with a TSS")]
    public void MovToDs(int selector, ulong descriptor, int cpl, int vector, uint error)
    {
        FakeState state = Descriptor([0x8e, 0xd8], (ushort)selector, descriptor, cpl);
        if (vector >= 0)
        {
            Raises(state, vector, error);
            return;
        }
        Done(state, 2);
        Segment ds = state[SegmentName.Ds];
        Assert.That(ds.Selector, Is.EqualTo(selector));
        Assert.That(ds.Present, Is.EqualTo(selector != 0));
        if (selector != 0)
        {
            Assert.That((ds.Base, ds.Limit, ds.Attributes & 1), Is.EqualTo((0ul, uint.MaxValue, 1)));
            Assert.That(state.At(0x50015, 1)[0] & 1, Is.EqualTo(1), "accessed");
        }
    }

    [TestCase(0x10, FlatData, 0, -1, 0u, TestName = "SS flat")]
    [TestCase(0x0, FlatData, 0, Gp, 0u, TestName = "SS null")]
    [TestCase(0x13, FlatData, 0, Gp, 0x10u, TestName = "SS with a wrong RPL")]
    [TestCase(0x10, FlatCode, 0, Gp, 0x10u, TestName = "SS code")]
    [TestCase(0x10, 0x00cf90000000fffful, 0, Gp, 0x10u, TestName = "SS read-only")]
    [TestCase(0x10, 0x00cf12000000fffful, 0, Ss, 0x10u, TestName = "SS not present")]
    public void MovToSs(int selector, ulong descriptor, int cpl, int vector, uint error)
    {
        FakeState state = Descriptor([0x8e, 0xd0], (ushort)selector, descriptor, cpl);
        if (vector >= 0)
        {
            Raises(state, vector, error);
            return;
        }
        Emulation result = state.Run();
        Assert.That((result.Outcome, result.Shadow), Is.EqualTo((Access.Done, Shadow.MovSs)));
    }

    [Test]
    public void RealModeSegmentsKeepTheirLimits()
    {
        FakeState state = Real(0x8e, 0xd8);
        state[SegmentName.Ds].Limit = uint.MaxValue;
        state.Registers[Gpr.Rax] = 0x1234;
        Done(state, 2);
        Assert.That((state[SegmentName.Ds].Base, state[SegmentName.Ds].Limit), Is.EqualTo((0x12340ul, uint.MaxValue)));
    }

    [Test]
    public void RealModeAddressesWrapAt64KAndFaultAcross()
    {
        FakeState state = Real(0x8b, 0x00);
        state.Registers[Gpr.Rbx] = 0xfff0;
        state.Registers[Gpr.Rsi] = 0x0020;
        state.At(0x30010, 1)[0] = 0x55;
        Done(state, 2);
        Assert.That(state.Registers[Gpr.Rax], Is.EqualTo(0x55));
        state.Registers.Rip = 0x100;
        state.Registers[Gpr.Rsi] = 0x000f;
        Raises(state, Gp);
    }

    [Test]
    public void RealModeInterruptAndReturn()
    {
        FakeState state = Real(0xcd, 0x10);
        state.Idtr = new DescriptorTable { Base = 0x10000, Limit = 0x3ff };
        BitConverter.TryWriteBytes(state.At(0x10040, 4), 0x20000200u);
        state.Code(0x200, 0xcf);
        state.Registers.Rip = 0x100;
        state.Registers[Gpr.Rsp] = 0x1000;
        state.Registers.Rflags |= Rflags.If | Rflags.Cf;
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((state.Registers.Rip, state[SegmentName.Cs].Base), Is.EqualTo((0x200ul, 0x20000ul)));
        Assert.That(state.Registers.Rflags & Rflags.If, Is.Zero);
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((state.Registers.Rip, state.Registers[Gpr.Rsp]), Is.EqualTo((0x102ul, 0x1000ul)));
        Assert.That(state.Registers.Rflags & Rflags.If, Is.EqualTo(Rflags.If));
    }

    [Test]
    public void ARealModeInterruptStaysWithinTheSegment()
    {
        FakeState state = Real(0xcd, 0x10);
        state.Idtr = new DescriptorTable { Base = 0x10000, Limit = 0x3ff };
        state[SegmentName.Cs].Limit = 0x1ff;
        BitConverter.TryWriteBytes(state.At(0x10040, 4), 0x20000200u);
        state.Registers[Gpr.Rsp] = 0x1000;
        Raises(state, Gp);
    }

    [Test]
    public void RealModeFarJump()
    {
        FakeState state = Real(0xea, 0x34, 0x12, 0x00, 0x40);
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((state.Registers.Rip, state[SegmentName.Cs].Base), Is.EqualTo((0x1234ul, 0x40000ul)));
    }

    [TestCase("D9C0", 8)]
    [TestCase("0F6F03", 8)]
    [TestCase("C5F81003", 8)]
    [TestCase("0F05", 8)]
    public void TheRestIsReportedWithItsBytes(string code, int size)
    {
        byte[] bytes = Convert.FromHexString(code);
        FakeState state = State((CodeSize)size, bytes);
        GuestRegisters before = state.Registers;
        Emulation result = state.Run();
        Assert.That(result.Outcome, Is.EqualTo(Access.Unsupported));
        Assert.That(((ReadOnlySpan<byte>)state.Fetched.Bytes)[..bytes.Length].ToArray(), Is.EqualTo(bytes));
        Assert.That(state.Fetched.ByteCount, Is.EqualTo(15));
        Same(state.Registers, before);
    }

    [TestCase("0F01C1", true)]
    [TestCase("0F01D9", true)]
    [TestCase("0F01C2", false)]
    [TestCase("0F01D8", false)]
    public void Hypercalls(string code, bool known)
    {
        FakeState state = State(CodeSize.Bits32, Convert.FromHexString(code));
        Assert.That(state.Run().Outcome, Is.EqualTo(known ? Access.Done : Access.Unsupported));
        Assert.That(state.Trace, Is.EqualTo(known ? ["hypercall"] : Array.Empty<string>()));
    }

    [Test]
    public void ShadowsAndSingleStep()
    {
        FakeState state = State(CodeSize.Bits64, 0xfb);
        Assert.That(state.Run().Shadow, Is.EqualTo(Shadow.Sti));
        state.Registers.Rip = 0x20000;
        Assert.That(state.Run().Shadow, Is.EqualTo(Shadow.None), "IF was set already");
        state = State(CodeSize.Bits64, 0x90);
        state.Registers.Rflags |= Rflags.Tf | Rflags.Rf;
        Assert.That(state.Run().SingleStep, Is.True);
        Assert.That(state.Registers.Rflags & Rflags.Rf, Is.Zero);
        state = State(CodeSize.Bits64, 0xf3, 0xaa);
        state.Registers.Rflags |= Rflags.Tf;
        state.Registers[Gpr.Rcx] = 3;
        state.Registers[Gpr.Rdi] = 0x40000;
        Assert.That(state.Run().SingleStep, Is.True);
        Assert.That((state.Registers[Gpr.Rcx], state.Registers.Rip), Is.EqualTo((2ul, 0x20000ul)), "one iteration");
    }

    [Test]
    public void ARepStopsForAnEvent()
    {
        FakeState state = State(CodeSize.Bits64, 0xf3, 0xaa);
        state.Registers[Gpr.Rcx] = 3;
        state.Registers[Gpr.Rdi] = 0x40000;
        state.Yield = true;
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That((state.Registers[Gpr.Rcx], state.Registers.Rip), Is.EqualTo((2ul, 0x20000ul)));
        state.Yield = false;
        state.Registers[Gpr.Rcx] = 1_000_000;
        Assert.That(state.Run().Outcome, Is.EqualTo(Access.Done));
        Assert.That(state.Registers[Gpr.Rcx], Is.GreaterThan(990_000), "bounded");
    }

    [TestCase(3, 0u, 0x246u)]
    [TestCase(0, 0u, 0x3246u)]
    [TestCase(3, 3u, 0x3246u)]
    public void PopfChangesWhatThePrivilegeAllows(int cpl, uint iopl, uint expected)
    {
        FakeState state = State(CodeSize.Bits64, 0x9d);
        state.Cpl = cpl;
        state.Registers.Rflags |= Rflags.If | iopl << 12;
        state.Registers[Gpr.Rsp] = 0x40000;
        BitConverter.TryWriteBytes(state.At(0x40000, 8), 0x3246ul);
        Done(state, 1);
        Assert.That(state.Registers.Rflags, Is.EqualTo(expected));
    }

    [Test]
    public void RandomBytesNeverBreakTheEmulator()
    {
        Gen<CodeSize> codes = Gen.OneOfConst(CodeSize.Bits16, CodeSize.Bits32, CodeSize.Bits64);
        Gen.Select(Gen.Byte.Array[15], codes, Gen.Bool, Gen.Int[0, 3], Gen.ULong.Array[17]).Sample(
            (bytes, code, real, cpl, values) =>
            {
                FakeState state = Shared;
                state.Reset(code, real && code == CodeSize.Bits16, real ? 0 : cpl);
                state.Code(0x20000 & Top(code), bytes);
                for (int r = 0; r < 16; r++)
                {
                    // Half of them are addresses in memory.
                    state.Registers[(Gpr)r] = (values[r] & 1) == 0 ? values[r] & 0xfffff : values[r];
                }
                state.Registers.Rflags = values[16] & 0x3cd5 | 2;
                GuestRegisters before = state.Registers;
                Emulation result = state.Run();
                if (result.Outcome is Access.Fault or Access.Unsupported && state.Retired == 0)
                {
                    Same(state.Registers, before);
                }
                Assert.That(state.Fetched.ByteCount, Is.LessThanOrEqualTo(15));
            }, iter: 200_000, threads: 1);
    }

    private static readonly FakeState Shared = new(CodeSize.Bits64);
}
