// SPDX-License-Identifier: GPL-2.0-only
using System.Numerics;
using CsCheck;
using NUnit.Framework;
using SharpKvm.Interrupts;
using static SharpKvm.Abi.kvm_pit_state2;

namespace SharpKvm.Tests.Interrupts;

[TestFixture]
internal sealed class PitTests
{
    private const ushort Counter0 = 0x40, Counter1 = 0x41, Counter2 = 0x42, Control = 0x43, Speaker = 0x61;
    private const long Frequency = 1_193_182, Second = 1_000_000_000;
    private const long Start = 5000 * Frequency;

    /// <summary>The bound of <see cref="Pit"/> on IRQs that are owed.</summary>
    private const int MaxOwed = 4096;

    private Pit _pit;
    private long _tick;

    private ulong Now => Time(_tick);

    [SetUp]
    public void SetUp()
    {
        _tick = Start;
        _pit = default;
        _pit.Reset(Now);
    }

    [Test]
    public void ModeZeroRaisesIrq0Once()
    {
        Program(0, mode: 0, count: 1000);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(Start + 1000)));
        Assert.That(Output(0), Is.False);
        _tick += 999;
        Assert.That((Output(0), Count(0)), Is.EqualTo((false, 1)));
        Assert.That(_pit.Expire(Now), Is.False, "too early");
        _tick += 1;
        Assert.That((Output(0), Count(0)), Is.EqualTo((true, 0)));
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Deadline, Is.Zero);
        Assert.That(_pit.Expire(Now), Is.False, "once");
        _tick += 10;
        Assert.That((Output(0), Count(0)), Is.EqualTo((true, 0xfff6)), "it counts on");
        Program(0, mode: 0, count: 5);
        Assert.That(Output(0), Is.False);
    }

    [Test]
    public void HalfACountStopsModeZero()
    {
        Program(0, mode: 0, count: 1000);
        _pit.Write(Counter0, 0x10, Now);
        Assert.That((_pit.Deadline, Output(0)), Is.EqualTo((0, false)));
        _tick += 5000;
        _pit.Write(Counter0, 0x01, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 0x110)));
    }

    [TestCase(2, 1000)]
    [TestCase(3, 1000)]
    [TestCase(3, 1001)]
    [TestCase(2, 0)]
    [TestCase(3, 0)]
    public void ModesTwoAndThreeArePeriodic(int mode, int count)
    {
        long period = count == 0 ? 65536 : count;
        Program(0, mode, count);
        for (int i = 1; i <= 100; i++)
        {
            Assert.That(_pit.Deadline, Is.EqualTo(Time(Start + i * period)));
            _tick = Start + i * period - 1;
            Assert.That(Output(0), Is.False);
            _tick++;
            Assert.That(Output(0), Is.True);
            Assert.That(_pit.Expire(Now), Is.True);
            Assert.That(_pit.Acknowledge(), Is.False);
        }
    }

    [Test]
    public void ADayOfTicksIsExact()
    {
        const long PerDay = 100 * 86_400;
        Program(0, mode: 2, count: 11_932);
        _tick += PerDay * 11_932;
        Assert.That(Now - Time(Start), Is.EqualTo((ulong)new BigInteger(11_932e9 * PerDay / Frequency)).Within(1000));
        _pit.Reinject = false;
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 11_932)));
    }

    [Test]
    public void TheOutputOfModeTwoIsLowForOneTick()
    {
        Program(2, mode: 2, count: 10);
        SetGate(true);
        Assert.That(Wave(2, 25), Is.EqualTo("1111111110111111111011111"));
        Program(2, mode: 3, count: 10);
        Assert.That(Wave(2, 25), Is.EqualTo("1111100000111110000011111"));
        Program(2, mode: 3, count: 7);
        Assert.That(Wave(2, 25), Is.EqualTo("1111000111100011110001111"));
        Program(2, mode: 4, count: 4);
        Assert.That(Wave(2, 25), Is.EqualTo("1111011111111111111111111"));
    }

    [Test]
    public void ModesOneAndFiveWaitForTheGate()
    {
        SetGate(false);
        Program(2, mode: 1, count: 5);
        Assert.That(Wave(2, 5), Is.EqualTo("11111"));
        SetGate(true);
        Assert.That(Wave(2, 3), Is.EqualTo("000"));
        SetGate(false);
        SetGate(true);
        Assert.That(Wave(2, 8), Is.EqualTo("00000111"), "triggered anew");
        Program(2, mode: 5, count: 5);
        Assert.That(Wave(2, 8), Is.EqualTo("11111111"), "the gate was open already");
        SetGate(false);
        SetGate(true);
        SetGate(false);
        Assert.That(Wave(2, 8), Is.EqualTo("11111011"));

        Program(0, mode: 1, count: 5);
        Assert.That(_pit.Deadline, Is.Zero, "channel 0's gate never moves");
    }

    [Test]
    public void TheGateStopsTheCount()
    {
        SetGate(true);
        Program(2, mode: 0, count: 10);
        _tick += 4;
        SetGate(false);
        Assert.That(Count(2), Is.EqualTo(6));
        _tick += 100;
        Assert.That(Count(2), Is.EqualTo(6));
        SetGate(true);
        _tick += 5;
        Assert.That((Count(2), Output(2)), Is.EqualTo((1, false)));
        _tick += 1;
        Assert.That(Output(2), Is.True);

        Program(2, mode: 3, count: 10);
        _tick += 7;
        Assert.That(Output(2), Is.False);
        SetGate(false);
        Assert.That(Output(2), Is.True);
        _tick += 100;
        SetGate(true);
        Assert.That(Wave(2, 12), Is.EqualTo("111110000011"), "starts over");
    }

    [Test]
    public void AControlWordEndsTheCount()
    {
        Program(0, mode: 2, count: 1000);
        _tick += 500;
        _pit.Write(Control, 0x36, Now);
        Assert.That((_pit.Deadline, Output(0)), Is.EqualTo((0, true)));
        _pit.Write(Control, 0x30, Now);
        Assert.That((_pit.Deadline, Output(0)), Is.EqualTo((0, false)));
        _pit.Write(Control, 0xb6, Now);
        Program(0, mode: 4, count: 1000);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 1001)), "after the strobe");
        _pit.Write(Control, 0x00, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 1001)), "the latch command is none");
    }

    [Test]
    public void AccessToOneByteLeavesTheOtherZero()
    {
        _pit.Write(Control, 0x14, Now);
        _pit.Write(Counter0, 0, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 65536)));
        _pit.Write(Counter0, 250, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 250)));
        _pit.Write(Control, 0x24, Now);
        _pit.Write(Counter0, 2, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 512)));
        _tick += 12;
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(1), "500 is 0x1f4");
    }

    [Test]
    public void CountsInDecimal()
    {
        _pit.Write(Control, 0x35, Now);
        _pit.Write(Counter0, 0x34, Now);
        _pit.Write(Counter0, 0x12, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 1234)));
        Assert.That(Count(0), Is.EqualTo(0x1234));
        _tick += 235;
        Assert.That(Count(0), Is.EqualTo(0x0999));
        _pit.Write(Counter0, 0, Now);
        _pit.Write(Counter0, 0, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 10_000)));
        Assert.That(Count(0), Is.Zero);
        _pit.Write(Control, 0x31, Now);
        _pit.Write(Counter0, 2, Now);
        _pit.Write(Counter0, 0, Now);
        _tick += 3;
        Assert.That(Count(0), Is.EqualTo(0x9999));
    }

    [Test]
    public void ALatchedCountWaits()
    {
        Program(0, mode: 2, count: 0x1234);
        _pit.Write(Control, 0x00, Now);
        _tick += 100;
        _pit.Write(Control, 0x00, Now);
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(0x34));
        _tick += 100;
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(0x12));
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(0x1234 - 200 & 0xff), "then the live one");
    }

    [Test]
    public void ReadBackLatchesStatusAndCountOfSeveral()
    {
        _pit.Write(Control, 0xe2, Now);
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(0x70), "no count yet");
        Program(0, mode: 2, count: 0x1234);
        Program(1, mode: 3, count: 0x1234);
        _tick += 3;
        _pit.Write(Control, 0xc6, Now);
        _tick += 0x1000;
        _pit.Write(Control, 0xce, Now);
        Assert.That(Three(Counter0), Is.EqualTo((0xb4, 0x31, 0x12)), "status first, then the count");
        Assert.That(Three(Counter1), Is.EqualTo((0xb6, 0x2e, 0x12)));
        Assert.That(_pit.Read(Counter2, Now), Is.EqualTo(0x70));
        _pit.Write(Control, 0xe0, Now);
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(0x34 - 3), "none was selected");

        (int, int, int) Three(ushort port) => (_pit.Read(port, Now), _pit.Read(port, Now), _pit.Read(port, Now));
    }

    [Test]
    public void TheSpeakersPortShowsGateDataRefreshAndOutput()
    {
        _pit.Write(Speaker, 0xff, Now);
        Program(2, mode: 3, count: 1000);
        Assert.That(_pit.Read(Speaker, Now) & 0xef, Is.EqualTo(0x23));
        _tick += 500;
        Assert.That(_pit.Read(Speaker, Now) & 0xef, Is.EqualTo(0x03));
        Assert.That(_pit.Get(Now).flags, Is.EqualTo(KVM_PIT_FLAGS_SPEAKER_DATA_ON));
        _pit.Write(Speaker, 0, Now);
        Assert.That(_pit.Read(Speaker, Now) & 0xef, Is.EqualTo(0x20));
        int changes = 0;
        for (int i = 0; i < 1800; i++)
        {
            int before = _pit.Read(Speaker, Now);
            _tick++;
            changes += (_pit.Read(Speaker, Now) ^ before) >> 4 & 1;
        }
        Assert.That(changes, Is.EqualTo(100), "every 15 us");
    }

    [TestCase(false, ExpectedResult = 4)]
    [TestCase(true, ExpectedResult = 5)]
    public int OwnsItsPortsOnly(bool speaker) => Enumerable.Range(0, 0x10000)
        .Count(port => Pit.Owns((ushort)port, speaker) && port is >= 0x40 and <= 0x43 or 0x61);

    [Test]
    public void AShortPeriodIsLengthened([Values(2, 7, 100, 238)] int count, [Values(2, 3)] int mode)
    {
        Program(0, mode, count);
        ulong before = Now;
        for (int i = 0; i < 50; i++)
        {
            Assert.That(_pit.Deadline - before, Is.GreaterThanOrEqualTo(200_000 - 1000).And.LessThan(450_000));
            Assert.That((Tick(_pit.Deadline) - Start) % count, Is.Zero, "still where OUT rises");
            before = _pit.Deadline;
            Assert.That(_pit.Expire(before), Is.True);
            Assert.That(_pit.Acknowledge(), Is.False, "what was left out is not owed");
        }
        _tick += 1;
        Assert.That(Count(0), Is.LessThanOrEqualTo(count));
    }

    [Test]
    public void APeriodOfOneIsNone([Values(2, 3)] int mode)
    {
        Program(0, mode, 1);
        Assert.That(_pit.Deadline, Is.Zero);
    }

    [Test]
    public void MissedTicksAreRepeatedAfterEachEoi()
    {
        Program(0, mode: 2, count: 1000);
        _tick += 5_500;
        Assert.That(_pit.Expire(Now), Is.True, "five have passed");
        Assert.That(_pit.Deadline, Is.EqualTo(Time(Start + 6000)));
        _tick += 1000;
        Assert.That(_pit.Expire(Now), Is.False, "the first is not answered");
        for (int i = 0; i < 5; i++)
            Assert.That(_pit.Acknowledge(), Is.True);
        Assert.That(_pit.Acknowledge(), Is.False, "six in all");
        Assert.That(_pit.Acknowledge(), Is.False);
        _tick += 1000;
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Acknowledge(), Is.False);
    }

    [Test]
    public void WithoutReinjectionMissedTicksAreLost()
    {
        _pit.Reinject = false;
        Program(0, mode: 2, count: 1000);
        _tick += 5_500;
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Acknowledge(), Is.False);
        for (int i = 0; i < 5; i++)
        {
            _tick += 1000;
            Assert.That(_pit.Expire(Now), Is.True, "answered or not");
        }
        Assert.That(_pit.Acknowledge(), Is.False);
    }

    [Test]
    public void SwitchingReinjectionOffForgetsWhatIsOwed()
    {
        Program(0, mode: 2, count: 1000);
        _tick += 5_500;
        _pit.Expire(Now);
        _pit.Reinject = false;
        _tick += 1000;
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Acknowledge(), Is.False);
        _pit.Reinject = true;
        _tick += 1000;
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Acknowledge(), Is.False);
    }

    [Test]
    public void NoMoreThanABoundIsOwed()
    {
        Program(0, mode: 2, count: 1000);
        _tick += 1000L * 10_000_000;
        Assert.That(_pit.Expire(Now), Is.True);
        int repeated = 0;
        for (; _pit.Acknowledge(); repeated++)
            Assert.That(repeated, Is.LessThan(MaxOwed));
        Assert.That(repeated, Is.EqualTo(MaxOwed));
    }

    [Test]
    public void AnAnswerThatNeverComesIsNotWaitedForForever()
    {
        Program(0, mode: 2, count: 1000);
        int pulses = 0;
        for (int i = 0; i < 3 * MaxOwed; i++)
        {
            _tick += 1000;
            pulses += _pit.Expire(Now) ? 1 : 0;
        }
        Assert.That(pulses, Is.EqualTo(3));
    }

    [Test]
    public void NothingIsOwedToAGuestThatDoesNotListen()
    {
        Program(0, mode: 2, count: 1000);
        for (int i = 0; i < 5; i++)
        {
            _tick += 1000;
            Assert.That(_pit.Expire(Now), Is.True);
            _pit.ForgetOwed();
        }
        Assert.That(_pit.Acknowledge(), Is.False);
    }

    [Test]
    public void AnotherCountForgetsWhatIsOwed()
    {
        Program(0, mode: 2, count: 1000);
        _tick += 5_500;
        _pit.Expire(Now);
        Program(0, mode: 2, count: 2000);
        Assert.That(_pit.Acknowledge(), Is.False);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 2000)));
        _tick += 2000;
        Assert.That(_pit.Expire(Now), Is.True);
    }

    [Test]
    public void ATimerThatHasRunOutSurvivesReadsOfTheCount()
    {
        Program(0, mode: 0, count: 1000);
        _tick += 1500;
        _pit.Write(Control, 0x00, Now);
        _pit.Read(Counter0, Now);
        _pit.Write(Control, 0xc2, Now);
        _pit.Write(Speaker, 3, Now);
        Program(2, mode: 3, count: 1000);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(Start + 1000)));
        Assert.That(_pit.Expire(Now), Is.True);
    }

    [Test]
    public void TheHpetsLegacyModeTakesIrq0Away()
    {
        Program(0, mode: 2, count: 1000);
        kvm_pit_state2 state = _pit.Get(Now);
        Assert.That(state.flags, Is.Zero);
        state.flags = KVM_PIT_FLAGS_HPET_LEGACY;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.Zero);
        _pit.Write(Speaker, 2, Now);
        Assert.That(_pit.Get(Now).flags, Is.EqualTo(KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON));
        Program(0, mode: 2, count: 1000);
        Assert.That(_pit.Deadline, Is.Zero);
        _tick += 300;
        state = _pit.Get(Now);
        state.flags = 0xffff_fff8;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(Start + 1000)), "it has counted on");
        Assert.That(_pit.Get(Now).flags, Is.Zero);
    }

    [Test]
    public void TheStateComesBackInTheMiddle()
    {
        Program(0, mode: 2, count: 1000);
        SetGate(true);
        Program(2, mode: 0, count: 100);
        _tick += 10;
        SetGate(false);
        _tick += 230;
        _pit.Write(Control, 0x00, Now);
        _pit.Read(Counter0, Now);
        _pit.Write(Counter1, 0x12, Now);
        kvm_pit_state2 state = _pit.Get(Now);
        Assert.That((state.channels[0].count, state.channels[0].mode, state.channels[0].rw_mode),
            Is.EqualTo((1000, 2, 3)));
        Assert.That(state.channels[0].count_load_time, Is.EqualTo(Time(Start)));
        Assert.That((state.channels[0].gate, state.channels[2].gate), Is.EqualTo((1, 0)));
        _tick += 20;
        _pit = default;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(Start + 1000)));
        Assert.That(_pit.Read(Counter0, Now), Is.EqualTo(1000 - 240 >> 8), "the other half of what was latched");
        SetGate(true);
        Assert.That(Count(2), Is.EqualTo(70), "the gate was closed, but that clock ran on while the state travelled");
    }

    /// <summary>What KVM has after KVM_CREATE_PIT2, and what QEMU makes of it at reset.</summary>
    [Test]
    public void TakesTheStatesOfOthers()
    {
        kvm_pit_state2 state = default;
        for (int i = 0; i < 3; i++)
            state.channels[i] = new() { mode = 0xff, count = 65536, gate = (byte)(i == 2 ? 0 : 1) };
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.Zero);
        for (int i = 0; i < 3; i++)
        {
            state.channels[i].mode = 3;
            state.channels[i].count_load_time = (long)Now;
        }
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 65536)));
        state.channels[0].count_load_time = -5 * Second;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.InRange(Now, Time(_tick + 65536)), "loaded before this host was up");
        state.channels[0].count_load_time = long.MaxValue;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.EqualTo(Time(_tick + 65536)), "loaded in the future: now");
    }

    [Test]
    public void AOneShotThatRanOutOnTheWayIsRaised()
    {
        Program(0, mode: 0, count: 1000);
        kvm_pit_state2 state = _pit.Get(Now);
        _tick += 5000;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.InRange(1, Now));
        Assert.That(_pit.Expire(Now), Is.True);
        Assert.That(_pit.Deadline, Is.Zero);
        Assert.That(Output(0), Is.True);
    }

    [Test]
    public void NoCountIsNotACountOfZeroForUserSpace()
    {
        kvm_pit_state2 state = _pit.Get(Now);
        Assert.That((state.channels[0].count, state.channels[0].mode), Is.EqualTo((65536, 0)));
        state.channels[0].count_load_time += 100_000 * 365L * 86_400 * 10;
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.Zero, "still none");
        _pit.Write(Control, 0x34, Now);
        state = _pit.Get(Now);
        Assert.That((state.channels[0].count, state.channels[0].mode), Is.EqualTo((65536, 2)));
        _pit.Set(in state, Now);
        Assert.That(_pit.Deadline, Is.Zero);
        SetGate(true);
        Assert.That(Output(2), Is.False, "mode 0 without a count");
    }

    [Test]
    public void TicksAndTimesAreExact() => Gen.ULong[0, long.MaxValue / 4].Sample(time =>
    {
        long tick = Pit.TickAt((long)time);
        Assert.That(tick, Is.EqualTo(Tick(time)));
        Assert.That((ulong)Pit.TimeOf(tick), Is.EqualTo(Time(tick)));
        Assert.That(Pit.TickAt(Pit.TimeOf(tick)), Is.EqualTo(tick));
        Assert.That(Pit.TickAt(Pit.TimeOf(tick) - 1), Is.EqualTo(tick - 1).Or.EqualTo(0));
    }, iter: 2000);

    private enum Kind
    {
        Advance, Write, Read, Copy,
    }

    private static readonly Gen<byte> s_controls = Gen.Frequency(
        (4, Gen.Select(Gen.Byte[0, 2], Gen.Byte[1, 3], Gen.Byte[0, 7], Gen.Byte[0, 7],
            (channel, access, mode, bcd) => (byte)(channel << 6 | access << 4 | mode << 1 | (bcd == 0 ? 1 : 0)))),
        (2, Gen.Byte[0, 2].Select(channel => (byte)(channel << 6))),
        (2, Gen.Byte[0xc0, 0xff]));

    private static readonly Gen<(Kind Kind, long Place, byte Value)> s_operations = Gen.Frequency(
        (12, Gen.Select(Gen.Const(Kind.Advance), Gen.Frequency(
            (8, Gen.Long[0, 20]), (4, Gen.Long[0, 1000]), (1, Gen.Long[0, 70_000])), Gen.Const((byte)0))),
        (3, Gen.Select(Gen.Const(Kind.Write), Gen.Const((long)Control), s_controls)),
        (8, Gen.Select(Gen.Const(Kind.Write), Gen.Long[Counter0, Counter2],
            Gen.Frequency((3, Gen.Byte[0, 12]), (1, Gen.Byte)))),
        (3, Gen.Select(Gen.Const(Kind.Write), Gen.Const((long)Speaker), Gen.Byte)),
        (10, Gen.Select(Gen.Const(Kind.Read), Gen.OneOfConst(0x40L, 0x41, 0x42, 0x43, 0x61), Gen.Const((byte)0))),
        (2, Gen.Const((Kind.Copy, 0L, (byte)0))));

    /// <summary>
    /// Counts, outputs and IRQs against the model, at any moment within a clock pulse; the state goes to user space and
    /// comes back now and then.
    /// </summary>
    [Test]
    public void BehavesAsTheModel() => Gen.Select(s_operations.Array[1, 120], Gen.ULong[0, 800]).Sample((all, offset) =>
    {
        long tick = Start;
        Pit pit = default;
        pit.Reset(Time(tick));
        pit.Reinject = false;
        PitModel model = new(tick);
        List<long> irqs = [];
        foreach ((Kind kind, long place, byte value) in all)
        {
            ulong now = Time(tick) + offset;
            switch (kind)
            {
                case Kind.Advance:
                    tick += place;
                    model.Advance(place);
                    for (; pit.Deadline != 0 && pit.Deadline <= Time(tick); irqs.Add(Tick(now)))
                    {
                        now = pit.Deadline;
                        Assert.That(pit.Expire(now), Is.True);
                    }
                    Assert.That(irqs, Is.EqualTo(model.Irqs));
                    break;
                case Kind.Write:
                    pit.Write((ushort)place, value, now);
                    model.Write((ushort)place, value);
                    break;
                case Kind.Read:
                    byte read = pit.Read((ushort)place, now);
                    Assert.That(read, Is.EqualTo(model.Read((ushort)place) ?? read));
                    break;
                case Kind.Copy:
                    kvm_pit_state2 state = pit.Get(now);
                    pit.Set(in state, now);
                    Assert.That(Bytes(pit.Get(now)), Is.EqualTo(Bytes(state)));
                    if (pit.Deadline != 0 && pit.Deadline <= now)
                        Assert.That(pit.Expire(now), Is.True, "a one-shot is raised again");
                    break;
            }
        }
    }, iter: 700);

    [Test]
    public void TakesAnyState() => Gen.Select(Gen.Byte.Array[112], s_operations.Array[0, 60], Gen.Long, Gen.Int[0, 2])
        .Sample((bytes, rest, loaded, plausible) =>
    {
        kvm_pit_state2 hostile = MemoryMarshal.Read<kvm_pit_state2>(bytes);
        for (int i = 0; i < plausible; i++)
        {
            hostile.channels[i].mode %= 6;
            hostile.channels[i].count %= 0x1_0002;
            hostile.channels[i].count_load_time = loaded;
        }
        long tick = Start;
        Pit pit = default;
        pit.Reset(Time(tick));
        pit.Set(in hostile, Time(tick));
        foreach ((Kind kind, long place, byte value) in rest)
        {
            tick += kind == Kind.Advance ? place : 0;
            if (kind == Kind.Write)
                pit.Write((ushort)place, value, Time(tick));
            else
                pit.Read((ushort)place, Time(tick));
            pit.Expire(Time(tick));
            pit.Acknowledge();
            Assert.That(pit.Deadline == 0 || pit.Deadline > Time(tick), "the timer is not armed for the past");
            kvm_pit_state2 state = pit.Get(Time(tick));
            for (int i = 0; i < 3; i++)
            {
                kvm_pit_channel_state channel = state.channels[i];
                Assert.That(channel.count, Is.InRange(1, 0x1_0000));
                Assert.That((channel.mode, channel.bcd, channel.gate), Is.LessThan(((byte)6, (byte)2, (byte)2)));
                Assert.That(channel.rw_mode, Is.InRange(1, 3));
                Assert.That(channel.read_state, Is.InRange(1, 4));
                Assert.That(channel.write_state, Is.InRange(1, 4));
                Assert.That(channel.count_latched, Is.InRange(0, 3));
            }
        }
    }, iter: 1000);

    [Test]
    public void AnyPortIsHarmless() => Gen.Select(Gen.UShort, Gen.Byte, Gen.ULong).Sample((port, value, now) =>
    {
        Pit pit = default;
        pit.Reset(now);
        pit.Write(port, value, now);
        pit.Read(port, now);
        pit.Expire(now);
    }, iter: 1000);

    /// <summary>When a tick begins: the first whole nanosecond.</summary>
    private static ulong Time(long tick) => (ulong)((new BigInteger(tick) * Second + Frequency - 1) / Frequency);

    private static long Tick(ulong time) => (long)(new BigInteger(time) * Frequency / Second);

    private static byte[] Bytes(kvm_pit_state2 state) =>
        MemoryMarshal.AsBytes(new Span<kvm_pit_state2>(ref state)).ToArray();

    private void Program(int channel, int mode, int count)
    {
        _pit.Write(Control, (byte)(channel << 6 | 0x30 | mode << 1), Now);
        _pit.Write((ushort)(Counter0 + channel), (byte)count, Now);
        _pit.Write((ushort)(Counter0 + channel), (byte)(count >> 8), Now);
    }

    private void SetGate(bool open) => _pit.Write(Speaker, (byte)(open ? 1 : 0), Now);

    /// <summary>The live count, low byte first.</summary>
    private int Count(int channel)
    {
        ushort port = (ushort)(Counter0 + channel);
        return _pit.Read(port, Now) | _pit.Read(port, Now) << 8;
    }

    /// <summary>OUT, from the status byte.</summary>
    private bool Output(int channel)
    {
        _pit.Write(Control, (byte)(0xe0 | 2 << channel), Now);
        return (_pit.Read((ushort)(Counter0 + channel), Now) & 0x80) != 0;
    }

    /// <summary>OUT at this tick and those that follow.</summary>
    private string Wave(int channel, int ticks)
    {
        string wave = "";
        for (int i = 0; i < ticks; i++, _tick++)
            wave += Output(channel) ? '1' : '0';
        return wave;
    }
}
