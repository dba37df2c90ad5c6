// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Many CPUs: how they start, stop, sleep and wake each other.</summary>
static class SmpTests
{
    const int Vector = 0x41;
    const ulong Variable = MachineLayout.Shared;

    public static IEnumerable<TestCase> All =>
    [
        new("smp/start_by_sipi", StartBySipi),
        new("smp/start_in_x2apic_mode", StartInX2ApicMode),
        new("smp/sipi_without_init", SipiWithoutInit),
        new("smp/sipi_to_running_cpu", SipiToRunningCpu),
        new("smp/init_of_running_cpu", InitOfRunningCpu),
        new("smp/init_state", InitState),
        new("smp/sipi_state", SipiState),
        new("smp/init_of_halted_cpu", InitOfHaltedCpu),
        new("smp/mp_state_values", MpStateValues),
        new("smp/mp_state_at_start", MpStateAtStart),
        new("smp/mp_state_halted_is_told", HaltedIsTold),
        new("smp/mp_state_halted_by_host", HaltedByHost),
        new("smp/mp_state_runnable_wakes", RunnableWakes),
        new("smp/boot_cpu_id", BootCpuId),
        new("smp/ipi_ping_pong", () => PingPong(halt: false, rounds: 300)),
        new("smp/ipi_ping_pong_halted", () => PingPong(halt: true, rounds: 300)),
        new("smp/ipi_storm", IpiStorm),
        new("smp/halt_wake_ring", () => Ring(cpus: 3, rounds: 100)),
        new("smp/halt_wake_random", HaltWakeRandom),
        new("smp/sixty_four_cpus", () => Ring(cpus: 64, rounds: 3)),
        new("smp/sixty_four_cpus_spinning", SpinningCpus),
        new("smp/nmi_while_halted", NmiWhileHalted),
        new("smp/nmi_while_running", NmiWhileRunning),
        new("smp/lowest_priority_to_running_cpus", LowestPriorityToRunning),
        new("smp/broadcast_to_running_cpus", BroadcastToRunning),
        new("smp/shootdown", Shootdown),
        new("smp/stopped_and_going_on", StoppedAndGoingOn),
        new("smp/halted_cpu_leaves_by_signal", HaltedLeavesBySignal),
        new("smp/xapic_ids", XApicIds),
        new("smp/x2apic_ids_beyond_255", X2ApicIds),
        new("smp/ids_in_any_order", IdsInAnyOrder),
        new("smp/two_hundred_and_sixty_cpus", ManyCpus),
        new("smp/cpu_added_while_others_run", CpuAdded),
        new("smp/halt_without_exit", HaltWithoutExit),
        new("smp/disable_exits_arguments", DisableExitsArguments),
    ];

    /// <summary>Adds one to the variable and is done.</summary>
    static void CountAndEnd(Assembler code)
    {
        code.@lock.inc(__dword_ptr[(long)Variable]);
        code.Done();
    }

    static void StartBySipi()
    {
        const int Cpus = 4;
        using var machine = new Machine(cpus: Cpus);
        machine.Program(0, code =>
        {
            code.StartCpus();
            code.SpinUntil(Variable, Cpus - 1);
            code.Done();
        });
        for (int cpu = 1; cpu < Cpus; cpu++)
        {
            Check.Equal(KvmMpState.Uninitialized, machine.Cpus[cpu].MpState, "state before");
            machine.ProgramForSipi(cpu, CountAndEnd);
            machine.StartAsIs(cpu);
        }
        machine.StartAsIs(0);
        machine.Join();
        for (int cpu = 0; cpu < Cpus; cpu++)
            Check.Equal(KvmMpState.Runnable, machine.Cpus[cpu].MpState, "state afterwards");
        Check.Equal((uint)Cpus - 1, machine.Memory.Read<uint>(Variable), "CPUs");
    }

