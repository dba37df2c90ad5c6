// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Vm;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>
/// What the VM entry injects, and again after an exit in the middle of a delivery (SDM vol. 3, 27.6 and 28.2).
/// </summary>
public class InjectionTests
{
    private const ulong Mapped = 0x2000;
    private static readonly ulong s_interrupt = Injection.Interrupt(0x31);

    [Test]
    public void AnInterruptIsInjectedOnce()
    {
        using VmxGuest guest = Enabled();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, s_interrupt, Injection.None, Injection.None);
    }

    [Test]
    public void TheSameInterruptIsInjectedTwice()
    {
        using VmxGuest guest = Enabled();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, s_interrupt, Injection.None, s_interrupt, Injection.None);
    }

    [Test]
    public void AnInterruptIsInjectedAgainWhenItsDeliveryFaulted()
    {
        using VmxGuest guest = Enabled();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.EptViolation(Mapped, write: true).During(s_interrupt), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, s_interrupt, s_interrupt, Injection.None);
    }

    [Test]
    public void ATurnWithoutAnEntryKeepsTheInterrupt()
    {
        using VmxGuest guest = Enabled();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.NotEntered(), Turn.NotEntered(), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, s_interrupt, s_interrupt, s_interrupt, Injection.None);
    }

    [Test]
    public void ATurnWithoutAnEntryKeepsTheException()
    {
        using VmxGuest guest = new();
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.GeneralProtection, 0x18);
        guest.RunThrough(Turn.NotEntered(), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, Injection.Exception(13, 0x18), Injection.Exception(13, 0x18), Injection.None);
    }

    [Test]
    public void AnInterruptThatUserSpaceWithdrawsIsNotInjected()
    {
        using VmxGuest guest = Enabled();
        guest.Interrupt(0x31);
        guest.RunThrough();
        kvm_vcpu_events events = guest.Get<kvm_vcpu_events>(Ioctl.KVM_GET_VCPU_EVENTS);
        events.interrupt_injected = 0;
        Assert.That(guest.Set(Ioctl.KVM_SET_VCPU_EVENTS, in events), Is.Zero);
        guest.RunThrough();
        AssertInjected(guest, s_interrupt, Injection.None);
    }

    [Test]
    public void AnExceptionWithoutErrorCodeHasNone()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Exit(ExitReason.Vmxon));
        AssertInjected(guest, Injection.None, Injection.Exception(6));
    }

    [Test]
    public void AnotherErrorCodeIsAnotherInjection()
    {
        using VmxGuest guest = new();
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.GeneralProtection, 0x1234);
        guest.RunThrough();
        guest.Vcpu.Events.Exception = default;
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.GeneralProtection, 0x18);
        guest.RunThrough();
        AssertInjected(guest, Injection.Exception(13, 0x1234), Injection.Exception(13, 0x18));
    }

    [Test]
    public void APageFaultWritesCr2()
    {
        using VmxGuest guest = new();
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.PageFault, 2, 0xdead000);
        guest.RunThrough();
        Assert.That(guest.Vcpu.Shared.Cr2, Is.EqualTo(0xdead000));
        AssertInjected(guest, Injection.Exception(14, 2));
    }

    [Test]
    public void AFaultIsDeliveredWithTheResumeFlag()
    {
        using VmxGuest guest = new();
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.InvalidOpcode);
        guest.RunThrough();
        Assert.That(guest.Entries[0][VmcsField.Rflags] & Rflags.Rf, Is.Not.Zero);
    }

    [Test]
    public void AnExceptionIsInjectedAgainWithItsErrorCode()
    {
        using VmxGuest guest = new();
        guest.RunThrough(
            Turn.EptViolation(Mapped).During(Injection.Exception(14, 4)), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, Injection.None, Injection.Exception(14, 4), Injection.None);
    }

    [Test]
    public void AnExceptionWithoutErrorCodeIsInjectedAgain()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.EptViolation(Mapped).During(Injection.Exception(6)));
        AssertInjected(guest, Injection.None, Injection.Exception(6));
    }

    /// <summary>INT n, INT1, INT3 (28.2.4: RIP is at the instruction).</summary>
    [Test]
    public void ASoftwareEventComesFromItsInstructionAgain()
    {
        ulong[] events =
            [Injection.SoftInterrupt(0x80), Injection.PrivilegedException(1), Injection.SoftException(3)];
        foreach (ulong interrupted in events)
        {
            using VmxGuest guest = new();
            guest.RunThrough(Turn.EptViolation(Mapped).During(interrupted));
            AssertInjected(guest, Injection.None, Injection.None);
            Assert.That(guest.Entries[^1].Rip, Is.EqualTo(VmxGuest.Code));
        }
    }

    [Test]
    public void AContributoryExceptionOverAnotherIsADoubleFault()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Exit(ExitReason.Rdpmc).During(Injection.Exception(11, 0)));
        AssertInjected(guest, Injection.None, Injection.Exception(8, 0));
    }

    [Test]
    public void AnExceptionOverADoubleFaultEndsTheGuest()
    {
        using VmxGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_SHUTDOWN, Turn.Exit(ExitReason.Rdpmc).During(Injection.Exception(8, 0)));
    }

    [Test]
    public void RealModePushesNoErrorCode()
    {
        using VmxGuest guest = new();
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Et);
        guest.RunThrough(Turn.Exit(ExitReason.Rdpmc));
        AssertInjected(guest, Injection.None, Injection.Exception(13));
    }

    [Test]
    public void AnExceptionGoesBeforeAnNmiAndThatBeforeAnInterrupt()
    {
        using VmxGuest guest = Enabled();
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.InvalidOpcode);
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, Injection.Exception(6), Injection.Nmi, Injection.None);
    }

    /// <summary>The entry would refuse it, but user space may have queued it (27.3.1.4, 27.3.1.5).</summary>
    [Test]
    public void AnInterruptWaitsForTheGuestToTakeIt([Values] bool shadow)
    {
        using VmxGuest guest = shadow ? Enabled() : new();
        if (shadow)
            VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.Sti);
        guest.Interrupt(0x31);
        guest.RunThrough(
            Turn.NotEntered(), Turn.Exit(ExitReason.Interrupt), Turn.Instruction(ExitReason.Rdpmc, 2), Ready(),
            Turn.Exit(ExitReason.Interrupt), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, Injection.None, Injection.None, Injection.None, Injection.Exception(13, 0), s_interrupt,
            Injection.None, Injection.None);
        Assert.That(guest.Entries.Take(3).All(entry => entry.Has(PrimaryControls.InterruptWindow)));
        Assert.That(guest.Entries[^1].Has(PrimaryControls.InterruptWindow), Is.False);
    }

    [Test]
    public void AnInterruptThatWaitsOutlastsADeliveryThatFaults()
    {
        using VmxGuest guest = new();
        guest.Interrupt(0x31);
        guest.RunThrough(
            Turn.EptViolation(Mapped).During(Injection.Exception(14, 4)),
            Turn.NotEntered(), Turn.Exit(ExitReason.Interrupt), Ready(), Turn.Exit(ExitReason.Interrupt));
        AssertInjected(guest, Injection.None, Injection.Exception(14, 4), Injection.Exception(14, 4), Injection.None,
            s_interrupt, Injection.None);
    }

    [Test]
    public void UserSpaceSeesAnInterruptThatWaits()
    {
        using VmxGuest guest = new();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        kvm_vcpu_events events = guest.Get<kvm_vcpu_events>(Ioctl.KVM_GET_VCPU_EVENTS);
        Assert.That((events.interrupt_injected, events.interrupt_nr), Is.EqualTo((1, 0x31)));
        Assert.That(guest.Set(Ioctl.KVM_INTERRUPT, 0x32u), Is.EqualTo(Errno.EEXIST));
    }

    private static VmxGuest Enabled()
    {
        VmxGuest guest = new();
        guest.Registers.Rflags |= Rflags.If;
        return guest;
    }

    /// <summary>The guest enables interrupts: the window's exit.</summary>
    private static Turn Ready() => Turn.Exit(ExitReason.InterruptWindow).Doing((vmcs, ref _) =>
    {
        vmcs[VmcsField.Rflags] |= Rflags.If;
        vmcs[VmcsField.Interruptibility] &= ~(Interruptibility.Sti | Interruptibility.MovSs);
    });

    private static void AssertInjected(VmxGuest guest, params ulong[] expected) =>
        Assert.That(guest.Entries.Select(entry => entry.Injected), Is.EqualTo(expected));
}
