// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Svm;
using SharpKvm.Tests.Cpu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;
using Lapics = SharpKvm.Interrupts.Apic<SharpKvm.Svm.SvmVendor>;

namespace SharpKvm.Tests.Svm;

/// <summary>Interrupts of controllers in the kernel on their way into the guest.</summary>
[TestFixture]
internal sealed class KernelInterruptTests
{
    private const byte Vector = 0x61, External = 0x31;
    private const ulong Place = 0x4000;
    private const VirtualInterrupt Window =
        VirtualInterrupt.Pending | VirtualInterrupt.HighestPriority | VirtualInterrupt.IgnoreTpr;

    private static SvmGuest Guest(IrqchipMode mode, bool interruptible = true)
    {
        SvmGuest guest = new(mode: mode);
        guest.Registers.Rflags |= interruptible ? Rflags.If : 0;
        return guest;
    }

    private static void Request(SvmGuest guest, byte vector = Vector, bool level = false) =>
        guest.Vcpu.Apic.TryRequest(vector, level);

    private static bool IsWindowOpen(in Vmcb vmcb) =>
        (vmcb.VirtualInterrupt & Window) == Window && (vmcb.Intercept3 & Intercept3.Vintr) != 0;

    private static int Priority(in Vmcb vmcb) => (int)(vmcb.VirtualInterrupt & VirtualInterrupt.TprMask);

