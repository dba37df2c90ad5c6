// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

[TestFixture]
internal sealed class PicTests
{
    private const ushort Master = 0x20, MasterData = 0x21, Slave = 0xa0, SlaveData = 0xa1;
    private const ushort MasterTriggers = 0x4d0, SlaveTriggers = 0x4d1;
    private const byte Eoi = 0x20, SpecificEoi = 0x60, SetPriority = 0xc0;
    private const byte RotateOnEoi = 0xa0, RotateOnSpecificEoi = 0xe0;
    private const byte ReadIrr = 0x0a, ReadIsr = 0x0b, Poll = 0x0c, SetSpecialMask = 0x68, ClearSpecialMask = 0x48;
    private const byte AutoEoi = 0x03, SpecialFullyNested = 0x11;

    private static readonly ushort[] s_ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];

    private Pic _pic;

    [SetUp]
    public void SetUp()
    {
        _pic = default;
        _pic.Reset();
        Initialize();
    }

    [Test]
    public void ServesTheHighestPriorityFirst()
    {
        Pulse(5, 3, 12);
        Assert.That(Isr(Master), Is.Zero);
        Assert.That(Irr(Master), Is.EqualTo(1 << 5 | 1 << 3 | 1 << 2));
        Assert.That(Take(), Is.EqualTo(0x44), "the slave is at input 2");
        Assert.That((Isr(Master), Isr(Slave)), Is.EqualTo((1 << 2, 1 << 4)));
        Assert.That(_pic.Output, Is.False, "3 and 5 come after 2");
        _pic.Write(Slave, Eoi);
        _pic.Write(Master, Eoi);
        Assert.That(Take(), Is.EqualTo(0x33));
        Pulse(0);
        Assert.That(Take(), Is.EqualTo(0x30), "interrupts the service of 3");
        Assert.That(Isr(Master), Is.EqualTo(1 | 1 << 3));
        _pic.Write(Master, Eoi);
        Assert.That(Isr(Master), Is.EqualTo(1 << 3), "the one of highest priority ends");
        _pic.Write(Master, Eoi);
        Assert.That(Take(), Is.EqualTo(0x35));
        Assert.That(_pic.TakeAcknowledged(), Is.EqualTo(1u << 12 | 1 << 2 | 1 << 0 | 1 << 3));
        Assert.That(_pic.TakeAcknowledged(), Is.Zero);
    }

    [Test]
    public void AnEdgeIsKeptAndComesOnce()
    {
        Assert.That(_pic.SetLine(5, true), Is.EqualTo(LineStatus.Delivered));
        Assert.That(_pic.SetLine(5, true), Is.EqualTo(LineStatus.Delivered), "no edge, nothing is lost");
        Assert.That(_pic.SetLine(5, false), Is.EqualTo(LineStatus.Delivered));
        Assert.That(_pic.Output, Is.True);
        Assert.That(_pic.SetLine(5, true), Is.EqualTo(LineStatus.Coalesced));
        Assert.That(Take(), Is.EqualTo(0x35));
        _pic.Write(Master, Eoi);
        Assert.That(_pic.Output, Is.False, "the line is still high");
        _pic.SetLine(5, false);
        Assert.That(_pic.SetLine(5, true), Is.EqualTo(LineStatus.Delivered));
        Assert.That(_pic.Output, Is.True);
    }

    [Test]
    public void ALineThatIsLevelTriggeredAsksUntilItFalls()
    {
        _pic.Write(MasterTriggers, 1 << 5);
        _pic.Write(SlaveTriggers, 1 << 3);
        Assert.That(_pic.SetLine(5, true), Is.EqualTo(LineStatus.Delivered));
        Assert.That(_pic.SetLine(5, true), Is.EqualTo(LineStatus.Coalesced));
        Assert.That(Take(), Is.EqualTo(0x35));
        Assert.That(_pic.Output, Is.False, "in service");
        _pic.Write(Master, Eoi);
        Assert.That(Take(), Is.EqualTo(0x35), "the line is still high");
        _pic.SetLine(5, false);
        _pic.Write(Master, Eoi);
        Assert.That(_pic.Output, Is.False);

        _pic.SetLine(11, true);
        for (int i = 0; i < 3; i++)
        {
            Assert.That(Take(), Is.EqualTo(0x43));
            _pic.Write(Slave, Eoi);
            _pic.Write(Master, Eoi);
        }
    }

    [Test]
    public void TriggersCanBeChangedWhereThePcHasThem()
    {
        _pic.Write(MasterTriggers, 0xff);
        _pic.Write(SlaveTriggers, 0xff);
        Assert.That((_pic.Read(MasterTriggers), _pic.Read(SlaveTriggers)), Is.EqualTo((0xf8, 0xde)));
        _pic.Write(MasterTriggers, 0);
        _pic.SetLine(6, true);
        Assert.That(Take(), Is.EqualTo(0x36));
        _pic.Write(Master, Eoi);
        _pic.Write(MasterTriggers, 1 << 6);
        Assert.That(_pic.Output, Is.True, "a high line asks as soon as its level counts");
    }

    [Test]
    public void WithNothingToServeTheVectorIsThatOfInput7()
    {
        Assert.That(_pic.Acknowledge(), Is.EqualTo(0x37));
        Assert.That(Isr(Master), Is.Zero);

        // The slave has asked, but its request is gone when the CPU comes for it.
        Pulse(12);
        _pic.Write(SlaveData, 0xff);
        Assert.That(Take(), Is.EqualTo(0x47));
        Assert.That((Isr(Master), Isr(Slave)), Is.EqualTo((1 << 2, 0)));
        _pic.Write(Master, Eoi);
        _pic.Write(SlaveData, 0);
        Assert.That(Take(), Is.EqualTo(0x44));
    }

    [Test]
    public void AMaskHoldsARequestBack()
    {
        _pic.Write(MasterData, 1 << 4);
        Assert.That(_pic.SetLine(4, true), Is.EqualTo(LineStatus.Masked));
        Assert.That(_pic.Output, Is.False);
        Assert.That(_pic.Read(MasterData), Is.EqualTo(1 << 4));
        _pic.SetLine(4, false);
        _pic.Write(MasterData, 0);
        Assert.That(Take(), Is.EqualTo(0x34));
        Pulse(5);
        _pic.Write(Master, Eoi);
        Assert.That(_pic.Output, Is.True);
        _pic.Write(MasterData, 1 << 5);
        Assert.That(_pic.Output, Is.False, "masked while it waits");
    }

    [Test]
    public void ASpecificEoiEndsTheOneItNames()
    {
        Pulse(5);
        Take();
        Pulse(1);
        Take();
        _pic.Write(Master, SpecificEoi | 5);
        Assert.That(Isr(Master), Is.EqualTo(1 << 1));
        Assert.That(_pic.TakeAcknowledged(), Is.EqualTo(1u << 5));
        _pic.Write(Master, SpecificEoi | 7);
        Assert.That(Isr(Master), Is.EqualTo(1 << 1));
        Assert.That(_pic.TakeAcknowledged(), Is.Zero, "it was not in service");
    }

    [Test]
    public void RotationPutsTheServedOneLast()
    {
        Pulse(3, 4);
        Take();
        _pic.Write(Master, RotateOnEoi);
        Pulse(3);
        Assert.That(Take(), Is.EqualTo(0x34), "3 is last now");
        Pulse(5, 2);
        _pic.Write(Master, RotateOnSpecificEoi | 4);
        Assert.That(Take(), Is.EqualTo(0x35), "5 is first now");
        _pic.Write(Master, Eoi);
        _pic.Write(Master, SetPriority | 1);
        Assert.That(Take(), Is.EqualTo(0x47), "2 is first, where the slave has nothing");
        Assert.That(Isr(Master), Is.EqualTo(1 << 2));
        _pic.Write(Master, Eoi);
        Assert.That(Take(), Is.EqualTo(0x33));
    }

    [Test]
    public void AutomaticEoiLeavesNothingInService()
    {
        Initialize(AutoEoi);
        Pulse(3, 4, 12);
        Assert.That(Take(), Is.EqualTo(0x44));
        Assert.That((Isr(Master), Isr(Slave)), Is.EqualTo((0, 0)));
        Assert.That(Take(), Is.EqualTo(0x33));
        Pulse(3);
        _pic.Write(Master, 0x80);
        Assert.That(Take(), Is.EqualTo(0x33));
        Pulse(3);
        Assert.That(Take(), Is.EqualTo(0x34), "rotates");
        _pic.Write(Master, 0);
        Assert.That(Take(), Is.EqualTo(0x33));
        Pulse(3, 4);
        Assert.That(Take(), Is.EqualTo(0x33), "the order stays as it is");
    }

    [Test]
    public void SpecialMaskModeLetsLowerOnesIn()
    {
        Pulse(3, 5);
        Take();
        Assert.That(_pic.Output, Is.False);
        _pic.Write(MasterData, 1 << 3);
        _pic.Write(Master, SetSpecialMask);
        Assert.That(Take(), Is.EqualTo(0x35));
        _pic.Write(Master, Eoi);
        Assert.That(Isr(Master), Is.EqualTo(1 << 3), "the masked one is left alone");
        _pic.Write(Master, ClearSpecialMask);
        Pulse(5);
        Assert.That(_pic.Output, Is.False);
        _pic.Write(Master, Eoi);
        Assert.That(Isr(Master), Is.Zero);
    }

    [Test]
    public void InSpecialFullyNestedModeTheSlaveInterruptsItself()
    {
        Pulse(12);
        Take();
        Pulse(9);
        Assert.That(_pic.Output, Is.False);
        _pic.Write(Master, Eoi);
        Assert.That(Take(), Is.EqualTo(0x41));

        Initialize(SpecialFullyNested);
        Pulse(12, 3);
        Take();
        Assert.That(_pic.Output, Is.False, "not for a lower one of the master");
        Pulse(9);
        Assert.That(Take(), Is.EqualTo(0x41));
        Assert.That(Isr(Slave), Is.EqualTo(1 << 4 | 1 << 1));
        Pulse(10);
        Assert.That(_pic.Output, Is.False, "nor for a lower one of the slave, 10 comes after 9");
        Pulse(0);
        Assert.That(Take(), Is.EqualTo(0x30));
        Pulse(8);
        Assert.That(_pic.Output, Is.False, "nor past what comes before the slave");
    }

    [Test]
    public void PollingTakesTheInterrupt()
    {
        Assert.That(PollOf(Master), Is.Zero);
        Pulse(5, 12);
        Assert.That(PollOf(Slave), Is.EqualTo(0x84));
        Assert.That(Isr(Slave), Is.EqualTo(1 << 4));
        Assert.That(PollOf(MasterData), Is.EqualTo(0x85), "the slave's request is gone");
        Assert.That(_pic.Read(MasterData), Is.Zero, "one poll, one answer");
        Assert.That(Isr(Master), Is.EqualTo(1 << 5));
        Assert.That(_pic.Output, Is.False);

        byte PollOf(ushort port)
        {
            _pic.Write((ushort)(port & 0xfe), Poll);
            return _pic.Read(port);
        }
    }

    [Test]
    public void InitializationTakesUpToFourWords()
    {
        _pic.Write(MasterTriggers, 1 << 7);
        _pic.Write(MasterData, 0xff);
        Pulse(3);
        _pic.SetLine(4, true);
        _pic.SetLine(7, true);
        _pic.Write(MasterData, 0);
        Take();
        _pic.TakeAcknowledged();
        _pic.Write(Master, ReadIsr);
        _pic.Write(Master, 0x11);
        Assert.That((_pic.Read(Master), Isr(Master), _pic.Read(MasterData)), Is.EqualTo((1 << 7, 0, 0)),
            "reads IRR again, edges are gone, the level is not, nothing is masked");
        Assert.That(_pic.TakeAcknowledged(), Is.EqualTo(1u << 3 | 1 << 4), "nobody will end these any more");
        _pic.Write(MasterData, 0x5b);
        _pic.Write(MasterData, 4);
        _pic.Write(MasterData, 1);
        Assert.That(_pic.Read(MasterData), Is.Zero, "none of these was a mask");
        _pic.SetLine(4, true);
        Assert.That(Take(), Is.EqualTo(0x5f), "the line of 4 must fall first");
        _pic.SetLine(4, false);
        _pic.SetLine(4, true);
        Assert.That(Take(), Is.EqualTo(0x5c));

        _pic.Write(Master, 0x10);
        _pic.Write(MasterData, 0x60);
        _pic.Write(MasterData, 4);
        _pic.Write(MasterData, 0x7f);
        Assert.That(_pic.Read(MasterData), Is.EqualTo(0x7f), "without ICW4 there are three");
    }

    [Test]
    public void OwnsItsPortsOnly()
    {
        IEnumerable<int> owned = Enumerable.Range(0, 0x10000).Where(port => Pic.Owns((ushort)port));
        Assert.That(owned, Is.EqualTo(s_ports.Select(port => (int)port)));
    }

    [Test]
    public void ResetIsAsAfterPowerOn()
    {
        Pulse(5, 12);
        Take();
        _pic.Reset();
        Assert.That(_pic.Output, Is.False);
        Assert.That((_pic.Get(0).elcr_mask, _pic.Get(1).elcr_mask), Is.EqualTo((0xf8, 0xde)));
        Assert.That((Isr(Master), Isr(Slave), Irr(Slave), _pic.TakeAcknowledged()), Is.EqualTo((0, 0, 0, 0u)));
    }

    private enum Kind
    {
        Line, Acknowledge, Read, Write, Initialize, Take,
    }

    private static readonly Gen<byte> s_commands = Gen.Frequency(
        (6, Gen.Byte.Select(value => (byte)(value & 0xe7))),
        (3, Gen.Byte.Select(value => (byte)(value & 0x67 | 8))),
        (1, Gen.Byte.Select(value => (byte)(value & 0x0f | 0x10))));

    /// <summary>What is written to a port: commands of all kinds, and masks that leave something open.</summary>
    private static readonly Gen<(Kind Kind, ushort Place, byte Value)> s_operations = Gen.Frequency(
        (8, Gen.Select(Gen.Const(Kind.Line), Gen.UShort[0, 15], Gen.Byte[0, 1])),
        (4, Gen.Const((Kind.Acknowledge, (ushort)0, (byte)0))),
        (3, Gen.Select(Gen.Const(Kind.Read), Gen.OneOfConst(s_ports), Gen.Const((byte)0))),
        (3, Gen.Select(Gen.Const(Kind.Write), Gen.OneOfConst(Master, Slave), s_commands)),
        (1, Gen.Select(Gen.Const(Kind.Write), Gen.OneOfConst(MasterData, SlaveData), Gen.OneOf(
            Gen.Byte, Gen.Select(Gen.Byte, Gen.Byte, (a, b) => (byte)(a & b)), Gen.Const((byte)0)))),
        (1, Gen.Select(Gen.Const(Kind.Write), Gen.OneOfConst(MasterTriggers, SlaveTriggers), Gen.Byte)),
        (3, Gen.Select(Gen.Const(Kind.Write), Gen.OneOfConst(Master, Slave), Gen.Const(Eoi))),
        (1, Gen.Select(Gen.Const(Kind.Initialize), Gen.OneOfConst(Master, Slave), Gen.Byte)),
        (1, Gen.Const((Kind.Take, (ushort)0, (byte)0))));

    /// <summary>The whole pair against the model; the state goes to user space and comes back now and then.</summary>
    [Test]
    public void BehavesAsTheModel() => s_operations.Array[1, 200].Sample(operations =>
    {
        Pic pic = default;
        pic.Reset();
        PicModel model = new();
        int step = 0;
        foreach ((Kind kind, ushort place, byte value) in operations)
        {
            switch (kind)
            {
                case Kind.Line:
                    Assert.That((int)pic.SetLine(place, value != 0), Is.EqualTo(model.SetLine(place, value != 0)));
                    break;
                case Kind.Acknowledge:
                    Assert.That(pic.Acknowledge(), Is.EqualTo(model.Acknowledge()));
                    break;
                case Kind.Read:
                    Assert.That(pic.Read(place), Is.EqualTo(model.Read(place)));
                    break;
                case Kind.Write:
                    pic.Write(place, value);
                    model.Write(place, value);
                    break;
                case Kind.Initialize:
                    foreach ((int port, byte word) in new[] { (0, (byte)0x11), (1, value), (1, (byte)0), (1, value) })
                    {
                        pic.Write((ushort)(place + port), word);
                        model.Write((ushort)(place + port), word);
                    }
                    break;
                case Kind.Take:
                    Assert.That(pic.TakeAcknowledged(), Is.EqualTo(model.TakeAcknowledged()));
                    break;
            }
            Assert.That(pic.Output, Is.EqualTo(model.Output));
            if (++step % 7 == 0)
                pic = Copy(pic);
        }
        Assert.That(pic.TakeAcknowledged(), Is.EqualTo(model.TakeAcknowledged()));
    }, iter: 1000);

    /// <summary>Any state is taken, what comes back is one that the chip can have, nothing faults afterwards.</summary>
    [Test]
    public void TakesAnyState() => Gen.Select(Gen.Byte.Array[32], s_operations.Array[0, 60]).Sample((bytes, rest) =>
    {
        Pic pic = default;
        pic.Reset();
        pic.Set(0, MemoryMarshal.Read<kvm_pic_state>(bytes));
        pic.Set(1, MemoryMarshal.Read<kvm_pic_state>(bytes.AsSpan(16)));
        foreach ((Kind kind, ushort place, byte value) in rest)
        {
            if (kind == Kind.Line)
                pic.SetLine(place, value != 0);
            else if (kind == Kind.Acknowledge)
                pic.Acknowledge();
            else if (kind == Kind.Read)
                pic.Read(place);
            else
                pic.Write(place, value);
        }
        for (int chip = 0; chip < 2; chip++)
        {
            kvm_pic_state state = pic.Get(chip);
            Assert.That(state.elcr_mask, Is.EqualTo(chip == 0 ? 0xf8 : 0xde));
            Assert.That(state.elcr & ~state.elcr_mask, Is.Zero);
            Assert.That(state.irq_base % 8, Is.Zero);
            Assert.That(state.priority_add, Is.LessThan(8));
            Assert.That(state.init_state, Is.LessThan(4));
            Assert.That((state.irr ^ state.last_irr) & state.elcr, Is.Zero, "a level is the line");
        }
    }, iter: 1000);

    [Test]
    public void AnyPortAndLineIsHarmless() => Gen.Select(Gen.UShort, Gen.Byte, Gen.Int).Sample((port, value, irq) =>
    {
        Pic pic = default;
        pic.Reset();
        pic.Write(port, value);
        pic.Read(port);
        pic.SetLine(irq, true);
        pic.Acknowledge();
    }, iter: 1000);

    /// <summary>The same pair after GET and SET.</summary>
    private static Pic Copy(Pic pic)
    {
        Pic copy = pic;
        copy.Set(0, pic.Get(0));
        copy.Set(1, pic.Get(1));
        Assert.That(copy.Get(0), Is.EqualTo(pic.Get(0)));
        Assert.That(copy.Get(1), Is.EqualTo(pic.Get(1)));
        return copy;
    }

    /// <summary>As Linux does it: vectors from 0x30 and 0x40, nothing masked.</summary>
    private void Initialize(byte icw4 = 1)
    {
        foreach (ushort command in new[] { Master, Slave })
        {
            ushort data = (ushort)(command + 1);
            _pic.Write(command, 0x11);
            _pic.Write(data, (byte)(command == Master ? 0x30 : 0x40));
            _pic.Write(data, (byte)(command == Master ? 4 : 2));
            _pic.Write(data, icw4);
        }
    }

    private void Pulse(params int[] irqs)
    {
        foreach (int irq in irqs)
        {
            _pic.SetLine(irq, true);
            _pic.SetLine(irq, false);
        }
    }

    private byte Take()
    {
        Assert.That(_pic.Output, Is.True);
        return _pic.Acknowledge();
    }

    private byte Irr(ushort port)
    {
        _pic.Write(port, ReadIrr);
        return _pic.Read(port);
    }

    private byte Isr(ushort port)
    {
        _pic.Write(port, ReadIsr);
        return _pic.Read(port);
    }
}
