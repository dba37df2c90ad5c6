// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>APIC_BASE, and the local APIC by MSRs (SDM volume 3, sections 11.4.3 to 11.4.7 and 11.12).</summary>
static class X2ApicTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("lapic/base_transitions_by_guest", BaseTransitionsByGuest),
        new("lapic/base_transitions_by_host", BaseTransitionsByHost),
        new("lapic/base_reserved_bits", BaseReservedBits),
        new("lapic/base_without_x2apic", BaseWithoutX2Apic),
        new("lapic/base_moved", BaseMoved),
        new("lapic/base_disabled", BaseDisabled),
        new("lapic/base_disabled_page", () => NobodyAtPage(Disabled)),
        new("lapic/base_enabled_again", BaseEnabledAgain),
        new("lapic/x2apic_id_and_ldr", IdAndLdr),
        new("lapic/x2apic_readable_registers", ReadableRegisters),
        new("lapic/x2apic_bad_reads", BadReads),
        new("lapic/x2apic_bad_writes", BadWrites),
        new("lapic/x2apic_msrs_in_xapic_mode", MsrsInXApicMode),
        new("lapic/x2apic_page", () => NobodyAtPage(X2)),
        new("lapic/x2apic_register_values", RegisterValues),
        new("lapic/x2apic_nested", Nested),
        new("lapic/x2apic_self_ipi", SelfIpi),
        new("lapic/x2apic_icr", Icr),
        new("lapic/x2apic_destination_physical", DestinationPhysical),
        new("lapic/x2apic_destination_cluster", DestinationCluster),
        new("lapic/x2apic_destination_shorthand", DestinationShorthand),
        new("lapic/x2apic_lowest_priority", LowestPriority),
        new("lapic/x2apic_to_xapic_cpus", ToXApicCpus),
        new("lapic/x2apic_id_format", IdFormat),
        new("lapic/x2apic_state_round_trip", StateRoundTrip),
        new("lapic/x2apic_msrs_by_host", MsrsByHost),
    ];

    static Machine X2Machine(Action<Assembler>? code = null, int cpus = 1)
    {
        var machine = new Machine(code, cpus: cpus) { Eoi = EoiMode.X2Apic };
        for (int cpu = 0; cpu < cpus; cpu++)
            machine.EnableX2Apic(cpu);
        machine.CatchGeneralProtection();
        return machine;
    }

    /// <summary>For each step: whether the machine's #GP counter has grown.</summary>
    static bool[] Faulted(uint[] counts) =>
        [.. counts.Select((count, i) => count != (i == 0 ? 0 : counts[i - 1]))];

    const ulong Bsp = Apic.Base | Apic.BaseBsp, Disabled = Bsp, XApic = Bsp | Apic.BaseEnable,
        X2 = XApic | Apic.BaseX2, Invalid = Bsp | Apic.BaseX2;

    /// <summary>Figure 11-27: from x2APIC mode only to disabled, from disabled only to xAPIC mode.</summary>
    static void BaseTransitionsByGuest()
    {
        (ulong Value, bool Faults)[] steps =
        [
            (XApic, false), (Invalid, true), (X2, false), (X2, false), (XApic, true), (Invalid, true),
            (Disabled, false), (X2, true), (Invalid, true), (XApic, false), (Disabled, false), (Disabled, false),
            (XApic, false), (X2, false),
        ];
        using var machine = new Machine(code =>
        {
            foreach ((ulong value, _) in steps)
            {
                code.WriteMsr(Apic.BaseMsr, value);
                code.SaveFaults();
            }
            code.ReadMsr(Apic.BaseMsr);
            code.Save();
            code.Done();
        });
        machine.CatchGeneralProtection();
        machine.RunToDone();
        bool[] faulted = Faulted(machine.Results[..steps.Length]);
        for (int i = 0; i < steps.Length; i++)
            Check.Equal(steps[i].Faults, faulted[i], $"#GP of step {i}, APIC_BASE {steps[i].Value:x}");
        Check.Equal((uint)X2, machine.Results[^1], "APIC_BASE at the end");
        Check.Equal(X2, machine.Vcpu.Sregs.ApicBase, "apic_base");
    }

    /// <summary>User space may go from any mode to any; only x2APIC mode without 'enabled' does not exist.</summary>
    static void BaseTransitionsByHost()
    {
        using var machine = new Machine();
        foreach (ulong value in (ulong[])[X2, XApic, X2, Disabled, X2, Disabled, XApic])
        {
            machine.Vcpu.SetMsr(Apic.BaseMsr, value);
            Check.Equal(value, machine.Vcpu.GetMsr(Apic.BaseMsr), "APIC_BASE as MSR");
            Check.Equal(value, machine.Vcpu.Sregs.ApicBase, "apic_base");
        }
        foreach (ulong value in (ulong[])[Disabled, X2, XApic, X2])
        {
            machine.Vcpu.Sregs = machine.Vcpu.Sregs with { ApicBase = value };
            Check.Equal(value, machine.Vcpu.GetMsr(Apic.BaseMsr), "APIC_BASE after KVM_SET_SREGS");
        }
        Check.Equal(0, machine.Vcpu.TrySetMsrs([new(Apic.BaseMsr, 0, Invalid)]), "MSRs set: x2APIC without enable");
        KvmSregs sregs = machine.Vcpu.Sregs with { ApicBase = Invalid };
        Check.Fails(Errno.EINVAL, machine.Vcpu.TryCall(KvmIoctl.SetSregs, ref sregs), "SET_SREGS");
        Check.Equal(X2, machine.Vcpu.Sregs.ApicBase, "apic_base after a refusal");
    }

    static void BaseReservedBits()
    {
        ulong[] reserved = [1, 2, 1 << 7, 1 << 9, 1ul << 52, 1ul << 63];
        using var machine = new Machine(code =>
        {
            foreach (ulong bit in reserved)
                code.WriteMsr(Apic.BaseMsr, XApic | bit);
            code.SaveFaults();
            code.Done();
        });
        machine.CatchGeneralProtection();
        machine.RunToDone();
        Check.Equal((uint)reserved.Length, machine.Results[0], "#GPs");
        foreach (ulong bit in reserved)
            Check.Equal(0, machine.Vcpu.TrySetMsrs([new(Apic.BaseMsr, 0, XApic | bit)]), $"MSRs set with {bit:x}");
        Check.Equal(XApic, machine.Vcpu.Sregs.ApicBase, "apic_base");
    }

    static KvmCpuidEntry2[] WithoutX2Apic(Machine machine) =>
        [.. machine.Kvm.GetSupportedCpuid().Select(leaf => leaf.Function == 1
            ? leaf with { Ecx = leaf.Ecx & ~(1u << 21) } : leaf)];

    static void BaseWithoutX2Apic()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMsr(Apic.BaseMsr, X2);
            code.SaveFaults();
            code.Done();
        });
        machine.CatchGeneralProtection();
        machine.Vcpu.Cpuid = WithoutX2Apic(machine);
        machine.RunToDone();
        Check.Equal(1u, machine.Results[0], "#GPs");
        Check.Equal(XApic, machine.Vcpu.Sregs.ApicBase, "apic_base");
    }

    /// <summary>The registers are at the new place, and no longer at the old one.</summary>
    static void BaseMoved()
    {
        const ulong Elsewhere = 0xFED00000;
        using var machine = new Machine(code =>
        {
            code.mov(r12d, (uint)Elsewhere);
            code.ApicWrite(Apic.Tpr, 0x30);
            code.WriteMsr(Apic.BaseMsr, XApic - Apic.Base + Elsewhere);
            code.mov(eax, __dword_ptr[r12 + Apic.Tpr]);
            code.Save();
            code.ApicSave(Apic.Tpr); // MMIO
            code.ReadMsr(Apic.BaseMsr);
            code.Save();
            code.WriteMsr(Apic.BaseMsr, XApic);
            code.ApicSave(Apic.Tpr);
            code.Done();
        });
        machine.RunTo(KvmExit.Mmio, "read at the old place");
        Check.Equal(Apic.Base + Apic.Tpr, machine.Run.Mmio.PhysAddr, "MMIO address");
        machine.Run.Mmio.Data[0] = 0x77;
        machine.RunToDone();
        Check.Equal(0x30u, machine.Results[0], "TPR at the new place");
        Check.Equal(0x77u, machine.Results[1] & 0xFF, "the old place is user space's");
        Check.Equal((uint)(XApic - Apic.Base + Elsewhere), machine.Results[2], "APIC_BASE");
        Check.Equal(0x30u, machine.Results[3], "TPR back at the first place");
    }

    static void BaseDisabled()
    {
        using var machine = new Machine(code =>
        {
            Save();
            code.WriteMsr(Apic.BaseMsr, Disabled);
            Save();
            code.WriteMsr(Apic.BaseMsr, XApic);
            Save();
            code.Done();

            void Save()
            {
                code.mov(eax, 1);
                code.cpuid();
                code.mov(eax, edx);
                code.Save();
            }
        });
        machine.RunToDone();
        Check.Equal("1 0 1", string.Join(' ', machine.Results.Select(edx => edx >> 9 & 1)),
            "CPUID.1:EDX.APIC enabled, disabled, enabled");
    }

    /// <summary>Where no local APIC answers, its page swallows writes and reads as all ones; with the quirk switched
    /// off it is user space's.</summary>
    static void NobodyAtPage(ulong apicBase)
    {
        const ulong MmioHoleQuirk = 4;
        Check.Needs(KvmCap.DisableQuirks2, (int)MmioHoleQuirk);
        foreach (bool hole in (bool[])[true, false])
        {
            using var machine = new Machine(code =>
            {
                code.ApicWrite(Apic.Tpr, 0x30);
                code.ApicSave(Apic.Id);
                code.Done();
            }, prepare: vm =>
            {
                if (!hole)
                    vm.EnableCap(KvmCap.DisableQuirks2, MmioHoleQuirk);
            });
            machine.Vcpu.SetMsr(Apic.BaseMsr, apicBase);
            if (!hole)
            {
                machine.RunTo(KvmExit.Mmio, "write");
                Check.Equal(Apic.Base + Apic.Tpr, machine.Run.Mmio.PhysAddr, "address of the write");
                Check.Equal(1, machine.Run.Mmio.IsWrite, "is_write");
                machine.RunTo(KvmExit.Mmio, "read");
                Check.Equal(Apic.Base + Apic.Id, machine.Run.Mmio.PhysAddr, "address of the read");
                ((ReadOnlySpan<byte>)[1, 2, 3, 4]).CopyTo(machine.Run.Mmio.Data);
            }
            machine.RunToDone();
            Check.Equal(hole ? uint.MaxValue : 0x04030201, machine.Results[0], $"read, with the quirk {hole}");
            Check.Equal(0u, machine.Vcpu.Lapic[Apic.Tpr], "TPR");
        }
    }

    /// <summary>An APIC that was disabled takes interrupts again.</summary>
    static void BaseEnabledAgain()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMsr(Apic.BaseMsr, Disabled);
            code.WriteMsr(Apic.BaseMsr, XApic);
            code.ApicWrite(Apic.Svr, Apic.SvrEnable | 0xFF);
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.Ipi(0x51, 0);
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.ExpectLog("enabled again", 0x50, 0x51);
    }

    static void IdAndLdr()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        foreach (uint id in (uint[])[0, 5, 0x13, 0xFE])
        {
            using var machine = new Machine();
            int cpu = id == 0 ? 0 : machine.AddCpu(id);
            machine.EnableX2Apic(cpu);
            machine.Program(cpu, code =>
            {
                code.X2Read(Apic.Id);
                code.Save();
                code.X2Read(Apic.Ldr);
                code.Save();
                code.Done();
            });
            machine.Start(cpu);
            machine.Join();
            Check.Equal(id, machine.Memory.Read<uint>(MachineLayout.Results), "x2APIC ID");
            Check.Equal(id >> 4 << 16 | 1u << (int)(id & 15), machine.Memory.Read<uint>(MachineLayout.Results + 4),
                $"LDR of {id:x}");
        }
    }

    static readonly int[] Readable =
    [
        Apic.Id, Apic.Version, Apic.Tpr, Apic.Ppr, Apic.Ldr, Apic.Svr, Apic.Esr, Apic.Icr, Apic.LvtTimer,
        Apic.LvtThermal, Apic.LvtPerf, Apic.LvtLint0, Apic.LvtLint1, Apic.LvtError, Apic.TimerInitial,
        Apic.TimerCurrent, Apic.TimerDivide,
        .. Enumerable.Range(0, 8).SelectMany(i => (int[])[Apic.Isr + i * 16, Apic.Tmr + i * 16, Apic.Irr + i * 16]),
    ];

    static void ReadableRegisters()
    {
        using Machine machine = X2Machine(code =>
        {
            foreach (int register in Readable)
            {
                code.X2Read(register);
                code.SaveFaults();
            }
            code.Done();
        });
        machine.RunToDone();
        bool[] faulted = Faulted(machine.Results);
        for (int i = 0; i < Readable.Length; i++)
            Check.That(!faulted[i], $"RDMSR of register {Readable[i]:x}");
    }

    /// <summary>Registers that are not there or only for writing: #GP.</summary>
    static void BadReads()
    {
        uint[] bad =
        [
            0x800, 0x801, 0x804, 0x805, 0x806, 0x807, 0x809, 0x80B, 0x80C, 0x80E, 0x829, 0x82A, 0x82E, 0x831, 0x83A,
            0x83D, 0x83F, 0x840, 0x87F, 0x8FF,
        ];
        using Machine machine = X2Machine(code =>
        {
            foreach (uint msr in bad)
            {
                code.ReadMsr(msr);
                code.SaveFaults();
            }
            code.Done();
        });
        machine.RunToDone();
        bool[] faulted = Faulted(machine.Results);
        for (int i = 0; i < bad.Length; i++)
            Check.That(faulted[i], $"RDMSR {bad[i]:x} is a #GP");
    }

    static void BadWrites()
    {
        (uint Msr, ulong Value)[] bad =
        [
            (0x800, 0), (0x802, 0), (0x803, 0), (0x80A, 0), (0x80D, 0), (0x80E, uint.MaxValue), (0x810, 0), (0x818, 0),
            (0x820, 0), (0x827, 0), (0x829, 0), (0x831, 0), (0x839, 0), (0x83D, 0), (0x840, 0), (0x8FF, 0),
            // Bits 63 to 32 are reserved in all registers but the ICR; EOI and ESR take nothing but 0.
            (0x808, 1ul << 32), (0x80F, 1ul << 63 | 0x1FF), (0x832, 1ul << 40), (0x838, 1ul << 32), (0x83E, 1ul << 32),
            (0x828, 1), (0x83F, 0x100),
        ];
        using Machine machine = X2Machine(code =>
        {
            foreach ((uint msr, ulong value) in bad)
            {
                code.WriteMsr(msr, value);
                code.SaveFaults();
            }
            code.Done();
        });
        machine.RunToDone();
        bool[] faulted = Faulted(machine.Results);
        for (int i = 0; i < bad.Length; i++)
            Check.That(faulted[i], $"WRMSR {bad[i].Msr:x}, {bad[i].Value:x} is a #GP");
        Check.Equal(0u, machine.Vcpu.Lapic[Apic.Tpr], "TPR");
        Check.Equal(Apic.SvrEnable | 0xFF, machine.Vcpu.Lapic[Apic.Svr], "SVR");
    }

    static void MsrsInXApicMode()
    {
        using var machine = new Machine(code =>
        {
            code.X2Read(Apic.Id);
            code.X2Write(Apic.Tpr, 0x30);
            code.X2Write(Apic.SelfIpi, 0x50);
            code.SaveFaults();
            code.Done();
        });
        machine.CatchGeneralProtection();
        machine.RunToDone();
        Check.Equal(3u, machine.Results[0], "#GPs");
        Check.Equal(0u, machine.Vcpu.Lapic[Apic.Tpr], "TPR");
        Check.Equal("[]", Machine.Show(machine.Pending()), "pending");
    }

    /// <summary>What is written by MSR is read by MSR and seen by user space.</summary>
    static void RegisterValues()
    {
        (int Register, uint Value)[] values =
        [
            (Apic.Tpr, 0x50), (Apic.Svr, Apic.SvrEnable | 0xEE), (Apic.LvtTimer, Apic.Masked | 0x31),
            (Apic.LvtThermal, Apic.Masked | 0x32), (Apic.LvtPerf, Apic.Nmi), (Apic.LvtLint0, Apic.Masked | 0x34),
            (Apic.LvtLint1, Apic.Nmi), (Apic.LvtError, 0x36), (Apic.TimerDivide, 0xA), (Apic.TimerInitial, 0x12345678),
        ];
        using Machine machine = X2Machine(code =>
        {
            foreach ((int register, uint value) in values)
            {
                code.X2Write(register, value);
                code.X2Read(register);
                code.Save();
                code.mov(eax, edx);
                code.Save();
            }
            code.mov(rax, cr8);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        KvmLapicState lapic = machine.Vcpu.Lapic;
        for (int i = 0; i < values.Length; i++)
        {
            Check.Equal(values[i].Value, machine.Results[i * 2], $"register {values[i].Register:x} by MSR");
            Check.Equal(0u, machine.Results[i * 2 + 1], $"upper half of register {values[i].Register:x}");
            Check.Equal(values[i].Value, lapic[values[i].Register], $"register {values[i].Register:x} by user space");
        }
        Check.Equal(5u, machine.Results[^1], "CR8");
    }

    static void Nested()
    {
        using Machine machine = X2Machine(code =>
        {
            code.X2Write(Apic.SelfIpi, 0x50);
            code.TakeInterrupts();
            code.Done();
        });
        machine.Handle(0x50, code =>
        {
            foreach (uint vector in (uint[])[0x40, 0x51, 0x60])
                code.X2Write(Apic.SelfIpi, vector);
            code.TakeInterrupts();
            code.X2Read(Apic.Isr + 0x20);
            code.Save();
            code.X2Read(Apic.Irr + 0x20);
            code.Save();
            code.X2Write(Apic.Eoi, 0);
            code.iretq();
        });
        machine.RunToDone();
        machine.ExpectLog("nested and afterwards", 0x60, 0x51, 0x40);
        Check.Equal(1u << 0x10, machine.Results[0], "ISR in the handler");
        Check.Equal(1u << 0x11 | 1, machine.Results[1], "IRR in the handler");
    }

    static void SelfIpi()
    {
        using Machine machine = X2Machine(code =>
        {
            for (uint i = 0; i < 3; i++)
                code.X2Write(Apic.SelfIpi, 0x60 + i);
            code.X2Ipi(Apic.ToSelf | 0x63);
            code.X2Ipi(0x64, 0);
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.ExpectLog("self IPIs", 0x64, 0x63, 0x62, 0x61, 0x60);
    }

    static void Icr()
    {
        using Machine machine = X2Machine(code =>
        {
            code.X2Ipi(Apic.Logical | 0x45, 0x00078000);
            code.X2Read(Apic.Icr);
            code.Save();
            code.mov(eax, edx);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(Apic.Logical | Apic.Assert | 0x45u, machine.Results[0], "ICR, low half");
        Check.Equal(0x00078000u, machine.Results[1], "ICR, high half");
    }

    /// <summary>As in <see cref="LapicTests"/>: which CPUs have each IPI of CPU 0 pending.</summary>
    static void Destinations(uint[] ids, uint command, (uint Destination, uint Cpus)[] destinations)
    {
        const int FirstVector = 0x40;
        using Machine machine = X2Machine();
        foreach (uint id in ids[1..])
            machine.EnableX2Apic(machine.AddCpu(id));
        machine.Program(0, code =>
        {
            for (int i = 0; i < destinations.Length; i++)
                code.X2Ipi(command | (uint)(FirstVector + i), destinations[i].Destination);
            code.Done();
        });
        machine.RunToDone();
        int[][] pending = [.. ids.Select((_, cpu) => machine.Pending(cpu))];
        for (int i = 0; i < destinations.Length; i++)
        {
            uint got = 0;
            for (int cpu = 0; cpu < ids.Length; cpu++)
                got |= pending[cpu].Contains(FirstVector + i) ? 1u << cpu : 0;
            Check.Equal(destinations[i].Cpus, got,
                $"mask of CPUs for destination {destinations[i].Destination:x}, command {command:x}");
        }
    }

    static void DestinationPhysical() => Destinations([0, 1, 0x12, 0x23], 0,
        [(0, 1), (1, 2), (2, 0), (0x12, 4), (0x23, 8), (0x100, 0), (0x10012, 0), (0x1000000, 0),
            (uint.MaxValue, 0xF)]);

    /// <summary>Bits 31 to 16 choose the cluster, bits 15 to 0 are a mask.</summary>
    static void DestinationCluster() => Destinations([0, 1, 0x12, 0x23], Apic.Logical,
        [(1, 1), (2, 2), (3, 3), (0xFFFF, 3), (0x10004, 4), (0x10001, 0), (0x1FFFF, 4), (0x20008, 8), (0x30001, 0),
            (0xFFFF0001, 0), (0, 0), (uint.MaxValue, 0xF)]);

    static void DestinationShorthand()
    {
        Destinations([0, 1, 0x12], Apic.ToAll, [(0, 7)]);
        Destinations([0, 1, 0x12], Apic.ToOthers, [(0, 6)]);
        Destinations([0, 1, 0x12], Apic.ToSelf, [(0x12, 1)]);
    }

    static void LowestPriority()
    {
        using Machine machine = X2Machine(cpus: 4);
        machine.Program(0, code =>
        {
            for (uint i = 0; i < 16; i++)
                code.X2Ipi(Apic.LowestPriority | Apic.Logical | (0x40 + i), i);
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

    /// <summary>CPUs that are still in xAPIC mode have their 8-bit ids, too.</summary>
    static void ToXApicCpus()
    {
        using Machine machine = X2Machine();
        machine.AddCpu(1);
        machine.EnableApic(1);
        machine.Program(0, code =>
        {
            code.X2Ipi(0x41, 1);
            code.X2Ipi(Apic.ToOthers | 0x42);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal("[41 42]", Machine.Show(machine.Pending(1)), "pending in the xAPIC");
    }

    /// <summary>KVM_CAP_X2APIC_API: the whole ID register instead of its old upper eight bits.</summary>
    static void IdFormat()
    {
        foreach (bool wide in (bool[])[false, true])
        {
            using var machine = new Machine(prepare: vm =>
            {
                if (wide)
                    vm.EnableCap(KvmCap.X2apicApi, (ulong)KvmX2apicApi.Use32BitIds);
            });
            int cpu = machine.AddCpu(5);
            Check.Equal(5u << 24, machine.Cpus[cpu].Lapic[Apic.Id], "ID in xAPIC mode");
            machine.EnableX2Apic(cpu);
            KvmLapicState lapic = machine.Cpus[cpu].Lapic;
            Check.Equal(wide ? 5u : 5u << 24, lapic[Apic.Id], $"ID in x2APIC mode, 32-bit format {wide}");
            machine.Cpus[cpu].Lapic = lapic;
            if (!wide)
                continue;
            lapic[Apic.Id] = 6;
            Check.Fails(Errno.EINVAL, machine.Cpus[cpu].TryCall(KvmIoctl.SetLapic, ref lapic), "another CPU's ID");
        }
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        var request = new KvmEnableCap { Cap = (uint)KvmCap.X2apicApi };
        request.Args[0] = 4;
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.EnableCap, ref request), "unknown flag of X2APIC_API");
        Check.Equal(3, vm.CheckExtension(KvmCap.X2apicApi), "flags of X2APIC_API");
    }

    static void StateRoundTrip()
    {
        using Machine machine = X2Machine(code =>
        {
            code.X2Ipi(Apic.Logical | 0x45, 0x00078000);
            code.X2Write(Apic.SelfIpi, 0x50);
            code.Done();
            code.X2Read(Apic.Icr);
            code.mov(eax, edx);
            code.Save();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        KvmLapicState lapic = machine.Vcpu.Lapic;
        Check.Equal(0x00078000u, lapic[Apic.IcrHigh], "upper half of the ICR");
        machine.Vcpu.Lapic = lapic;
        Check.Same(lapic, machine.Vcpu.Lapic, "LAPIC");
        machine.RunToDone();
        Check.Equal(0x00078000u, machine.Results[0], "upper half of the ICR in the guest");
        machine.ExpectLog("afterwards", 0x50);
    }

    /// <summary>User space reads the MSRs of a CPU in x2APIC mode, and none of one in xAPIC mode.</summary>
    static void MsrsByHost()
    {
        using Machine machine = X2Machine();
        Check.Equal(0ul, machine.Vcpu.GetMsr(Apic.Msr(Apic.Id)), "ID");
        machine.Vcpu.SetMsr(Apic.Msr(Apic.Tpr), 0x70);
        Check.Equal(0x70ul, machine.Vcpu.GetMsr(Apic.Msr(Apic.Tpr)), "TPR");
        Check.Equal(0x70u, machine.Vcpu.Lapic[Apic.Tpr], "TPR in KVM_GET_LAPIC");
        machine.Vcpu.SetMsr(Apic.BaseMsr, XApic);
        KvmMsrEntry[] entries = [new(Apic.Msr(Apic.Tpr), 0, 0)];
        Check.Equal(0, MsrList.TryGet(machine.Vcpu, entries), "MSRs read in xAPIC mode");
    }
}
