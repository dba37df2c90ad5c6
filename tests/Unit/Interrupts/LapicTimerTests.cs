// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Cpu;
using Timers = SharpKvm.Interrupts.ApicTimer<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Interrupts;

[TestFixture]
internal sealed class LapicTimerTests
{
    private const uint OneShot = 0, Periodic = 1 << 17, Deadline = 1 << 18, Vector = 0xec, By1 = 0xb;

    [TestCase(0x0u, 2), TestCase(0x1u, 4), TestCase(0x2u, 8), TestCase(0x3u, 16), TestCase(0x8u, 32)]
    [TestCase(0x9u, 64), TestCase(0xau, 128), TestCase(0xbu, 1), TestCase(0xfffffff4u, 2), TestCase(0xffffffffu, 1)]
    public void TheClockIsDivided(uint configuration, int divisor)
    {
        using ApicVm vm = Timer(OneShot, configuration);
        vm.Write(0, ApicRegister.InitialCount, 1000);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(1000 * divisor));
        vm.Pass(vm.Host.Cpu.Nanoseconds + 400 * (ulong)divisor);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(600));
        Assert.That(vm.Read(0, ApicRegister.InitialCount), Is.EqualTo(1000));
    }

    [Test]
    public void OneShotInterruptsOnce()
    {
        using ApicVm vm = Timer(OneShot);
        vm.Write(0, ApicRegister.InitialCount, 5000);
        Assert.That(vm.Advance(4999), Is.Zero);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(1));
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        vm.TakeRequests(0);
        Assert.That(vm.Advance(1), Is.EqualTo(1));
        Assert.That(vm.TakeRequests(0), Is.EqualTo(VcpuRequests.Event));
        Assert.That(vm.TakeKicks(), Is.Empty, "the vCPU's own thread has done it");
        Assert.That(vm.Take(0), Is.EqualTo(Vector));
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.Zero);
        Assert.That(vm.Advance(1_000_000_000), Is.Zero);
    }

    [Test]
    public void PeriodicDoesNotDrift()
    {
        using ApicVm vm = Timer(Periodic);
        vm.Write(0, ApicRegister.InitialCount, 1_000_000);
        ulong start = vm.Host.Cpu.Nanoseconds;
        for (ulong tick = 1; tick <= 10; tick++)
        {
            // Each time it is looked at late.
            vm.Pass(start + tick * 1_000_000 + 17_000 * tick);
            Timers.Expired(ref vm[0]);
            Assert.That(vm.Take(0), Is.EqualTo(Vector));
            vm.Write(0, ApicRegister.Eoi, 0);
            Assert.That(vm.TimeLeft(0), Is.EqualTo(1_000_000 - 17_000 * tick));
        }
    }

    [Test]
    public void MissedPeriodsAreOneInterrupt()
    {
        using ApicVm vm = Timer(Periodic);
        vm.Write(0, ApicRegister.InitialCount, 1_000_000);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 5_300_000);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(700_000), "it has gone on counting");
        Timers.Expired(ref vm[0]);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(700_000));
        Assert.That(vm.Take(0), Is.EqualTo(Vector));
        vm.Write(0, ApicRegister.Eoi, 0);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        vm.Pass(vm.Host.Cpu.Nanoseconds + 700_000);
        Timers.Expired(ref vm[0]);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(1_000_000));
    }

    [Test]
    public void ShortPeriodsAreStretchedForTheHostsSake()
    {
        using ApicVm vm = Timer(Periodic);
        vm.Write(0, ApicRegister.InitialCount, 1);
        Assert.That(vm.Advance(1_000_000), Is.EqualTo(5));
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(1), "never above the initial count");
        vm.Write(0, ApicRegister.LvtTimer, OneShot | Vector);
        vm.Write(0, ApicRegister.InitialCount, 1);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(1), "a single one may be short");
    }

    [Test]
    public void ACountOfZeroStops()
    {
        using ApicVm vm = Timer(Periodic);
        vm.Write(0, ApicRegister.InitialCount, 1_000_000);
        vm.Write(0, ApicRegister.InitialCount, 0);
        Assert.That(vm.TimeLeft(0), Is.Null);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.Zero);
        Timers.Expired(ref vm[0]);
        Assert.That(vm.Take(0), Is.EqualTo(-1), "an expiration that was on its way");
        Assert.That(vm.TimeLeft(0), Is.Null);
    }

    [Test]
    public void AStaleExpirationChangesNothing()
    {
        using ApicVm vm = Timer(OneShot);
        vm.Write(0, ApicRegister.InitialCount, 1000);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 1000);
        vm.Write(0, ApicRegister.InitialCount, 3000);
        Timers.Expired(ref vm[0]);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm.TimeLeft(0), Is.EqualTo(3000));
    }

    [Test]
    public void MaskedItCountsAllTheSame()
    {
        using ApicVm vm = Timer(Periodic | ApicVm.Masked);
        vm.Write(0, ApicRegister.InitialCount, 1_000_000);
        Assert.That(vm.Advance(1_500_000), Is.EqualTo(1));
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(500_000));
        vm.Write(0, ApicRegister.LvtTimer, Periodic | Vector);
        vm.Advance(500_000);
        Assert.That(vm.Take(0), Is.EqualTo(Vector));
    }

    [Test]
    public void TheCountGoesOnAtANewRate()
    {
        using ApicVm vm = Timer(OneShot);
        vm.Write(0, ApicRegister.InitialCount, 1000);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 250);
        vm.Write(0, ApicRegister.Divide, 3);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(750));
        Assert.That(vm.TimeLeft(0), Is.EqualTo(750 * 16));
        vm.Advance(750 * 16);
        vm.Write(0, ApicRegister.Divide, By1);
        Assert.That(vm.TimeLeft(0), Is.Null);
    }

    /// <summary>From one-shot to periodic and back the count goes on; what stands stays so.</summary>
    [Test]
    public void ChangesOfModeKeepTheCount()
    {
        using ApicVm vm = Timer(OneShot);
        vm.Write(0, ApicRegister.InitialCount, 1_000_000);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 900_000);
        vm.Write(0, ApicRegister.LvtTimer, Periodic | Vector);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(100_000));
        vm.Advance(200_000);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.EqualTo(900_000));
        vm.Write(0, ApicRegister.LvtTimer, OneShot | Vector);
        vm.Advance(1_000_000);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.Zero);
        vm.Write(0, ApicRegister.LvtTimer, Periodic | Vector);
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.Zero);
        Assert.That(vm.Read(0, ApicRegister.InitialCount), Is.EqualTo(1_000_000));
    }

    [Test]
    public void ADeadlineIsOfTheGuestsCounter()
    {
        using ApicVm vm = Timer(Deadline);
        Msrs<FakeVendor>.SetTscOffset(ref vm[0], 0x1234_5678);
        ulong guest = vm.Host.Cpu.Tsc + 0x1234_5678;
        Timers.SetDeadline(ref vm[0], guest + 3_000_001);
        Assert.That(vm[0].Apic.Timer.Deadline, Is.EqualTo(guest + 3_000_001));
        Assert.That(vm.TimeLeft(0), Is.EqualTo(1_500_001), "2 GHz, rounded up");
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.Zero);
        vm.Write(0, ApicRegister.InitialCount, 5);
        Assert.That(vm.Read(0, ApicRegister.InitialCount), Is.Zero);
        Assert.That(vm.Advance(1_500_000), Is.Zero);
        Assert.That(vm.Advance(1), Is.EqualTo(1));
        Assert.That(vm.Take(0), Is.EqualTo(Vector));
        Assert.That(vm[0].Apic.Timer.Deadline, Is.Zero);
        Assert.That(vm.Advance(1_000_000_000), Is.Zero);
    }

    [Test]
    public void ADeadlineInThePastIsDueAtOnce()
    {
        using ApicVm vm = Timer(Deadline);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 1000);
        foreach (ulong deadline in (ulong[])[1, vm.Host.Cpu.Tsc - 1, vm.Host.Cpu.Tsc])
        {
            Timers.SetDeadline(ref vm[0], deadline);
            Assert.That(vm.TimeLeft(0), Is.Zero);
            Assert.That(vm.Advance(0), Is.EqualTo(1));
            Assert.That(vm.Take(0), Is.EqualTo(Vector));
            vm.Write(0, ApicRegister.Eoi, 0);
        }
    }

    [Test]
    public void ADeadlineOfZeroDisarms()
    {
        using ApicVm vm = Timer(Deadline);
        Timers.SetDeadline(ref vm[0], vm.Host.Cpu.Tsc + 1000);
        Timers.SetDeadline(ref vm[0], 0);
        Assert.That(vm.TimeLeft(0), Is.Null);
    }

    /// <summary>The host's clocks drift apart, and the guest moves its own.</summary>
    [Test]
    public void TheCounterDecidesNotTheClock()
    {
        using ApicVm vm = Timer(Deadline);
        Timers.SetDeadline(ref vm[0], vm.Host.Cpu.Tsc + 2_000_000);
        vm.Host.Cpu.Nanoseconds += 1_000_000;
        vm.Host.Cpu.Tsc += 1_999_000;
        Timers.Expired(ref vm[0]);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm.TimeLeft(0), Is.EqualTo(500));
        vm.Pass(vm.Host.Cpu.Nanoseconds + 500);
        Timers.Expired(ref vm[0]);
        Assert.That(vm.Take(0), Is.EqualTo(Vector));
    }

    [TestCase(Msr.TscAdjust, 500ul), TestCase(Msr.TscAdjust, unchecked((ulong)-500)), TestCase(Msr.Tsc, 500ul)]
    public void ADeadlineMovesWithTheCounter(uint msr, ulong change)
    {
        using ApicVm vm = Timer(Deadline);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 1000);
        ulong now = vm.Host.Cpu.Tsc;
        Timers.SetDeadline(ref vm[0], now + 2000);
        Assert.That(Msrs<FakeVendor>.TryWrite(ref vm[0], msr, msr == Msr.Tsc ? now + change : change, host: false));
        Assert.That(vm.TimeLeft(0), Is.EqualTo((2000 - change) / 2));
    }

    [Test]
    public void AFarDeadlineIsWaitedForInParts()
    {
        using ApicVm vm = Timer(Deadline);
        foreach (uint khz in (uint[])[1, 1000, 2_000_000, 10_000_000])
        {
            vm.Host.Cpu.TscKhz = khz;
            Timers.SetDeadline(ref vm[0], ulong.MaxValue);
            ulong wait = vm.TimeLeft(0)!.Value;
            Assert.That(wait, Is.InRange((ulong)(((UInt128)1 << 44) * 1_000_000 / khz),
                (ulong)(((UInt128)1 << 44) * 1_000_000 / khz) + 1), $"{khz} kHz");
        }
        ulong target = vm.Host.Cpu.Nanoseconds + vm.TimeLeft(0)!.Value;
        vm.Pass(target);
        Timers.Expired(ref vm[0]);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm.TimeLeft(0), Is.GreaterThan(0));
        Assert.That(vm[0].Apic.Timer.Deadline, Is.EqualTo(ulong.MaxValue));
    }

    [Test]
    public void BetweenCountingAndDeadlinesNothingIsCarriedOver()
    {
        using ApicVm vm = Timer(Periodic);
        vm.Write(0, ApicRegister.InitialCount, 1_000_000);
        Timers.SetDeadline(ref vm[0], vm.Host.Cpu.Tsc + 1000);
        Assert.That(vm[0].Apic.Timer.Deadline, Is.Zero, "ignored in another mode");
        vm.Write(0, ApicRegister.LvtTimer, Deadline | Vector);
        Assert.That(vm.TimeLeft(0), Is.Null);
        Assert.That(vm.Read(0, ApicRegister.InitialCount), Is.Zero);
        Timers.SetDeadline(ref vm[0], vm.Host.Cpu.Tsc + 1000);
        vm.Write(0, ApicRegister.LvtTimer, Deadline | ApicVm.Masked | Vector);
        Assert.That(vm.TimeLeft(0), Is.Not.Null, "masking is no change of mode");
        vm.Write(0, ApicRegister.LvtTimer, OneShot | Vector);
        Assert.That(vm.TimeLeft(0), Is.Null);
        Assert.That(vm[0].Apic.Timer.Deadline, Is.Zero);
    }

    private static ApicVm Timer(uint mode, uint divide = By1)
    {
        ApicVm vm = new(0);
        vm.Write(0, ApicRegister.LvtTimer, mode | Vector);
        vm.Write(0, ApicRegister.Divide, divide);
        return vm;
    }
}
