// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Interrupts;
using static SharpKvm.Abi.Ioctl;
using static SharpKvm.Tests.Interrupts.ChipVm;

namespace SharpKvm.Tests.Interrupts;

/// <summary>Lines with several sources, irqfds, ends of interrupts, the timer, and who hears of the PIC.</summary>
[TestFixture]
internal sealed class IrqChipTests
{
    private const uint Master = kvm_irqchip.KVM_IRQCHIP_PIC_MASTER, Slave = kvm_irqchip.KVM_IRQCHIP_PIC_SLAVE;
    private const int Event = 5, Resampler = 6;
    private const uint Gsi20 = 20;
    private const byte Vector20 = 0x54;
    private const int StormLimit = 10_000;
    private const ulong StormPause = 10_000_000;

    /// <summary>GSI 20 at its pin, level-triggered.</summary>
    private static ChipVm Level(params ReadOnlySpan<uint> ids)
    {
        ChipVm vm = new(IrqchipMode.Kernel, ids);
        vm.Program(Gsi20, Vector20, level: true);
        return vm;
    }

    private static int Assign(ChipVm vm, uint gsi, bool resample)
    {
        vm.Host.Events.Create(Event);
        vm.Host.Events.Create(Resampler);
        return (int)vm.Set(KVM_IRQFD, new kvm_irqfd
        {
            fd = Event, gsi = gsi, resamplefd = Resampler, flags = resample ? kvm_irqfd.KVM_IRQFD_FLAG_RESAMPLE : 0,
        });
    }

    [Test]
    public void ALineIsHighWhileAnySourceHoldsIt()
    {
        using ChipVm vm = Level(0);
        vm.Line(Gsi20, true);
        vm.Trigger(Gsi20, resample: true);
        vm.Line(Gsi20, false);
        Assert.That(vm.IoApic.irr, Is.EqualTo(1 << 20));
        vm.Serve(0, Vector20);
        Assert.That(vm.Cpus.Irr(0, Vector20), "the other source still asks");
        IrqChip.SetLine(ref vm.Vm, Global(Gsi20), LineSource.ResampleFd, false);
        Assert.That(vm.IoApic.irr, Is.Zero);
        vm.Serve(0, Vector20);
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
    }

