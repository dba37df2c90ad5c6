// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Svm;
using SharpKvm.Tests.Svm;

namespace SharpKvm.Tests.Vm;

/// <summary>KVM_RUN itself: what keeps the guest from running, and what comes before it.</summary>
public class RunTests
{
    [Test]
    public void UnknownSetsOfRegistersAreRefused([Values] bool dirty)
    {
        using SvmGuest guest = new();
        (dirty ? ref guest.RunPage.kvm_dirty_regs : ref guest.RunPage.kvm_valid_regs) = 8 | 1;
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void RegistersComeBackInTheRunPage()
    {
        using SvmGuest guest = new();
        guest.RunPage.kvm_valid_regs = kvm_run.KVM_SYNC_X86_REGS | kvm_run.KVM_SYNC_X86_SREGS;
        guest.RunPage.regs.events.nmi_pending = 7;
        guest.RunTo(Exit.KVM_EXIT_IO,
            Turn.Port(0x3f8, 1, input: false, 0x2000).Doing((ref vmcb, ref _) => vmcb.Rax = 0x12345678));
        Assert.That(guest.RunPage.regs.regs.rax, Is.EqualTo(0x12345678));
        Assert.That(guest.RunPage.regs.sregs.common.cs.selector, Is.EqualTo(8));
        Assert.That(guest.RunPage.regs.events.nmi_pending, Is.EqualTo(7), "not asked for");
    }

    [Test]
    public void RegistersAreTakenFromTheRunPageOnce()
    {
        using SvmGuest guest = new();
        guest.RunPage.regs.regs = guest.Get<kvm_regs>(Ioctl.KVM_GET_REGS) with { rip = 0x3000, rcx = 5 };
        guest.RunPage.regs.sregs = guest.Get<kvm_sregs>(Ioctl.KVM_GET_SREGS);
        guest.RunPage.regs.sregs.common.cr2 = 0x77;
        guest.RunPage.kvm_dirty_regs = kvm_run.KVM_SYNC_X86_REGS;
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(0x3000));
        Assert.That(guest.Get<kvm_regs>(Ioctl.KVM_GET_REGS).rcx, Is.EqualTo(5));
        Assert.That(guest.Get<kvm_sregs>(Ioctl.KVM_GET_SREGS).common.cr2, Is.Zero, "not dirty");
        Assert.That(guest.RunPage.kvm_dirty_regs, Is.Zero);
    }

    [Test]
    public void ImpossibleRegistersInTheRunPageAreRefused()
    {
        using SvmGuest guest = new();
        guest.RunPage.regs.sregs = guest.Get<kvm_sregs>(Ioctl.KVM_GET_SREGS);
        guest.RunPage.regs.sregs.common.cr4 = ulong.MaxValue;
        guest.RunPage.kvm_dirty_regs = kvm_run.KVM_SYNC_X86_SREGS;
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINVAL));
        Assert.That(guest.Entries, Is.Empty);
    }

    [Test]
    public void AnImmediateExitDoesNotEnterTheGuest()
    {
        using SvmGuest guest = new();
        guest.RunPage.immediate_exit = 1;
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINTR));
        Assert.That(guest.Entries, Is.Empty);
    }

    [Test]
    public void ASignalEndsTheRun()
    {
        using SvmGuest guest = new();
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINTR));
        Assert.That(guest.RunPage.exit_reason, Is.EqualTo(Exit.KVM_EXIT_INTR));
    }

    [Test]
    public void ARefusedEntryIsTriedAgain()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.NotEntered(), Turn.NotEntered());
        Assert.That(guest.Entries, Has.Count.EqualTo(3));
    }

    [TestCase((uint)VcpuRequests.FlushTlb)]
    [TestCase((uint)VcpuRequests.Migrated)]
    public void ARequestFlushesTheTlbOnce(uint request)
    {
        using SvmGuest guest = new();
        guest.RunThrough(
            Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => guest.Vcpu.Shared.Request((VcpuRequests)request)),
            Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries.Skip(1).Select(entry => entry.TlbControl),
            Is.EqualTo(new[] { TlbControl.FlushAsid, TlbControl.Nothing }));
    }

    [Test]
    public void WaitersForTheMemorySlotsAreLetPass()
    {
        using SvmGuest guest = new();
        guest.Vcpu.Shared.Request(VcpuRequests.RenewSlots);
        guest.RunThrough();
        Assert.That(guest.Host.Thread.SlotRenewals, Is.EqualTo(1));
        Assert.That(guest.Vcpu.Shared.Requests, Is.EqualTo(VcpuRequests.None));
    }

    [Test]
    public void ADeadVmIsNotEntered()
    {
        using SvmGuest guest = new();
        guest.Vcpu.Shared.Request(VcpuRequests.Dead);
        Assert.That(guest.Run(), Is.Zero);
        Assert.That(guest.Entries, Is.Empty);
    }

    [Test]
    public void TheTrapForTestsIsABoundsCheck()
    {
        using SvmGuest guest = new();
        guest.Vcpu.Shared.Request(VcpuRequests.Trap);
        Assert.That(() => guest.Run(), Throws.TypeOf<IndexOutOfRangeException>());
    }

    [Test]
    public void TheRunPageTellsTheApicBase()
    {
        using SvmGuest guest = new();
        guest.RunThrough();
        Assert.That(guest.RunPage.apic_base, Is.EqualTo(0xfee00900));
    }
}
