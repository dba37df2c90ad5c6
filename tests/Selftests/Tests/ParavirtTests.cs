// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>What a guest and KVM agree on beyond the hardware, apart from its clock (<see cref="ClockTests"/>). Each
/// test is skipped where CPUID leaf 0x40000001 lacks the bit.</summary>
static class ParavirtTests
{
    const ulong Page = MachineLayout.Shared;
    const int Vector = 0x41;

    public static IEnumerable<TestCase> All =>
    [
        new("clock/steal_time", StealTime),
        new("clock/steal_time_grows", StealTimeGrows),
        new("clock/steal_time_preempted", StealTimePreempted),
        new("clock/steal_time_bad_values", StealTimeBadValues),
        new("clock/pv_eoi", PvEoi),
        new("clock/pv_eoi_several_pending", PvEoiSeveral),
        new("clock/pv_eoi_level_triggered", PvEoiLevel),
        new("clock/pv_eoi_bad_values", PvEoiBadValues),
        new("clock/pv_unhalt", PvUnhalt),
        new("clock/pv_unhalt_before_halt", PvUnhaltBeforeHalt),
        new("clock/pv_send_ipi", PvSendIpi),
        new("clock/pv_send_ipi_offset", PvSendIpiOffset),
        new("clock/pv_send_ipi_nmi", PvSendIpiNmi),
        new("clock/pv_send_ipi_absent", PvSendIpiAbsent),
        new("clock/pv_sched_yield", PvSchedYield),
        new("clock/pv_tlb_flush", PvTlbFlush),
        new("clock/async_page_fault", AsyncPageFault),
        new("clock/async_page_fault_not_needed", AsyncPageFaultNotNeeded),
        new("clock/async_page_fault_bad_values", AsyncPageFaultBadValues),
        new("clock/msrs_without_bits", MsrsWithoutBits),
    ];

    static Machine Make(ParavirtFeature feature, Action<Assembler> code, int cpus = 1)
    {
        Paravirt.Needs(feature);
        var machine = new Machine(cpus: cpus);
        machine.Program(0, code);
        return machine;
    }

    /// <summary>struct kvm_steal_time: steal, version, flags, preempted.</summary>
    static (ulong Steal, uint Version, byte Preempted) ReadSteal(Machine machine) =>
        (machine.Memory.Read<ulong>(Page), machine.Memory.Read<uint>(Page + 8), machine.Memory.Read<byte>(Page + 16));

    static void StealTime()
    {
        using Machine machine = Make(ParavirtFeature.StealTime, code =>
        {
            code.WriteMsr(Paravirt.StealTime, Page | 1);
            code.ReadMsr(Paravirt.StealTime);
            code.Save();
            code.Done();
            code.movzx(eax, __byte_ptr[(long)Page + 16]);
            code.Save();
            code.Done();
            code.WriteMsr(Paravirt.StealTime, 0);
            code.Done();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal((uint)Page | 1, machine.Results[0], "the MSR reads back");
        machine.RunToDone();
        (_, uint version, _) = ReadSteal(machine);
        Check.That(version != 0 && version % 2 == 0, $"version {version}");
        Check.Equal(0u, machine.Results[1], "'preempted' while it runs");
        machine.RunToDone();
        machine.Memory.Slice(Page, 64).Clear();
        machine.RunToDone();
        Check.That(!machine.Memory.Slice(Page, 64).ContainsAnyExcept((byte)0), "switched off, the page is left alone");
    }

    /// <summary>Three CPUs that compute on fewer real ones: some of them wait.</summary>
    static void StealTimeGrows()
    {
        const int Cpus = 4;
        using Machine machine = Make(ParavirtFeature.StealTime, code => code.nop(), Cpus);
        for (int cpu = 0; cpu < Cpus; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel(), stolen = code.CreateLabel();
                code.WriteMsr(Paravirt.StealTime, Page + 0x40 * (ulong)cpu | 1);
                code.xor(eax, eax);
                code.Label(ref again);
                // Until one of them has lost a millisecond.
                for (int other = 0; other < Cpus; other++)
                {
                    code.cmp(__qword_ptr[(long)Page + 0x40 * other], 1_000_000);
                    code.jae(stolen);
                }
                code.jmp(again);
                code.Label(ref stolen);
                code.Done();
            });
        }
        for (int cpu = 0; cpu < Cpus; cpu++)
            machine.Start(cpu);
        machine.Join();
    }

    /// <summary>CPUs 1 and 2 compute, so that CPU 0 has to share the real ones.</summary>
    static void StartOthers(Machine machine)
    {
        for (int cpu = 1; cpu < 3; cpu++)
        {
            machine.Program(cpu, code => code.Idle());
            machine.Start(cpu);
        }
    }