    static void StartInX2ApicMode()
    {
        using var machine = new Machine(cpus: 3);
        for (int cpu = 0; cpu < 3; cpu++)
            machine.EnableX2Apic(cpu);
        machine.Program(0, code =>
        {
            code.X2Ipi(Apic.Init, 1);
            code.X2Ipi(Apic.Startup | MachineLayout.TrampolineVector, 1);
            code.X2Ipi(Apic.Init, 2);
            code.X2Ipi(Apic.Startup | MachineLayout.TrampolineVector, 2);
            code.SpinUntil(Variable, 2);
            code.Done();
        });
        for (int cpu = 1; cpu < 3; cpu++)
        {
            machine.ProgramForSipi(cpu, CountAndEnd);
            machine.StartAsIs(cpu);
        }
        machine.Start(0);
        machine.Join();
    }

    /// <summary>A CPU that has had no INIT does not hear of SIPIs.</summary>
    static void SipiWithoutInit()
    {
        using var machine = new Machine(cpus: 2);
        machine.ProgramForSipi(1, CountAndEnd);
        VcpuThread thread = machine.StartAsIs(1);
        machine.Program(0, code =>
        {
            code.Ipi(Apic.Startup | MachineLayout.TrampolineVector, 1);
            code.Done(1);
            code.StartCpus();
            code.SpinUntil(Variable, 1);
            code.Done(2);
        });
        machine.RunToDone();
        Thread.Sleep(30);
        Check.That(!thread.Ended && machine.Memory.Read<uint>(Variable) == 0, "the SIPI did nothing");
        machine.RunToDone();
        machine.Join();
    }

    static void SipiToRunningCpu()
    {
        using var machine = new Machine(cpus: 2);
        machine.ProgramForSipi(1, code =>
        {
            code.@lock.inc(__dword_ptr[(long)Variable]);
            code.sti();
            code.SpinFor(Vector, 1);
            code.Done();
        });
        machine.StartAsIs(1);
        machine.Program(0, code =>
        {
            code.StartCpus();
            code.SpinUntil(Variable, 1);
            for (int i = 0; i < 3; i++)
                code.Ipi(Apic.Startup | MachineLayout.TrampolineVector, 1);
            code.Ipi(Vector, 1);
            code.Done();
        });
        machine.RunToDone();
        machine.Join();
        Check.Equal(1u, machine.Memory.Read<uint>(Variable), "starts");
    }

    /// <summary>It stops where it is; a SIPI starts it anew.</summary>
    static void InitOfRunningCpu()
    {
        const ulong Counter = Variable + 8;
        using var machine = new Machine(cpus: 2);
        machine.Program(1, code =>
        {
            Label again = code.CreateLabel();
            code.Label(ref again);
            code.inc(__dword_ptr[(long)Counter]);
            code.jmp(again);
        });
        machine.ProgramForSipi(1, CountAndEnd);
        machine.Program(0, code =>
        {
            code.SpinUntil(Counter, 1);
            code.Ipi(Apic.Init, 1);
            code.Done(1);
            code.Ipi(Apic.Startup | MachineLayout.TrampolineVector, 1);
            code.SpinUntil(Variable, 1);
            code.Done(2);
        });
        machine.Start(1);
        machine.RunToDone();
        Wait.Until(() =>
        {
            uint before = machine.Memory.Read<uint>(Counter);
            Thread.Sleep(20);
            return machine.Memory.Read<uint>(Counter) == before;
        }, "the CPU to stop");
        machine.RunToDone();
        machine.Join();
    }

