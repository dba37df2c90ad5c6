// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Interrupts, NMIs and exceptions given to the guest, and those that its own code raises.</summary>
static class EventTests
{
    const byte Vector = 0x41;
    const ulong InterruptFlag = 0x200;

    public static IEnumerable<TestCase> All =>
    [
        .. GuestModes.All.Select(mode => new TestCase($"event/interrupt_{mode.Label()}", () => Interrupt(mode))),
        new("event/interrupt_vector_range", InterruptVectorRange),
        new("event/interrupt_twice", InterruptTwice),
        new("event/interrupt_window", InterruptWindow),
        new("event/interrupt_window_after_sti", InterruptWindowAfterSti),
        new("event/ready_for_injection", ReadyForInjection),
        new("event/if_flag", IfFlag),
        new("event/interrupt_wakes_hlt", InterruptWakesHalt),
        new("event/interrupt_returns", InterruptReturns),
        new("event/interrupt_to_user_mode", InterruptFromUserMode),
        new("event/interrupt_taken_back", InterruptTakenBack),
        .. GuestModes.All.Select(mode => new TestCase($"event/nmi_{mode.Label()}", () => Nmi(mode))),
        new("event/nmi_blocked_until_iret", NmiBlockedUntilIret),
        new("event/nmi_and_interrupt", NmiAndInterrupt),
        new("event/exception_with_error_code", ExceptionWithErrorCode),
        new("event/exception_without_error_code", ExceptionWithoutErrorCode),
        new("event/exception_page_fault_injected", InjectedPageFault),
        new("event/exception_user_mode", ExceptionFromUserMode),
        new("event/guest_exceptions", GuestExceptions),
        new("event/page_fault_error_codes", PageFaultErrorCodes),
        new("event/general_protection_non_canonical", NonCanonicalAccess),
        new("event/double_fault", DoubleFault),
        new("event/int_instruction", IntInstruction),
        new("event/int3_and_into", BreakpointAndOverflow),
        new("event/delivery_through_fresh_memory", DeliveryThroughFreshMemory),
        new("event/delivery_stack_in_mmio", DeliveryStackInMmio),
        new("event/alignment_check", AlignmentCheck),
        new("event/debug_exception_endless", EndlessDebugException),
        new("event/syscall_sysret", SyscallSysret),
        new("event/syscall_needs_sce", SyscallNeedsSce),
        new("event/ist", InterruptStackTable),
    ];

