// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Mistakes that hypervisors made: each test is named by what went wrong elsewhere.</summary>
static class SecurityTests
{
    const ulong Mmio = GuestLayout.Mmio;

    public static IEnumerable<TestCase> All =>
    [
        new("security/call_to_non_canonical", CallToNonCanonical),
        new("security/null_stack_segment_from_mmio", NullStackSegmentFromMmio),
        new("security/user_store_to_supervisor_page", UserStoreToSupervisorPage),
        new("security/user_string_to_supervisor_page", UserStringToSupervisorPage),
        new("security/user_port_by_bitmap", UserPortByBitmap),
        new("security/user_cli_and_iopl", UserCliAndIopl),
        new("security/single_step_over_syscall", SingleStepOverSyscall),
        new("security/mov_ss_hides_no_debug_exception", MovSsWatchpoint),
        new("security/delay_port_is_not_passed_through", DelayPort),
        new("security/split_mmio_abandoned", SplitMmioAbandoned),
        new("security/split_mmio_and_new_registers", SplitMmioAndNewRegisters),
        new("security/mmio_page_becomes_memory_in_between", MmioPageBecomesMemory),
        new("security/instruction_swapped_in_between", InstructionSwapped),
        new("security/immediate_exit_with_pending_read", PendingReadManyTimes),
        new("security/random_code_in_user_mode", RandomCodeInUserMode, Own: true),
        new("security/random_code_on_mmio", RandomCodeOnMmio, Own: true),
        new("security/longest_instruction", LongestInstruction),
        new("security/lock_prefix_refused", LockPrefixRefused),
        new("security/register_form_refused", RegisterFormRefused),
        new("security/slot_at_the_end_of_user_space", SlotAtTheEnd),
        new("security/device_file_mapped_as_guest_memory", DeviceFileAsMemory),
        new("security/rdtscp_and_rdpid_need_the_feature", RdtscpNeedsFeature),
        new("security/run_in_two_threads", RunInTwoThreads),
    ];

    static Guest Make(Action<Assembler> code, GuestMode mode = GuestMode.Long)
    {
        var guest = new Guest(mode, code);
        guest.SetRegs((ref regs) => regs.Rbx = Mmio);
        return guest;
    }

    /// <summary>CVE-2014-3647: an interpreted branch to a non-canonical address.</summary>
    static void CallToNonCanonical()
    {
        using Guest guest = Make(code => code.call(__qword_ptr[rbx]));
        guest.ExpectMmioRead(Mmio, 0, 0, 0, 0, 0, 0, 0, 0x80);
        Trap trap = guest.ExpectTrap(13, "call to a non-canonical address");
        Check.Equal(0ul, trap.ErrorCode, "error code");
    }

    /// <summary>CVE-2017-2583: an interpreted MOV SS of a null selector outside of 64-bit mode.</summary>
    static void NullStackSegmentFromMmio()
    {
        using Guest guest = Make(code => code.mov(ss, __word_ptr[ebx]), GuestMode.Protected);
        guest.ExpectMmioRead(Mmio, 0, 0);
        Check.Equal(0ul, guest.ExpectTrap(13, "null selector into SS").ErrorCode, "error code");
        Check.Equal(GuestLayout.Data32, guest.Vcpu.Sregs.Ss.Selector, "ss");
    }

    static void SupervisorOnly(Guest guest, ulong address) =>
        guest.Memory.Write(GuestLayout.LowPageTable + (address >> 12) * 8, (address & ~0xFFFul) | 3);

