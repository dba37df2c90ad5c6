// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Vm;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>Virtual NMIs: hardware blocks them from delivery to IRET (SDM vol. 3, 26.3, 27.6.1.1 and 28.2.3).</summary>
public class NmiTests
{
    private const ulong Mapped = 0x2000, IretFailed = 1 << 12;

    [Test]
    public void AnNmiIsInjectedAndBlocksOthers()
    {
        using VmxGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Nmi, Injection.None, Injection.None }));
        Assert.That(guest.Entries[^1].Has(PrimaryControls.NmiWindow));
        Assert.That(guest.Get<kvm_vcpu_events>(Ioctl.KVM_GET_VCPU_EVENTS).nmi_masked, Is.EqualTo(1));
    }

    [Test]
    public void TheNextNmiComesWhenItsWindowOpens()
    {
        using VmxGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Window(), Turn.Exit(ExitReason.Interrupt));
        Assert.That(Injected(guest),
            Is.EqualTo(new[] { Injection.Nmi, Injection.None, Injection.Nmi, Injection.None }));
        Assert.That(guest.Entries[^1].Has(PrimaryControls.NmiWindow), Is.False);
    }

    [Test]
    public void OneNmiIsLatchedBehindTheHandler()
    {
        using VmxGuest guest = InHandler();
        guest.Nmi();
        guest.Nmi();
        guest.RunThrough(Window(), Turn.Exit(ExitReason.Interrupt), Window(), Turn.Exit(ExitReason.Interrupt));
        Assert.That(Injected(guest).Count(injected => injected == Injection.Nmi), Is.EqualTo(2));
    }

    [Test]
    public void AnNmiWaitsForTheEndOfAnInterruptShadow()
    {
        using VmxGuest guest = new();
        VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.MovSs);
        guest.Nmi();
        guest.RunThrough(Window());
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.None, Injection.Nmi }));
        Assert.That(guest.Entries[0].Has(PrimaryControls.NmiWindow));
    }

    /// <summary>Its delivery has blocked NMIs already, and the entry would refuse it (27.3.1.5).</summary>
    [Test]
    public void AnNmiIsInjectedAgainWhenItsDeliveryFaulted()
    {
        using VmxGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.EptViolation(Mapped).During(Injection.Nmi), Turn.Exit(ExitReason.Interrupt));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Nmi, Injection.Nmi, Injection.None }));
        Assert.That(guest.Entries[1][VmcsField.Interruptibility] & Interruptibility.Nmi, Is.Zero);
        Assert.That(VmxVendor.GetNmiMasked(ref guest.Vcpu));
    }

    [Test]
    public void ATurnWithoutAnEntryKeepsTheNmi()
    {
        using VmxGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.NotEntered(), Turn.Exit(ExitReason.Interrupt));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Nmi, Injection.Nmi, Injection.None }));
    }

    /// <summary>IRET ends the blocking before it touches the stack (28.2.3, bit 12).</summary>
    [Test]
    public void AnIretThatFaultsLeavesNmisBlocked([Values] bool exception, [Values] bool iret)
    {
        using VmxGuest guest = InHandler();
        ulong bit = iret ? IretFailed : 0;
        Turn turn = exception ? Turn.Exception(Injection.Exception(17, 0) | bit)
            : Turn.EptViolation(Mapped, qualification: 0x181 | bit);
        guest.RunThrough(turn.Doing(Unblock));
        Assert.That(guest.Entries[^1][VmcsField.Interruptibility] & Interruptibility.Nmi,
            Is.EqualTo(iret ? Interruptibility.Nmi : 0));
    }

    /// <summary>The bit means something else when the fault is that of a delivery.</summary>
    [Test]
    public void ADeliveryThatFaultsIsNoIret()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.EptViolation(Mapped, qualification: 0x181 | IretFailed).During(Injection.Exception(6)));
        Assert.That(VmxVendor.GetNmiMasked(ref guest.Vcpu), Is.False);
    }

    [Test]
    public void UserSpaceCanUnblockNmis()
    {
        using VmxGuest guest = InHandler();
        guest.Nmi();
        SetEvents(guest, (ref events) => events.nmi_masked = 0);
        guest.RunThrough();
        Assert.That(Injected(guest)[^1], Is.EqualTo(Injection.Nmi));
    }

    [Test]
    public void UserSpaceCannotMakeTheEntryRefuseAnNmi()
    {
        using VmxGuest guest = new();
        guest.Nmi();
        guest.RunThrough();
        SetEvents(guest, (ref events) => events.nmi_masked = 1);
        guest.RunThrough();
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Nmi, Injection.Nmi }));
    }

    private delegate void Change(ref kvm_vcpu_events events);

    private static void SetEvents(VmxGuest guest, Change change)
    {
        kvm_vcpu_events events = guest.Get<kvm_vcpu_events>(Ioctl.KVM_GET_VCPU_EVENTS);
        change(ref events);
        Assert.That(guest.Set(Ioctl.KVM_SET_VCPU_EVENTS, in events), Is.Zero);
    }

    /// <summary>A guest whose NMI handler runs.</summary>
    private static VmxGuest InHandler()
    {
        VmxGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        guest.Entries.RemoveAt(1);
        return guest;
    }

    /// <summary>IRET is over, or the instruction behind the shadow.</summary>
    private static Turn Window() => Turn.Exit(ExitReason.NmiWindow).Doing(Unblock);

    private static void Unblock(VmcsImage vmcs, ref GuestRegisters registers) => vmcs[VmcsField.Interruptibility] = 0;

    private static ulong[] Injected(VmxGuest guest) => [.. guest.Entries.Select(entry => entry.Injected)];
}
