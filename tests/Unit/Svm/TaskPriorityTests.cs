// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Svm;

/// <summary>CR8 in the run page, V_TPR in the VMCB, and the exit for user space's interrupt controller.</summary>
public class TaskPriorityTests
{
    private const ulong WriteCr8 = ExitCode.WriteCr0 + 8;

    [Test]
    public void TheRunPageGoesToHardware()
    {
        using SvmGuest guest = new();
        guest.RunPage.cr8 = 5;
        guest.RunThrough();
        Assert.That(Priority(guest.Entries[0]), Is.EqualTo(5));
    }

    [Test]
    public void HardwareGoesToTheRunPage()
    {
        using SvmGuest guest = new();
        guest.RunThrough(
            Turn.Exit(ExitCode.Intr).Doing((ref vmcb, ref _) => vmcb.VirtualInterrupt |= (VirtualInterrupt)9));
        Assert.That(guest.RunPage.cr8, Is.EqualTo(9));
    }

    [Test]
    public void ThePriorityLeavesTheInterruptMaskAlone()
    {
        using SvmGuest guest = new();
        guest.RunPage.cr8 = 15;
        guest.RunThrough();
        Assert.That(guest.Entries[0].VirtualInterrupt, Is.EqualTo(VirtualInterrupt.MaskHost | (VirtualInterrupt)15));
    }

    [Test]
    public void APriorityAbove15IsRefused()
    {
        using SvmGuest guest = new();
        guest.RunPage.cr8 = 16;
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void LoweringItIsUserSpacesBusiness()
    {
        using SvmGuest guest = WritingCr8(from: 5, to: 2);
        guest.RunTo(Exit.KVM_EXIT_SET_TPR, Turn.Exit(WriteCr8));
        Assert.That(guest.RunPage.cr8, Is.EqualTo(2));
        Assert.That(guest.Registers.Rip, Is.EqualTo(SvmGuest.Code + 4));
    }

    [TestCase(5, 5)]
    [TestCase(5, 9)]
    public void KeepingOrRaisingItIsNot(byte from, byte to)
    {
        using SvmGuest guest = WritingCr8(from, to);
        guest.RunThrough(Turn.Exit(WriteCr8));
        Assert.That(Priority(guest.Entries[1]), Is.EqualTo(to));
    }

    [Test]
    public void ABadValueIsAProtectionFault()
    {
        using SvmGuest guest = WritingCr8(from: 0, to: 16);
        guest.RunThrough(Turn.Exit(WriteCr8));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Exception(13, 0)));
    }

    private static SvmGuest WritingCr8(byte from, byte to)
    {
        SvmGuest guest = new();
        guest.EnterLongMode();
        guest.Assemble(a => a.mov(cr8, rax));
        guest.RunPage.cr8 = from;
        guest.Registers[Gpr.Rax] = to;
        return guest;
    }

    private static int Priority(in Vmcb vmcb) => (int)(vmcb.VirtualInterrupt & VirtualInterrupt.TprMask);
}
