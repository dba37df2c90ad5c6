// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

[TestFixture]
internal sealed class IoApicTests
{
    private const uint Select = 0, Window = 0x10, EoiRegister = 0x40;
    private const uint LevelTriggered = 1 << 15, RemoteIrr = 1 << 14, Masked = 1 << 16, Logical = 1 << 11;
    private const int Rtc = IoApic.RtcPin;

    private IoApic _chip;
    private RecordingSink _sink;

    [SetUp]
    public void SetUp()
    {
        _chip = default;
        _chip.Reset();
        _sink = new RecordingSink();
    }

    [Test]
    public void HasTheRegistersOfVersion11()
    {
        Assert.That(ReadRegister(1), Is.EqualTo(0x170011), "24 pins");
        WriteRegister(0, 0xff00_0000);
        Assert.That((ReadRegister(0), ReadRegister(2)), Is.EqualTo((0x0f00_0000u, 0x0f00_0000u)));
        WriteRegister(1, 0);
        WriteRegister(2, 0);
        Assert.That((ReadRegister(1), ReadRegister(2)), Is.EqualTo((0x170011u, 0x0f00_0000u)), "read only");
        Assert.That(Entry(0), Is.EqualTo(Masked));
        Assert.That(_chip.BaseAddress, Is.EqualTo(0xfec0_0000));
        WriteRegister(0x11, 0xffff_ffff);
        WriteRegister(0x10, 0xffff_ffff & ~RemoteIrr);
        Assert.That((ReadRegister(0x11), ReadRegister(0x10)), Is.EqualTo((0xff00_0000u, 0x1afffu)));
        _chip.Write(Select, 0x1234_5601, ref _sink);
        Assert.That(_chip.Read(Select), Is.EqualTo(1));
    }

    [Test]
    public void WhereNoRegisterIsZeroIsRead([Values(3u, 0xfu, 0x40u, 0x41u, 0xffu)] uint index)
    {
        WriteRegister(index, 0xffff_ffff);
        Assert.That(ReadRegister(index), Is.Zero);
        kvm_ioapic_state fresh = Fresh();
        Assert.That(Enumerable.Range(0, 24).All(pin => _chip.Get().redirtbl[pin] == fresh.redirtbl[pin]));
    }

    [Test]
    public void OtherOffsetsDoNothing()
    {
        Program(3, 0x51 | LevelTriggered);
        Set(3, true);
        foreach (uint offset in new[] { EoiRegister, 4u, 8u, 0x14u, 0x20u, 0xfffu, uint.MaxValue })
        {
            _chip.Write(offset, 0x51, ref _sink);
            Assert.That(_chip.Read(offset), Is.Zero);
        }
        Assert.That(Entry(3) & RemoteIrr, Is.Not.Zero, "there is no EOI register");
    }

    [Test]
    public void AMessageSaysWhatTheEntrySays()
    {
        WriteRegister(0x10 + 2 * 5 + 1, 0xa700_0000);
        Program(5, 0x1_00 | 0x7e | Logical | LevelTriggered);
        Assert.That(Set(5, true), Is.EqualTo(LineStatus.Delivered));
        InterruptMessage message = _sink.Messages.Single();
        Assert.That((message.Destination, message.Logical, message.Mode, message.Level, message.Vector.Value),
            Is.EqualTo((0xa7u, true, DeliveryMode.LowestPriority, true, (byte)0x7e)));

        Program(6, 0x4_00 | LevelTriggered);
        Set(6, true);
        Assert.That((_sink.Messages[1].Mode, _sink.Messages[1].Level), Is.EqualTo((DeliveryMode.Nmi, false)));
        Assert.That(Entry(6) & RemoteIrr, Is.Zero, "an NMI has no EOI");
    }

    [Test]
    public void AnEdgeComesOnce()
    {
        Program(4, 0x34);
        Assert.That(Set(4, true), Is.EqualTo(LineStatus.Delivered));
        Assert.That(Set(4, true), Is.EqualTo(LineStatus.Coalesced));
        End(0x34);
        Assert.That(_sink.Messages, Has.Count.EqualTo(1));
        Assert.That(Set(4, false), Is.EqualTo(LineStatus.Delivered));
        Assert.That(Set(4, true), Is.EqualTo(LineStatus.Delivered));
        Set(4, false);
        _sink.Reaches = 0;
        Assert.That(Set(4, true), Is.EqualTo(LineStatus.Coalesced), "no CPU took it");
    }

