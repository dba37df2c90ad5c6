// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Svm;

/// <summary>The guest's own #DB, and debugging by user space.</summary>
public class DebugTests
{
    private const uint Step = kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_SINGLESTEP;
    private const uint SoftwareBreakpoints =
        kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_USE_SW_BP;
    private const ulong Bs = 1 << 14;
    private const uint InterceptBreakpoint = 1 << 3;

    [Test]
    public void AStepTrapsWithoutShowingItsFlagToTheGuest()
    {
        using SvmGuest guest = new();
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Trap(SvmGuest.Code + 3, Bs));
        Assert.That(guest.Entries[0].Rflags & Rflags.Tf, Is.Not.Zero);
        Assert.That(guest.Get<kvm_regs>(Ioctl.KVM_GET_REGS).rflags & Rflags.Tf, Is.Zero);
        AssertStepped(guest, SvmGuest.Code + 3);
    }

    [Test]
    public void AStepOverAnInterceptedInstructionTraps()
    {
        using SvmGuest guest = new();
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Turn.Instruction(ExitCode.Cpuid, 2));
        AssertStepped(guest, SvmGuest.Code + 2);
    }

    [Test]
    public void AStepOverAPortAccessTrapsWhenItIsServed()
    {
        using SvmGuest guest = new();
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port(0x60, 1, input: true, SvmGuest.Code + 2));
        guest.RunTo(Exit.KVM_EXIT_DEBUG);
        AssertStepped(guest, SvmGuest.Code + 2);
    }

    [Test]
    public void AStepOverADeviceAccessTrapsWhenItIsServed()
    {
        using SvmGuest guest = new();
        guest.Assemble(a => a.mov(eax, __dword_ptr[SvmGuest.Device]));
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device));
        guest.RunTo(Exit.KVM_EXIT_DEBUG);
        AssertStepped(guest, SvmGuest.Code + 5);
    }

    [Test]
    public void AStepOverADeviceWriteTrapsWhenItIsServed()
    {
        using SvmGuest guest = new();
        guest.Assemble(a => a.mov(__dword_ptr[SvmGuest.Device], eax));
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device, write: true));
        guest.RunTo(Exit.KVM_EXIT_DEBUG);
        AssertStepped(guest, SvmGuest.Code + 5);
    }

    [Test]
    public void AGuestThatStepsItselfTrapsAfterAnInterceptedInstruction()
    {
        using SvmGuest guest = new();
        guest.Registers.Rflags |= Rflags.Tf;
        guest.RunThrough(Turn.Instruction(ExitCode.Cpuid, 2));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Exception(1)));
        Assert.That(guest.Vcpu.Debug.Dr6 & Bs, Is.Not.Zero);
    }

    [Test]
    public void AnInstructionThatFaultsDoesNotTrap()
    {
        using SvmGuest guest = new();
        guest.Registers.Rflags |= Rflags.Tf;
        guest.Registers[Gpr.Rcx] = 0xffffffff;
        guest.RunThrough(Turn.Instruction(ExitCode.Msr, 2));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Exception(13, 0)));
    }

    [Test]
    public void TheGuestsOwnTrapReachesItWithItsCauses()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Trap(SvmGuest.Code + 1, 1 << 2));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Exception(1)));
        Assert.That(guest.Get<kvm_debugregs>(Ioctl.KVM_GET_DEBUGREGS).dr6 & 0xf, Is.EqualTo(4));
    }

    [Test]
    public void ABreakpointStaysTheGuestsUnlessUserSpaceWantsIt()
    {
        using SvmGuest guest = new();
        guest.RunThrough();
        guest.Debug(SoftwareBreakpoints);
        guest.RunThrough();
        Assert.That(guest.Entries[0].InterceptExceptions & InterceptBreakpoint, Is.Zero);
        Assert.That(guest.Entries[1].InterceptExceptions & InterceptBreakpoint, Is.Not.Zero);
    }

    [Test]
    public void ABreakpointOfUserSpaceStopsAtItsInstruction()
    {
        using SvmGuest guest = new();
        guest.Debug(SoftwareBreakpoints);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Turn.Exit(ExitCode.Breakpoint));
        Assert.That((guest.RunPage.debug.exception, guest.RunPage.debug.pc), Is.EqualTo((3u, SvmGuest.Code)));
    }

    [Test]
    public void AnInjectedBreakpointReachesTheGuest()
    {
        using SvmGuest guest = new();
        guest.Debug(SoftwareBreakpoints | kvm_guest_debug.KVM_GUESTDBG_INJECT_BP);
        guest.RunThrough();
        Assert.That(guest.Entries[0].Inject.Raw, Is.EqualTo(Injection.Exception(3)));
    }

    [Test]
    public void BreakpointRegistersOfUserSpaceAreLoaded()
    {
        using SvmGuest guest = new();
        kvm_guest_debug debug = new()
        {
            control = kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_USE_HW_BP,
        };
        debug.debugreg[0] = SvmGuest.Code + 7;
        debug.debugreg[7] = 1;
        Assert.That(guest.Set(Ioctl.KVM_SET_GUEST_DEBUG, in debug), Is.Zero);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Trap(SvmGuest.Code + 7, 1));
        Assert.That(guest.Vcpu.Shared.Flags, Is.EqualTo(EntryFlags.LoadDebugRegisters));
        Assert.That(guest.Vcpu.Shared.Dr[0], Is.EqualTo(SvmGuest.Code + 7));
        Assert.That(guest.Entries[0].Dr7 & 0xff, Is.EqualTo(1));
        Assert.That(guest.RunPage.debug.dr6 & 0xf, Is.EqualTo(1));
    }

    [Test]
    public void AnAlignmentCheckGoesBackToTheGuest()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Exit(ExitCode.AlignmentCheck));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Exception(17, 0)));
    }

    [Test]
    public void ADebugRegisterIsReadThroughTheEmulator()
    {
        using SvmGuest guest = new();
        guest.Assemble(a => a.mov(eax, dr7));
        guest.RunThrough(Turn.Exit(ExitCode.ReadDr0 + 7));
        Assert.That(guest.Entries[1].Rax, Is.EqualTo(0x400));
    }

    private static Turn Trap(ulong rip, ulong causes) => Turn.Exit(ExitCode.Debug).Doing((ref vmcb, ref _) =>
    {
        vmcb.Rip = rip;
        vmcb.Dr6 = vmcb.Dr6 & ~0xful | causes;
    });

    private static void AssertStepped(SvmGuest guest, ulong pc)
    {
        Assert.That((guest.RunPage.debug.exception, guest.RunPage.debug.pc), Is.EqualTo((1u, pc)));
        Assert.That(guest.RunPage.debug.dr6 & Bs, Is.Not.Zero);
    }
}
