// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>KVM_SET_GUEST_DEBUG: single steps and breakpoints for a debugger outside of the guest.</summary>
static class DebugTests
{
    const KvmGuestDebugControl Enable = KvmGuestDebugControl.Enable, Step = Enable | KvmGuestDebugControl.Singlestep,
        Software = Enable | KvmGuestDebugControl.UseSwBp, Hardware = Enable | KvmGuestDebugControl.UseHwBp;

    public static IEnumerable<TestCase> All =>
    [
        .. GuestModes.All.Select(mode => new TestCase($"debug/single_step_{mode.Label()}", () => SingleStep(mode))),
        new("debug/single_step_over_cpuid", SingleStepOverCpuid),
        new("debug/single_step_over_out", SingleStepOverOut),
        new("debug/single_step_hides_trap_flag", SingleStepHidesTrapFlag),
        .. GuestModes.All.Select(mode => new TestCase($"debug/software_breakpoint_{mode.Label()}", () =>
            SoftwareBreakpoint(mode))),
        new("debug/software_breakpoint_not_asked_for", SoftwareBreakpointNotAskedFor),
        new("debug/hardware_breakpoint", HardwareBreakpoint),
        new("debug/hardware_watchpoint", HardwareWatchpoint),
        new("debug/hardware_keeps_guest_registers", HardwareKeepsGuestRegisters),
        new("debug/switch_off", SwitchOff),
        new("debug/inject", Inject),
        new("debug/guest_own_single_step", GuestOwnSingleStep),
        new("debug/guest_own_breakpoint", GuestOwnBreakpoint),
        new("debug/guest_icebp", GuestIcebp),
        new("debug/guest_general_detect", GuestGeneralDetect),
        new("debug/user_mode_dr_access", UserModeDrAccess),
    ];

    static void Control(Guest guest, KvmGuestDebugControl control) =>
        guest.Vcpu.SetGuestDebug(new() { Control = control });

    /// <summary>QEMU's emulated SVM neither intercepts INT3 nor arms debug registers that VMRUN loads.</summary>
    static void RunToDebug(Guest guest)
    {
        if (guest.Vcpu.RunOnce() == KvmExit.Hlt)
            Check.Needs(!HostCpu.IsEmulatedByTcg, "intercepts of breakpoints");
        Check.Equal(KvmExit.Debug, guest.Run.ExitReason, "exit reason");
    }