    /// <summary>A CPU that has lost its real one is 'preempted' for the others.</summary>
    static void StealTimePreempted()
    {
        // On one, nobody looks while it runs.
        Check.Needs(Environment.ProcessorCount > 1, "a second CPU");
        using Machine machine = Make(ParavirtFeature.StealTime, code =>
        {
            code.WriteMsr(Paravirt.StealTime, Page | 1);
            code.Idle();
        }, cpus: 3);
        StartOthers(machine);
        machine.Start(0);
        // Where this thread looks from, another does not run; from all CPUs in turn it sees both.
        using Affinity affinity = new();
        for (int i = 0; i < 3; i++)
        {
            Wait.Until(() => IsPreempted(), "the CPU to be marked as preempted");
            Wait.Until(() => !IsPreempted(), "the mark to go");
        }

        bool IsPreempted()
        {
            affinity.MoveOn();
            return (ReadSteal(machine).Preempted & 1) != 0;
        }
    }

    static void BadValues(ParavirtFeature feature, uint msr, params ulong[] values)
    {
        using Machine machine = Make(feature, code =>
        {
            foreach (ulong value in values)
                code.WriteMsr(msr, value);
            code.SaveFaults();
            code.ReadMsr(msr);
            code.Save();
            code.Done();
        });
        machine.CatchGeneralProtection();
        machine.RunToDone();
        Check.Equal((uint)values.Length, machine.Results[0], "#GPs");
        Check.Equal(0u, machine.Results[1], "the MSR afterwards");
        foreach (ulong value in values)
            Check.Equal(0, machine.Vcpu.TrySetMsrs([new(msr, 0, value)]), $"MSRs set by user space to {value:x}");
    }

    static void StealTimeBadValues() =>
        BadValues(ParavirtFeature.StealTime, Paravirt.StealTime, Page | 3, Page | 0x21, Page | 0x3F);

    static void PvEoiBadValues() => BadValues(ParavirtFeature.PvEoi, Paravirt.PvEoi, Page | 3, Page | 7);

    /// <summary>Interrupt handlers that end by clearing the bit when it is set, as Linux does it.</summary>
    static void HandleByPvEoi(Machine machine, params int[] vectors)
    {
        foreach (int vector in vectors)
        {
            machine.Handle(vector, code =>
            {
                Label done = code.CreateLabel();
                code.CountUp(vector);
                code.@lock.btr(__dword_ptr[(long)Page], 0);
                code.jc(done);
                code.inc(__dword_ptr[(long)Page + 0x40]);
                code.ApicWrite(Apic.Eoi, 0);
                code.Label(ref done);
                code.iretq();
            });
        }
    }

    static void PvEoi()
    {
        const int Rounds = 10;
        using Machine machine = Make(ParavirtFeature.PvEoi, code =>
        {
            code.WriteMsr(Paravirt.PvEoi, Page | 1);
            for (int i = 0; i < Rounds; i++)
            {
                code.Ipi(Apic.ToSelf | Vector);
                code.TakeInterrupts();
            }
            code.ReadMsr(Paravirt.PvEoi);
            code.Save();
            code.Done();
        });
        HandleByPvEoi(machine, Vector);
        machine.RunToDone();
        Check.Equal((uint)Rounds, machine.Count(Vector), "interrupts");
        Check.Equal((uint)Page | 1, machine.Results[0], "the MSR reads back");
        uint written = machine.Memory.Read<uint>(Page + 0x40);
        Check.That(written < Rounds, $"{written} EOIs of {Rounds} were written");
        Check.Equal("[]", Machine.Show(machine.Vcpu.Lapic.Vectors(Apic.Isr)), "in service at the end");
    }

    /// <summary>With a lower one waiting the EOI must be a real one, or that would have to wait for ever.</summary>
    static void PvEoiSeveral()
    {
        using Machine machine = Make(ParavirtFeature.PvEoi, code =>
        {
            code.WriteMsr(Paravirt.PvEoi, Page | 1);
            code.Ipi(Apic.ToSelf | 0x60);
            code.Ipi(Apic.ToSelf | 0x50);
            code.Ipi(Apic.ToSelf | 0x40);
            code.TakeInterrupts();
            code.Done();
        });
        HandleByPvEoi(machine, 0x40, 0x50, 0x60);
        machine.RunToDone();
        Check.Equal("1 1 1", $"{machine.Count(0x60)} {machine.Count(0x50)} {machine.Count(0x40)}", "interrupts");
        Check.That(machine.Memory.Read<uint>(Page + 0x40) >= 2, "EOIs of those with others behind them");
    }

