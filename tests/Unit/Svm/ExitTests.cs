// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Svm;
using SharpKvm.Tests.Mmu;

namespace SharpKvm.Tests.Svm;

/// <summary>What each kind of exit does.</summary>
public class ExitTests
{
    private const ulong Next = SvmGuest.Code + 2;

    [TestCase(ExitCode.Intr)]
    [TestCase(ExitCode.Nmi)]
    [TestCase(ExitCode.Smi)]
    [TestCase(ExitCode.Init)]
    [TestCase(ExitCode.MachineCheck)]
    public void WhatTheHostHandlesChangesNothing(ulong code)
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Exit(code));
        Assert.That((guest.Entries[1].Rip, guest.Entries[1].Inject.Raw), Is.EqualTo((SvmGuest.Code, Injection.None)));
    }

    [TestCase(ExitCode.Vmrun)]
    [TestCase(ExitCode.Vmload)]
    [TestCase(ExitCode.Vmsave)]
    [TestCase(ExitCode.Stgi)]
    [TestCase(ExitCode.Clgi)]
    [TestCase(ExitCode.Skinit)]
    [TestCase(ExitCode.Invlpga)]
    [TestCase(ExitCode.Rsm)]
    [TestCase(ExitCode.Rdtscp)]
    [TestCase(ExitCode.Rdpru)]
    public void InstructionsThatTheGuestDoesNotHaveAreUndefined(ulong code)
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Exit(code));
        Assert.That((guest.Entries[1].Rip, guest.Entries[1].Inject.Raw),
            Is.EqualTo((SvmGuest.Code, Injection.Exception(6))));
    }

    [TestCase(ExitCode.Wbinvd)]
    [TestCase(ExitCode.Invd)]
    [TestCase(ExitCode.Monitor)]
    [TestCase(ExitCode.Mwait)]
    [TestCase(ExitCode.MwaitArmed)]
    public void InstructionsWithoutEffectAreSkipped(ulong code)
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Instruction(code, 2));
        Assert.That((guest.Entries[1].Rip, guest.Entries[1].Inject.Raw), Is.EqualTo((Next, Injection.None)));
    }

    [Test]
    public void ASkippedInstructionEndsTheInterruptShadow()
    {
        using SvmGuest guest = new();
        SvmVendor.SetInterruptShadow(ref guest.Vcpu, 1);
        guest.RunThrough(Turn.Instruction(ExitCode.Wbinvd, 2));
        Assert.That(guest.Entries.Select(entry => entry.InterruptShadow), Is.EqualTo(new ulong[] { 1, 0 }));
    }

    [Test]
    public void CpuidAnswersFromTheTableAndClearsUpperHalves()
    {
        using SvmGuest guest = new();
        guest.Registers[Gpr.Rbx] = ~0ul;
        guest.RunThrough(Turn.Instruction(ExitCode.Cpuid, 2));
        Assert.That((guest.Registers[Gpr.Rbx], guest.Registers[Gpr.Rdx], guest.Registers[Gpr.Rcx]),
            Is.EqualTo((0x68747541ul, 0x69746e65ul, 0x444d4163ul)));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(Next));
    }

    [Test]
    public void WithoutNextRipTheInstructionIsMeasured()
    {
        using SvmGuest guest = new(nextRip: false);
        guest.Assemble(a => a.cpuid());
        guest.RunThrough(Turn.Instruction(ExitCode.Cpuid, length: 0));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(Next));
    }

    [Test]
    public void AnMsrIsReadIntoTwoHalves()
    {
        using SvmGuest guest = new();
        guest.Registers[Gpr.Rcx] = Msr.ApicBase;
        guest.Registers[Gpr.Rdx] = ~0ul;
        guest.RunThrough(Turn.Instruction(ExitCode.Msr, 2).Doing((ref vmcb, ref _) => vmcb.Rax = ~0ul));
        Assert.That((guest.Entries[1].Rax, guest.Registers[Gpr.Rdx]), Is.EqualTo((0xfee00900ul, 0ul)));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(Next));
    }

    [Test]
    public void AnMsrIsWrittenFromTwoHalves()
    {
        using SvmGuest guest = new();
        guest.Registers[Gpr.Rcx] = Msr.Pat;
        guest.Registers[Gpr.Rdx] = 0xffffffff_00070106;
        guest.RunThrough(Turn.Instruction(ExitCode.Msr, 2, info1: 1)
            .Doing((ref vmcb, ref _) => vmcb.Rax = 0xffffffff_00070406));
        Assert.That(guest.Entries[1].GuestPat, Is.EqualTo(0x00070106_00070406));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(Next));
    }

    [TestCase(0u)]
    [TestCase(1u)]
    public void AnUnknownMsrIsAProtectionFault(uint write)
    {
        using SvmGuest guest = new();
        guest.Registers[Gpr.Rcx] = 0xffffffff;
        guest.RunThrough(Turn.Instruction(ExitCode.Msr, 2, write));
        Assert.That((guest.Entries[1].Rip, guest.Entries[1].Inject.Raw),
            Is.EqualTo((SvmGuest.Code, Injection.Exception(13, 0))));
    }

    [Test]
    public void AnUnknownHypercallSaysSo()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Hypercall(1234));
        Assert.That((int)guest.Entries[1].Rax, Is.EqualTo(-1000));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(SvmGuest.Code + 3));
    }

    [Test]
    public void TheOneKnownHypercallSucceeds()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Hypercall(1));
        Assert.That(guest.Entries[1].Rax, Is.Zero);
    }

    [Test]
    public void AnApplicationMayNotCallTheHypervisor()
    {
        using SvmGuest guest = new();
        SvmVendor.SetCpl(ref guest.Vcpu, 3);
        guest.RunThrough(Hypercall(1));
        Assert.That((int)guest.Entries[1].Rax, Is.EqualTo(-1));
    }

    [Test]
    public void AHypercallIn64BitModeUsesAllOfRax()
    {
        using SvmGuest guest = new();
        guest.EnterLongMode();
        guest.RunThrough(Hypercall(1ul << 32 | 1));
        Assert.That((long)guest.Entries[1].Rax, Is.EqualTo(-1000));
    }

    [Test]
    public void HltGoesToUserSpaceBehindTheInstruction()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_HLT, Turn.Instruction(ExitCode.Hlt, 1));
        Assert.That(guest.Registers.Rip, Is.EqualTo(SvmGuest.Code + 1));
    }

    [Test]
    public void AnNmiThatCameMeanwhileEndsTheHalt()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Instruction(ExitCode.Hlt, 1).Doing((ref _, ref _) => guest.Nmi()));
        Assert.That((guest.Entries[1].Rip, guest.Entries[1].Inject.Raw),
            Is.EqualTo((SvmGuest.Code + 1, Injection.Nmi)));
    }

    [Test]
    public void AMaskedNmiDoesNotEndTheHalt()
    {
        using SvmGuest guest = new();
        guest.Nmi();
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        guest.Nmi();
        guest.RunTo(Exit.KVM_EXIT_HLT, Turn.Instruction(ExitCode.Hlt, 1));
    }

    [Test]
    public void XsetbvSetsTheGuestsXcr0()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Instruction(ExitCode.Xsetbv, 3).Doing((ref vmcb, ref _) => vmcb.Rax = 7));
        Assert.That(guest.Vcpu.Shared.Xcr0, Is.EqualTo(7));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(SvmGuest.Code + 3));
    }

    [Test]
    public void XsetbvWithoutX87IsAProtectionFault()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Instruction(ExitCode.Xsetbv, 3).Doing((ref vmcb, ref _) => vmcb.Rax = 2));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Exception(13, 0)));
    }

    [Test]
    public void AnUnknownExitIsShownToUserSpace()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR, Turn.Exit(0x3ff, info1: 77));
        kvm_run.Internal error = guest.RunPage.@internal;
        Assert.That((error.suberror, error.ndata, error.data[0], error.data[1]),
            Is.EqualTo((kvm_run.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, 2u, 0x3fful, 77ul)));
    }

    [Test]
    public void AStateThatHardwareRefusesIsShownToUserSpace()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_FAIL_ENTRY, Turn.Exit(ExitCode.Invalid));
        Assert.That(guest.RunPage.fail_entry.hardware_entry_failure_reason, Is.EqualTo(ulong.MaxValue));
    }

    /// <summary>EXITINFO2 tells IRET and JMP from CALL; where the instruction ends is not told.</summary>
    [TestCase(0ul, true, TestName = "CALL of a task")]
    [TestCase(1ul << 38, false, TestName = "JMP to a task")]
    public void ATaskSwitchIsCarriedOut(ulong info2, bool nests)
    {
        using SvmGuest guest = new();
        TwoTasks.Put(guest);
        guest.Write(SvmGuest.Code, [(byte)(nests ? 0x9a : 0xea), 0, 0, 0, 0, (byte)TwoTasks.Other, 0]);
        guest.RunThrough(Turn.Exit(ExitCode.TaskSwitch, TwoTasks.Other, info2));
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(TwoTasks.Entry));
        Assert.That(guest.Entries[^1].Rflags, Is.EqualTo(Rflags.Fixed | (nests ? Rflags.Nt : 0)));
        Assert.That(guest.Entries[^1].Segments[9].Selector, Is.EqualTo(TwoTasks.Other));
        Assert.That(guest.Read<uint>(TwoTasks.RunningTss + 0x20), Is.EqualTo(SvmGuest.Code + 7));
    }

    [Test]
    public void AnEventThatIsATask()
    {
        using SvmGuest guest = new();
        TwoTasks.Put(guest);
        guest.RunThrough(Turn.Exit(ExitCode.TaskSwitch, TwoTasks.Other, 1ul << 44 | 0x1234)
            .During(Injection.Exception(13, 0x1234)));
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Inject.Raw),
            Is.EqualTo((TwoTasks.Entry, Injection.None)));
        Assert.That(guest.Read<uint>(TwoTasks.RunningTss + 0x20), Is.EqualTo(SvmGuest.Code));
        Assert.That(guest.Read<uint>(TwoTasks.Stack - 4), Is.EqualTo(0x1234));
    }

    [Test]
    public void AFaultOnMemoryMapsItAndGoesOn()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.NestedFault(0x2000, write: true));
        Assert.That(guest.Vm.Memory.Statistics.MappedPages, Is.EqualTo(1));
    }

    [Test]
    public void AFaultOnMemoryThatTheProcessLacksEndsTheRun()
    {
        using SvmGuest guest = new();
        guest.Host.Process.Unmap(TestMemory.UserAddress(0, 0), SvmGuest.MemoryPages);
        Assert.That(guest.Run(Turn.NestedFault(0x2000)), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void AFaultWithoutAPageForTheTablesEndsTheRun()
    {
        using SvmGuest guest = new();
        guest.Host.FailingAllocation = guest.Host.Allocations;
        guest.Host.FailsFromThere = true;
        Assert.That(guest.Run(Turn.NestedFault(0x2000)), Is.EqualTo(Errno.ENOMEM));
    }

    [Test]
    public void ASignalDuringAFaultEndsTheRun()
    {
        using SvmGuest guest = new();
        Turn fault = Turn.NestedFault(0x2000).Doing((ref _, ref _) =>
        {
            guest.Host.Process.SignalPending = true;
            guest.Host.Thread.SignalPending = true;
        });
        Assert.That(guest.Run(fault), Is.EqualTo(Errno.EINTR));
        Assert.That(guest.RunPage.exit_reason, Is.EqualTo(Exit.KVM_EXIT_INTR));
    }

    [Test]
    public void EveryExitIsTraced()
    {
        using SvmGuest guest = new();
        guest.Host.Cpu.Tsc = 99;
        guest.RunThrough(Turn.Exit(ExitCode.Intr, 5, 6));
        SharpKvm.Vm.ExitRecord record = guest.Vcpu.Exits[0];
        Assert.That((record.Reason, record.Info1, record.Info2, record.Rip, record.Tsc),
            Is.EqualTo(((uint)ExitCode.Intr, 5ul, 6ul, SvmGuest.Code, 99ul)));
    }

    private static Turn Hypercall(ulong number) =>
        Turn.Instruction(ExitCode.Vmmcall, 3).Doing((ref vmcb, ref _) => vmcb.Rax = number);
}
