// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Svm;

/// <summary>NMIs are masked from delivery to the end of IRET, and wait for the end of an interrupt shadow.</summary>
public class NmiTests
{
    private const ulong Handler = 0x2000, Interrupted = 0x3000;

    [Test]
    public void AnNmiIsInjectedAndItsIretIntercepted()
    {
        using SvmGuest guest = new();
        guest.Nmi();
        guest.RunThrough();
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Nmi));
        Assert.That(guest.Entries[0].Intercept3 & Intercept3.Iret, Is.EqualTo(Intercept3.Iret));
    }

    [Test]
    public void ASecondNmiWaitsForTheHandler()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries.Skip(1).Select(entry => entry.Inject.Raw), Is.All.EqualTo(Injection.None));
    }

    [Test]
    public void TheHandlerIsReportedAsMasked()
    {
        using SvmGuest guest = InHandler();
        Assert.That(guest.Get<kvm_vcpu_events>(Ioctl.KVM_GET_VCPU_EVENTS).nmi_masked, Is.EqualTo(1));
    }

    [Test]
    public void AnInterceptedIretRunsWithNmisStillAway()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Iret));
        Vmcb entry = guest.Entries[^1];
        Assert.That(entry.Inject.Raw, Is.EqualTo(Injection.None));
        Assert.That(entry.Intercept3 & Intercept3.Iret, Is.EqualTo(default(Intercept3)));
    }

    [Test]
    public void AnIretIsSteppedOverWhenAnNmiWaits()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Iret));
        Assert.That(guest.Entries[^1].Rflags & Rflags.Tf, Is.Not.Zero);
    }

    [Test]
    public void AnIretIsNotSteppedOverWhenNothingWaits()
    {
        using SvmGuest guest = InHandler();
        guest.RunThrough(Turn.Exit(ExitCode.Iret));
        Assert.That(guest.Entries[^1].Rflags & Rflags.Tf, Is.Zero);
    }

    [Test]
    public void TheNextNmiComesRightAfterTheIret()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Iret), Step(Interrupted));
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Nmi));
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(Interrupted));
        Assert.That(guest.Entries[^1].Rflags & Rflags.Tf, Is.Zero);
    }

    [Test]
    public void TheGuestSeesNothingOfTheStep()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Iret), Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Get<kvm_regs>(Ioctl.KVM_GET_REGS).rflags & Rflags.Tf, Is.Zero);
    }

    [Test]
    public void AGuestThatStepsItselfGetsItsTrapToo()
    {
        using SvmGuest guest = InHandler();
        guest.Registers.Rflags |= Rflags.Tf;
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Iret), Step(Interrupted));
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Exception(1)));
    }

    [Test]
    public void ABreakpointThatTheStepMeetsReachesTheGuestAlone()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Iret), Step(Interrupted, breakpoints: 2));
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Exception(1)));
        Assert.That(guest.Vcpu.Debug.Dr6 & 0x400f, Is.EqualTo(2));
    }

    [Test]
    public void OneNmiIsLatchedBehindTheHandler()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        guest.Nmi();
        guest.RunThrough(
            Turn.Exit(ExitCode.Iret), Step(Interrupted), Turn.Exit(ExitCode.Intr),
            Turn.Exit(ExitCode.Iret), Step(Interrupted + 1), Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries.Count(entry => entry.Inject.Raw == Injection.Nmi), Is.EqualTo(2));
    }

    [Test]
    public void AnNmiWaitsForTheEndOfAnInterruptShadow()
    {
        using SvmGuest guest = new();
        SvmVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.MovSs);
        guest.Nmi();
        guest.RunThrough(Step(SvmGuest.Code + 1));
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.None));
        Assert.That(guest.Entries[0].Rflags & Rflags.Tf, Is.Not.Zero);
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Nmi));
    }

    [Test]
    public void AnEventDoesNotPushTheFlagOfTheStep()
    {
        using SvmGuest guest = new();
        SvmVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.Sti);
        guest.Nmi();
        guest.RunThrough(Turn.Instruction(ExitCode.Hlt, 1));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Nmi));
        Assert.That(guest.Entries[1].Rflags & Rflags.Tf, Is.Zero);
    }

    [Test]
    public void UserSpaceCanUnmaskNmis()
    {
        using SvmGuest guest = InHandler();
        guest.Nmi();
        kvm_vcpu_events events = guest.Get<kvm_vcpu_events>(Ioctl.KVM_GET_VCPU_EVENTS);
        events.nmi_masked = 0;
        Assert.That(guest.Set(Ioctl.KVM_SET_VCPU_EVENTS, in events), Is.Zero);
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Nmi));
    }

    /// <summary>A guest whose NMI handler runs.</summary>
    private static SvmGuest InHandler()
    {
        SvmGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Intr).Doing((ref vmcb, ref _) => vmcb.Rip = Handler));
        return guest;
    }

    /// <summary>One instruction, then the trap of TF; the instruction after an interrupt shadow has none.</summary>
    private static Turn Step(ulong rip, uint breakpoints = 0) => Turn.Exit(ExitCode.Debug).Doing((ref vmcb, ref _) =>
    {
        vmcb.Rip = rip;
        vmcb.InterruptShadow = 0;
        vmcb.Dr6 |= 1 << 14 | breakpoints;
    });
}
