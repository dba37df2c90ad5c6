// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Abi;
using SharpKvm.Host;
using SharpKvm.Svm;
using SharpKvm.Tests.Svm;

namespace SharpKvm.Tests.Vm;

/// <summary>KVM_RUN itself: what keeps the guest from running, and what comes before it.</summary>
public class RunTests
{
    [Test]
    public void RegistersInTheRunPageAreNotOffered([Values] bool dirty)
    {
        using SvmGuest guest = new();
        (dirty ? ref guest.RunPage.kvm_dirty_regs : ref guest.RunPage.kvm_valid_regs) = 1;
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINVAL));
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
