// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The local APIC in xAPIC mode: its registers, how interrupts wait and nest, where IPIs go (SDM volume 3,
/// chapter 11; APM volume 2, chapter 16).</summary>
static class LapicTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("lapic/reset_state", ResetState),
        new("lapic/get_set_round_trip", GetSetRoundTrip),
        new("lapic/write_masks", WriteMasks),
        new("lapic/read_only_registers", ReadOnlyRegisters),
        new("lapic/software_disable_masks_vector_table", SoftwareDisableMasks),
        new("lapic/odd_accesses", OddAccesses),
        new("lapic/tpr_is_cr8", TprIsCr8),
        new("lapic/ppr", Ppr),
        new("lapic/tpr_holds_back", TprHoldsBack),
        new("lapic/cr8_holds_back", Cr8HoldsBack),
        new("lapic/pending_in_order", PendingInOrder),
        new("lapic/nested_by_priority", NestedByPriority),
        new("lapic/same_vector_while_in_service", SameVectorInService),
        new("lapic/vectors_16_to_31", LowVectors),
        new("lapic/isr_and_irr_registers", IsrAndIrrRegisters),
        new("lapic/trigger_mode_register", TriggerModeRegister),
        new("lapic/eoi_without_interrupt", EoiWithoutInterrupt),
        new("lapic/error_status_register", ErrorStatusRegister),
        new("lapic/icr_reads_back", IcrReadsBack),
        new("lapic/destination_physical", DestinationPhysical),
        new("lapic/destination_flat", DestinationFlat),
        new("lapic/destination_cluster", DestinationCluster),
        new("lapic/destination_shorthand", DestinationShorthand),
        new("lapic/destination_shared_logical_id", DestinationSharedLogicalId),
        new("lapic/destination_absent", DestinationAbsent),
        new("lapic/lowest_priority", LowestPriority),
        new("lapic/disabled_takes_no_ipi", DisabledTakesNoIpi),
        new("lapic/nmi_ipi", NmiIpi),
        new("lapic/ipi_to_running_cpu", IpiToRunningCpu),
        new("lapic/in_flight_to_another_machine", InFlight),
        new("lapic/set_while_running", SetWhileRunning),
        new("lapic/interrupt_shadow", InterruptShadow),
        new("lapic/interrupt_and_nmi", InterruptAndNmi),
        new("lapic/event_ioctl_refused", InterruptIoctlRefused),
        new("lapic/run_page", RunPage),
    ];

    static void ResetState()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        for (uint id = 0; id < 2; id++)
        {
            Vcpu vcpu = vm.CreateVcpu(id);
            KvmLapicState lapic = vcpu.Lapic;
            Check.Equal(id << 24, lapic[Apic.Id], "ID");
            Check.Equal(0x10u, lapic[Apic.Version] & 0xF0, "version of an integrated APIC");
            Check.That((lapic[Apic.Version] >> 16 & 0xFF) is >= 5 and <= 6, $"version {lapic[Apic.Version]:x}");
            Check.Equal(Apic.DfrFlat, lapic[Apic.Dfr], "DFR");
            Check.Equal(0xFFu, lapic[Apic.Svr], "SVR");
            foreach (int register in (int[])[Apic.Tpr, Apic.Ppr, Apic.Ldr, Apic.Esr, Apic.Icr, Apic.IcrHigh,
                Apic.TimerInitial, Apic.TimerCurrent, Apic.TimerDivide])
                Check.Equal(0u, lapic[register], $"register {register:x}");
            foreach (int register in (int[])[Apic.LvtTimer, Apic.LvtThermal, Apic.LvtPerf, Apic.LvtLint1,
                Apic.LvtError])
                Check.Equal(Apic.Masked, lapic[register], $"register {register:x}");
            // KVM's machines start as if the firmware had wired the 8259 to the first CPU ("virtual wire mode").
            Check.Equal(id == 0 ? Apic.ModeExtInt : Apic.Masked, lapic[Apic.LvtLint0], "LINT0");
            Check.Equal("[] [] []", string.Join(' ', ((int[])[Apic.Irr, Apic.Isr, Apic.Tmr]).Select(
                register => Machine.Show(lapic.Vectors(register)))), "IRR, ISR, TMR");
            Check.Equal(Apic.Base | Apic.BaseEnable | (id == 0 ? Apic.BaseBsp : 0), vcpu.Sregs.ApicBase, "APIC_BASE");
        }
    }

    static void GetSetRoundTrip()
    {
        using var machine = new Machine(code => code.hlt());
        KvmLapicState lapic = machine.Vcpu.Lapic;
        lapic[Apic.Tpr] = 0x40;
        lapic[Apic.Ldr] = 0x05000000;
        lapic[Apic.Dfr] = Apic.DfrCluster;
        lapic[Apic.Svr] = Apic.SvrEnable | 0xEF;
        lapic[Apic.Icr] = 0xC4041;
        lapic[Apic.IcrHigh] = 0x03000000;
        lapic[Apic.LvtTimer] = Apic.Masked | Apic.TimerPeriodic | 0x31;
        lapic[Apic.LvtThermal] = 0x32;
        lapic[Apic.LvtPerf] = 0x33;
        lapic[Apic.LvtLint0] = Apic.Masked | 0x34;
        lapic[Apic.LvtLint1] = Apic.Nmi;
        lapic[Apic.LvtError] = 0x36;
        lapic[Apic.TimerDivide] = Apic.DivideBy1;
        lapic.AddVector(Apic.Irr, 0x51);
        lapic.AddVector(Apic.Irr, 0x20);
        lapic.AddVector(Apic.Isr, 0x61);
        lapic.AddVector(Apic.Isr, 0xF2);
        lapic.AddVector(Apic.Tmr, 0x61);
        machine.Vcpu.Lapic = lapic;
        KvmLapicState read = machine.Vcpu.Lapic;
        // What it has in service counts.
        lapic[Apic.Ppr] = read[Apic.Ppr];
        Check.Same(lapic, read, "LAPIC");
        Check.Equal(4ul, machine.Vcpu.Sregs.Cr8, "CR8");
    }

    /// <summary>What is left of all ones in each register.</summary>
    static void WriteMasks()
    {
        // Delivery status and remote IRR are for the APIC to set.
        const uint Lvt = 1 << 12, Lint = Lvt | 1 << 14;
        (int Register, uint Expected, uint Ignore)[] registers =
        [
            // SVM's virtual TPR has the upper four bits only.
            (Apic.Tpr, 0xF0, 0xF), (Apic.Ldr, 0xFF000000, 0), (Apic.Dfr, 0xFFFFFFFF, 0),
            (Apic.LvtTimer, 0x300FF, Lvt), (Apic.LvtThermal, 0x107FF, Lvt), (Apic.LvtPerf, 0x107FF, Lvt),
            (Apic.LvtLint0, 0x1A7FF, Lint), (Apic.LvtLint1, 0x1A7FF, Lint), (Apic.LvtError, 0x100FF, Lvt),
            (Apic.TimerInitial, 0xFFFFFFFF, 0), (Apic.TimerDivide, 0xB, 0),
        ];
        using var machine = new Machine(code =>
        {
            foreach ((int register, _, _) in registers)
            {
                code.ApicWrite(register, 0xFFFFFFFF);
                code.ApicSave(register);
            }
            code.ApicWrite(Apic.Dfr, 0);
            code.ApicSave(Apic.Dfr);
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        for (int i = 0; i < registers.Length; i++)
            Check.Equal(registers[i].Expected, results[i] & ~registers[i].Ignore, $"{registers[i].Register:x}");
        Check.Equal(Apic.DfrCluster, results[registers.Length], "DFR after 0");
    }

    static void ReadOnlyRegisters()
    {
        int[] registers = [Apic.Version, Apic.Apr, Apic.Ppr, Apic.Rrr, Apic.Isr, Apic.Isr + 0x70, Apic.Tmr,
            Apic.Irr + 0x20, Apic.TimerCurrent];
        using var machine = new Machine(code =>
        {
            foreach (int register in registers)
            {
                code.ApicSave(register);
                code.ApicWrite(register, 0x55555555);
                code.ApicSave(register);
            }
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        for (int i = 0; i < registers.Length; i++)
            Check.Equal(results[i * 2], results[i * 2 + 1], $"register {registers[i]:x} after a write");
    }

    /// <summary>While it is disabled by software, all entries of the vector table are masked, and stay so
    /// afterwards.</summary>
    static void SoftwareDisableMasks()
    {
        int[] registers = [Apic.LvtTimer, Apic.LvtThermal, Apic.LvtPerf, Apic.LvtLint0, Apic.LvtLint1, Apic.LvtError];
        using var machine = new Machine(code =>
        {
            foreach (int register in registers)
                code.ApicWrite(register, 0x40);
            code.ApicWrite(Apic.Svr, 0xFF);
            foreach (int register in registers)
            {
                code.ApicSave(register);
                code.ApicWrite(register, 0x41);
                code.ApicSave(register);
            }
            code.ApicWrite(Apic.Svr, Apic.SvrEnable | 0xFF);
            foreach (int register in registers)
                code.ApicSave(register);
            code.ApicWrite(Apic.LvtTimer, 0x42);
            code.ApicSave(Apic.LvtTimer);
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        for (int i = 0; i < registers.Length; i++)
        {
            Check.Equal(Apic.Masked | 0x40, results[i * 2], $"{registers[i]:x} after disabling");
            Check.Equal(Apic.Masked | 0x41, results[i * 2 + 1], $"{registers[i]:x} written while disabled");
            Check.Equal(Apic.Masked | 0x41, results[registers.Length * 2 + i], $"{registers[i]:x} enabled again");
        }
        Check.Equal(0x42u, results[^1], "LVT timer can be unmasked again");
    }

    /// <summary>Whatever accesses other than 32 bits at every 16th byte do, they do no harm.</summary>
    static void OddAccesses()
    {
        using var machine = new Machine(code =>
        {
            foreach (int at in (int[])[0x20, 0x21, 0x22, 0x23, 0x24, 0x2C, 0x2E, 0x80, 0xFC, 0x3FF, 0x400, 0xFF0])
            {
                code.mov(al, __byte_ptr[r15 + at]);
                code.mov(__byte_ptr[r15 + at], al);
                code.mov(ax, __word_ptr[r15 + at]);
                code.mov(__word_ptr[r15 + at], ax);
                code.mov(eax, __dword_ptr[r15 + at]);
                code.mov(rax, __qword_ptr[r15 + at]);
                code.mov(__qword_ptr[r15 + at], rax);
            }
            code.mov(eax, __dword_ptr[r15 + 0xFFC]);
            code.mov(rax, __qword_ptr[r15 + 0xFF8]);
            code.movups(xmm0, __xmmword_ptr[r15 + 0x80]);
            code.ApicWrite(Apic.Tpr, 0x20);
            code.ApicSave(Apic.Tpr);
            code.Done();
        });
        int result = 0;
        for (int exits = 0; exits < 1000; exits++)
        {
            result = machine.Vcpu.TryRun();
            if (result != 0 || machine.Run.ExitReason != KvmExit.Mmio)
                break;
        }
        Check.Succeeds(result, "KVM_RUN");
        if (machine.Run.ExitReason == KvmExit.InternalError)
            return; // an instruction that the interpreter does not know is refused
        Check.Equal(KvmExit.Io, machine.Run.ExitReason, "exit reason");
        Check.Equal(0x20u, machine.Results[0], "TPR");
    }

    static void TprIsCr8()
    {
        using var machine = new Machine(code =>
        {
            code.ApicWrite(Apic.Tpr, 0x5A);
            code.mov(rax, cr8);
            code.Save();
            code.mov(eax, 9);
            code.mov(cr8, rax);
            code.ApicSave(Apic.Tpr);
            code.Done();
            code.mov(rax, cr8);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(5u, machine.Results[0], "CR8 after TPR 0x5a");
        Check.Equal(0x90u, machine.Results[1], "TPR after CR8 9");
        Check.Equal(9ul, machine.Vcpu.Sregs.Cr8, "CR8 in KVM_GET_SREGS");
        Check.Equal(0x90u, machine.Vcpu.Lapic[Apic.Tpr], "TPR in KVM_GET_LAPIC");
        machine.SetLapic(0, (ref lapic) => lapic[Apic.Tpr] = 0x30);
        machine.RunToDone();
        Check.Equal(3u, machine.Results[2], "CR8 after KVM_SET_LAPIC");
    }

    /// <summary>Processor priority: the higher of the TPR and what is in service.</summary>
    static void Ppr()
    {
        using var machine = new Machine(code =>
        {
            foreach (uint tpr in (uint[])[0x30, 0x60, 0x70])
            {
                code.ApicWrite(Apic.Tpr, tpr);
                code.ApicSave(Apic.Ppr);
            }
            code.ApicWrite(Apic.Eoi, 0);
            code.ApicWrite(Apic.Tpr, 0);
            code.ApicSave(Apic.Ppr);
            code.Done();
        });
        machine.SetLapic(0, (ref lapic) => lapic.AddVector(Apic.Isr, 0x64));
        machine.RunToDone();
        Check.Equal("60 60 70 0", string.Join(' ', machine.Results.Select(value => value.ToString("X"))),
            "PPR with 0x64 in service and TPR 30, 60, 70; after EOI");
    }

    static void HoldsBack(Action<Assembler, uint> setPriorityClass)
    {
        using var machine = new Machine(code =>
        {
            setPriorityClass(code, 4);
            code.Ipi(Apic.ToSelf | 0x41);
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.Done(1);
            setPriorityClass(code, 3);
            code.TakeInterrupts();
            code.Done(2);
        });
        machine.RunToDone();
        machine.ExpectLog("priority class 4", 0x50);
        Check.Equal("[41]", Machine.Show(machine.Pending()), "waits");
        machine.RunToDone();
        machine.ExpectLog("priority class 3", 0x50, 0x41);
    }

    static void TprHoldsBack() => HoldsBack((code, value) => code.ApicWrite(Apic.Tpr, value << 4));

    static void Cr8HoldsBack() => HoldsBack((code, value) =>
    {
        code.mov(eax, value);
        code.mov(cr8, rax);
    });

    static void PendingInOrder()
    {
        using var machine = new Machine(code =>
        {
            foreach (uint vector in (uint[])[0x31, 0xA0, 0x72, 0x20, 0xFF, 0x71, 0x72])
                code.Ipi(Apic.ToSelf | vector);
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.ExpectLog("highest first, each once", 0xFF, 0xA0, 0x72, 0x71, 0x31, 0x20);
    }

    /// <summary>In a handler of 0x50 with interrupts on, 0x60 comes at once, 0x51 and 0x40 after the EOI.</summary>
    static void NestedByPriority()
    {
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.Done();
        });
        machine.Handle(0x50, code =>
        {
            code.Ipi(Apic.ToSelf | 0x40);
            code.Ipi(Apic.ToSelf | 0x51);
            code.Ipi(Apic.ToSelf | 0x60);
            code.TakeInterrupts();
            code.mov(eax, __dword_ptr.gs[MachineLayout.LogCount]);
            code.Save();
            code.ApicSave(Apic.Ppr);
            code.ApicWrite(Apic.Eoi, 0);
            code.TakeInterrupts();
            code.iretq();
        });
        machine.RunToDone();
        machine.ExpectLog("after the handler", 0x60, 0x51, 0x40);
        Check.Equal(1u, machine.Results[0], "interrupts inside of the handler, before its EOI");
        Check.Equal(0x50u, machine.Results[1], "PPR in the handler");
    }

    /// <summary>One more of a vector that is in service waits in the IRR, and comes after the EOI.</summary>
    static void SameVectorInService()
    {
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.Done();
        });
        machine.Handle(0x50, code =>
        {
            Label second = code.CreateLabel();
            code.CountUp(0x50);
            code.cmp(MachineAssembler.CountOf(0x50), 2);
            code.jae(second);
            code.Ipi(Apic.ToSelf | 0x50);
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.mov(eax, MachineAssembler.CountOf(0x50));
            code.Save();
            code.Label(ref second);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Results[0], "before the first one's EOI");
        Check.Equal(2u, machine.Count(0x50), "in all");
    }

    /// <summary>Vectors from 16 on may be used; those of exceptions among them are the guest's own affair.</summary>
    static void LowVectors()
    {
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x1F);
            code.TakeInterrupts();
            code.Done();
        });
        machine.Handle(0x1F, code =>
        {
            code.CountUp(0x1F);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x1F), "vector 1f");
    }

    static void IsrAndIrrRegisters()
    {
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x95);
            code.TakeInterrupts();
            code.Done();
        });
        machine.Handle(0x95, code =>
        {
            code.Ipi(Apic.ToSelf | 0x83);
            code.ApicSave(Apic.Isr + 0x40);
            code.ApicSave(Apic.Irr + 0x40);
            code.Done();
            code.ApicWrite(Apic.Eoi, 0);
            code.ApicSave(Apic.Isr + 0x40);
            code.iretq();
        });
        machine.RunToDone();
        KvmLapicState lapic = machine.Vcpu.Lapic;
        Check.Equal("[95]", Machine.Show(lapic.Vectors(Apic.Isr)), "ISR by KVM_GET_LAPIC");
        Check.Equal("[83]", Machine.Show(lapic.Vectors(Apic.Irr)), "IRR by KVM_GET_LAPIC");
        machine.RunToDone();
        Check.Equal(1u << 0x15, machine.Results[0], "ISR in the handler");
        Check.Equal(1u << 3, machine.Results[1], "IRR in the handler");
        Check.Equal(0u, machine.Results[2], "ISR after EOI");
        machine.ExpectLog("afterwards", 0x83);
    }

    /// <summary>TMR tells for each vector how the last interrupt was triggered.</summary>
    static void TriggerModeRegister()
    {
        using var machine = new Machine(code => code.hlt());
        machine.Vm.SetGsiRouting(
            KvmIrqRoutingEntry.ToMsi(0, new() { AddressLo = (uint)Apic.Base, Data = Apic.Level | Apic.Assert | 0x61 }),
            KvmIrqRoutingEntry.ToMsi(1, new() { AddressLo = (uint)Apic.Base, Data = 0x61 }));
        machine.Vm.SetIrqLine(0, true);
        Check.Equal("[61]", Machine.Show(machine.Vcpu.Lapic.Vectors(Apic.Tmr)), "TMR after a level-triggered one");
        machine.SetLapic(0, (ref lapic) => lapic[Apic.Irr + 0x30] = 0);
        machine.Vm.SetIrqLine(1, true);
        Check.Equal("[]", Machine.Show(machine.Vcpu.Lapic.Vectors(Apic.Tmr)), "TMR after an edge-triggered one");
    }

    static void EoiWithoutInterrupt()
    {
        using var machine = new Machine(code =>
        {
            code.ApicWrite(Apic.Eoi, 0);
            code.ApicWrite(Apic.Eoi, 0xFFFFFFFF);
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.ExpectLog("an interrupt afterwards", 0x50);
    }

    /// <summary>A write latches the errors since the last one; there is none, or that of an illegal vector.</summary>
    static void ErrorStatusRegister()
    {
        const uint SendIllegalVector = 0x20, ReceiveIllegalVector = 0x40;
        using var machine = new Machine(code =>
        {
            code.ApicWrite(Apic.Esr, 0);
            code.ApicSave(Apic.Esr);
            code.Ipi(0x0F, 7); // to a CPU that is not there
            code.ApicWrite(Apic.Esr, 0xFF);
            code.ApicSave(Apic.Esr);
            code.ApicWrite(Apic.Esr, 0);
            code.ApicSave(Apic.Esr);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0u, machine.Results[0], "ESR without errors");
        Check.Equal(0u, machine.Results[1] & ~(SendIllegalVector | ReceiveIllegalVector), "ESR after vector 15");
        Check.Equal(0u, machine.Results[2], "ESR after another write");
    }

    static void IcrReadsBack()
    {
        const uint DeliveryStatus = 1 << 12;
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.Logical | 0x45, 0x80);
            code.ApicSave(Apic.Icr);
            code.ApicSave(Apic.IcrHigh);
            code.ApicWrite(Apic.IcrHigh, 0x12345678);
            code.ApicSave(Apic.IcrHigh);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0u, machine.Results[0] & DeliveryStatus, "delivery status: idle");
        Check.Equal(Apic.Logical | Apic.Assert | 0x45u, machine.Results[0], "ICR low");
        Check.Equal(0x80000000u, machine.Results[1], "ICR high");
        Check.Equal(0x12000000u, machine.Results[2], "reserved bits of ICR high");
    }

    /// <summary>CPU 0 sends IPIs to each of <paramref name="destinations"/>, vectors from 0x40 on; CPUs do not run, so
    /// all wait in their IRRs. Expected is a mask of CPUs for each.</summary>
    static void Destinations(int cpus, uint command, (uint Destination, uint Cpus)[] destinations,
        Action<Machine>? prepare = null)
    {
        const int FirstVector = 0x40;
        using var machine = new Machine(cpus: cpus);
        prepare?.Invoke(machine);
        machine.Program(0, code =>
        {
            for (int i = 0; i < destinations.Length; i++)
                code.Ipi(command | (uint)(FirstVector + i), destinations[i].Destination);
            code.Done();
        });
        machine.RunToDone();
        int[][] pending = [.. Enumerable.Range(0, cpus).Select(cpu => machine.Pending(cpu))];
        for (int i = 0; i < destinations.Length; i++)
        {
            uint got = 0;
            for (int cpu = 0; cpu < cpus; cpu++)
                got |= pending[cpu].Contains(FirstVector + i) ? 1u << cpu : 0;
            Check.Equal(destinations[i].Cpus, got,
                $"mask of CPUs for destination {destinations[i].Destination:x}, command {command:x}");
        }
    }

    static void DestinationPhysical() =>
        Destinations(4, 0, [(0, 1), (1, 2), (2, 4), (3, 8), (4, 0), (0x10, 0), (0xFE, 0), (0xFF, 0xF)]);

    static void DestinationFlat() => Destinations(4, Apic.Logical,
        [(1, 1), (2, 2), (5, 5), (8, 8), (0xF, 0xF), (0x10, 0), (0xF0, 0), (0x18, 8), (0, 0), (0xFF, 0xF)]);

    /// <summary>Clusters 1 and 2 of two CPUs each: bits 7 to 4 choose the cluster, bits 3 to 0 are a mask.</summary>
    static void DestinationCluster() => Destinations(4, Apic.Logical,
        [(0x11, 1), (0x12, 2), (0x13, 3), (0x1F, 3), (0x21, 4), (0x22, 8), (0x2C, 0), (0x31, 0), (0x10, 0),
            (0xFF, 0xF)],
        machine =>
        {
            for (int cpu = 0; cpu < 4; cpu++)
            {
                uint ldr = (uint)((1 + cpu / 2) << 4 | 1 << (cpu % 2)) << 24;
                machine.SetLapic(cpu, (ref lapic) =>
                {
                    lapic[Apic.Dfr] = Apic.DfrCluster;
                    lapic[Apic.Ldr] = ldr;
                });
            }
        });

    static void DestinationShorthand()
    {
        Destinations(4, Apic.ToSelf, [(0, 1), (3, 1)]);
        Destinations(4, Apic.ToAll, [(0, 0xF), (2, 0xF)]);
        Destinations(4, Apic.ToOthers, [(0, 0xE), (1, 0xE)]);
        Destinations(4, Apic.ToSelf | Apic.Logical, [(2, 1)]);
    }

    static void DestinationSharedLogicalId()
    {
        Check.Needs(TestEnvironment.IsSharpKvm, "delivery to each of several CPUs with one logical id");
        Destinations(4, Apic.Logical, [(1, 1), (2, 6), (3, 7), (8, 8)],
            machine => machine.SetLapic(2, (ref lapic) => lapic[Apic.Ldr] = 2u << 24));
    }

    /// <summary>An IPI to nobody is lost, and the sender goes on.</summary>
    static void DestinationAbsent()
    {
        Destinations(2, Apic.LowestPriority | Apic.Logical, [(0x80, 0), (0, 0)]);
        Destinations(2, Apic.LowestPriority, [(0x33, 0)]);
    }

    /// <summary>Exactly one of those addressed.</summary>
    static void LowestPriority()
    {
        using var machine = new Machine(cpus: 4);
        machine.Program(0, code =>
        {
            for (uint i = 0; i < 16; i++)
                code.Ipi(Apic.LowestPriority | Apic.Logical | (0x40 + i), i);
            code.Done();
        });
        machine.RunToDone();
        for (int i = 1; i < 16; i++)
        {
            int[] takers = [.. Enumerable.Range(0, 4).Where(cpu => machine.Pending(cpu).Contains(0x40 + i))];
            Check.Equal(1, takers.Length, $"CPUs that took one for {i:x}");
            Check.That((i >> takers[0] & 1) != 0, $"{i:x} went to CPU {takers[0]}");
        }
    }

    static void DisabledTakesNoIpi()
    {
        using var machine = new Machine(cpus: 4);
        machine.SetLapic(1, (ref lapic) => lapic[Apic.Svr] = 0xFF);
        KvmSregs sregs = machine.Cpus[2].Sregs;
        sregs.ApicBase &= ~Apic.BaseEnable;
        machine.Cpus[2].Sregs = sregs;
        machine.Program(0, code =>
        {
            code.Ipi(Apic.ToOthers | 0x41);
            code.Ipi(0x42, 1);
            code.Ipi(0x43, 2);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal("[]", Machine.Show(machine.Pending(1)), "disabled by software");
        Check.Equal("[]", Machine.Show(machine.Pending(2)), "disabled by APIC_BASE");
        Check.Equal("[41]", Machine.Show(machine.Pending(3)), "enabled");
    }

    /// <summary>It comes even when the APIC is disabled by software, and whatever the TPR says.</summary>
    static void NmiIpi()
    {
        using var machine = new Machine(cpus: 3);
        machine.SetLapic(2, (ref lapic) => lapic[Apic.Svr] = 0xFF);
        machine.SetLapic(1, (ref lapic) => lapic[Apic.Tpr] = 0xFF);
        machine.Program(0, code =>
        {
            code.Ipi(Apic.Nmi | Apic.ToOthers);
            code.Ipi(Apic.Nmi | 0x77, 0);
            code.nop();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Count(2), "NMIs to itself");
        for (int cpu = 1; cpu < 3; cpu++)
        {
            machine.Program(cpu, code =>
            {
                code.nop();
                code.nop();
                code.Done();
            });
            machine.Start(cpu);
            machine.Join();
            Check.Equal(1u, machine.Count(2, cpu), $"NMIs to CPU {cpu}");
            Check.Equal("[]", Machine.Show(machine.Pending(cpu)), "an NMI has no vector");
        }
    }

    static void IpiToRunningCpu()
    {
        using var machine = new Machine(cpus: 2);
        machine.Program(0, code =>
        {
            code.sti();
            code.SpinFor(0x40, 1);
            code.Ipi(0x41, 1);
            code.SpinFor(0x40, 2);
            code.Done();
        });
        machine.Program(1, code =>
        {
            code.sti();
            code.Ipi(0x40, 0);
            code.SpinFor(0x41, 1);
            code.Ipi(0x40, 0);
            code.Done();
        });
        machine.Start(0);
        machine.Start(1);
        machine.Join();
        Check.Equal(2u, machine.Count(0x40, 0), "CPU 0");
        Check.Equal(1u, machine.Count(0x41, 1), "CPU 1");
    }

    /// <summary>Migration: one interrupt in service, two pending, the timer running.</summary>
    static void InFlight()
    {
        Action<Assembler> wait = code =>
        {
            code.Done();
            code.ApicWrite(Apic.Eoi, 0);
            code.sti();
            code.SpinFor(0x31, 1);
            code.Done();
        };
        using var source = new Machine(code =>
        {
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.LvtTimer, 0x31);
            code.ApicWrite(Apic.TimerInitial, 100_000_000);
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
        });
        source.Handle(0x50, code =>
        {
            code.Ipi(Apic.ToSelf | 0x40);
            code.Ipi(Apic.ToSelf | 0x51);
            wait(code);
        });
        source.RunToDone();
        KvmLapicState lapic = source.Vcpu.Lapic;
        Check.That(lapic[Apic.TimerCurrent] is > 0 and <= 100_000_000, $"timer {lapic[Apic.TimerCurrent]}");

        using var target = new Machine();
        target.Program(0, wait);
        target.RunToDone();
        target.Vcpu.Lapic = lapic;
        Check.Equal("[40 51]", Machine.Show(target.Pending()), "pending in the target");
        target.RunToDone();
        target.ExpectLog("in the target", 0x51, 0x40, 0x31);
        Check.Equal("[]", Machine.Show(target.Vcpu.Lapic.Vectors(Apic.Isr)), "in service at the end");
    }

    /// <summary>Another thread's get and set between runs lose nothing.</summary>
    static void SetWhileRunning()
    {
        const uint Rounds = 200;
        using var machine = new Machine(code =>
        {
            code.sti();
            for (int i = 0; i < 2; i++)
                code.nop();
            Label again = code.CreateLabel();
            code.mov(ebx, Rounds);
            code.Label(ref again);
            code.Ipi(Apic.ToSelf | 0x50);
            code.@out(0x10, al);
            code.dec(ebx);
            code.jnz(again);
            code.Done();
        });
        machine.Start(0, vcpu =>
        {
            KvmLapicState lapic = vcpu.Lapic;
            vcpu.Lapic = lapic;
            return true;
        });
        machine.Join();
        Check.Equal(Rounds, machine.Count(0x50), "self IPIs");
    }

    /// <summary>STI and MOV SS hold interrupts back for one instruction.</summary>
    static void InterruptShadow()
    {
        using var machine = new Machine(code =>
        {
            code.xor(ebx, ebx);
            code.Ipi(Apic.ToSelf | 0x50);
            code.sti();
            code.inc(ebx);
            code.inc(ebx);
            code.Done();
        });
        machine.Handle(0x50, code =>
        {
            code.mov(eax, ebx);
            code.Save();
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Results[0], "instructions after STI before the interrupt");
    }

    static void InterruptAndNmi()
    {
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x50);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.Vcpu.Nmi();
        machine.RunToDone();
        Check.Equal(1u, machine.Count(2), "NMIs");
        Check.Equal(1u, machine.Count(0x50), "interrupts");
    }

    /// <summary>KVM_INTERRUPT is for interrupt controllers in user space.</summary>
    static void InterruptIoctlRefused()
    {
        using var machine = new Machine(code => code.hlt());
        Check.Fails(Errno.ENXIO, machine.Vcpu.TryInterrupt(0x41), "KVM_INTERRUPT with an irqchip");
    }

    static void RunPage()
    {
        using var machine = new Machine(code =>
        {
            code.mov(eax, 6);
            code.mov(cr8, rax);
            code.sti();
            code.Done();
        });
        machine.Run.Cr8 = 3; // only without local APIC in the kernel
        machine.RunToDone();
        Check.Equal(6ul, machine.Run.Cr8, "cr8");
        Check.Equal(Apic.Base | Apic.BaseEnable | Apic.BaseBsp, machine.Run.ApicBase, "apic_base");
        Check.Equal(1, machine.Run.IfFlag, "if_flag");
        Check.Equal(1, machine.Run.ReadyForInterruptInjection, "ready_for_interrupt_injection");
        Check.Equal(0x60u, machine.Vcpu.Lapic[Apic.Tpr], "TPR");
    }
}
