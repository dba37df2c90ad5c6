// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Interrupts;
using static SharpKvm.Abi.Ioctl;
using static SharpKvm.Tests.Interrupts.ChipVm;

namespace SharpKvm.Tests.Interrupts;

/// <summary>The ioctls that make, route and show the interrupt controllers, and their errors.</summary>
[TestFixture]
internal sealed class IrqchipIoctlsTests
{
    private const uint Master = kvm_irqchip.KVM_IRQCHIP_PIC_MASTER, Slave = kvm_irqchip.KVM_IRQCHIP_PIC_SLAVE,
        IoApic = kvm_irqchip.KVM_IRQCHIP_IOAPIC;
    private const int EPERM = -1;

    [TestCase(IrqchipMode.Kernel)]
    [TestCase(IrqchipMode.Split)]
    public void ThereIsOneChoiceOfControllers(IrqchipMode mode)
    {
        using ChipVm vm = new(mode);
        Assert.That(vm.Ioctl(KVM_CREATE_IRQCHIP), Is.EqualTo(Errno.EEXIST));
        Assert.That(IrqChip.Split(ref vm.Vm, 24), Is.EqualTo(Errno.EEXIST));
        Assert.That(vm.Vm.Irqchip.Mode, Is.EqualTo(mode));
    }

    [Test]
    public void ControllersComeBeforeVcpus()
    {
        using ChipVm vm = new(IrqchipMode.None, 0);
        Assert.That(vm.Ioctl(KVM_CREATE_IRQCHIP), Is.EqualTo(Errno.EINVAL));
        Assert.That(IrqChip.Split(ref vm.Vm, 24), Is.EqualTo(Errno.EEXIST));
        Assert.That(vm.Vm.Irqchip.Mode, Is.EqualTo(IrqchipMode.None));
    }

    [Test]
    public void ThePinsOfASplitControllerAreRoutes()
    {
        using ChipVm vm = new(IrqchipMode.None);
        Assert.That(IrqChip.Split(ref vm.Vm, Gsi.Limit + 1), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Vm.Irqchip.Mode, Is.EqualTo(IrqchipMode.None));
        Assert.That(IrqChip.Split(ref vm.Vm, Gsi.Limit), Is.Zero);
    }

    [Test]
    public void WithoutMemoryThereAreNoControllers()
    {
        using ChipVm vm = new(IrqchipMode.None);
        vm.Host.FailingAllocation = vm.Host.Allocations;
        Assert.That(vm.Ioctl(KVM_CREATE_IRQCHIP), Is.EqualTo(Errno.ENOMEM));
        Assert.That(vm.Vm.Irqchip.Mode, Is.EqualTo(IrqchipMode.None));
        Assert.That(vm.Ioctl(KVM_CREATE_IRQCHIP), Is.Zero);
    }

