// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;

namespace SharpKvm.Tests.Svm;

/// <summary>What goes into EVENTINJ, and again after an exit in the middle of a delivery.</summary>
public class InjectionTests
{
    private const ulong Mapped = 0x2000;

    [Test]
    public void AnInterruptIsInjectedOnce()
    {
        using SvmGuest guest = new();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Interrupt(0x31), Injection.None }));
    }

    [Test]
    public void AnInterruptIsInjectedAgainWhenItsDeliveryFaulted()
    {
        using SvmGuest guest = new();
        guest.Interrupt(0x31);
        guest.RunThrough(
            Turn.NestedFault(Mapped, write: true).During(Injection.Interrupt(0x31)),
            Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest),
            Is.EqualTo(new[] { Injection.Interrupt(0x31), Injection.Interrupt(0x31), Injection.None }));
    }

    [Test]
    public void AnInterruptThatWasNotDeliveredMayNotBeReplaced()
    {
        using SvmGuest guest = new();
        guest.Interrupt(0x31);
        Assert.That(guest.Set(Ioctl.KVM_INTERRUPT, 0x32u), Is.EqualTo(Errno.EEXIST));
    }

    [Test]
    public void ARefusedEntryKeepsTheInterrupt()
    {
        using SvmGuest guest = new();
        guest.Interrupt(0x31);
        guest.RunThrough(Turn.NotEntered(), Turn.NotEntered(), Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[]
        {
            Injection.Interrupt(0x31), Injection.Interrupt(0x31), Injection.Interrupt(0x31), Injection.None,
        }));
    }

    [Test]
    public void ARefusedEntryKeepsTheException()
    {
        using SvmGuest guest = new();
        Exceptions<SvmVendor>.Queue(ref guest.Vcpu, Vector.GeneralProtection, 0x18);
        guest.RunThrough(Turn.NotEntered(), Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest),
            Is.EqualTo(new[] { Injection.Exception(13, 0x18), Injection.Exception(13, 0x18), Injection.None }));
    }

    [Test]
    public void ARefusedEntryKeepsTheNmi()
    {
        using SvmGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.NotEntered(), Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Nmi, Injection.Nmi, Injection.None }));
    }

    [Test]
    public void AnExceptionWithoutErrorCodeHasNone()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Exit(ExitCode.Vmrun));
        Assert.That(Injected(guest)[1], Is.EqualTo(Injection.Exception(6)));
    }

    [Test]
    public void AnExceptionWithErrorCodeCarriesIt()
    {
        using SvmGuest guest = new();
        Exceptions<SvmVendor>.Queue(ref guest.Vcpu, Vector.GeneralProtection, 0x1234);
        guest.RunThrough();
        Assert.That(Injected(guest)[0], Is.EqualTo(Injection.Exception(13, 0x1234)));
    }

    [Test]
    public void APageFaultWritesCr2()
    {
        using SvmGuest guest = new();
        Exceptions<SvmVendor>.Queue(ref guest.Vcpu, Vector.PageFault, 2, 0xdead000);
        guest.RunThrough();
        Assert.That(guest.Entries[0].Cr2, Is.EqualTo(0xdead000));
        Assert.That(Injected(guest)[0], Is.EqualTo(Injection.Exception(14, 2)));
    }

    [Test]
    public void AFaultIsDeliveredWithTheResumeFlag()
    {
        using SvmGuest guest = new();
        Exceptions<SvmVendor>.Queue(ref guest.Vcpu, Vector.InvalidOpcode);
        guest.RunThrough();
        Assert.That(guest.Entries[0].Rflags & Rflags.Rf, Is.Not.Zero);
    }

    [Test]
    public void AnExceptionIsInjectedAgainWithItsErrorCode()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.NestedFault(Mapped).During(Injection.Exception(14, 4)), Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.None, Injection.Exception(14, 4), Injection.None }));
    }

    [Test]
    public void AnNmiIsInjectedAgain()
    {
        using SvmGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.NestedFault(Mapped).During(Injection.Nmi), Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Nmi, Injection.Nmi, Injection.None }));
    }

    [TestCase(3)]
    [TestCase(4)]
    public void ASoftExceptionComesFromItsInstructionAgain(byte vector)
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.NestedFault(Mapped).During(Injection.Exception(vector)));
        Assert.That(Injected(guest)[1], Is.EqualTo(Injection.None));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(SvmGuest.Code));
    }

    [Test]
    public void ASoftInterruptComesFromItsInstructionAgain()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.NestedFault(Mapped).During(Injection.SoftInterrupt(0x80)));
        Assert.That(Injected(guest)[1], Is.EqualTo(Injection.None));
    }

    [Test]
    public void AContributoryExceptionOverAnotherIsADoubleFault()
    {
        using SvmGuest guest = new();
        guest.Registers[Gpr.Rcx] = 0xffffffff;
        guest.RunThrough(Turn.Instruction(ExitCode.Msr, 2).During(Injection.Exception(11, 0)));
        Assert.That(Injected(guest)[1], Is.EqualTo(Injection.Exception(8, 0)));
    }

    [Test]
    public void AnExceptionOverADoubleFaultEndsTheGuest()
    {
        using SvmGuest guest = new();
        guest.Registers[Gpr.Rcx] = 0xffffffff;
        guest.RunTo(Exit.KVM_EXIT_SHUTDOWN, Turn.Instruction(ExitCode.Msr, 2).During(Injection.Exception(8, 0)));
        Assert.That(guest.Entries, Has.Count.EqualTo(1));
    }

    [Test]
    public void HardwareShutdownEndsTheGuest()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_SHUTDOWN, Turn.Exit(ExitCode.Shutdown));
    }

    [Test]
    public void AnExceptionGoesBeforeAnNmi()
    {
        using SvmGuest guest = new();
        Exceptions<SvmVendor>.Queue(ref guest.Vcpu, Vector.InvalidOpcode);
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Exception(6), Injection.Nmi }));
    }

    [Test]
    public void AnNmiWaitsForTheDeliveryOfAnInterrupt()
    {
        using SvmGuest guest = new();
        guest.Interrupt(0x31);
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(Injected(guest), Is.EqualTo(new[] { Injection.Interrupt(0x31), Injection.Nmi }));
    }

    [Test]
    public void RealModePushesNoErrorCode()
    {
        using SvmGuest guest = new();
        SvmVendor.SetCr0(ref guest.Vcpu, Cr0.Et);
        guest.RunThrough(Turn.Exit(ExitCode.Rdpmc));
        Assert.That(Injected(guest)[1], Is.EqualTo(Injection.Exception(13)));
    }

    private static ulong[] Injected(SvmGuest guest) => [.. guest.Entries.Select(entry => entry.Inject.Raw)];
}