    /// <summary>The registers after INIT (SDM volume 3, table 9-1).</summary>
    static void InitState()
    {
        using var machine = new Machine(cpus: 2);
        machine.Cpus[1].MpState = KvmMpState.Runnable;
        machine.Cpus[1].Regs = machine.Cpus[1].Regs with { Rax = 0x55, Rsp = 0x1234, Rflags = 0x246 };
        machine.SetLapic(1, (ref lapic) => lapic[Apic.Tpr] = 0x40);
        machine.Program(0, code =>
        {
            code.Ipi(Apic.Init, 1);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(KvmMpState.InitReceived, machine.Cpus[1].MpState, "state");
        KvmRegs regs = machine.Cpus[1].Regs;
        KvmSregs sregs = machine.Cpus[1].Sregs;
        Check.Equal("fff0 2 0 0", $"{regs.Rip:x} {regs.Rflags:x} {regs.Rax:x} {regs.Rsp:x}", "rip, rflags, rax, rsp");
        Check.Equal("f000 ffff0000", $"{sregs.Cs.Selector:x} {sregs.Cs.Base:x}", "cs");
        Check.Equal("10 0 0 0", $"{sregs.Cr0 & 0x9FFFFFFF:x} {sregs.Cr3:x} {sregs.Cr4:x} {sregs.Efer:x}",
            "cr0, cr3, cr4, efer");
        Check.Equal("0 0", $"{sregs.Gs.Base:x} {sregs.Idt.Base:x}", "gs, idtr");
        KvmLapicState lapic = machine.Cpus[1].Lapic;
        Check.Equal("0 ff 1000000", $"{lapic[Apic.Tpr]:x} {lapic[Apic.Svr]:x} {lapic[Apic.Id]:x}", "TPR, SVR, ID");
        Check.Equal(KvmMpState.Runnable, machine.Cpus[0].MpState, "state of the sender");
    }

    static void SipiState()
    {
        using var machine = new Machine(cpus: 2);
        machine.Program(0, code =>
        {
            code.StartCpus();
            code.Done();
        });
        machine.RunToDone();
        uint state = machine.Cpus[1].MpState;
        Check.That(state is KvmMpState.Runnable or KvmMpState.SipiReceived, $"state {state}");
        if (state == KvmMpState.Runnable)
        {
            KvmSregs sregs = machine.Cpus[1].Sregs;
            Check.Equal("7000 70000 0", $"{sregs.Cs.Selector:x} {sregs.Cs.Base:x} {machine.Cpus[1].Regs.Rip:x}",
                "cs, its base, rip");
        }
        machine.ProgramForSipi(1, CountAndEnd);
        machine.StartAsIs(1);
        machine.Join();
    }

    static void InitOfHaltedCpu()
    {
        using var machine = new Machine(cpus: 2);
        machine.Program(1, code =>
        {
            code.mov(__dword_ptr[(long)Variable + 8], 1);
            code.cli();
            code.hlt();
            code.Done(7);
        });
        machine.ProgramForSipi(1, CountAndEnd);
        machine.Start(1);
        machine.Program(0, code =>
        {
            code.SpinUntil(Variable + 8, 1);
            code.StartCpus();
            code.SpinUntil(Variable, 1);
            code.Done();
        });
        machine.RunToDone();
        machine.Join();
        Check.Equal(0, machine.Cpus[1].IoData[0], "what it was done with");
    }

    static void MpStateValues()
    {
        using var machine = new Machine();
        foreach (uint state in (uint[])[KvmMpState.Uninitialized, KvmMpState.InitReceived, KvmMpState.Halted,
            KvmMpState.Runnable])
        {
            machine.Vcpu.MpState = state;
            Check.Equal(state, machine.Vcpu.MpState, "state");
        }
        foreach (uint state in (uint[])[5, 6, 8, 10, 0x100, uint.MaxValue])
        {
            var argument = new KvmMpState { MpState = state };
            Check.Fails(Errno.EINVAL, machine.Vcpu.TryCall(KvmIoctl.SetMpState, ref argument), $"state {state}");
        }
        using var without = new Machine(chips: Chips.None);
        foreach (uint state in (uint[])[KvmMpState.Halted, KvmMpState.InitReceived, KvmMpState.SipiReceived])
        {
            var argument = new KvmMpState { MpState = state };
            Check.Fails(Errno.EINVAL, without.Vcpu.TryCall(KvmIoctl.SetMpState, ref argument),
                $"state {state} without a local APIC in the kernel");
        }
    }

    static void MpStateAtStart()
    {
        foreach (Chips chips in (Chips[])[Chips.Kernel, Chips.Split, Chips.None])
        {
            using var machine = new Machine(chips: chips, cpus: 2);
            Check.Equal(KvmMpState.Runnable, machine.Cpus[0].MpState, $"{chips}: CPU 0");
            Check.Equal(chips == Chips.None ? KvmMpState.Runnable : KvmMpState.Uninitialized,
                machine.Cpus[1].MpState, $"{chips}: CPU 1");
        }
    }

    static void HaltedIsTold()
    {
        using var machine = new Machine(code =>
        {
            code.mov(__dword_ptr[(long)Variable], 1);
            code.sti();
            code.hlt();
            code.Done();
        });
        RunUntilHalted(machine);
        Check.Equal(0ul, machine.Vcpu.Regs.Rflags & 0x40, "it did not go on");
        machine.StartAsIs(0);
        Check.Equal(1, machine.Vm.TrySignalMsi(RoutingTests.Message(Vector)), "an interrupt");
        machine.Join();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
        Check.Equal(KvmMpState.Runnable, machine.Vcpu.MpState, "state afterwards");
    }

    /// <summary>Starts a CPU that sets the variable and halts; it is stopped when its state says so.</summary>
    static void RunUntilHalted(Machine machine)
    {
        machine.Start(0);
        Wait.Until(() => machine.Memory.Read<uint>(Variable) == 1, "the guest to run");
        Wait.Until(() =>
        {
            // Kicked out, its state is asked for, and it goes on.
            machine.StopThreads();
            if (machine.Vcpu.MpState == KvmMpState.Halted)
                return true;
            machine.StartAsIs(0);
            return false;
        }, "the state to be HALTED");
    }

    static void HaltedByHost()
    {
        using var machine = new Machine(code =>
        {
            code.Done();
        });
        machine.Vcpu.Regs = machine.Vcpu.Regs with { Rflags = 0x202 };
        machine.Vcpu.MpState = KvmMpState.Halted;
        VcpuThread thread = machine.StartAsIs(0);
        Thread.Sleep(30);
        Check.That(!thread.Ended, "it does not run");
        machine.Vm.TrySignalMsi(RoutingTests.Message(Vector));
        machine.Join();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
    }

    static void RunnableWakes()
    {
        using var machine = new Machine(code =>
        {
            code.mov(__dword_ptr[(long)Variable], 1);
            code.cli();
            code.hlt();
            code.Done(9);
        });
        RunUntilHalted(machine);
        machine.Vcpu.MpState = KvmMpState.Runnable;
        Check.Equal(9, machine.RunToDone(), "it goes on behind the HLT");
    }

    static void BootCpuId()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        Check.Succeeds(vm.TryCall(KvmIoctl.SetBootCpuId, 2), "SET_BOOT_CPU_ID 2");
        for (uint id = 0; id < 3; id++)
        {
            Vcpu vcpu = vm.CreateVcpu(id);
            Check.Equal(id == 2 ? Apic.BaseBsp : 0, vcpu.Sregs.ApicBase & Apic.BaseBsp, $"BSP bit of CPU {id}");
            Check.Equal(id == 2 ? KvmMpState.Runnable : KvmMpState.Uninitialized, vcpu.MpState, $"state of CPU {id}");
        }
        Check.Fails(Errno.EBUSY, vm.TryCall(KvmIoctl.SetBootCpuId, 1), "when there are CPUs");
    }

    static void PingPong(bool halt, int rounds)
    {
        using var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label round = code.CreateLabel();
                code.xor(ebx, ebx);
                code.sti();
                code.Label(ref round);
                code.inc(ebx);
                if (cpu == 0)
                    code.Ipi(Vector, 1);
                if (halt)
                    code.HaltFor(Vector, ebx);
                else
                    code.SpinUntil(MachineLayout.CpuPage(cpu) + Vector * 4, ebx);
                if (cpu == 1)
                    code.Ipi(Vector, 0);
                code.cmp(ebx, rounds);
                code.jb(round);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
        Check.Equal($"{rounds} {rounds}", $"{machine.Count(Vector, 0)} {machine.Count(Vector, 1)}", "interrupts");
    }

    /// <summary>Both send as fast as they can; equal ones melt together, but the last of each arrives.</summary>
    static void IpiStorm()
    {
        const int Ipis = 1000, LastVector = 0x42;
        using var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel();
                code.sti();
                code.mov(ebx, Ipis);
                code.Label(ref again);
                code.Ipi(Vector, 1 - (uint)cpu);
                code.dec(ebx);
                code.jnz(again);
                code.Ipi(LastVector, 1 - (uint)cpu);
                code.HaltFor(LastVector, 1);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
        for (int cpu = 0; cpu < 2; cpu++)
        {
            Check.That(machine.Count(Vector, cpu) is > 0 and <= Ipis, $"{machine.Count(Vector, cpu)} at CPU {cpu}");
            Check.Equal("[]", Machine.Show(machine.Cpus[cpu].Lapic.Vectors(Apic.Isr)), "in service");
        }
    }

    /// <summary>CPU 0 sends a token to the next, which sends it on, and around again; who has none sleeps.</summary>
    static Machine StartRing(int cpus, int rounds)
    {
        var machine = new Machine(cpus: cpus);
        for (int cpu = 0; cpu < cpus; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label round = code.CreateLabel();
                code.xor(ebx, ebx);
                code.Label(ref round);
                code.inc(ebx);
                if (cpu == 0)
                    code.Ipi(Vector, 1);
                code.HaltFor(Vector, ebx);
                if (cpu != 0)
                    code.Ipi(Vector, (uint)((cpu + 1) % cpus));
                code.cmp(ebx, rounds);
                code.jb(round);
                code.Done();
            });
            machine.Start(cpu);
        }
        return machine;
    }

    static void EndRing(Machine machine, int rounds)
    {
        machine.Join();
        for (int cpu = 0; cpu < machine.Cpus.Count; cpu++)
            Check.Equal((uint)rounds, machine.Count(Vector, cpu), $"tokens at CPU {cpu}");
    }

    static void Ring(int cpus, int rounds)
    {
        using Machine machine = StartRing(cpus, rounds);
        EndRing(machine, rounds);
    }

    /// <summary>Wake-ups at any moment around the HLT: the sender waits a little longer each time.</summary>
    static void HaltWakeRandom()
    {
        const int Rounds = 400;
        using var machine = new Machine(cpus: 2);
        machine.Program(1, code =>
        {
            Label round = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.mov(__dword_ptr[(long)Variable], ebx);
            code.HaltFor(Vector, ebx);
            code.cmp(ebx, Rounds);
            code.jb(round);
            code.Done();
        });
        machine.Program(0, code =>
        {
            Label round = code.CreateLabel(), delay = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.SpinUntil(Variable, ebx);
            code.imul(ecx, ebx, 37);
            code.and(ecx, 0x1FFF);
            code.inc(ecx);
            code.Label(ref delay);
            code.dec(ecx);
            code.jnz(delay);
            code.Ipi(Vector, 1);
            code.cmp(ebx, Rounds);
            code.jb(round);
            code.Done();
        });
        machine.Start(1);
        machine.Start(0);
        machine.Join();
        Check.Equal((uint)Rounds, machine.Count(Vector, 1), "wake-ups");
    }

    /// <summary>64 CPUs that all compute on two real ones: each gets its turn.</summary>
    static void SpinningCpus()
    {
        const int Cpus = 64;
        using var machine = new Machine(cpus: Cpus);
        for (int cpu = 0; cpu < Cpus; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel();
                code.mov(ecx, 200_000);
                code.Label(ref again);
                code.dec(ecx);
                code.jnz(again);
                code.@lock.inc(__dword_ptr[(long)Variable]);
                code.SpinUntil(Variable, Cpus);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
        Check.Equal((uint)Cpus, machine.Memory.Read<uint>(Variable), "CPUs that met");
    }

    /// <summary>HLT with interrupts off ends by an NMI and not by an interrupt, and the guest goes on behind
    /// it.</summary>
    static void NmiWhileHalted()
    {
        using var machine = new Machine(cpus: 2);
        machine.Program(1, code =>
        {
            Label again = code.CreateLabel();
            code.cli();
            code.Label(ref again);
            code.hlt();
            code.cmp(MachineAssembler.CountOf(2), 5);
            code.jb(again);
            code.mov(__dword_ptr[(long)Variable], 1);
            code.Done();
        });
        // One that comes just before a HLT does not end it: they come until it is done.
        machine.Program(0, code =>
        {
            Label again = code.CreateLabel(), delay = code.CreateLabel();
            code.Label(ref again);
            code.Ipi(Vector, 1);
            code.Ipi(Apic.Nmi, 1);
            code.mov(ecx, 20_000);
            code.Label(ref delay);
            code.dec(ecx);
            code.jnz(delay);
            code.cmp(__dword_ptr[(long)Variable], 1);
            code.jb(again);
            code.Done();
        });
        machine.Start(1);
        machine.Start(0);
        machine.Join();
        Check.Equal("[41]", Machine.Show(machine.Pending(1)), "the interrupt still waits");
    }

    static void NmiWhileRunning()
    {
        const int Nmis = 100;
        using var machine = new Machine(cpus: 2);
        machine.Program(1, code =>
        {
            code.SpinFor(2, Nmis);
            code.Done();
        });
        machine.Program(0, code =>
        {
            Label round = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.Ipi(Apic.Nmi, 1);
            code.SpinUntil(MachineLayout.CpuPage(1) + 2 * 4, ebx);
            code.cmp(ebx, Nmis);
            code.jb(round);
            code.Done();
        });
        machine.Start(1);
        machine.Start(0);
        machine.Join();
        Check.Equal((uint)Nmis, machine.Count(2, 1), "NMIs");
    }

    static void LowestPriorityToRunning()
    {
        const int Ipis = 60;
        using var machine = new Machine(cpus: 3);
        for (int cpu = 1; cpu < 3; cpu++)
        {
            machine.Program(cpu, code =>
            {
                code.sti();
                code.SpinFor(0x50, 1);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Program(0, code =>
        {
            Label round = code.CreateLabel(), wait = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.Ipi(Apic.LowestPriority | Apic.Logical | Vector, 6);
            code.Label(ref wait);
            code.pause();
            code.mov(eax, __dword_ptr[(long)(MachineLayout.CpuPage(1) + Vector * 4)]);
            code.add(eax, __dword_ptr[(long)(MachineLayout.CpuPage(2) + Vector * 4)]);
            code.cmp(eax, ebx);
            code.jb(wait);
            code.cmp(ebx, Ipis);
            code.jb(round);
            code.Ipi(Apic.ToOthers | 0x50);
            code.Done();
        });
        machine.Start(0);
        machine.Join();
        Check.Equal((uint)Ipis, machine.Count(Vector, 1) + machine.Count(Vector, 2), "interrupts");
    }

    static void BroadcastToRunning()
    {
        const int Cpus = 4, Rounds = 40;
        using var machine = new Machine(cpus: Cpus);
        for (int cpu = 1; cpu < Cpus; cpu++)
        {
            machine.Program(cpu, code =>
            {
                code.HaltFor(Vector, Rounds);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Program(0, code =>
        {
            Label round = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.Ipi(Apic.ToOthers | Vector);
            for (int cpu = 1; cpu < Cpus; cpu++)
                code.SpinUntil(MachineLayout.CpuPage(cpu) + Vector * 4, ebx);
            code.cmp(ebx, Rounds);
            code.jb(round);
            code.Done();
        });
        machine.Start(0);
        machine.Join();
    }

    /// <summary>What an operating system does when it takes a page away: change the table, tell the others, wait
    /// until they have invalidated it.</summary>
    static void Shootdown()
    {
        const int Rounds = 60;
        const ulong Window = 0x90000, PageA = 0x92000, PageB = 0x93000;
        const ulong Entry = GuestLayout.LowPageTable + (Window >> 12) * 8;
        using var machine = new Machine(cpus: 2);
        machine.Memory.Write(PageA, 0xAAu);
        machine.Memory.Write(PageB, 0xBBu);
        machine.Handle(Vector, code =>
        {
            code.push(rax);
            code.invlpg(__[(long)Window]);
            code.mov(eax, __dword_ptr[(long)Window]);
            code.mov(__dword_ptr[(long)Variable + 4], eax);
            code.ApicWrite(Apic.Eoi, 0);
            code.@lock.inc(__dword_ptr[(long)Variable]);
            code.pop(rax);
            code.iretq();
        });
        machine.Program(1, code =>
        {
            Label again = code.CreateLabel();
            code.sti();
            code.Label(ref again);
            code.mov(eax, __dword_ptr[(long)Window]);
            code.cmp(__dword_ptr[(long)Variable], Rounds);
            code.jb(again);
            code.Done();
        });
        machine.Program(0, code =>
        {
            Label round = code.CreateLabel(), good = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.mov(eax, (uint)PageA | 3);
            code.mov(edx, (uint)PageB | 3);
            code.mov(esi, 0xAA);
            code.mov(edi, 0xBB);
            code.test(ebx, 1);
            code.cmovnz(eax, edx);
            code.cmovnz(esi, edi);
            code.mov(__qword_ptr[(long)Entry], rax);
            code.Ipi(Vector, 1);
            code.SpinUntil(Variable, ebx);
            code.cmp(__dword_ptr[(long)Variable + 4], esi);
            code.je(good);
            code.Done(13);
            code.Label(ref good);
            code.cmp(ebx, Rounds);
            code.jb(round);
            code.Done();
        });
        machine.Start(1);
        Check.Equal(0, machine.RunToDone(), "the other CPU sees the new page");
        machine.Join();
    }

    /// <summary>All CPUs are kicked out in the middle of a ring of IPIs, their states read, and they go on.</summary>
    static void StoppedAndGoingOn()
    {
        const int Cpus = 3, Rounds = 300;
        using Machine machine = StartRing(Cpus, Rounds);
        for (int stop = 0; stop < 10 && !machine.IsDone(0); stop++)
        {
            Thread.Sleep(10);
            machine.StopThreads();
            for (int cpu = 0; cpu < Cpus; cpu++)
            {
                machine.Cpus[cpu].Lapic = machine.Cpus[cpu].Lapic;
                machine.Cpus[cpu].MpState = machine.Cpus[cpu].MpState;
                machine.Cpus[cpu].Events = machine.Cpus[cpu].Events;
            }
            foreach (int cpu in Enumerable.Range(0, Cpus).Where(cpu => !machine.IsDone(cpu)))
                machine.StartAsIs(cpu);
        }
        EndRing(machine, Rounds);
    }

    static void HaltedLeavesBySignal()
    {
        using var machine = new Machine(code =>
        {
            code.mov(__dword_ptr[(long)Variable], 1);
            code.cli();
            code.hlt();
            code.Done();
        });
        for (int i = 0; i < 5; i++)
        {
            machine.StartAsIs(0);
            Wait.Until(() => machine.Memory.Read<uint>(Variable) == 1, "the guest to run");
            Thread.Sleep(5);
            machine.StopThreads();
        }
        Check.Equal(KvmMpState.Halted, machine.Vcpu.MpState, "state");
    }

    static void XApicIds()
    {
        uint[] ids = [0, 1, 0x7F, 0x80, 0xFE];
        using var machine = new Machine();
        foreach (uint id in ids[1..])
            machine.EnableApic(machine.AddCpu(id));
        machine.Program(0, code =>
        {
            for (int i = 0; i < ids.Length; i++)
                code.Ipi(0x50 + (uint)i, ids[i]);
            code.Ipi(0x60, 0xFF);
            code.Done();
        });
        machine.RunToDone();
        for (int cpu = 0; cpu < ids.Length; cpu++)
        {
            Check.Equal(ids[cpu] << 24, machine.Cpus[cpu].Lapic[Apic.Id], "ID");
            Check.Equal(Machine.Show([0x50 + cpu, 0x60]), Machine.Show(machine.Pending(cpu)), $"ID {ids[cpu]}");
        }
    }

    static void X2ApicIds()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        uint last = (uint)kvm.CheckExtension(KvmCap.MaxVcpuId) - 1;
        Check.That(last >= 1023, $"the greatest id is {last}");
        uint[] ids = [0, 0xFE, 0xFF, 0x100, 0x1FF, 1000, last];
        using var machine = new Machine(prepare: vm => vm.EnableCap(KvmCap.X2apicApi,
            (ulong)(KvmX2apicApi.Use32BitIds | KvmX2apicApi.DisableBroadcastQuirk)));
        machine.EnableX2Apic(0);
        foreach (uint id in ids[1..])
            machine.EnableX2Apic(machine.AddCpu(id));
        machine.Program(0, code =>
        {
            for (int i = 0; i < ids.Length; i++)
            {
                code.X2Ipi(0x50 + (uint)i, ids[i]);
                code.X2Ipi(Apic.Logical | (0x60 + (uint)i), ids[i] >> 4 << 16 | 1u << (int)(ids[i] & 15));
            }
            code.X2Ipi(0x70, uint.MaxValue);
            code.Done();
        });
        machine.RunToDone();
        for (int cpu = 0; cpu < ids.Length; cpu++)
        {
            Check.Equal(ids[cpu], machine.Cpus[cpu].Lapic[Apic.Id], "ID");
            Check.Equal(Machine.Show([0x50 + cpu, 0x60 + cpu, 0x70]), Machine.Show(machine.Pending(cpu)),
                $"pending at ID {ids[cpu]:x}");
        }
    }

    static void IdsInAnyOrder()
    {
        using var machine = new Machine();
        foreach (uint id in (uint[])[9, 3, 200, 1])
            machine.EnableApic(machine.AddCpu(id));
        Check.Fails(Errno.EEXIST, machine.Vm.TryCall(KvmIoctl.CreateVcpu, 3), "an id twice");
        machine.Program(0, code =>
        {
            code.Ipi(0x50, 200);
            code.Ipi(0x51, 1);
            code.Ipi(0x52, 3);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal("[] [52] [50] [51]", string.Join(' ', Enumerable.Range(1, 4).Select(
            cpu => Machine.Show(machine.Pending(cpu)))), "pending at IDs 9, 3, 200, 1");
    }

    static void ManyCpus()
    {
        const int Cpus = 260;
        using var machine = new Machine(prepare: vm => vm.EnableCap(KvmCap.X2apicApi,
            (ulong)(KvmX2apicApi.Use32BitIds | KvmX2apicApi.DisableBroadcastQuirk)));
        Check.That(machine.Kvm.CheckExtension(KvmCap.MaxVcpus) >= 1024, "MAX_VCPUS");
        machine.EnableX2Apic(0);
        for (uint id = 1; id < Cpus; id++)
            machine.EnableX2Apic(machine.AddCpu(id));
        machine.Program(0, code =>
        {
            code.X2Ipi(Apic.ToOthers | 0x50);
            code.X2Ipi(0x51, Cpus - 1);
            code.Done();
        });
        machine.RunToDone();
        for (int cpu = 1; cpu < Cpus; cpu++)
            Check.Equal(cpu == Cpus - 1 ? "[50 51]" : "[50]", Machine.Show(machine.Pending(cpu)), $"CPU {cpu}");
    }

    static void CpuAdded()
    {
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.sti();
            code.Label(ref again);
            code.Ipi(Apic.ToOthers | Vector);
            code.cmp(MachineAssembler.CountOf(0x50), 1);
            code.jb(again);
            code.Done();
        });
        machine.Start(0);
        for (uint id = 1; id < 20; id++)
            machine.EnableApic(machine.AddCpu(id));
        Wait.Until(() => machine.Pending(19).Length > 0, "an IPI at the last CPU");
        machine.Vm.TrySignalMsi(RoutingTests.Message(0x50));
        machine.Join();
    }

    /// <summary>KVM_CAP_X86_DISABLE_EXITS: the guest's HLT stays in the guest, and is left by interrupts and
    /// signals.</summary>
    static void HaltWithoutExit()
    {
        Check.Needs(KvmCap.X86DisableExits, (int)KvmX86DisableExits.Hlt);
        using var machine = new Machine(code =>
        {
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.LvtTimer, Vector);
            code.ApicWrite(Apic.TimerInitial, 2_000_000);
            code.HaltFor(Vector, 1);
            code.mov(__dword_ptr[(long)Variable], 1);
            code.cli();
            code.hlt();
            code.Done();
        }, prepare: vm => vm.EnableCap(KvmCap.X86DisableExits, (ulong)KvmX86DisableExits.Hlt));
        machine.Start(0);
        Wait.Until(() => machine.Memory.Read<uint>(Variable) == 1, "the timer to wake the guest");
        Thread.Sleep(10);
        machine.StopThreads();
        Check.Equal(KvmMpState.Runnable, machine.Vcpu.MpState, "state: the kernel knows of no HLT");
    }

    static void DisableExitsArguments()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        int allowed = vm.CheckExtension(KvmCap.X86DisableExits);
        Check.Needs(allowed != 0, "X86_DISABLE_EXITS");
        var request = new KvmEnableCap { Cap = (uint)KvmCap.X86DisableExits };
        request.Args[0] = 0x10;
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.EnableCap, ref request), "an unknown exit");
        request.Args[0] = (ulong)allowed;
        Check.Succeeds(vm.TryCall(KvmIoctl.EnableCap, ref request), "all that are allowed");
    }
}