    [Test]
    public void SourcesOfOnePicLine()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        IrqChip.SetLine(ref vm.Vm, Global(10), LineSource.UserSpace, true);
        IrqChip.SetLine(ref vm.Vm, Global(10), LineSource.ResampleFd, true);
        IrqChip.SetLine(ref vm.Vm, Global(10), LineSource.UserSpace, false);
        Assert.That(vm.Pic(Slave).last_irr, Is.EqualTo(1 << 2));
        IrqChip.SetLine(ref vm.Vm, Global(10), LineSource.ResampleFd, false);
        Assert.That(vm.Pic(Slave).last_irr, Is.Zero);
    }

    [Test]
    public void AnIrqFdIsAnEdge()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(Gsi20, Vector20);
        for (int i = 0; i < 3; i++)
        {
            vm.Trigger(Gsi20);
            Assert.That(vm.IoApic.irr, Is.Zero);
            vm.Serve(0, Vector20);
        }
        vm.Program(Gsi20, Vector20, masked: true);
        vm.Trigger(Gsi20);
        vm.Program(Gsi20, Vector20);
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1), "an edge into a masked pin is lost");
    }

    [Test]
    public void AnIrqFdSendsItsMsiOnce()
    {
        using ChipVm vm = new(IrqchipMode.Split, 0, 1);
        Assert.That(vm.SetRoutes(Msi(100, 0x61, destination: 1)), Is.Zero);
        vm.Trigger(100);
        vm.Serve(1, 0x61);
        Assert.That(vm.Cpus.Take(1), Is.EqualTo(-1));
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
    }

    [TestCase(true)]
    [TestCase(false)]
    public void AResampledLineFallsBeforeThePinIsLookedAtAgain(bool level)
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(Gsi20, Vector20, level: level);
        Assert.That(Assign(vm, Gsi20, resample: true), Is.Zero);
        for (int i = 1; i <= 2; i++)
        {
            vm.Trigger(Gsi20, resample: true);
            vm.Serve(0, Vector20);
            Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
            Assert.That(vm.Host.Events.Count(Resampler), Is.EqualTo(i));
            Assert.That(vm.IoApic.irr, Is.Zero);
        }
    }

    [Test]
    public void AResamplerThatAsksAgainAtOnceIsServedAgain()
    {
        using ChipVm vm = Level(0);
        Assert.That(Assign(vm, Gsi20, resample: true), Is.Zero);
        vm.Trigger(Gsi20, resample: true);
        vm.Serve(0, Vector20);
        vm.Trigger(Gsi20, resample: true);
        vm.Serve(0, Vector20);
        Assert.That(vm.Host.Events.Count(Resampler), Is.EqualTo(2));
    }

    [TestCase(5u, 0x4d0, 0x25, new[] { 0x20 })]
    [TestCase(10u, 0x4d1, 0x2a, new[] { 0xa0, 0x20 })]
    public void AResampledLineOfThePicFallsWithItsEnd(uint line, int triggers, int vector, int[] ends)
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.InitializePics();
        vm.Out((ushort)triggers, (byte)(1 << (int)(line & 7)));
        Assert.That(Assign(vm, line, resample: true), Is.Zero);
        vm.Trigger(line, resample: true);
        Assert.That(IrqChip.AcknowledgePic(ref vm.Vm), Is.EqualTo(vector));
        Assert.That(vm.Host.Events.Count(Resampler), Is.Zero);
        foreach (int port in ends)
            vm.Out((ushort)port, 0x20);
        Assert.That(vm.Host.Events.Count(Resampler), Is.EqualTo(1));
        Assert.That(vm.Pic(Master).irr, Is.Zero);
        Assert.That(vm.Vm.Irqchip.Pic.Output, Is.False);
    }

    [Test]
    public void ADeassignedResamplerLetsGoOfTheLine()
    {
        using ChipVm vm = Level(0);
        Assert.That(Assign(vm, Gsi20, resample: true), Is.Zero);
        vm.Trigger(Gsi20, resample: true);
        Assert.That(vm.Set(KVM_IRQFD,
            new kvm_irqfd { fd = Event, gsi = Gsi20, flags = kvm_irqfd.KVM_IRQFD_FLAG_DEASSIGN }), Is.Zero);
        Assert.That(vm.IoApic.irr, Is.Zero);
        vm.Serve(0, Vector20);
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
        Assert.That(vm.Host.Events.Count(Resampler), Is.Zero);
    }

    [TestCase(IrqchipMode.None, false, Errno.EINVAL)]
    [TestCase(IrqchipMode.Split, true, Errno.EINVAL)]
    [TestCase(IrqchipMode.Split, false, Errno.Ok)]
    [TestCase(IrqchipMode.Kernel, true, Errno.Ok)]
    public void WhereIrqFdsCanBe(IrqchipMode mode, bool resample, int expected)
    {
        using ChipVm vm = new(mode);
        Assert.That(Assign(vm, Gsi20, resample), Is.EqualTo(expected));
        kvm_irqfd irqfd = new() { fd = Event, gsi = Gsi20 };
        Assert.That(vm.Set(KVM_IRQFD, irqfd with { flags = 4 }), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Set(KVM_IRQFD, irqfd with { gsi = Gsi.Limit }), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Ioctl(KVM_IRQFD, Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void EndsThatTheChipsWaitFor()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        for (uint pin = 0; pin < 24; pin++)
            vm.Program(pin, (byte)(0x40 + pin), level: pin == 20, masked: pin == 21);
        Assign(vm, 22, resample: true);
        int[] waitedFor =
            [.. Enumerable.Range(0, 256).Where(vector => vm.Vm.Irqchip.EoiVectors.Contains((byte)vector))];
        Assert.That(waitedFor, Is.EqualTo(new[] { 0x40, 0x42, 0x48, 0x54, 0x56 }));
        vm.Program(20, 0x54);
        Assert.That(vm.Vm.Irqchip.EoiVectors.Contains(0x54), Is.False);
    }

    [Test]
    public void EndsThatUserSpacesIoApicWaitsFor()
    {
        using ChipVm vm = new(IrqchipMode.Split, 0, 1);
        Assert.That(vm.SetRoutes(
            Msi(3, 0x43, destination: 1, level: true), Msi(4, 0x44), Msi((uint)SplitPins, 0x60, level: true)), Is.Zero);
        Assert.That(vm.Vm.Irqchip.EoiVectors.Contains(0x43));
        Assert.That(vm.Vm.Irqchip.EoiVectors.Contains(0x44), Is.False, "it is an edge");
        Assert.That(vm.Vm.Irqchip.EoiVectors.Contains(0x60), Is.False, "it is no pin");

        vm.Line(3, true);
        vm.Serve(1, 0x43);
        Assert.That(vm.Cpus.TakeRequests(1) & VcpuRequests.EoiExit, Is.EqualTo(VcpuRequests.EoiExit));
        Assert.That(vm.Cpus[1].EoiVector, Is.EqualTo(0x43));
        // The same vector at a CPU to which no pin sends it.
        vm.Cpus.Send(0, 0x43);
        vm.Serve(0, 0x43);
        Assert.That(vm.Cpus.TakeRequests(0) & VcpuRequests.EoiExit, Is.EqualTo(VcpuRequests.None));
        Assert.That(vm.SetRoutes(), Is.Zero);
        Assert.That(vm.Vm.Irqchip.EoiVectors.Contains(0x43), Is.False);
    }

    [Test]
    public void AStormOfEndsPausesUntilTheTimerExpires()
    {
        using ChipVm vm = Level(0);
        vm.Line(Gsi20, true);
        for (int i = 0; i < StormLimit; i++)
            vm.Serve(0, Vector20);
        Assert.That(vm.Machine.ChipTimer, Is.Zero);
        vm.Serve(0, Vector20);
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
        Assert.That(vm.Machine.ChipTimer, Is.EqualTo(vm.Host.Cpu.Nanoseconds + StormPause));
        vm.Host.Cpu.Nanoseconds += StormPause - 1;
        IrqChip.TimerExpired(ref vm.Vm);
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
        vm.Expire();
        Assert.That(vm.Machine.ChipTimer, Is.Zero);
        vm.Serve(0, Vector20);
        Assert.That(vm.Cpus.Irr(0, Vector20), "the storm starts over");
    }

    [Test]
    public void ALineThatFallsInThePauseIsNotDelivered()
    {
        using ChipVm vm = Level(0);
        vm.Line(Gsi20, true);
        for (int i = 0; i <= StormLimit; i++)
            vm.Serve(0, Vector20);
        vm.Line(Gsi20, false);
        vm.Expire();
        Assert.That(vm.Cpus.Take(0), Is.EqualTo(-1));
    }

    /// <summary>Ticks every 10 ms at pin 0.</summary>
    private static ChipVm Ticking(bool reinject = true)
    {
        ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(0, 0x30);
        Assert.That(vm.Ioctl(KVM_CREATE_PIT), Is.Zero);
        Assert.That(vm.Set(KVM_REINJECT_CONTROL,
            new kvm_reinject_control { pit_reinject = reinject ? (byte)1 : (byte)0 }), Is.Zero);
        vm.Out(0x43, 0x34);
        vm.Out(0x40, 0x9c);
        vm.Out(0x40, 0x2e);
        return vm;
    }

    private static int ServeTicks(ChipVm vm)
    {
        int ticks = 0;
        for (; vm.Cpus.Take(0) == 0x30; ticks++)
            vm.Eoi(0);
        return ticks;
    }

    [TestCase(true, 5)]
    [TestCase(false, 1)]
    public void TicksThatTheGuestWasTooSlowForAreRepeated(bool reinject, int expected)
    {
        using ChipVm vm = Ticking(reinject);
        Assert.That(vm.Machine.ChipTimer - vm.Host.Cpu.Nanoseconds, Is.EqualTo(10_000_000).Within(1000));
        for (int i = 0; i < 5; i++)
            vm.Expire();
        Assert.That(ServeTicks(vm), Is.EqualTo(expected));
        vm.Expire();
        Assert.That(ServeTicks(vm), Is.EqualTo(1));
    }

    [Test]
    public void TicksThatNobodyTakesAreNotOwed()
    {
        using ChipVm vm = Ticking();
        vm.Program(0, 0x30, masked: true);
        vm.InitializePics();
        vm.Out(0x21, 0xff);
        for (int i = 0; i < 5; i++)
            vm.Expire();
        vm.Program(0, 0x30);
        Assert.That(ServeTicks(vm), Is.Zero);
        vm.Expire();
        Assert.That(ServeTicks(vm), Is.EqualTo(1));
    }

    [Test]
    public void TicksThroughThePic()
    {
        using ChipVm vm = Ticking();
        vm.Program(0, 0x30, masked: true);
        vm.InitializePics();
        vm.Expire();
        vm.Expire();
        for (int i = 0; i < 2; i++)
        {
            Assert.That(vm.Vm.Irqchip.Pic.Output, $"tick {i}");
            Assert.That(IrqChip.AcknowledgePic(ref vm.Vm), Is.EqualTo(0x20));
            vm.Out(0x20, 0x20);
        }
        Assert.That(vm.Vm.Irqchip.Pic.Output, Is.False);
    }

    [Test]
    public void TheTimerServesWhatComesFirst()
    {
        using ChipVm vm = Ticking();
        ulong tick = vm.Machine.ChipTimer;
        vm.Program(Gsi20, Vector20, level: true);
        vm.Line(Gsi20, true);
        vm.Host.Cpu.Nanoseconds += 1_000_000;
        for (int i = 0; i <= StormLimit; i++)
            vm.Serve(0, Vector20);
        Assert.That(vm.Machine.ChipTimer, Is.EqualTo(tick));
        vm.Expire();
        Assert.That(vm.Machine.ChipTimer, Is.EqualTo(tick - 9_000_000 + StormPause).Within(1000));
    }

    /// <summary>Wherever in a period of the fastest PIT the handler ends.</summary>
    [Test]
    public void BetweenTwoExpiriesThereIsTimeForOtherWork([Range(0, 200, 10)] int late)
    {
        using ChipVm vm = Ticking();
        vm.Out(0x43, 0x34);
        vm.Out(0x40, 2);
        vm.Out(0x40, 0);
        vm.Host.Cpu.Nanoseconds = vm.Machine.ChipTimer + (ulong)late * 1000;
        IrqChip.TimerExpired(ref vm.Vm);
        Assert.That(vm.Machine.ChipTimer - vm.Host.Cpu.Nanoseconds, Is.InRange(50_000, 210_000));
    }

    [Test]
    public void WhoTakesThePicsInterruptsHearsOfThem()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0, 1);
        vm.InitializePics();
        vm.Cpus.Write(1, ApicRegister.Lint0, ApicVm.Masked | 0x700);
        TakeNotices(vm);
        vm.Line(3, true);
        Assert.That(TakeNotices(vm), Is.EqualTo(new uint[] { 0 }));
        vm.Cpus.Write(0, ApicRegister.Lint0, ApicVm.Masked | 0x700);
        vm.Cpus.Write(1, ApicRegister.Lint0, 0x700);
        vm.Line(4, true);
        Assert.That(TakeNotices(vm), Is.EqualTo(new uint[] { 1 }));
    }

    [Test]
    public void AMaskedLineIsNoNews()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.InitializePics();
        vm.Out(0x21, 1 << 3);
        TakeNotices(vm);
        Assert.That(vm.Line(3, true), Is.EqualTo(-1));
        Assert.That(TakeNotices(vm), Is.Empty);
        vm.Out(0x21, 0);
        Assert.That(TakeNotices(vm), Is.EqualTo(new uint[] { 0 }));
    }

    [Test]
    public void AStateThatAsksIsNews()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.InitializePics();
        kvm_irqchip state = new() { chip_id = kvm_irqchip.KVM_IRQCHIP_PIC_MASTER };
        state.chip.pic = vm.Pic(0);
        state.chip.pic.irr = 1 << 5;
        TakeNotices(vm);
        Assert.That(vm.Set(KVM_SET_IRQCHIP, state), Is.Zero);
        Assert.That(TakeNotices(vm), Is.EqualTo(new uint[] { 0 }));
    }

    private static uint[] TakeNotices(ChipVm vm) =>
        [.. vm.Cpus.Ids.Where(id => (vm.Cpus.TakeRequests(id) & VcpuRequests.Event) != 0).Order()];
}
