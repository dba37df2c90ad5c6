// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Svm;

/// <summary>request_interrupt_window, and what KVM_RUN says about interrupts when it returns.</summary>
public class InterruptWindowTests
{
    private const VirtualInterrupt Window =
        VirtualInterrupt.Pending | VirtualInterrupt.HighestPriority | VirtualInterrupt.IgnoreTpr;

    [Test]
    public void ThereIsNoWindowWithoutARequest()
    {
        using SvmGuest guest = new();
        guest.RunThrough();
        AssertClosed(guest.Entries[0]);
    }

    [Test]
    public void ARequestOpensTheWindow()
    {
        using SvmGuest guest = new();
        guest.RunPage.request_interrupt_window = 1;
        guest.RunThrough();
        AssertOpen(guest.Entries[0]);
    }

    [Test]
    public void AGuestThatTakesInterruptsIsNotEntered()
    {
        using SvmGuest guest = new();
        guest.Registers.Rflags |= Rflags.If;
        guest.RunPage.request_interrupt_window = 1;
        guest.RunTo(Exit.KVM_EXIT_IRQ_WINDOW_OPEN);
        Assert.That(guest.Entries, Is.Empty);
    }

    [Test]
    public void AnInterruptShadowKeepsTheGuestRunning()
    {
        using SvmGuest guest = new();
        guest.Registers.Rflags |= Rflags.If;
        SvmVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.Sti);
        guest.RunPage.request_interrupt_window = 1;
        guest.RunThrough();
        AssertOpen(guest.Entries[0]);
    }

    [Test]
    public void TheRunEndsWhenTheGuestEnablesInterrupts()
    {
        using SvmGuest guest = new();
        guest.RunPage.request_interrupt_window = 1;
        guest.RunTo(Exit.KVM_EXIT_IRQ_WINDOW_OPEN,
            Turn.Exit(ExitCode.Vintr).Doing((ref vmcb, ref _) => vmcb.Rflags |= Rflags.If));
        Assert.That(guest.RunPage.ready_for_interrupt_injection, Is.EqualTo(1));
        Assert.That(guest.RunPage.if_flag, Is.EqualTo(1));
        AssertClosed(guest.Vmcb);
    }

    [Test]
    public void AWithdrawnRequestClosesTheWindowAtItsExit()
    {
        using SvmGuest guest = new();
        guest.RunPage.request_interrupt_window = 1;
        guest.RunThrough();
        guest.RunPage.request_interrupt_window = 0;
        guest.RunThrough(Turn.Exit(ExitCode.Vintr).Doing((ref vmcb, ref _) => vmcb.Rflags |= Rflags.If));
        AssertClosed(guest.Entries[^1]);
    }

    [TestCase(0, false, 0)]
    [TestCase(1, false, 1)]
    [TestCase(1, true, 0)]
    public void ReadyMeansEnabledAndNothingQueued(byte enabled, bool queued, byte ready)
    {
        using SvmGuest guest = new();
        guest.Registers.Rflags |= enabled != 0 ? Rflags.If : 0;
        if (queued)
            guest.Interrupt(0x31);
        guest.RunPage.immediate_exit = 1;
        guest.RunThrough();
        Assert.That(guest.RunPage.if_flag, Is.EqualTo(enabled));
        Assert.That(guest.RunPage.ready_for_interrupt_injection, Is.EqualTo(ready));
    }

    private static void AssertOpen(in Vmcb vmcb)
    {
        Assert.That(vmcb.VirtualInterrupt & Window, Is.EqualTo(Window));
        Assert.That(vmcb.Intercept3 & Intercept3.Vintr, Is.EqualTo(Intercept3.Vintr));
    }

    private static void AssertClosed(in Vmcb vmcb)
    {
        Assert.That(vmcb.VirtualInterrupt & Window, Is.EqualTo(default(VirtualInterrupt)));
        Assert.That(vmcb.Intercept3 & Intercept3.Vintr, Is.EqualTo(default(Intercept3)));
    }
}