    [TestCase(true, false, true)]
    [TestCase(false, false, false)]
    [TestCase(true, true, false)]
    public void AnInterruptIsInjectedWhenTheGuestTakesIt(bool enabled, bool shadow, bool injected)
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, enabled);
        SvmVendor.SetInterruptShadow(ref guest.Vcpu, shadow ? InterruptShadow.Sti : InterruptShadow.None);
        Request(guest);
        guest.RunThrough();
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(injected ? Injection.Interrupt(Vector) : Injection.None));
        Assert.That(IsWindowOpen(guest.Entries[0]), Is.EqualTo(!injected));
        Assert.That(guest.Vcpu.Apic.HighestInService(), Is.EqualTo(injected ? Vector : -1));
    }

    [Test]
    public void TheWindowBringsTheInterrupt()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, interruptible: false);
        Request(guest);
        guest.RunThrough(Turn.Exit(ExitCode.Vintr).Doing((ref vmcb, ref _) => vmcb.Rflags |= Rflags.If));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
        Assert.That(IsWindowOpen(guest.Entries[1]), Is.False);
    }

    [Test]
    public void AnotherThatWaitsOpensTheWindow()
    {
        using SvmGuest guest = Guest(IrqchipMode.Split);
        Request(guest);
        guest.Interrupt(External);
        guest.RunThrough(Turn.Exit(ExitCode.Vintr));
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Interrupt(External)), "the PIC's comes first");
        Assert.That(IsWindowOpen(guest.Entries[0]));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
    }

    [Test]
    public void SomethingElseThatIsInjectedOpensTheWindow()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Request(guest);
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Vintr));
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Nmi));
        Assert.That(IsWindowOpen(guest.Entries[0]));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
    }

    [Test]
    public void AnInterruptOfLowerPriorityWaitsForTheEnd()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Request(guest);
        Request(guest, 0x45);
        guest.RunThrough(Turn.Exit(ExitCode.Intr),
            Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => Lapics.Eoi(ref guest.Vcpu)));
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
        Assert.That(IsWindowOpen(guest.Entries[0]), Is.False);
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.None));
        Assert.That(guest.Entries[2].Inject.Raw, Is.EqualTo(Injection.Interrupt(0x45)));
    }

    [Test]
    public void ADeliveryThatWasCutShortIsRepeatedNotAccepted()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Request(guest);
        guest.RunThrough(
            Turn.Exit(ExitCode.Intr).During(Injection.Interrupt(Vector))
                .Doing((ref _, ref _) => Request(guest)),
            Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
        Assert.That(guest.Entries[2].Inject.Raw, Is.EqualTo(Injection.None), "its second request has to wait");
        Assert.That(guest.Vcpu.Apic.HighestRequest(), Is.EqualTo(Vector));
    }

    [Test]
    public void AnEntryThatDidNotHappenInjectsTheSameAgain()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Request(guest);
        guest.RunThrough(Turn.NotEntered(), Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
        Assert.That(guest.Entries[2].Inject.Raw, Is.EqualTo(Injection.None));
    }

    [Test]
    public void ThePicsInterruptIsAcknowledgedWhenItIsInjected()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        guest.Vm.Irqchip.Pic.Set(0, new kvm_pic_state { irq_base = 0x20, irr = 1 << 3 });
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Interrupt(0x23)));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.None));
        Assert.That(guest.Vm.Irqchip.Pic.Get(0).isr, Is.EqualTo(1 << 3));
    }

    [TestCase(IrqchipMode.None, true, false, true)]
    [TestCase(IrqchipMode.None, false, false, false)]
    [TestCase(IrqchipMode.Split, true, false, true)]
    [TestCase(IrqchipMode.Split, false, false, false)]
    [TestCase(IrqchipMode.Split, true, true, false)]
    public void TheWindowForUserSpace(IrqchipMode mode, bool enabled, bool masked, bool exits)
    {
        using SvmGuest guest = Guest(mode, enabled);
        if (masked)
            Lapics.Write(ref guest.Vcpu, ApicRegister.Lint0 * 16, BitConverter.GetBytes(0x10700));
        guest.RunPage.request_interrupt_window = 1;
        if (exits)
            guest.RunTo(Exit.KVM_EXIT_IRQ_WINDOW_OPEN);
        else
            guest.RunThrough();
        Assert.That(guest.RunPage.ready_for_interrupt_injection, Is.EqualTo(exits ? 1 : 0));
        if (!exits)
            Assert.That(IsWindowOpen(guest.Entries[0]), Is.EqualTo(!masked));
    }

    [TestCase(true)]
    [TestCase(false)]
    public void WithAllChipsInTheKernelThereIsNoWindow(bool enabled)
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, enabled);
        guest.RunPage.request_interrupt_window = 1;
        guest.RunThrough();
        Assert.That(IsWindowOpen(guest.Entries[0]), Is.False);
        Assert.That(guest.RunPage.ready_for_interrupt_injection, Is.EqualTo(1));
    }

    [Test]
    public void AnInterruptOfUserSpaceThatWaitsIsNotAskedForAgain()
    {
        using SvmGuest guest = Guest(IrqchipMode.Split, interruptible: false);
        guest.Interrupt(External);
        guest.RunPage.immediate_exit = 1;
        guest.RunThrough();
        Assert.That(guest.RunPage.ready_for_interrupt_injection, Is.Zero);
        guest.RunPage.immediate_exit = 0;
        guest.RunThrough(Turn.Exit(ExitCode.Vintr).Doing((ref vmcb, ref _) => vmcb.Rflags |= Rflags.If));
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Interrupt(External)));
    }

    [TestCase(IrqchipMode.None, Errno.Ok, Errno.EEXIST)]
    [TestCase(IrqchipMode.Split, Errno.Ok, Errno.EEXIST)]
    [TestCase(IrqchipMode.Kernel, Errno.ENXIO, Errno.ENXIO)]
    public void InterruptsOfUserSpace(IrqchipMode mode, int first, int second)
    {
        using SvmGuest guest = Guest(mode);
        Assert.That(guest.Set(KVM_INTERRUPT, 256u), Is.EqualTo(Errno.EINVAL));
        Assert.That(guest.Ioctl(KVM_INTERRUPT, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(guest.Set(KVM_INTERRUPT, (uint)External), Is.EqualTo(first));
        Assert.That(guest.Set(KVM_INTERRUPT, (uint)External), Is.EqualTo(second));
    }

    [Test]
    public void UserSpacesIoApicHearsOfAnEndOnce()
    {
        using SvmGuest guest = Guest(IrqchipMode.Split);
        guest.PutArgument([1, 0, 0, 0, 0, 0, 0, 0]);
        kvm_irq_routing_entry entry = new() { gsi = 3, type = kvm_irq_routing_entry.KVM_IRQ_ROUTING_MSI };
        entry.u.msi = new() { address_lo = 0xfee0_0000, data = 0xc000 | Vector };
        Assert.That(UserMemory.TryWrite(new Hva(TestVcpu.Argument + 8), entry), Is.True);
        Assert.That(VmIoctls.Dispatch(ref guest.Vm, KVM_SET_GSI_ROUTING, TestVcpu.Argument), Is.Zero);
        for (int i = 0; i < 2; i++)
        {
            Request(guest, level: true);
            guest.RunTo(Exit.KVM_EXIT_IOAPIC_EOI,
                Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => Lapics.Eoi(ref guest.Vcpu)));
            Assert.That(guest.RunPage.eoi.vector, Is.EqualTo(Vector));
            guest.RunThrough(Turn.Exit(ExitCode.Intr));
        }
    }

    [Test]
    public void TheTaskPriorityGoesToHardwareAndBack()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Lapics.SetTpr(ref guest.Vcpu, 0x57);
        guest.RunPage.cr8 = 3;
        guest.RunThrough(Turn.Exit(ExitCode.Intr), Turn.Exit(ExitCode.Intr).Doing((ref vmcb, ref _) =>
            vmcb.VirtualInterrupt = vmcb.VirtualInterrupt & ~VirtualInterrupt.TprMask | (VirtualInterrupt)9));
        Assert.That(Priority(guest.Entries[0]), Is.EqualTo(5), "the run page has no say");
        Assert.That(Priority(guest.Entries[2]), Is.EqualTo(9));
        Assert.That(guest.Vcpu.Apic.Tpr, Is.EqualTo(0x90));
        Assert.That(guest.RunPage.cr8, Is.EqualTo(9));
    }

    [Test]
    public void AnExitThatDidNotChangeItKeepsItsLowerHalf()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Lapics.SetTpr(ref guest.Vcpu, 0x57);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Vcpu.Apic.Tpr, Is.EqualTo(0x57));
    }

    [Test]
    public void AnInterruptWaitsForTheTaskPriority()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        Lapics.SetTpr(ref guest.Vcpu, 0x60);
        Request(guest);
        guest.RunThrough(Turn.Exit(ExitCode.Intr), Turn.Exit(ExitCode.Intr).Doing((ref vmcb, ref _) =>
            vmcb.VirtualInterrupt = vmcb.VirtualInterrupt & ~VirtualInterrupt.TprMask | (VirtualInterrupt)5));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.None));
        Assert.That(IsWindowOpen(guest.Entries[1]), Is.False);
        Assert.That(guest.Entries[2].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
    }

    [Test]
    public void MemoryStandsForTheTaskPriority()
    {
        using SvmGuest guest = Guest(IrqchipMode.Split, interruptible: false);
        Assert.That(guest.Set(KVM_SET_VAPIC_ADDR, Place), Is.Zero);
        guest.Write(Place, [0x70, 0, 0, 0]);
        Request(guest);
        Request(guest, 0x9a);
        guest.Vcpu.Apic.Accept(0x9a);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(Priority(guest.Entries[0]), Is.EqualTo(7));
        Assert.That(guest.Read<uint>(Place), Is.EqualTo(0x61009070));
        Assert.That(guest.Set(KVM_SET_VAPIC_ADDR, 0ul), Is.Zero);
        guest.Write(Place, [0x20, 0, 0, 0]);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Vcpu.Apic.Tpr, Is.EqualTo(0x70));
    }

    [TestCase(IrqchipMode.Kernel, SvmGuest.Device, Errno.EINVAL)]
    [TestCase(IrqchipMode.Kernel, ulong.MaxValue, Errno.EINVAL)]
    [TestCase(IrqchipMode.Kernel, SvmGuest.MemoryPages * 4096 - 2, Errno.EINVAL)]
    [TestCase(IrqchipMode.None, Place, Errno.EINVAL)]
    [TestCase(IrqchipMode.Kernel, Place, Errno.Ok)]
    public void WhatCanStandForTheTaskPriority(IrqchipMode mode, ulong address, int expected)
    {
        using SvmGuest guest = Guest(mode);
        Assert.That(guest.Set(KVM_SET_VAPIC_ADDR, address), Is.EqualTo(expected));
        Assert.That(guest.Vcpu.VirtualTpr.Value, Is.EqualTo(expected == Errno.Ok ? address : 0));
        Assert.That(guest.Ioctl(KVM_SET_VAPIC_ADDR, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void MemoryThatVanishesDoesNoHarm()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        guest.Write(Place, [0x70, 0, 0, 0]);
        Assert.That(guest.Set(KVM_SET_VAPIC_ADDR, Place), Is.Zero);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(MemorySlots.SetRegion(ref guest.Vm, new kvm_userspace_memory_region()), Is.Zero);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Vcpu.Apic.Tpr, Is.EqualTo(0x70));
    }
}