    [Test]
    public void AnEdgeWhileMaskedIsLost()
    {
        Program(4, 0x34 | Masked);
        Assert.That(Set(4, true), Is.EqualTo(LineStatus.Masked));
        Program(4, 0x34);
        Assert.That(_sink.Messages, Is.Empty);
        Set(4, false);
        Set(4, true);
        Assert.That(_sink.Messages, Has.Count.EqualTo(1));
    }

    [Test]
    public void ALevelWaitsForItsEoiInRemoteIrr()
    {
        Program(10, 0x55 | LevelTriggered);
        Assert.That(Set(10, true), Is.EqualTo(LineStatus.Delivered));
        Assert.That(Entry(10) & RemoteIrr, Is.Not.Zero);
        Assert.That(Set(10, true), Is.EqualTo(LineStatus.Coalesced));
        Program(10, 0x55 | LevelTriggered);
        Assert.That(Entry(10) & RemoteIrr, Is.Not.Zero, "a write does not clear it");
        End(0x56);
        Assert.That(_sink.Messages, Has.Count.EqualTo(1));
        End(0x55);
        Assert.That(_sink.Messages, Has.Count.EqualTo(2), "the line is still high");
        Set(10, false);
        End(0x55);
        Assert.That(_sink.Messages, Has.Count.EqualTo(2));
        Assert.That(Entry(10) & RemoteIrr, Is.Zero);
        Assert.That(_chip.PinsOf(0x55), Is.EqualTo(1u << 10));
    }

    [Test]
    public void ALevelWhileMaskedComesWhenUnmasked()
    {
        Program(10, 0x55 | LevelTriggered | Masked);
        Assert.That(Set(10, true), Is.EqualTo(LineStatus.Masked));
        Program(10, 0x55 | LevelTriggered);
        Assert.That(_sink.Messages, Has.Count.EqualTo(1));

        // Masked while it is in service, as Linux does for threaded handlers.
        Program(10, 0x55 | LevelTriggered | Masked);
        End(0x55);
        Assert.That(_sink.Messages, Has.Count.EqualTo(1));
        Program(10, 0x55 | LevelTriggered);
        Assert.That(_sink.Messages, Has.Count.EqualTo(2));

        Program(10, 0x55 | LevelTriggered | Masked);
        End(0x55);
        Set(10, false);
        Program(10, 0x55 | LevelTriggered);
        Assert.That(_sink.Messages, Has.Count.EqualTo(2), "it fell meanwhile");
    }

    [Test]
    public void EdgeTriggerClearsRemoteIrr()
    {
        Program(10, 0x55 | LevelTriggered);
        Set(10, true);
        Program(10, 0x55 | Masked);
        Program(10, 0x55 | LevelTriggered | Masked);
        Assert.That(Entry(10) & RemoteIrr, Is.Zero);
        Program(10, 0x55 | LevelTriggered);
        Assert.That(_sink.Messages, Has.Count.EqualTo(2), "so guests end an interrupt without an EOI register");
    }

    [Test]
    public void WithoutATakerRemoteIrrStaysClear()
    {
        _sink.Reaches = 0;
        Program(10, 0x55 | LevelTriggered);
        Assert.That(Set(10, true), Is.EqualTo(LineStatus.Coalesced));
        Assert.That(Entry(10) & RemoteIrr, Is.Zero);
        _sink.Reaches = 1;
        Assert.That(Set(10, true), Is.EqualTo(LineStatus.Delivered));
    }

    [Test]
    public void OneEoiIsForAllPinsOfItsVector()
    {
        Program(10, 0x55 | LevelTriggered);
        Program(11, 0x55 | LevelTriggered);
        Program(12, 0x55);
        Set(10, true);
        Set(11, true);
        Assert.That(_chip.PinsOf(0x55), Is.EqualTo(7u << 10));
        End(0x55);
        Assert.That(_sink.Messages, Has.Count.EqualTo(4));
    }