    /// <summary>The I/O APIC waits for the EOI of a level-triggered one.</summary>
    static void PvEoiLevel()
    {
        using Machine machine = Make(ParavirtFeature.PvEoi, code =>
        {
            code.WriteMsr(Paravirt.PvEoi, Page | 1);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        HandleByPvEoi(machine, Vector);
        machine.Route(20, KvmIoapicState.Level | Vector);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(20);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
        Check.Equal(1u, machine.Memory.Read<uint>(Page + 0x40), "EOIs that were written");
        Check.Equal(0ul, machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Redirtbl[20] & KvmIoapicState.RemoteIrr,
            "remote IRR");
    }

    /// <summary>A kick ends another CPU's HLT although its interrupts are off.</summary>
    static void PvUnhalt()
    {
        using Machine machine = Make(ParavirtFeature.PvUnhalt, code =>
        {
            code.SpinUntil(Page, 1);
            Label again = code.CreateLabel();
            code.Label(ref again);
            code.Hypercall(Paravirt.KickCpu, 0, 1);
            code.cmp(__dword_ptr[(long)Page], 2);
            code.jb(again);
            code.Save();
            code.Done();
        }, cpus: 2);
        machine.Program(1, code =>
        {
            code.cli();
            code.mov(__dword_ptr[(long)Page], 1);
            code.hlt();
            code.mov(__dword_ptr[(long)Page], 2);
            code.Done();
        });
        machine.Start(1);
        machine.RunToDone();
        machine.Join();
        Check.Equal(0u, machine.Results[0], "result");
    }

    /// <summary>A kick is remembered until the next HLT: otherwise it would be lost just before.</summary>
    static void PvUnhaltBeforeHalt()
    {
        using Machine machine = Make(ParavirtFeature.PvUnhalt, code =>
        {
            code.Hypercall(Paravirt.KickCpu, 0, 1);
            code.Done();
        }, cpus: 2);
        machine.Program(1, code =>
        {
            code.cli();
            code.hlt();
            code.Done();
        });
        machine.Cpus[1].MpState = KvmMpState.Runnable;
        machine.RunToDone();
        machine.StartAsIs(1);
        machine.Join();
    }

    static void PvSendIpi()
    {
        using Machine machine = Make(ParavirtFeature.PvSendIpi, code =>
        {
            code.Hypercall(Paravirt.SendIpi, 0b1110, 0, 0, Vector);
            code.Save();
            code.Hypercall(Paravirt.SendIpi, 0b0100, 0, 0, Vector + 1);
            code.Save();
            code.Hypercall(Paravirt.SendIpi, 0, 0, 0, Vector + 2);
            code.Save();
            code.Done();
        }, cpus: 4);
        machine.RunToDone();
        Check.Equal("3 1 0", string.Join(' ', machine.Results), "results: CPUs that got one");
        Check.Equal("[] [41] [41 42] [41]", string.Join(' ', Enumerable.Range(0, 4).Select(
            cpu => Machine.Show(machine.Pending(cpu)))), "pending");
    }

    /// <summary>The bitmap's first bit is the APIC ID in the third argument; it has 128 bits.</summary>
    static void PvSendIpiOffset()
    {
        using Machine machine = Make(ParavirtFeature.PvSendIpi, code =>
        {
            code.Hypercall(Paravirt.SendIpi, 1, 0, 200, Vector);
            code.Save();
            code.Hypercall(Paravirt.SendIpi, 1ul << 2, 1ul << 63, 73, Vector + 1);
            code.Save();
            code.Done();
        });
        machine.EnableX2Apic(0);
        foreach (uint id in (uint[])[75, 200])
            machine.EnableX2Apic(machine.AddCpu(id));
        machine.RunToDone();
        Check.Equal("1 2", string.Join(' ', machine.Results), "results");
        Check.Equal("[42] [41 42]", $"{Machine.Show(machine.Pending(1))} {Machine.Show(machine.Pending(2))}", "pending");
    }

    static void PvSendIpiNmi()
    {
        using Machine machine = Make(ParavirtFeature.PvSendIpi, code =>
        {
            code.Hypercall(Paravirt.SendIpi, 0b10, 0, 0, Apic.Nmi);
            code.Save();
            code.Done();
        }, cpus: 2);
        machine.RunToDone();
        Check.Equal(1u, machine.Results[0], "result");
        machine.Program(1, code =>
        {
            code.nop();
            code.Done();
        });
        machine.Start(1);
        machine.Join();
        Check.Equal(1u, machine.Count(2, 1), "NMIs");
    }

    /// <summary>CPUs that are not there are passed over, wherever the bitmap points.</summary>
    static void PvSendIpiAbsent()
    {
        (ulong Low, ulong High, ulong First)[] calls =
        [
            (ulong.MaxValue, ulong.MaxValue, 0), (ulong.MaxValue, ulong.MaxValue, 0xFFFFFFFF),
            (ulong.MaxValue, ulong.MaxValue, 0x7FFFFFFF), (ulong.MaxValue, ulong.MaxValue, 1023),
            (ulong.MaxValue, ulong.MaxValue, 4095), (ulong.MaxValue, ulong.MaxValue, 0xFFFFFF80),
        ];
        using Machine machine = Make(ParavirtFeature.PvSendIpi, code =>
        {
            foreach ((ulong low, ulong high, ulong first) in calls)
            {
                code.Hypercall(Paravirt.SendIpi, low, high, first, Vector);
                code.Save();
            }
            code.Done();
        }, cpus: 2);
        machine.RunToDone();
        Check.Equal(2u, machine.Results[0], "those that are there");
        foreach (uint result in machine.Results[1..])
            Check.That((int)result <= 0, $"result {(int)result}");
    }

    static void PvSchedYield()
    {
        using Machine machine = Make(ParavirtFeature.PvSchedYield, code =>
        {
            foreach (ulong target in (ulong[])[0, 1, 99, uint.MaxValue])
            {
                code.Hypercall(Paravirt.SchedYield, target);
                code.Save();
            }
            code.Done();
        }, cpus: 2);
        machine.RunToDone();
        Check.Equal("0 0 0 0", string.Join(' ', machine.Results), "results");
    }

    /// <summary>A CPU that does not run is asked by a bit in its steal time area to flush its TLB; it does so before it
    /// goes on.</summary>
    static void PvTlbFlush()
    {
        const ulong Window = 0x90000, PageA = 0x92000, PageB = 0x93000, Go = Page + 0x80;
        const int Preempted = 1, FlushTlb = 2;
        using Machine machine = Make(ParavirtFeature.PvTlbFlush, code =>
        {
            code.WriteMsr(Paravirt.StealTime, Page | 1);
            code.mov(eax, __dword_ptr[(long)Window]);
            code.Save();
            code.SpinUntil(Go, 1);
            code.mov(eax, __dword_ptr[(long)Window]);
            code.Save();
            code.movzx(eax, __byte_ptr[(long)Page + 16]);
            code.Save();
            code.Done();
        }, cpus: 3);
        ulong entry = GuestLayout.LowPageTable + (Window >> 12) * 8;
        machine.Memory.Write(PageA, 0xAAu);
        machine.Memory.Write(PageB, 0xBBu);
        machine.Memory.Write(entry, PageA | 3);
        StartOthers(machine);
        VcpuThread subject = machine.Start(0);
        Wait.Until(() => machine.Memory.Read<uint>(MachineLayout.Results) == 0xAA, "the first page");
        machine.Memory.Write(entry, PageB | 3);
        // As Linux asks: only a CPU that is marked as preempted at this moment.
        Wait.Until(() => Interlocked.CompareExchange(
            ref System.Runtime.InteropServices.MemoryMarshal.Cast<byte, int>(machine.Memory.Slice(Page + 16, 4))[0],
            Preempted | FlushTlb, Preempted) == Preempted, "the CPU to be marked as preempted");
        machine.Memory.Write(Go, 1u);
        Wait.Until(() => subject.Ended, "the CPU to go on");
        machine.StopThreads();
        Check.Equal("aa bb 0", string.Join(' ', machine.Results.Select(value => value.ToString("x"))),
            "first page, second page, 'preempted' while it runs");
    }

    /// <summary>A page that is not there: the guest hears of it by a page fault with a token, does something else, and
    /// hears of the page by an interrupt.</summary>
    static void AsyncPageFault()
    {
        const ulong Away = 0x40000000, Token = MachineLayout.Shared + 0x100;
        using Machine machine = Make(ParavirtFeature.AsyncPfInt, code =>
        {
            Label wait = code.CreateLabel(), there = code.CreateLabel();
            code.WriteMsr(Paravirt.AsyncPageFaultVector, Vector);
            code.WriteMsr(Paravirt.AsyncPageFault, Page | 1 | 2 | 8);
            code.sti();
            code.mov(ebx, (uint)Away);
            code.mov(eax, __dword_ptr[rbx]);
            code.Save();
            // It may have been halted instead, when the kernel could not tell.
            code.cmp(__dword_ptr[(long)Token], 0);
            code.je(there);
            code.Label(ref wait);
            code.pause();
            code.cmp(MachineAssembler.CountOf(Vector), 0);
            code.je(wait);
            code.Label(ref there);
            code.Done();
        });
        // 'Not present': the token is in CR2. It spins there until 'ready' has come, with interrupts on.
        machine.Handle(14, code =>
        {
            Label wait = code.CreateLabel();
            code.push(rax);
            code.mov(eax, __dword_ptr[(long)Page]);
            code.mov(__dword_ptr[(long)Token + 4], eax);
            code.mov(__dword_ptr[(long)Page], 0);
            code.mov(rax, cr2);
            code.mov(__dword_ptr[(long)Token], eax);
            code.sti();
            code.Label(ref wait);
            code.pause();
            code.cmp(MachineAssembler.CountOf(Vector), 0);
            code.je(wait);
            code.pop(rax);
            code.add(rsp, 8);
            code.iretq();
        });
        machine.Handle(Vector, code =>
        {
            code.push(rax);
            code.push(rcx);
            code.push(rdx);
            code.mov(eax, __dword_ptr[(long)Page + 4]);
            code.mov(__dword_ptr[(long)Token + 8], eax);
            code.mov(__dword_ptr[(long)Page + 4], 0);
            code.WriteMsr(Paravirt.AsyncPageFaultAck, 1);
            code.CountUp(Vector);
            code.ApicWrite(Apic.Eoi, 0);
            code.pop(rdx);
            code.pop(rcx);
            code.pop(rax);
            code.iretq();
        });
        GuestMemory away = machine.Vm.AddMemory(1, Away, 0x1000);
        using var fault = new UserFault(away.HostAddress, away.Size);
        machine.Start(0);
        Wait.Until(() => machine.Memory.Read<uint>(Token) != 0, "the guest to hear of the missing page");
        Check.Equal(1u, machine.Memory.Read<uint>(Token + 4), "reason: page not present");
        fault.Provide(away.HostAddress, 0x77);
        machine.Join();
        Check.Equal(machine.Memory.Read<uint>(Token), machine.Memory.Read<uint>(Token + 8), "token of 'ready'");
        Check.Equal(0x77u, machine.Results[0], "value in the page");
    }

    /// <summary>What is left of a huge page is there, but Linux takes it for clean: the write goes on all the same.
    /// </summary>
    static void AsyncPageFaultNotNeeded()
    {
        const ulong Huge = HugeMemory.Huge, There = 0x40000000;
        using Machine machine = Make(ParavirtFeature.AsyncPfInt, code =>
        {
            code.WriteMsr(Paravirt.AsyncPageFaultVector, Vector);
            code.WriteMsr(Paravirt.AsyncPageFault, Page | 1 | 2 | 8);
            code.sti();
            code.mov(ebx, (uint)There);
            for (byte value = 1; value <= 2; value++)
            {
                code.mov(__byte_ptr[rbx], value);
                code.Done();
            }
        });
        using var memory = new HugeMemory(Huge, huge: true);
        machine.Vm.SetMemoryRegion(1, 0, There, Huge, memory.Address);
        machine.RunToDone();
        memory.TakeAway(7 * 4096);
        machine.RunToDone();
        Check.Equal((byte)2, memory.Read<byte>(0), "value in the page");
    }

    static void AsyncPageFaultBadValues() => BadValues(ParavirtFeature.AsyncPfInt, Paravirt.AsyncPageFault, Page | 0x11,
        Page | 0x21, Page | 0x31);

    /// <summary>KVM_CAP_ENFORCE_PV_FEATURE_CPUID: an MSR whose bit the guest does not have is not there.</summary>
    static void MsrsWithoutBits()
    {
        uint[] msrs = [Paravirt.SystemTime, Paravirt.SystemTimeOld, Paravirt.WallClock, Paravirt.StealTime,
            Paravirt.PvEoi, Paravirt.AsyncPageFault];
        using var machine = new Machine(code =>
        {
            foreach (uint msr in msrs)
                code.WriteMsr(msr, Page | 1);
            code.SaveFaults();
            code.Done();
        });
        Check.Needs(KvmCap.EnforcePvFeatureCpuid);
        machine.CatchGeneralProtection();
        machine.Vcpu.Cpuid = [.. machine.Kvm.GetSupportedCpuid().Select(leaf =>
            leaf.Function == Paravirt.FeatureLeaf ? leaf with { Eax = 0 } : leaf)];
        machine.Vcpu.EnableCap(KvmCap.EnforcePvFeatureCpuid, 1);
        machine.RunToDone();
        Check.Equal((uint)msrs.Length, machine.Results[0], "#GPs");
    }
}
