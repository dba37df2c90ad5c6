// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Vm;
using SharpKvm.Vmx;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Vmx;

/// <summary>
/// The guest's own #DB, and debugging by user space; the causes are in the qualification (SDM vol. 3, table 28-1).
/// </summary>
public class DebugTests
{
    private const uint Step = kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_SINGLESTEP;
    private const uint SoftwareBreakpoints =
        kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_USE_SW_BP;
    private const ulong Bs = 1 << 14, InterceptBreakpoint = 1 << 3;

    [Test]
    public void AStepTrapsWithoutShowingItsFlagToTheGuest()
    {
        using VmxGuest guest = new();
        guest.Debug(Step);
        // Not all bits of the qualification are DR6's.
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Trap(VmxGuest.Code + 3, 1ul << 16 | 1 << 12 | Bs));
        Assert.That(guest.Entries[0][VmcsField.Rflags] & Rflags.Tf, Is.Not.Zero);
        Assert.That(guest.Get<kvm_regs>(Ioctl.KVM_GET_REGS).rflags & Rflags.Tf, Is.Zero);
        AssertStepped(guest, VmxGuest.Code + 3);
    }

    [Test]
    public void AStepOverAnInterceptedInstructionTraps()
    {
        using VmxGuest guest = new();
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Turn.Instruction(ExitReason.Cpuid, 2));
        AssertStepped(guest, VmxGuest.Code + 2);
    }

    [Test]
    public void AStepBehindAShadowStandsInTheVmcs()
    {
        using VmxGuest guest = new();
        VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.MovSs);
        guest.Debug(Step);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Trap(VmxGuest.Code + 1, Bs));
        Assert.That(guest.Entries[0][VmcsField.PendingDebug], Is.EqualTo(Bs));
    }

    [Test]
    public void AStepThatUserSpaceWithdrawsLeavesNoTrap([Values] bool shadow)
    {
        using VmxGuest guest = new();
        VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.MovSs);
        guest.Debug(Step);
        guest.RunThrough();
        guest.Debug(0);
        if (!shadow)
            VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.None);
        guest.RunThrough();
        Assert.That(guest.Entries.Select(entry => entry[VmcsField.PendingDebug]), Is.EqualTo(new[] { Bs, 0ul }));
    }

    /// <summary>What waits behind a shadow, an exit in its midst saves (28.3.4).</summary>
    [Test]
    public void AStepThatIsWithdrawnAfterAnExitLeavesTheGuestsOwnTrap()
    {
        const ulong Breakpoint = 1 << 12 | 1;
        using VmxGuest guest = new();
        VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.MovSs);
        guest.Debug(Step);
        guest.RunThrough(Turn.EptViolation(0x2000).Doing((vmcs, ref _) =>
            vmcs[VmcsField.PendingDebug] = Bs | Breakpoint));
        guest.Debug(0);
        guest.RunThrough();
        Assert.That(guest.Entries.Select(entry => entry[VmcsField.PendingDebug]),
            Is.EqualTo(new[] { Bs, Bs | Breakpoint, Breakpoint }));
    }

    [Test]
    public void TheGuestsOwnTrapReachesItWithItsCauses()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Trap(VmxGuest.Code + 1, 1 << 2));
        Assert.That(guest.Entries[1].Injected, Is.EqualTo(Injection.Exception(1)));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(VmxGuest.Code + 1));
        Assert.That(guest.Vcpu.Debug.Dr6, Is.EqualTo(0xffff0ff4));
    }

    [Test]
    public void Int1TrapsBehindItself()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Exception(Injection.PrivilegedException(1), length: 1));
        Assert.That((guest.Entries[1].Rip, guest.Entries[1].Injected),
            Is.EqualTo((VmxGuest.Code + 1, Injection.Exception(1))));
    }

    [Test]
    public void ABreakpointStaysTheGuestsUnlessUserSpaceWantsIt()
    {
        using VmxGuest guest = new();
        guest.RunThrough();
        guest.Debug(SoftwareBreakpoints);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Turn.Exception(Injection.SoftException(3), length: 1));
        Assert.That(guest.Entries.Select(entry => entry[VmcsField.ExceptionBitmap] & InterceptBreakpoint),
            Is.EqualTo(new[] { 0ul, InterceptBreakpoint }));
        Assert.That((guest.RunPage.debug.exception, guest.RunPage.debug.pc), Is.EqualTo((3u, VmxGuest.Code)));
    }

    [Test]
    public void BreakpointRegistersOfUserSpaceAreLoaded()
    {
        using VmxGuest guest = new();
        kvm_guest_debug debug = new()
        {
            control = kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_USE_HW_BP,
        };
        debug.debugreg[0] = VmxGuest.Code + 7;
        debug.debugreg[7] = 1;
        Assert.That(guest.Set(Ioctl.KVM_SET_GUEST_DEBUG, in debug), Is.Zero);
        guest.RunTo(Exit.KVM_EXIT_DEBUG, Trap(VmxGuest.Code + 7, 1));
        Assert.That(guest.Vcpu.Shared.Flags & EntryFlags.LoadDebugRegisters, Is.Not.EqualTo(EntryFlags.None));
        Assert.That(guest.Vcpu.Shared.Dr[0], Is.EqualTo(VmxGuest.Code + 7));
        Assert.That(guest.Entries[0][VmcsField.Dr7], Is.EqualTo(0x401));
        Assert.That(guest.RunPage.debug.dr6, Is.EqualTo(0xffff0ff1));
    }

    [Test]
    public void ADebugRegisterIsReadThroughTheEmulator()
    {
        using VmxGuest guest = new();
        guest.Assemble(a => a.mov(eax, dr7));
        guest.RunThrough(Turn.Instruction(ExitReason.DebugRegister, 3));
        Assert.That(guest.Registers[Gpr.Rax], Is.EqualTo(0x400));
    }

    private static Turn Trap(ulong rip, ulong causes) => Turn.Exception(Injection.Exception(1), causes).Doing(
        (vmcs, ref _) => (vmcs[VmcsField.Rip], vmcs[VmcsField.Interruptibility]) = (rip, 0));

    private static void AssertStepped(VmxGuest guest, ulong pc)
    {
        Assert.That((guest.RunPage.debug.exception, guest.RunPage.debug.pc), Is.EqualTo((1u, pc)));
        Assert.That(guest.RunPage.debug.dr6, Is.EqualTo(0xffff0ff0 | Bs));
    }
}