    /// <summary>A guest that does not silence its device gets on; an EOI costs the host one delivery.</summary>
    [Test]
    public void AnEoiStormPauses()
    {
        Program(10, 0x55 | LevelTriggered);
        Set(10, true);
        int ends = 0;
        for (; _chip.Deferred == 0; ends++)
        {
            Assert.That(_sink.Messages, Has.Count.EqualTo(ends + 1));
            End(0x55);
            Assert.That(ends, Is.LessThan(20_000));
        }
        Assert.That(ends, Is.GreaterThan(1000));
        Assert.That(_chip.Deferred, Is.EqualTo(1u << 10));
        Assert.That(_sink.Messages, Has.Count.EqualTo(ends), "the last EOI was not answered");
        _chip.DeliverDeferred(ref _sink);
        Assert.That(_chip.Deferred, Is.Zero);
        Assert.That(_sink.Messages, Has.Count.EqualTo(ends + 1));
        _sink.Messages.Clear();
        for (int i = 1; i < ends; i++)
            End(0x55);
        Assert.That(_chip.Deferred, Is.EqualTo(1u << 10), "and once more");
        Set(10, false);
        _chip.DeliverDeferred(ref _sink);
        Assert.That(_sink.Messages, Has.Count.EqualTo(ends - 2), "the line fell in the pause");
    }

    [Test]
    public void EoisBetweenWhichTheLineFallsAreNoStorm()
    {
        Program(10, 0x55 | LevelTriggered);
        for (int i = 0; i < 30_000; i++)
        {
            Set(10, true);
            if (i % 1000 != 0)
                End(0x55);
            Set(10, false);
            End(0x55);
        }
        Assert.That(_chip.Deferred, Is.Zero);
    }

    [Test]
    public void ATickOfTheRtcCoalescesUntilAllWhoGotTheLastHaveEndedIt()
    {
        Program(Rtc, 0x38);
        _sink.Reaches = 2;
        Assert.That(Tick(), Is.EqualTo(LineStatus.Delivered));
        Assert.That(Tick(), Is.EqualTo(LineStatus.Coalesced));
        End(0x38);
        Assert.That(Tick(), Is.EqualTo(LineStatus.Coalesced), "one of two");
        End(0x38);
        Assert.That(_sink.Messages, Has.Count.EqualTo(1));
        Assert.That(Tick(), Is.EqualTo(LineStatus.Delivered));
        Program(Rtc, 0x38 | Masked);
        Program(Rtc, 0x38);
        Assert.That(Tick(), Is.EqualTo(LineStatus.Coalesced));
        Program(Rtc, 0x39);
        Assert.That(Tick(), Is.EqualTo(LineStatus.Delivered), "an EOI of the old vector is not told");
        _chip.ForgetRtc();
        Assert.That(Tick(), Is.EqualTo(LineStatus.Delivered), "a CPU was reset");
        for (int i = 0; i < 5; i++)
            End(0x39);
        _sink.Reaches = 0;
        Assert.That(Tick(), Is.EqualTo(LineStatus.Coalesced));
        _sink.Reaches = 1;
        Assert.That(Tick(), Is.EqualTo(LineStatus.Delivered), "nobody had got it");

        LineStatus Tick()
        {
            Set(Rtc, false);
            return Set(Rtc, true);
        }
    }

    [Test]
    public void NamesTheVectorsWhoseEoiItMustHear()
    {
        Program(1, 0x31);
        Program(2, 0x32);
        Program(3, 0x33 | LevelTriggered);
        Program(4, 0x34 | LevelTriggered | Masked);
        Program(5, 0x35 | LevelTriggered);
        Set(5, true);
        Program(5, 0x35 | LevelTriggered | Masked);
        Program(Rtc, 0xf8);
        VectorSet set = default;
        _chip.CollectEoiVectors(ref set, watchedPins: 1 << 2);
        Assert.That(Vectors(set), Is.EqualTo(new[] { 0x32, 0x33, 0x35, 0xf8 }));
        End(0x35);
        set = default;
        _chip.CollectEoiVectors(ref set, watchedPins: 0);
        Assert.That(Vectors(set), Is.EqualTo(new[] { 0x33, 0xf8 }));
    }