    /// <summary>CVE-2018-10853: interpreted on behalf of user code, but with the kernel's rights.</summary>
    static void UserStoreToSupervisorPage()
    {
        foreach ((string what, Action<Assembler> code, ulong error) in new (string, Action<Assembler>, ulong)[]
            {
                ("SIDT", c => c.sidt(__[rbx + 0xFFE]), 7), ("SGDT", c => c.sgdt(__[rbx + 0xFFE]), 7),
                ("MOV", c => c.mov(__qword_ptr[rbx + 0xFFE], rax), 7),
                    ("load", c => c.mov(rax, __qword_ptr[rbx + 0xFFE]), 5),
                ("POP", c => c.pop(__qword_ptr[rbx + 0xFFE]), 7), ("PUSH", c => c.push(__qword_ptr[rbx + 0xFFE]), 5),
            })
        {
            // The first bytes are MMIO, so the hypervisor interprets; the last ones are the kernel's.
            using Guest guest = Make(code);
            guest.EnterUserMode();
            SupervisorOnly(guest, Mmio + 0x1000);
            using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromSeconds(2));
            int result = guest.Vcpu.TryRun();
            for (int i = 0; i < 4 && result == 0 && guest.Run.ExitReason == KvmExit.Mmio; i++)
            {
                Check.That(guest.Run.Mmio.PhysAddr + guest.Run.Mmio.Len <= Mmio + 0x1000,
                    $"{what} reached the supervisor's page");
                result = guest.Vcpu.TryRun();
            }
            // Stock KVM repeats the store for ever, as it finds the fault after the first half.
            Check.Needs(result != -(int)Errno.EINTR || TestEnvironment.IsSharpKvm,
                "an interpreter that checks both pages first");
            Check.Succeeds(result, what);
            if (guest.Run.ExitReason == KvmExit.InternalError)
                continue;
            Check.Equal(KvmExit.Hlt, guest.Run.ExitReason, what);
            Trap trap = guest.ReadTrap(14, what);
            Check.Equal(error, trap.ErrorCode, $"{what}: error code");
            Check.Equal(GuestLayout.Code, trap.Rip, $"{what}: rip");
        }
    }

    static void UserStringToSupervisorPage()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rsi, rbx);
            code.mov(edi, (uint)GuestLayout.Data);
            code.mov(ecx, 4);
            code.rep.movsb();
        });
        guest.EnterUserMode();
        SupervisorOnly(guest, GuestLayout.Data);
        KvmExit exit = guest.Vcpu.RunOnce();
        if (exit == KvmExit.Mmio)
            exit = guest.Vcpu.RunOnce();
        Check.Equal(KvmExit.Hlt, exit, "exit reason");
        Check.Equal(7ul, guest.ReadTrap(14).ErrorCode, "error code");
        Check.Equal(0u, guest.Memory.Read<uint>(GuestLayout.Data), "the supervisor's page");
    }

    /// <summary>CVE-2010-0298: ports at CPL 3, by IOPL and the bitmap of the TSS.</summary>
    static void UserPortByBitmap()
    {
        foreach ((ushort port, bool allowed) in new[] { ((ushort)0x60, true), ((ushort)0x61, false),
            ((ushort)0x68, false) })
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.mov(dx, port);
                code.@out(dx, al);
                code.int3();
            });
            guest.EnterUserMode();
            guest.SetSregs((ref sregs) =>
            {
                sregs.Tr.Limit = 0x67 + 0x10;
                // QEMU's emulated CPU looks into the bitmap of an available TSS only.
                sregs.Tr.Type = (byte)(HostCpu.IsEmulatedByTcg ? 9 : 11);
            });
            guest.Memory.Write<ushort>(GuestLayout.Tss + 0x66, 0x68);
            guest.Memory.Slice(GuestLayout.Tss + 0x68, 0x10).Fill(0xFF);
            guest.Memory.Write<byte>(GuestLayout.Tss + 0x68 + 0x60 / 8, 0xFE);
            if (!allowed)
            {
                guest.ExpectTrap(13, $"port {port:x}");
                continue;
            }
            guest.ExpectPort(KvmRunIo.Out, port, 1);
            guest.ExpectTrap(3);
        }
    }

    static void UserCliAndIopl()
    {
        foreach (bool privileged in (bool[])[false, true])
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.cli();
                code.int3();
            });
            guest.EnterUserMode();
            guest.SetRegs((ref regs) => regs.Rflags = 0x202 | (privileged ? 0x3000ul : 0));
            guest.ExpectTrap(privileged ? 3 : 13, $"CLI with IOPL {(privileged ? 3 : 0)}");
        }
    }

    /// <summary>CVE-2017-7518: TF and SYSCALL; the trap comes where the CPU takes it, not in user mode again.</summary>
    static void SingleStepOverSyscall()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.syscall();
            code.int3();
        });
        guest.Load(0x3000, code =>
        {
            code.mov(ebx, 0x44);
            code.hlt();
        });
        guest.Vcpu.SetMsr(0xC0000081, ((ulong)GuestLayout.Code64 << 32) | ((ulong)(GuestLayout.Code64 | 3) << 48));
        guest.Vcpu.SetMsr(0xC0000082, 0x3000);
        guest.Vcpu.SetMsr(0xC0000084, 0x100);
        guest.EnterUserMode();
        guest.SetRegs((ref regs) => regs.Rflags |= 0x100);
        guest.RunTo(KvmExit.Hlt);
        // SFMASK clears TF. Whether the step of SYSCALL itself still traps differs between CPUs; where, does not.
        if (guest.Vcpu.Regs.Rip != 0x3006)
            Check.Equal(0x3000ul, guest.ReadTrap(1).Rip, "rip of the trap");
        else
            Check.Equal(0x44ul, guest.Vcpu.Regs.Rbx, "ebx");
    }

    /// <summary>CVE-2018-1087, CVE-2018-8897: a watchpoint hit by MOV SS, held back over the next
    /// instruction.</summary>
    static void MovSsWatchpoint()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, GuestLayout.Data);
            code.mov(dr0, rax);
            code.mov(eax, 0x000F0403);
            code.mov(dr7, rax);
            code.mov(ss, __word_ptr[(long)GuestLayout.Data]);
            code.@int(0x80);
            code.hlt();
        });
        guest.Memory.Write(GuestLayout.Data, (uint)GuestLayout.Data32);
        guest.RunTo(KvmExit.Hlt);
        Check.That(guest.Vcpu.Regs.Rip is var rip && (rip == GuestTables.StubAddress(1) + 3
            || rip == GuestTables.StubAddress(0x80) + 3),
            $"in one of the two handlers: {guest.DescribeExit()}");
    }

    /// <summary>CVE-2017-1000407: port 80h went straight to the host's.</summary>
    static void DelayPort()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.@out(0x80, al);
            code.@in(al, 0x80);
            code.hlt();
        });
        guest.ExpectPort(KvmRunIo.Out, 0x80, 1);
        guest.ExpectPort(KvmRunIo.In, 0x80, 1)[0] = 0x3C;
        guest.RunToHalt();
        Check.Equal(0x3Cul, guest.Vcpu.Regs.Rax, "rax");
    }

    static Guest SplitWrite() => Make(code =>
    {
        code.mov(rax, 0x8877665544332211);
        code.mov(__qword_ptr[rbx + 0xFFC], rax);
        code.hlt();
    });

    /// <summary>CVE-2026-31588: the second half of an access that nobody finishes.</summary>
    static void SplitMmioAbandoned()
    {
        for (int i = 0; i < 20; i++)
        {
            using Guest guest = SplitWrite();
            guest.RunTo(KvmExit.Mmio);
        }
    }

    static void SplitMmioAndNewRegisters()
    {
        using Guest guest = SplitWrite();
        guest.Load(0x3000, code => code.hlt());
        guest.RunTo(KvmExit.Mmio);
        guest.SetRegs((ref regs) => regs.Rip = 0x3000);
        for (int i = 0; i < 3 && guest.Vcpu.RunOnce() == KvmExit.Mmio; i++)
        {
            // The rest of the write may still come.
            Check.Equal(1, guest.Run.Mmio.IsWrite, "is_write");
        }
        Check.Equal(KvmExit.Hlt, guest.Run.ExitReason, "exit reason");
    }

    static void MmioPageBecomesMemory()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, __dword_ptr[rbx]);
            code.mov(ecx, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.RunTo(KvmExit.Mmio);
        ((ReadOnlySpan<byte>)[1, 2, 3, 4]).CopyTo(guest.Run.Mmio.Data);
        GuestMemory memory = guest.Vm.AddMemory(1, Mmio, 0x1000);
        memory.Write(Mmio, 0x11223344u);
        guest.RunToHalt();
        Check.Equal(0x11223344ul, guest.Vcpu.Regs.Rcx, "the second read comes from memory");
        Check.That(guest.Vcpu.Regs.Rax is 0x04030201 or 0x11223344, "the first read has either value, and is whole");
    }

    /// <summary>CVE-2010-0306: another CPU swaps the instruction while its access is with user space.</summary>
    static void InstructionSwapped()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.RunTo(KvmExit.Mmio);
        ((ReadOnlySpan<byte>)[1, 2, 3, 4]).CopyTo(guest.Run.Mmio.Data);
        guest.Memory.Write(GuestLayout.Code, (ReadOnlySpan<byte>)[0x0F, 0x0B]); // ud2
        guest.RunTo(KvmExit.Hlt);
        KvmRegs regs = guest.Vcpu.Regs;
        if (regs.Rip == GuestLayout.Code + 3)
            Check.Equal(0x04030201ul, regs.Rax, "rax");
        else
            guest.ReadTrap(6, "the instruction that is there now");
    }

    static void PendingReadManyTimes()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 1, 2, 3, 4);
        guest.Run.ImmediateExit = 1;
        for (int i = 0; i < 5; i++)
        {
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
            guest.Run.Mmio.Data[0] = 0xEE;
        }
        guest.Run.ImmediateExit = 0;
        guest.RunToHalt();
        Check.Equal(0x04030201ul, guest.Vcpu.Regs.Rax, "the first answer counts");
    }

    static void RandomCode(int rounds, Func<Guest> make, Action<Random, byte[]> shape)
    {
        Random random = TestEnvironment.FixedRandom;
        using Guest guest = make();
        KvmSregs sregs = guest.Vcpu.Sregs;
        KvmRegs start = guest.Vcpu.Regs;
        byte[] low = guest.Memory.Slice(0, 0x20000).ToArray();
        byte[] code = new byte[64];
        for (int round = 0; round < rounds; round++)
        {
            random.NextBytes(code);
            shape(random, code);
            guest.Memory.Write(0, low);
            guest.Memory.Write(GuestLayout.Code, code);
            guest.Vcpu.Sregs = sregs;
            guest.Vcpu.Regs = start;
            guest.Vcpu.Events = default;
            using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(200));
            for (int exits = 0; exits < 30; exits++)
            {
                int result = guest.Vcpu.TryRun();
                if (result < 0 || guest.Run.ExitReason is not (KvmExit.Mmio or KvmExit.Io))
                    break;
            }
        }
        guest.Memory.Write(0, low);
        guest.Memory.Write(GuestLayout.Code, (ReadOnlySpan<byte>)[0xF4]);
        using var sane = new Guest(GuestMode.Long, [0xF4]);
        sane.RunToHalt("a sane guest afterwards");
    }

    static void RandomCodeInUserMode() => RandomCode(400, () =>
    {
        Guest guest = Make(code => code.hlt());
        guest.EnterUserMode();
        return guest;
    }, (_, _) => { });

    /// <summary>All registers point at MMIO, so that nearly every memory operand is interpreted.</summary>
    static void RandomCodeOnMmio() => RandomCode(400, () =>
    {
        Guest guest = Make(code => code.hlt());
        guest.EnterUserMode();
        guest.SetRegs((ref regs) =>
        {
            regs.Rax = regs.Rbx = regs.Rcx = regs.Rdx = regs.Rsi = regs.Rdi = regs.Rbp = Mmio + 0x100;
            regs.R8 = regs.R9 = regs.R10 = regs.R11 = regs.R12 = regs.R13 = regs.R14 = regs.R15 = Mmio + 0xFFC;
        });
        return guest;
    }, (random, code) =>
    {
        // A memory operand, [register] or [register + disp8], behind an optional prefix and map byte.
        int at = 0;
        if (random.Next(3) == 0)
            code[at++] = (byte)(random.Next(2) == 0 ? 0x66 : 0x40 + random.Next(16));
        if (random.Next(3) == 0)
            code[at++] = 0x0F;
        code[at + 1] = (byte)(code[at + 1] & 0x7F);
    });

    /// <summary>More than fifteen bytes are no instruction, however it is executed.</summary>
    static void LongestInstruction()
    {
        foreach (int prefixes in (int[])[12, 13, 14])
        {
            byte[] code = [.. Enumerable.Repeat((byte)0x3E, prefixes), 0x8B, 0x03, 0xF4]; // mov eax, [rbx]
            using var guest = new Guest(GuestMode.Long, code);
            guest.SetRegs((ref regs) => regs.Rbx = Mmio);
            if (prefixes == 14)
            {
                guest.RunTo(KvmExit.Hlt, "16 bytes");
                guest.ReadTrap(13, "16 bytes");
                continue;
            }
            guest.ExpectMmioRead(Mmio, 5, 0, 0, 0);
            guest.RunToHalt($"{prefixes + 2} bytes");
            Check.Equal(5ul, guest.Vcpu.Regs.Rax, "rax");
        }
    }

    static void LockPrefixRefused()
    {
        foreach (byte[] code in (byte[][])[[0xF0, 0x8B, 0x03], [0xF0, 0x89, 0x03], [0xF0, 0x3B, 0x03],
            [0xF0, 0x03, 0x03]])
        {
            using var guest = new Guest(GuestMode.Long, [.. code, 0xF4]);
            guest.SetRegs((ref regs) => regs.Rbx = Mmio);
            guest.RunTo(KvmExit.Hlt, Convert.ToHexString(code));
            guest.ReadTrap(6, Convert.ToHexString(code));
        }
    }

    /// <summary>CVE-2016-8630: a ModRM byte that names a register where only memory is allowed.</summary>
    static void RegisterFormRefused()
    {
        foreach (byte[] code in (byte[][])[[0x0F, 0xC7, 0xCB], [0x0F, 0xC3, 0xC3], [0x0F, 0xB2, 0xC3],
            [0x0F, 0x38, 0xF0, 0xC3]])
        {
            using var guest = new Guest(GuestMode.Long, [.. code, 0xF4]);
            guest.RunTo(KvmExit.Hlt, Convert.ToHexString(code));
            guest.ReadTrap(6, Convert.ToHexString(code));
        }
    }

    static void SlotAtTheEnd()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, 0x40000000);
            code.mov(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        // Accepted or refused, but not followed into the kernel's addresses.
        int result = guest.Vm.TrySetMemoryRegion(1, 0, 0x40000000, 0x10000, 0x7FFFFFFF0000);
        if (result == 0)
            Check.Fails(Errno.EFAULT, guest.Vcpu.TryRun(), "KVM_RUN");
        else
            Check.Fails(Errno.EINVAL, result, "slot that ends beyond user space");
    }

    /// <summary>Guest memory that is no ordinary memory: the run page of the CPU itself.</summary>
    static void DeviceFileAsMemory()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, 0x40000000);
            code.mov(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        nint page = Libc.MemoryMap(0, 4096, Libc.ProtRead | Libc.ProtWrite, Libc.MapShared, guest.Vcpu.Fd, 0);
        Check.That(page != Libc.MapFailed, "mmap");
        if (guest.Vm.TrySetMemoryRegion(1, 0, 0x40000000, 4096, (ulong)page) == 0)
        {
            int result = guest.Vcpu.TryRun();
            Check.That(result is 0 or -(int)Errno.EFAULT, $"KVM_RUN: {result}");
            guest.Vm.SetMemoryRegion(1, 0, 0x40000000, 0, 0);
        }
        _ = Libc.MemoryUnmap(page, 4096);
    }

    static void RdtscpNeedsFeature()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.rdtscp();
            code.hlt();
        });
        KvmCpuidEntry2[] leaves = guest.Kvm.GetSupportedCpuid();
        for (int i = 0; i < leaves.Length; i++)
        {
            if (leaves[i].Function == 0x80000001)
                leaves[i].Edx &= ~(1u << 27);
        }
        guest.Vcpu.Cpuid = leaves;
        guest.RunTo(KvmExit.Hlt);
        if (guest.Vcpu.Regs.Rip == GuestLayout.Code + 4)
            Check.Needs(!HostCpu.IsEmulatedByTcg, "an intercept of RDTSCP");
        guest.ReadTrap(6, "RDTSCP without the feature");
    }

    static void RunInTwoThreads()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.Label(ref again);
            code.@out(0x10, al);
            code.jmp(again);
        });
        int failures = 0;
        Thread[] threads =
        [
            .. Enumerable.Range(0, 3).Select(_ => new Thread(() =>
            {
                for (int i = 0; i < 300; i++)
                {
                    if (guest.Vcpu.TryRun() is not (0 or -(int)Errno.EINTR))
                        Interlocked.Increment(ref failures);
                }
            })),
        ];
        foreach (Thread thread in threads)
            thread.Start();
        foreach (Thread thread in threads)
            thread.Join();
        Check.Equal(0, failures, "failed runs of one CPU from three threads");
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
    }
}