    static void Interrupt(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.nop();
            code.nop();
            code.hlt();
        });
        // Intel's processors refuse to enter a guest that an interrupt is injected into while IF is clear.
        guest.SetRegs((ref regs) => regs.Rflags = 2 | InterruptFlag);
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        Trap trap = guest.ExpectTrap(Vector);
        Check.Equal(GuestLayout.Code, trap.Rip, "rip");
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0ul, regs.Rflags & InterruptFlag, "IF in the handler");
    }

    static void InterruptVectorRange()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        foreach (uint vector in (uint[])[256, 1000, 0x80000000, uint.MaxValue])
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryInterrupt(vector), $"vector {vector}");
        guest.RunToHalt();
    }

    static void InterruptTwice()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.SetRegs((ref regs) => regs.Rflags = 2 | InterruptFlag);
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "first");
        KvmVcpuEvents events = guest.Vcpu.Events;
        Check.Equal((1, Vector), (events.Interrupt.Injected, events.Interrupt.Nr), "queued");
        guest.ExpectTrap(Vector);
        Check.Equal(0, guest.Vcpu.Events.Interrupt.Injected, "queue afterwards");
    }

    static Guest WindowGuest(Action<Assembler> opening)
    {
        var guest = new Guest(GuestMode.Long, code =>
        {
            Label wait = code.CreateLabel();
            code.mov(ecx, 1000);
            opening(code);
            code.Label(ref wait);
            code.dec(ecx);
            code.jnz(wait);
            code.hlt();
        });
        guest.Run.RequestInterruptWindow = 1;
        return guest;
    }

    static void InterruptWindow()
    {
        using Guest guest = WindowGuest(code =>
        {
            code.nop();
            code.sti();
            code.nop();
        });
        guest.RunTo(KvmExit.IrqWindowOpen, "window asked for while IF is clear");
        Check.Equal(1, guest.Run.ReadyForInterruptInjection, "ready_for_interrupt_injection");
        Check.Equal(1, guest.Run.IfFlag, "if_flag");
        guest.Run.RequestInterruptWindow = 0;
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        guest.ExpectTrap(Vector);
    }

    /// <summary>The window opens behind the instruction that follows STI, not before it.</summary>
    static void InterruptWindowAfterSti()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.sti();
            code.mov(eax, 0x77);
            code.nop();
            code.nop();
            code.hlt();
        });
        guest.Run.RequestInterruptWindow = 1;
        guest.RunTo(KvmExit.IrqWindowOpen);
        Check.Equal(0x77ul, guest.Vcpu.Regs.Rax, "the instruction in the shadow of STI has run");
    }

    static void ReadyForInjection()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.@out(0x10, al);
            code.sti();
            code.nop();
            code.@out(0x11, al);
            code.cli();
            code.@out(0x12, al);
            code.hlt();
        });
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
        Check.Equal(0, guest.Run.ReadyForInterruptInjection, "with IF clear");
        guest.ExpectPort(KvmRunIo.Out, 0x11, 1);
        Check.Equal(1, guest.Run.IfFlag, "if_flag");
        guest.ExpectPort(KvmRunIo.Out, 0x12, 1);
        Check.Equal(0, guest.Run.ReadyForInterruptInjection, "after CLI");
        Check.Equal(0, guest.Run.IfFlag, "if_flag after CLI");
    }

    static void IfFlag()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.SetRegs((ref regs) => regs.Rflags = 2 | InterruptFlag);
        guest.RunToHalt();
        Check.Equal(1, guest.Run.IfFlag, "if_flag");
        Check.Equal(1, guest.Run.ReadyForInterruptInjection, "ready_for_interrupt_injection");
    }

    static void InterruptWakesHalt()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.sti();
            code.hlt();
            code.mov(eax, 0x55);
            code.cli();
            code.hlt();
        });
        guest.Handle(Vector, 0x3000, code =>
        {
            code.mov(ebx, 0x66);
            code.iretq();
        });
        guest.RunToHalt();
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        guest.RunToHalt();
        Check.Equal((0x55ul, 0x66ul), (guest.Vcpu.Regs.Rax, guest.Vcpu.Regs.Rbx), "handler and what follows HLT");
    }

    static void InterruptReturns()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.sti();
            code.@out(0x10, al);
            code.nop();
            code.@out(0x10, al);
            code.hlt();
        });
        guest.Handle(Vector, 0x3000, code =>
        {
            code.inc(rbx);
            code.iretq();
        });
        for (ulong i = 1; i <= 2; i++)
        {
            guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
            Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        }
        guest.RunToHalt();
        Check.Equal(2ul, guest.Vcpu.Regs.Rbx, "times the handler ran");
        Check.Equal(GuestLayout.StackTop, guest.Vcpu.Regs.Rsp, "rsp");
    }

    static void InterruptFromUserMode()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label self = code.CreateLabel();
            code.Label(ref self);
            code.jmp(self);
        });
        guest.EnterUserMode();
        guest.SetRegs((ref regs) => regs.Rflags = 2 | InterruptFlag);
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        Trap trap = guest.ExpectTrap(Vector);
        Check.Equal((ulong)GuestLayout.UserCode64, trap.Cs, "cs");
        Check.Equal(GuestLayout.UserStackTop, trap.Rsp, "rsp of the user");
        Check.That(guest.Vcpu.Regs.Rsp > GuestLayout.UserStackTop, "the handler is on the stack that the TSS names");
    }

    static void InterruptTakenBack()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        KvmVcpuEvents events = guest.Vcpu.Events;
        events.Interrupt.Injected = 0;
        guest.Vcpu.Events = events;
        guest.RunToHalt();
    }

    static void Nmi(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.nop();
            code.hlt();
        });
        guest.Vcpu.Nmi();
        Trap trap = guest.ExpectTrap(2);
        Check.Equal(GuestLayout.Code, trap.Rip, "rip");
        Check.Equal(1, guest.Vcpu.Events.Nmi.Masked, "further NMIs are held back");
    }

    static void NmiBlockedUntilIret()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.nop();
            code.nop();
            code.hlt();
        });
        guest.Handle(2, 0x3000, code =>
        {
            code.inc(rbx);
            code.@out(0x10, al);
            code.nop();
            code.iretq();
        });
        guest.Vcpu.Nmi();
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
        guest.Vcpu.Nmi();
        Check.Equal(1ul, guest.Vcpu.Regs.Rbx, "inside the first handler");
        // The second handler runs when the first has returned, so the next output is its own.
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
        Check.Equal(2ul, guest.Vcpu.Regs.Rbx, "inside the second handler");
        Check.Equal(GuestLayout.StackTop, guest.Memory.Read<ulong>(guest.Vcpu.Regs.Rsp + 24), "the first had returned");
        guest.RunToHalt();
        Check.Equal(GuestLayout.StackTop, guest.Vcpu.Regs.Rsp, "rsp");
        Check.Equal(0, guest.Vcpu.Events.Nmi.Masked, "NMIs are open again");
    }

    static void NmiAndInterrupt()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.nop();
            code.nop();
            code.hlt();
        });
        guest.Handle(2, 0x3000, code =>
        {
            code.inc(rbx);
            code.iretq();
        });
        guest.Handle(Vector, 0x3100, code =>
        {
            code.inc(rcx);
            code.iretq();
        });
        guest.SetRegs((ref regs) => regs.Rflags = 2 | InterruptFlag);
        Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
        guest.Vcpu.Nmi();
        guest.RunToHalt();
        Check.Equal((1ul, 1ul), (guest.Vcpu.Regs.Rbx, guest.Vcpu.Regs.Rcx), "NMI and interrupt handlers");
    }

    static void Inject(Guest guest, byte vector, uint? errorCode)
    {
        KvmVcpuEvents events = guest.Vcpu.Events;
        events.Exception = new()
        {
            Injected = 1, Nr = vector, HasErrorCode = (byte)(errorCode != null ? 1 : 0), ErrorCode = errorCode ?? 0,
        };
        guest.Vcpu.Events = events;
    }

    static void ExceptionWithErrorCode()
    {
        foreach (GuestMode mode in GuestModes.All.Where(mode => mode != GuestMode.Real))
        {
            foreach (byte vector in (byte[])[10, 11, 12, 13])
            {
                using var guest = new Guest(mode, code => code.hlt());
                Inject(guest, vector, 0x5678u + vector);
                Trap trap = guest.ExpectTrap(vector, mode.Label());
                Check.Equal(0x5678ul + vector, trap.ErrorCode, $"{mode.Label()}: error code");
                Check.Equal(GuestLayout.Code, trap.Rip, "rip");
                Check.Equal(0, guest.Vcpu.Events.Exception.Injected, "queue afterwards");
            }
        }
    }

    static void ExceptionWithoutErrorCode()
    {
        foreach (GuestMode mode in GuestModes.All)
        {
            foreach (byte vector in (byte[])[0, 1, 5, 6, 16, 19])
            {
                using var guest = new Guest(mode, code => code.hlt());
                Inject(guest, vector, null);
                Trap trap = guest.ExpectTrap(vector, mode.Label());
                Check.Equal(GuestLayout.Code, trap.Rip, "rip");
            }
        }
    }

    static void InjectedPageFault()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.SetSregs((ref sregs) => sregs.Cr2 = 0x1234567000);
        Inject(guest, 14, 6);
        Check.Equal(6ul, guest.ExpectTrap(14).ErrorCode, "error code");
        Check.Equal(0x1234567000ul, guest.Vcpu.Sregs.Cr2, "cr2");
    }

    static void ExceptionFromUserMode()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.EnterUserMode();
        Trap trap = guest.ExpectTrap(13, "HLT at CPL 3");
        Check.Equal((ulong)GuestLayout.UserCode64, trap.Cs, "cs");
        Check.Equal(0ul, trap.ErrorCode, "error code");
    }

    static void GuestExceptions()
    {
        foreach ((int vector, ulong errorCode, Action<Assembler> code) in new (int, ulong, Action<Assembler>)[]
            {
                (0, 0, c => { c.xor(ecx, ecx); c.div(ecx); }),
                (6, 0, c => c.ud2()),
                (13, 0x78, c => { c.mov(eax, 0x78); c.mov(ds, eax); c.nop(); }),
                (13, 0x7F8, c => { c.mov(eax, 0x7F8); c.mov(es, eax); }),
                (11, 0x58, c => { c.mov(eax, 0x58); c.mov(es, eax); }),
                (13, 0, c => { c.mov(rax, 0x8000000000000000); c.mov(al, __byte_ptr[rax]); }),
            })
        {
            using var guest = new Guest(GuestMode.Long, assembler =>
            {
                code(assembler);
                assembler.hlt();
            });
            // 0x58: a writable segment that is not present. 0x78 points behind it to one that is not data.
            guest.Memory.Write(GuestLayout.Gdt + 0x58, GuestTables.Descriptor(0, 0xFFFFF, 0x13, 0xC));
            Trap trap = guest.ExpectTrap(vector);
            Check.Equal(errorCode, trap.ErrorCode, $"vector {vector}: error code");
        }
    }

    static void PageFaultErrorCodes()
    {
        ulong entry = GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8;
        foreach ((string what, ulong pte, bool user, bool write, bool fetch, ulong expected) in new[]
            {
                ("read, not present", 0ul, false, false, false, 0ul),
                ("write, not present", 0ul, false, true, false, 2ul),
                ("user read, not present", 0ul, true, false, false, 4ul),
                ("user write, not present", 0ul, true, true, false, 6ul),
                ("write to read-only", GuestLayout.Data | 5, false, true, false, 3ul),
                ("user write to read-only", GuestLayout.Data | 5, true, true, false, 7ul),
                ("user read of supervisor", GuestLayout.Data | 3, true, false, false, 5ul),
                ("fetch, no-execute", GuestLayout.Data | 7 | GuestTables.NoExecute, false, false, true, 0x11ul),
                ("user fetch, no-execute", GuestLayout.Data | 7 | GuestTables.NoExecute, true, false, true, 0x15ul),
                ("read, reserved bit", GuestLayout.Data | 7 | 1ul << 51, false, false, false, 9ul),
            })
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.mov(rbx, GuestLayout.Data + 0x123);
                if (fetch)
                    code.jmp(rbx);
                else if (write)
                    code.mov(__byte_ptr[rbx], al);
                else
                    code.mov(al, __byte_ptr[rbx]);
                code.hlt();
            });
            if (user)
                guest.EnterUserMode();
            guest.Memory.Write(entry, pte);
            Trap trap = guest.ExpectTrap(14, what);
            // Emulated CPUs forget the present bit beside the reserved one.
            Check.Equal(expected, trap.ErrorCode | (expected == 9 ? 1ul : 0), $"{what}: error code");
            Check.Equal(GuestLayout.Data + 0x123, guest.Vcpu.Sregs.Cr2, $"{what}: cr2");
        }
    }

    static void NonCanonicalAccess()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, 0x0000800000000000);
            code.jmp(rax);
        });
        guest.ExpectTrap(13, "jump to a non-canonical address");
    }

    static void DoubleFault()
    {
        using var guest = new Guest(GuestMode.Long, code => code.ud2());
        // Vector 6 is not present, vector 11 neither: #UD, #NP while delivering, then #NP again: a double fault.
        foreach (int vector in (int[])[6, 11, 13])
        {
            guest.Memory.Write<byte>(GuestLayout.Idt + (ulong)vector * 16 + 5, 0x0E);
        }
        Trap trap = guest.ExpectTrap(8);
        Check.Equal(0ul, trap.ErrorCode, "error code");
    }

    static void IntInstruction()
    {
        foreach (GuestMode mode in GuestModes.All)
        {
            using var guest = new Guest(mode, code =>
            {
                code.@int(0x80);
                code.hlt();
            });
            Trap trap = guest.ExpectTrap(0x80, mode.Label());
            Check.Equal(GuestLayout.Code + 2, trap.Rip, "rip behind INT");
        }
        using var user = new Guest(GuestMode.Protected, code => code.@int(0x41));
        user.EnterUserMode();
        Check.Equal(0x41ul * 8 + 2, user.ExpectTrap(13, "INT to a gate of ring 0").ErrorCode,
            "error code names the gate");
    }

    static void BreakpointAndOverflow()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(al, 0x7F);
            code.inc(al);
            code.into();
            code.hlt();
        });
        Check.Equal(GuestLayout.Code + 5, guest.ExpectTrap(4).Rip, "rip behind INTO");
        using var other = new Guest(GuestMode.Protected, code => code.int3());
        Check.Equal(GuestLayout.Code + 1, other.ExpectTrap(3).Rip, "rip behind INT3");
    }

    /// <summary>The nested-page fault happens while the CPU pushes the frame; the event must not get lost.</summary>
    static void DeliveryThroughFreshMemory()
    {
        const ulong Extra = 0x40000000;
        foreach (bool interrupt in (bool[])[false, true])
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.nop();
                code.ud2();
            });
            guest.Vm.AddMemory(1, Extra, 1 << 20);
            guest.SetRegs((ref regs) =>
            {
                regs.Rsp = Extra + 0x10000;
                regs.Rflags = 2 | InterruptFlag;
            });
            if (interrupt)
                Check.Succeeds(guest.Vcpu.TryInterrupt(Vector), "KVM_INTERRUPT");
            guest.RunTo(KvmExit.Hlt);
            ulong expected = GuestTables.StubAddress(interrupt ? Vector : 6);
            Check.Equal(expected + 3, guest.Vcpu.Regs.Rip, "rip in the handler");
            Check.Equal(Extra + 0x10000 - 48, guest.Vcpu.Regs.Rsp, "rsp: frame and error code");
        }
    }

    /// <summary>A frame pushed to MMIO cannot be completed: reported, not silently lost and not endless.</summary>
    static void DeliveryStackInMmio()
    {
        using var guest = new Guest(GuestMode.Long, code => code.ud2());
        guest.SetRegs((ref regs) => regs.Rsp = GuestLayout.Mmio + 0x100);
        guest.RunTo(KvmExit.InternalError, "exception frame in MMIO");
        Check.That(guest.Run.Internal.Suberror is KvmInternalError.DeliveryEv or KvmInternalError.Emulation,
            $"suberror {guest.Run.Internal.Suberror}");
    }

    static void AlignmentCheck()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, GuestLayout.Data + 1);
            code.mov(eax, __dword_ptr[rbx]);
            code.int3();
        });
        guest.EnterUserMode();
        guest.SetSregs((ref sregs) => sregs.Cr0 |= 0x40000);
        guest.SetRegs((ref regs) => regs.Rflags |= 0x40000);
        guest.RunTo(KvmExit.Hlt);
        // An emulated CPU may not check alignment at all.
        Check.Needs(guest.Vcpu.Regs.Rip != GuestTables.StubAddress(3) + 3, "alignment checking");
        Check.Equal(0ul, guest.ReadTrap(17).ErrorCode, "error code");
    }

    /// <summary>#DB in the delivery of #DB goes on for ever: the host must get its CPU back (CVE-2015-8104).</summary>
    static void EndlessDebugException()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, GuestLayout.StackTop - 0x40);
            code.mov(dr0, rax);
            code.mov(eax, 0x000D0403);
            code.mov(dr7, rax);
            code.mov(__qword_ptr[rax], rax);
            code.hlt();
        });
        guest.Handle(1, 0x3000, code =>
        {
            code.push(rax);
            code.pop(rax);
            code.iretq();
        });
        using var stopper = new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(500));
        int result = guest.Vcpu.TryRun();
        Check.That(result == -(int)Errno.EINTR || result == 0, $"KVM_RUN: {result}");
    }

    static void SyscallSysret()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 0x11);
            code.syscall();
            code.mov(ebx, 0x33);
            code.int3();
        });
        guest.Load(0x3000, code =>
        {
            code.mov(edx, 0x22);
            code.mov(esi, cs);
            code.sysretq();
        });
        guest.Vcpu.SetMsr(0xC0000081, ((ulong)GuestLayout.Code64 << 32) | ((ulong)(GuestLayout.Code64 | 3) << 48));
        guest.Vcpu.SetMsr(0xC0000082, 0x3000);
        guest.Vcpu.SetMsr(0xC0000084, 0x200);
        guest.EnterUserMode();
        Trap trap = guest.ExpectTrap(3);
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal((0x22ul, 0x33ul), (regs.Rdx, regs.Rbx), "kernel side, user side");
        Check.Equal((ulong)GuestLayout.Code64, regs.Rsi, "cs in the kernel");
        Check.Equal((ulong)GuestLayout.UserCode64, trap.Cs, "cs of the user afterwards");
    }

    /// <summary>Where no control switches EFER the host's own system calls are as near as the guest's.</summary>
    static void SyscallNeedsSce()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(ecx, 0xC0000080);
            code.rdmsr();
            code.and(eax, -2);
            code.wrmsr();
            code.@out(0x10, al);
            code.syscall();
        });
        guest.Load(0x3000, code => code.hlt());
        guest.Vcpu.SetMsr(0xC0000081, (ulong)GuestLayout.Code64 << 32);
        guest.Vcpu.SetMsr(0xC0000082, 0x3000);
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
        guest.ExpectTrap(6, "SYSCALL without EFER.SCE");
    }

    static void InterruptStackTable()
    {
        using var guest = new Guest(GuestMode.Long, code => code.ud2());
        guest.Memory.Write(GuestLayout.Tss + 0x24, 0x6000ul);
        guest.Memory.Write<byte>(GuestLayout.Idt + 6 * 16 + 4, 1);
        guest.ExpectTrap(6);
        Check.Equal(0x6000ul - 48, guest.Vcpu.Regs.Rsp, "rsp on the stack of IST 1");
    }
}