    [Test]
    public void TheStateComesBackInTheMiddle()
    {
        WriteRegister(0, 0x0500_0000);
        Program(3, 0x33 | LevelTriggered);
        Program(4, 0x34);
        Program(5, 0x35 | LevelTriggered | Masked);
        Set(3, true);
        Set(4, true);
        Set(5, true);
        _sink.Messages.Clear();
        kvm_ioapic_state state = _chip.Get();
        Assert.That(state.irr, Is.EqualTo(1u << 3 | 1 << 5), "the edge was delivered");
        _chip = default;
        _chip.Set(in state, ref _sink);
        Assert.That(_sink.Messages, Is.Empty);
        Assert.That(Bytes(_chip.Get()), Is.EqualTo(Bytes(state)));
        End(0x33);
        Assert.That(_sink.Messages.Single().Vector.Value, Is.EqualTo(0x33), "the line is still high");
        Program(5, 0x35 | LevelTriggered);
        Assert.That(_sink.Messages, Has.Count.EqualTo(2));
    }

    [Test]
    public void WhatAskedOnTheOtherSideIsDelivered()
    {
        kvm_ioapic_state state = Fresh();
        state.redirtbl[3] = 0x33;
        state.redirtbl[4] = 0x34 | LevelTriggered;
        state.redirtbl[5] = 0x35 | LevelTriggered | RemoteIrr;
        state.redirtbl[6] = 0x36 | RemoteIrr;
        state.irr = 0x78;
        _chip.Set(in state, ref _sink);
        byte[] vectors = [.. _sink.Messages.Select(message => message.Vector.Value)];
        Assert.That(vectors, Is.EqualTo(new byte[] { 0x33, 0x34, 0x36 }));
    }

    private enum Kind
    {
        Line, Select, Window, Offset, End, Migrate,
    }

    /// <summary>Few pins and vectors, so that they meet.</summary>
    private static readonly Gen<(Kind Kind, uint Place, uint Value, int Reaches)> s_operations = Gen.Select(
        Gen.Frequency(
            (8, Gen.Select(Gen.Const(Kind.Line), Gen.UInt[5, 9], Gen.UInt[0, 1])),
            (3, Gen.Select(Gen.Const(Kind.Select), Gen.Frequency((5, Gen.UInt[0x1a, 0x23]), (1, Gen.UInt[0, 0x1ff])),
                Gen.Const(0u))),
            (5, Gen.Select(Gen.Const(Kind.Window), Gen.Const(0u), Gen.Frequency(
                (6, Gen.Select(Gen.UInt[0x30, 0x33], Gen.OneOfConst(0u, 0x100u, Logical, 0x400u, 0x700u),
                    Gen.OneOfConst(0u, LevelTriggered), Gen.OneOfConst(0u, 0u, 0u, Masked),
                    (vector, mode, trigger, mask) => vector | mode | trigger | mask)),
                (1, Gen.UInt)))),
            (1, Gen.Select(Gen.Const(Kind.Offset), Gen.UInt[0, 0x50], Gen.UInt)),
            (6, Gen.Select(Gen.Const(Kind.End), Gen.UInt[0x30, 0x33], Gen.Const(0u))),
            (1, Gen.Const((Kind.Migrate, 0u, 0u)))),
        Gen.Int[0, 2], (operation, reaches) => (operation.Item1, operation.Item2, operation.Item3, reaches));