    static void SingleStep(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.nop();
            code.mov(al, 1);
            code.jmp(code.@F);
            code.nop();
            code.AnonymousLabel();
            code.nop();
            code.hlt();
        });
        Control(guest, Step);
        foreach (ulong offset in (ulong[])[1, 3, 6, 7])
        {
            guest.RunTo(KvmExit.Debug, $"step to {offset}");
            Check.Equal(GuestLayout.Code + offset, guest.Run.Debug.Pc, "pc");
            Check.Equal(1u, guest.Run.Debug.Exception, "exception");
            Check.Equal(0x4000ul, guest.Run.Debug.Dr6 & 0x4000, "DR6.BS");
            Check.Equal(GuestLayout.Code + offset, guest.Vcpu.Regs.Rip, "rip");
        }
    }

    static void SingleStepOverCpuid()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.cpuid();
            code.nop();
            code.hlt();
        });
        Control(guest, Step);
        guest.RunTo(KvmExit.Debug, "an instruction that the hypervisor completes");
        Check.Equal(GuestLayout.Code + 2, guest.Run.Debug.Pc, "pc");
    }

    static void SingleStepOverOut()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.@out(0x10, al);
            code.nop();
            code.nop();
            code.hlt();
        });
        Control(guest, Step);
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
        guest.RunTo(KvmExit.Debug, "step");
        // Stock KVM reports behind the following instruction, the manual says behind OUT.
        ulong offset = guest.Run.Debug.Pc - GuestLayout.Code;
        Check.That(offset is 2 or 3, $"pc {guest.Run.Debug.Pc:x}");
    }

    static void SingleStepHidesTrapFlag()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.nop();
            code.pushfq();
            code.pop(rbx);
            code.nop();
            code.hlt();
        });
        Control(guest, Step);
        guest.RunTo(KvmExit.Debug);
        Check.Equal(0ul, guest.Vcpu.Regs.Rflags & 0x100, "TF in KVM_GET_REGS");
    }

    static void SoftwareBreakpoint(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.nop();
            code.int3();
            code.hlt();
        });
        Control(guest, Software);
        RunToDebug(guest);
        Check.Equal(3u, guest.Run.Debug.Exception, "exception");
        Check.Equal(GuestLayout.Code + 1, guest.Run.Debug.Pc, "pc at INT3");
        Check.Equal(GuestLayout.Code + 1, guest.Vcpu.Regs.Rip, "rip at INT3");
        // As a debugger does: put the original byte back and go on.
        guest.Memory.Write<byte>(GuestLayout.Code + 1, 0x90);
        guest.RunToHalt();
    }

    static void SoftwareBreakpointNotAskedFor()
    {
        using var guest = new Guest(GuestMode.Long, code => code.int3());
        Control(guest, Step & ~KvmGuestDebugControl.Singlestep);
        guest.ExpectTrap(3, "INT3 belongs to the guest");
    }

    static KvmGuestDebug Breakpoint(ulong address, ulong dr7)
    {
        var debug = new KvmGuestDebug { Control = Hardware };
        debug.Debugreg[0] = address;
        debug.Debugreg[7] = dr7;
        return debug;
    }

    static void HardwareBreakpoint()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.nop();
            code.nop();
            code.nop();
            code.hlt();
        });
        guest.Vcpu.SetGuestDebug(Breakpoint(GuestLayout.Code + 2, 0x402));
        RunToDebug(guest);
        Check.Equal(GuestLayout.Code + 2, guest.Run.Debug.Pc, "pc");
        Check.Equal(1ul, guest.Run.Debug.Dr6 & 0xF, "DR6.B0");
        Check.Equal(1u, guest.Run.Debug.Exception, "exception");
        Control(guest, KvmGuestDebugControl.None);
        guest.RunToHalt();
    }

    static void HardwareWatchpoint()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, GuestLayout.Data);
            code.mov(__dword_ptr[rbx + 8], eax);
            code.mov(__dword_ptr[rbx], eax);
            code.nop();
            code.hlt();
        });
        guest.Vcpu.SetGuestDebug(Breakpoint(GuestLayout.Data, 0x402 | 0xD0000)); // 4 bytes, write
        RunToDebug(guest);
        Check.Equal(1ul, guest.Run.Debug.Dr6 & 0xF, "DR6.B0");
        Check.Equal((byte)0x90, guest.Memory.Read<byte>(guest.Run.Debug.Pc), "pc behind the second store");
    }

    static void HardwareKeepsGuestRegisters()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 0x1234);
            code.mov(dr0, rax);
            code.mov(rbx, dr0);
            code.mov(rcx, dr7);
            code.hlt();
        });
        guest.Vcpu.SetGuestDebug(Breakpoint(0x7000, 0x402));
        guest.RunToHalt();
        Check.Equal((0x1234ul, 0x400ul), (guest.Vcpu.Regs.Rbx, guest.Vcpu.Regs.Rcx),
            "the guest sees its own DR0 and DR7");
        Check.Equal(0x1234ul, guest.Vcpu.Debugregs.Db[0], "KVM_GET_DEBUGREGS too");
    }

    static void SwitchOff()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.nop();
            code.nop();
            code.nop();
            code.hlt();
        });
        Control(guest, Step);
        guest.RunTo(KvmExit.Debug);
        Control(guest, KvmGuestDebugControl.None);
        guest.RunToHalt();
        Check.Equal(0ul, guest.Vcpu.Regs.Rflags & 0x100, "TF afterwards");
    }

    static void Inject()
    {
        using var guest = new Guest(GuestMode.Long, code => code.int3());
        Control(guest, Enable | KvmGuestDebugControl.InjectBp);
        Check.Equal(GuestLayout.Code + 1, guest.ExpectTrap(3, "INJECT_BP at an INT3").Rip, "rip");
        using var other = new Guest(GuestMode.Long, code => code.hlt());
        Control(other, Enable | KvmGuestDebugControl.InjectDb);
        other.ExpectTrap(1, "INJECT_DB");
    }

    static void GuestOwnSingleStep()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.pushfq();
            code.or(__dword_ptr[rsp], 0x100);
            code.popfq();
            code.nop();
            code.nop();
            code.hlt();
        });
        Trap trap = guest.ExpectTrap(1);
        Check.Equal((byte)0x90, guest.Memory.Read<byte>(trap.Rip), "rip behind the first NOP");
        Check.Equal(0x4000ul, guest.Vcpu.Debugregs.Dr6 & 0x4000, "DR6.BS");
        Check.Equal(0x100ul, trap.Flags & 0x100, "TF on the stack");
    }

    static void GuestOwnBreakpoint()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, GuestLayout.Data);
            code.mov(dr1, rax);
            code.mov(eax, 0x00D00408);
            code.mov(dr7, rax);
            code.mov(rbx, GuestLayout.Data);
            code.mov(__dword_ptr[rbx], eax);
            code.nop();
            code.hlt();
        });
        Trap trap = guest.ExpectTrap(1, "the guest's own watchpoint");
        Check.Equal((byte)0x90, guest.Memory.Read<byte>(trap.Rip), "rip behind the store");
        Check.Equal(2ul, guest.Vcpu.Debugregs.Dr6 & 0xF, "DR6.B1");
    }

    static void GuestIcebp()
    {
        Check.Needs(!HostCpu.IsEmulatedByTcg, "the ICEBP instruction");
        using var guest = new Guest(GuestMode.Long, [0xF1, 0xF4]);
        Trap trap = guest.ExpectTrap(1, "ICEBP");
        Check.Equal(GuestLayout.Code + 1, trap.Rip, "rip");
    }

    static void GuestGeneralDetect()
    {
        // QEMU 7.2 itself dies of it.
        Check.Needs(!HostCpu.IsEmulatedByTcg, "DR7.GD");
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 0x2400);
            code.mov(dr7, rax);
            code.mov(rbx, dr0);
            code.hlt();
        });
        guest.ExpectTrap(1, "MOV DR with DR7.GD");
        Check.Equal(0x2000ul, guest.Vcpu.Debugregs.Dr6 & 0x2000, "DR6.BD");
    }

    /// <summary>Debug registers are not for user code, hypervisor or not (CVE-2009-3722).</summary>
    static void UserModeDrAccess()
    {
        using var guest = new Guest(GuestMode.Long, code => code.mov(rax, dr7));
        guest.EnterUserMode();
        guest.ExpectTrap(13, "MOV from DR7 at CPL 3");
        Check.Equal(0x400ul, guest.Vcpu.Debugregs.Dr7, "dr7");
    }
}