    [Test]
    public void DefaultRoutesLeadToThePinOfTheSameNumberAndToThePic()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        for (uint gsi = 0; gsi < 24; gsi++)
        {
            vm.Program(gsi, (byte)(0x40 + gsi));
            // The IOAPIC takes it, and so does the PIC, whose input 2 the slave shares.
            Assert.That(vm.Line(gsi, true), Is.EqualTo(gsi < 16 ? 2 : 1), $"GSI {gsi}");
            Assert.That(vm.Cpus.Irr(0, (byte)(0x40 + gsi)), $"GSI {gsi}");
            uint lines = gsi < 16 ? 1u << (int)gsi : 0;
            uint levels = (uint)vm.Pic(Slave).last_irr << 8 | vm.Pic(Master).last_irr;
            Assert.That(levels, Is.EqualTo(lines), $"GSI {gsi}");
            vm.Line(gsi, false);
        }
        Assert.That(vm.Line(24, true), Is.EqualTo(-1));
    }

    private static IEnumerable<TestCaseData> BadRoutes()
    {
        yield return Case("a GSI beyond the limit", Pin(Gsi.Limit, IoApic, 0));
        yield return Case("a pin of no IOAPIC", Pin(1, IoApic, 24));
        yield return Case("a line of no PIC", Pin(1, Master, 8));
        yield return Case("a line of no slave", Pin(1, Slave, 8));
        yield return Case("no chip", Pin(1, 3, 0));
        yield return Case("a pin so high that it wraps", Pin(1, IoApic, uint.MaxValue));
        yield return Case("no type", Pin(1, IoApic, 1) with { type = 0 });
        yield return Case("a type that is not offered", Pin(1, IoApic, 1) with { type = 3 });
        yield return Case("flags", Pin(1, IoApic, 1) with { flags = 1 });
        yield return Case("flags of an MSI", Msi(1, 0x50) with { flags = 1 });
        yield return Case("two MSIs", Msi(1, 0x50), Msi(1, 0x51));
        yield return Case("an MSI behind a pin", Pin(1, IoApic, 1), Msi(1, 0x50));
        yield return Case("a pin behind an MSI", Msi(1, 0x50), Pin(1, Master, 1));
        yield return Case("one chip twice", Pin(1, IoApic, 1), Pin(1, IoApic, 2));
        yield return Case("one PIC twice", Pin(1, Slave, 1), Pin(1, Slave, 1));

        static TestCaseData Case(string name, params object[] entries) =>
            new TestCaseData(entries.Cast<object>().ToArray().AsEnumerable()).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(BadRoutes))]
    public void ABadRouteChangesNothing(IEnumerable<object> entries)
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(5, 0x45);
        kvm_irq_routing_entry[] routes =
            [Pin(9, IoApic, 9), .. entries.Cast<kvm_irq_routing_entry>()];
        Assert.That(vm.SetRoutes(routes), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Line(5, true), Is.EqualTo(2));
    }

    [Test]
    public void TheHeadOfTheRoutesIsChecked()
    {
        using ChipVm vm = new(IrqchipMode.Kernel);
        Assert.That(vm.Set(KVM_SET_GSI_ROUTING, new kvm_irq_routing { nr = Gsi.Limit + 1 }), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Set(KVM_SET_GSI_ROUTING, new kvm_irq_routing { flags = 1 }), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Ioctl(KVM_SET_GSI_ROUTING, Nowhere), Is.EqualTo(Errno.EFAULT));
        using ChipVm none = new(IrqchipMode.None);
        Assert.That(none.SetRoutes(), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void PinsOfASplitControllerAreNotTheKernels()
    {
        using ChipVm vm = new(IrqchipMode.Split, 0);
        Assert.That(vm.SetRoutes(Pin(1, IoApic, 1)), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.SetRoutes(Msi(1, 0x51)), Is.Zero);
        Assert.That(vm.Line(1, true), Is.EqualTo(1));
        Assert.That(vm.Line(1, false), Is.EqualTo(-1), "an MSI is sent by the rising edge only");
    }

    [Test]
    public void ReservedBitsOfAnAddressCountWithWideIdsOnly()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        Assert.That(vm.SetRoutes(Msi(1, 0x51, high: 1)), Is.Zero);
        vm.Vm.Irqchip.Wide = true;
        Assert.That(vm.SetRoutes(Msi(1, 0x51, high: 1)), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.SetRoutes(Msi(1, 0x51, high: 0x100)), Is.Zero);
    }

    [Test]
    public void AsManyRoutesAsTheLimit()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        var routes = new kvm_irq_routing_entry[Gsi.Limit];
        for (uint i = 0; i < Gsi.Limit; i++)
            routes[i] = Msi(i, 0x60);
        Assert.That(vm.SetRoutes(routes), Is.Zero);
        Assert.That(vm.Line(Gsi.Limit - 1, true), Is.EqualTo(1));
        Assert.That(vm.Cpus.Irr(0, 0x60));
    }

    [Test]
    public void NoRoutesAreRoutesToo()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        Assert.That(vm.SetRoutes(), Is.Zero);
        Assert.That(vm.Line(5, true), Is.EqualTo(-1));
    }

    [Test]
    public void WithoutMemoryTheRoutesStay()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(5, 0x45);
        PutRoutes([Msi(5, 0x51)]);
        vm.Host.FailingAllocation = vm.Host.Allocations;
        Assert.That(vm.Ioctl(KVM_SET_GSI_ROUTING, Argument), Is.EqualTo(Errno.ENOMEM));
        vm.Line(5, true);
        Assert.That(vm.Cpus.Receivers(0x45), Is.EqualTo(new uint[] { 0 }));
    }

    [Test]
    public void EntriesThatCannotBeReadChangeNothing()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(5, 0x45);
        ulong last = Argument + ArgumentPages * Page.Size - EntryOffset(1);
        UserMemory.TryWrite(new Hva(last), new kvm_irq_routing { nr = 2 });
        UserMemory.TryWrite(new Hva(last + EntryOffset(0)), Msi(5, 0x51));
        Assert.That(vm.Ioctl(KVM_SET_GSI_ROUTING, last), Is.EqualTo(Errno.EFAULT));
        vm.Line(5, true);
        Assert.That(vm.Cpus.Receivers(0x45), Is.EqualTo(new uint[] { 0 }));
    }

    [Test]
    public void AnEntryThatChangesAfterItWasCopiedChangesNothing()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        PutRoutes([Msi(5, 0x51)]);
        int reads = 0;
        vm.Host.Process.AfterRead = () =>
        {
            if (++reads == 2)
                Put(EntryOffset(0), Msi(Gsi.Limit, 0x52));
        };
        Assert.That(vm.Ioctl(KVM_SET_GSI_ROUTING, Argument), Is.Zero);
        vm.Host.Process.AfterRead = null;
        Assert.That(reads, Is.EqualTo(2), "the head and the entries");
        vm.Line(5, true);
        Assert.That(vm.Cpus.Receivers(0x51), Is.EqualTo(new uint[] { 0 }));
    }

    [Test]
    public void OneGsiCanLeadToEveryChip()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        Assert.That(vm.SetRoutes(Pin(100, Master, 5), Pin(100, Slave, 3), Pin(100, IoApic, 20)), Is.Zero);
        Assert.That(vm.Line(100, true), Is.EqualTo(2), "the IOAPIC's pin is masked");
        Assert.That(vm.Pic(Master).last_irr, Is.EqualTo(1 << 5));
        Assert.That(vm.Pic(Slave).last_irr, Is.EqualTo(1 << 3));
        Assert.That(vm.IoApic.irr, Is.EqualTo(1 << 20));
        Assert.That(vm.Line(100, false), Is.EqualTo(3));
        vm.Program(20, 0x61);
        vm.InitializePics();
        Assert.That(vm.Line(100, true), Is.EqualTo(3));
        Assert.That(vm.Cpus.Irr(0, 0x61));
    }

    [Test]
    public void RoutesReplacedUnderAHighLine()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(20, 0x50, level: true);
        vm.Program(21, 0x61, level: true);
        Assert.That(vm.SetRoutes(Pin(20, IoApic, 20)), Is.Zero);
        vm.Line(20, true);
        Assert.That(vm.SetRoutes(Pin(20, IoApic, 21)), Is.Zero);
        Assert.That(vm.IoApic.irr, Is.EqualTo(1 << 20), "no line moves by itself");
        Assert.That(vm.Line(20, true), Is.EqualTo(1));
        Assert.That(vm.Cpus.Irr(0, 0x61));
        vm.Line(20, false);
        Assert.That(vm.SetRoutes(Pin(20, IoApic, 20)), Is.Zero);
        vm.Line(20, false);
        Assert.That(vm.IoApic.irr, Is.Zero);
    }

    [Test]
    public void AStatusIsWrittenOnlyWhenAskedFor()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        vm.Program(20, 0x50);
        var high = new kvm_irq_level { irq = 20, level = 1 };
        Assert.That(vm.Get(KVM_IRQ_LINE, high).irq, Is.EqualTo(20));
        Assert.That(vm.Get(KVM_IRQ_LINE_STATUS, high).status, Is.Zero, "it is high already");
        vm.Line(20, false);
        Assert.That(vm.Get(KVM_IRQ_LINE_STATUS, high with { level = 7 }).status, Is.EqualTo(1));
    }

    [Test]
    public void ErrorsOfALine()
    {
        using ChipVm none = new(IrqchipMode.None);
        Assert.That(none.Set(KVM_IRQ_LINE, new kvm_irq_level { irq = 1, level = 1 }), Is.EqualTo(Errno.ENXIO));
        Assert.That(none.Ioctl(KVM_IRQ_LINE, Nowhere), Is.EqualTo(Errno.EFAULT));
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        Assert.That(vm.Line(Gsi.Limit, true), Is.EqualTo(-1));
        Assert.That(vm.Line(uint.MaxValue, true), Is.EqualTo(-1));
        Assert.That(vm.IoApic.irr, Is.Zero);
        vm.Host.Process.Protect(Argument, 1, writable: false);
        Assert.That(vm.Ioctl(KVM_IRQ_LINE_STATUS, Argument), Is.EqualTo(Errno.EFAULT));
        Assert.That(vm.Ioctl(KVM_IRQ_LINE, Argument), Is.Zero);
    }

    [TestCase(IrqchipMode.Kernel)]
    [TestCase(IrqchipMode.Split)]
    public void AnMsiReachesItsCpu(IrqchipMode mode)
    {
        using ChipVm vm = new(mode, 0, 1);
        kvm_msi msi = new() { address_lo = 0xfee0_1000, data = 0x71 };
        Assert.That(vm.Set(KVM_SIGNAL_MSI, msi), Is.EqualTo(1));
        Assert.That(vm.Cpus.Receivers(0x71), Is.EqualTo(new uint[] { 1 }));
        Assert.That(vm.Set(KVM_SIGNAL_MSI, msi with { address_lo = 0xfee0_2000 }), Is.Zero, "there is no such CPU");
        Assert.That(vm.Set(KVM_SIGNAL_MSI, msi with { address_lo = 0xfee0_1010 }), Is.EqualTo(EPERM), "remappable");
        Assert.That(vm.Set(KVM_SIGNAL_MSI, msi with { flags = kvm_msi.KVM_MSI_VALID_DEVID }), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.Ioctl(KVM_SIGNAL_MSI, Nowhere), Is.EqualTo(Errno.EFAULT));
        vm.Vm.Irqchip.Wide = true;
        Assert.That(vm.Set(KVM_SIGNAL_MSI, msi with { address_hi = 1 }), Is.EqualTo(Errno.EINVAL));
        using ChipVm none = new(IrqchipMode.None);
        Assert.That(none.Set(KVM_SIGNAL_MSI, msi), Is.EqualTo(Errno.EINVAL));
    }

    [TestCase(IrqchipMode.None, IoApic, Errno.ENXIO)]
    [TestCase(IrqchipMode.Split, IoApic, Errno.ENXIO)]
    [TestCase(IrqchipMode.Kernel, 3u, Errno.EINVAL)]
    [TestCase(IrqchipMode.Kernel, uint.MaxValue, Errno.EINVAL)]
    [TestCase(IrqchipMode.Kernel, Slave, Errno.Ok)]
    public void ErrorsOfChipStates(IrqchipMode mode, uint chip, int expected)
    {
        using ChipVm vm = new(mode);
        kvm_irqchip state = new() { chip_id = chip };
        Assert.That(vm.Set(KVM_GET_IRQCHIP, state), Is.EqualTo(expected));
        Assert.That(vm.Set(KVM_SET_IRQCHIP, state), Is.EqualTo(expected));
        Assert.That(vm.Ioctl(KVM_GET_IRQCHIP, Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(vm.Ioctl(KVM_SET_IRQCHIP, Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [TestCase(Master)]
    [TestCase(Slave)]
    public void APicTakesTheStateThatItGives(uint chip)
    {
        using ChipVm vm = new(IrqchipMode.Kernel);
        vm.InitializePics();
        kvm_irqchip state = vm.Get(KVM_GET_IRQCHIP, new kvm_irqchip { chip_id = chip });
        state.chip.pic.imr = 0xa5;
        state.chip.pic.elcr = 0x08;
        Assert.That(vm.Set(KVM_SET_IRQCHIP, state), Is.Zero);
        Assert.That(vm.Pic(chip), Is.EqualTo(state.chip.pic));
        Assert.That(vm.Pic(chip ^ 1).imr, Is.Zero);
    }

    [Test]
    public void TheIoApicTakesItsState()
    {
        using ChipVm vm = new(IrqchipMode.Kernel, 0);
        kvm_irqchip state = new() { chip_id = IoApic };
        state.chip.ioapic = vm.IoApic;
        state.chip.ioapic.redirtbl[20] = 0x8050;
        state.chip.ioapic.irr = 1 << 20;
        Assert.That(vm.Set(KVM_SET_IRQCHIP, state), Is.Zero);
        Assert.That(vm.Cpus.Irr(0, 0x50), "what it asks for is delivered");
        Assert.That(vm.Vm.Irqchip.EoiVectors.Contains(0x50));
        Assert.That(vm.IoApic.redirtbl[20], Is.EqualTo(0xc050));
    }

    [TestCase(IrqchipMode.None)]
    [TestCase(IrqchipMode.Split)]
    public void APitNeedsTheOtherChips(IrqchipMode mode)
    {
        using ChipVm vm = new(mode);
        Assert.That(vm.Ioctl(KVM_CREATE_PIT), Is.EqualTo(Errno.ENOENT));
        Assert.That(vm.Set(KVM_CREATE_PIT2, new kvm_pit_config()), Is.EqualTo(Errno.ENOENT));
        Assert.That(vm.Set(KVM_GET_PIT, new kvm_pit_state2()), Is.EqualTo(Errno.ENXIO));
        Assert.That(vm.Set(KVM_SET_PIT, new kvm_pit_state2()), Is.EqualTo(Errno.ENXIO));
        Assert.That(vm.Set(KVM_GET_PIT2, new kvm_pit_state2()), Is.EqualTo(Errno.ENXIO));
        Assert.That(vm.Set(KVM_SET_PIT2, new kvm_pit_state2()), Is.EqualTo(Errno.ENXIO));
        Assert.That(vm.Set(KVM_REINJECT_CONTROL, new kvm_reinject_control()), Is.EqualTo(Errno.ENXIO));
    }

    [TestCase(0u)]
    [TestCase(kvm_pit_config.KVM_PIT_SPEAKER_DUMMY)]
    public void ThereIsOnePit(uint flags)
    {
        using ChipVm vm = new(IrqchipMode.Kernel);
        Assert.That(vm.Ioctl(KVM_CREATE_PIT2, Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(vm.Set(KVM_CREATE_PIT2, new kvm_pit_config { flags = flags }), Is.Zero);
        Assert.That(vm.Set(KVM_CREATE_PIT2, new kvm_pit_config()), Is.EqualTo(Errno.EEXIST));
        Assert.That(vm.Ioctl(KVM_CREATE_PIT), Is.EqualTo(Errno.EEXIST));
        Assert.That(vm.Vm.Irqchip.OwnsPort(0x61), Is.EqualTo(flags != 0));
        Assert.That(vm.Vm.Irqchip.OwnsPort(0x40));
        foreach (uint command in (uint[])[KVM_GET_PIT, KVM_SET_PIT, KVM_GET_PIT2, KVM_SET_PIT2, KVM_REINJECT_CONTROL])
            Assert.That(vm.Ioctl(command, Nowhere), Is.EqualTo(Errno.EFAULT), $"{command:x}");
    }

    [Test]
    public void ThePitTakesTheStateThatItGives()
    {
        using ChipVm vm = new(IrqchipMode.Kernel);
        Assert.That(vm.Ioctl(KVM_CREATE_PIT), Is.Zero);
        vm.Out(0x43, 0x34);
        vm.Out(0x40, 0x9c);
        vm.Out(0x40, 0x2e);
        ulong deadline = vm.Machine.ChipTimer;
        kvm_pit_state2 state = vm.Get<kvm_pit_state2>(KVM_GET_PIT2);
        Assert.That(state.channels[0].count, Is.EqualTo(0x2e9c));
        Assert.That(vm.Get<kvm_pit_state2>(KVM_GET_PIT).channels[0].count, Is.EqualTo(0x2e9c));
        vm.Out(0x43, 0x30);
        Assert.That(vm.Machine.ChipTimer, Is.Zero, "without a count it does not run");
        Assert.That(vm.Set(KVM_SET_PIT2, state), Is.Zero);
        Assert.That(vm.Machine.ChipTimer, Is.EqualTo(deadline));
    }
}