    [Test]
    public void BehavesAsTheModel() => s_operations.Array[1, 120].Sample(operations =>
    {
        IoApic chip = default;
        chip.Reset();
        RecordingSink sink = new();
        IoApicModel model = new();
        foreach ((Kind kind, uint place, uint value, int reaches) in operations)
        {
            sink.Reaches = model.Reaches = reaches;
            switch (kind)
            {
                case Kind.Line:
                    int status = model.SetLine((int)place, value != 0);
                    Assert.That((int)chip.SetLine((int)place, value != 0, ref sink), Is.EqualTo(status));
                    break;
                case Kind.Select:
                    chip.Write(Select, place, ref sink);
                    model.Write(Select, place);
                    break;
                case Kind.Window:
                    chip.Write(Window, value, ref sink);
                    model.Write(Window, value);
                    break;
                case Kind.Offset:
                    chip.Write(place, value, ref sink);
                    model.Write(place, value);
                    Assert.That(chip.Read(place), Is.EqualTo(model.Read(place)));
                    break;
                case Kind.End:
                    uint pins = chip.PinsOf((byte)place);
                    chip.EndOfInterrupt(pins, ref sink);
                    Assert.That(pins, Is.EqualTo(model.EndOfInterrupt((byte)place)));
                    break;
                case Kind.Migrate:
                    kvm_ioapic_state state = chip.Get();
                    chip.Set(in state, ref sink);
                    model.Migrate();
                    break;
            }
            Assert.That(chip.Read(Window), Is.EqualTo(model.Read(Window)));
            Assert.That(sink.Messages, Is.EqualTo(model.Messages));
            VectorSet set = default;
            chip.CollectEoiVectors(ref set, value);
            Assert.That(Vectors(set), Is.EquivalentTo(model.EoiVectors(value).Distinct()));
            sink.Messages.Clear();
            model.Messages.Clear();
        }
    }, iter: 1000);

    [Test]
    public void TakesAnyState() => Gen.Select(Gen.Byte.Array[216], s_operations.Array[0, 60]).Sample((bytes, rest) =>
    {
        IoApic chip = default;
        RecordingSink sink = new();
        kvm_ioapic_state hostile = MemoryMarshal.Read<kvm_ioapic_state>(bytes);
        chip.Set(in hostile, ref sink);
        kvm_ioapic_state state = chip.Get();
        Assert.That((state.id & ~0xfu, state.ioregsel & ~0xffu, state.irr >> 24, state.pad),
            Is.EqualTo((0u, 0u, 0u, 0u)));
        Assert.That(state.base_address, Is.EqualTo(hostile.base_address));
        for (int pin = 0; pin < IoApic.Pins; pin++)
        {
            Assert.That(state.redirtbl[pin] & ~0xff00_0000_0001_efff, Is.Zero);
            if ((state.redirtbl[pin] & LevelTriggered) == 0)
                Assert.That(state.redirtbl[pin] & RemoteIrr, Is.Zero);
        }
        foreach ((_, uint place, uint value, int reaches) in rest)
        {
            sink.Reaches = reaches - 1;
            chip.Write(value, place, ref sink);
            chip.Write(Select, value, ref sink);
            chip.Read(place);
            chip.Read(Window);
            chip.Write(Window, value, ref sink);
            chip.SetLine((int)(value % IoApic.Pins), (place & 1) != 0, ref sink);
            chip.EndOfInterrupt(chip.PinsOf((byte)value), ref sink);
            chip.DeliverDeferred(ref sink);
        }
    }, iter: 1000);

    private static List<int> Vectors(VectorSet set) =>
        [.. Enumerable.Range(0, 256).Where(vector => set.Contains((byte)vector))];

    private static byte[] Bytes(kvm_ioapic_state state) =>
        MemoryMarshal.AsBytes(new Span<kvm_ioapic_state>(ref state)).ToArray();

    private static kvm_ioapic_state Fresh()
    {
        IoApic chip = default;
        chip.Reset();
        return chip.Get();
    }

    private uint ReadRegister(uint index)
    {
        _chip.Write(Select, index, ref _sink);
        return _chip.Read(Window);
    }

    private void WriteRegister(uint index, uint value)
    {
        _chip.Write(Select, index, ref _sink);
        _chip.Write(Window, value, ref _sink);
    }

    /// <summary>Writes the low half of a pin's entry.</summary>
    private void Program(int pin, uint entry) => WriteRegister(0x10 + 2 * (uint)pin, entry);

    private uint Entry(int pin) => ReadRegister(0x10 + 2 * (uint)pin);

    private LineStatus Set(int pin, bool level) => _chip.SetLine(pin, level, ref _sink);

    private void End(byte vector) => _chip.EndOfInterrupt(_chip.PinsOf(vector), ref _sink);
}
