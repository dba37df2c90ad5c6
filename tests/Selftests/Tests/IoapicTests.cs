// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The I/O APIC (82093AA datasheet) in the kernel.</summary>
/// <remarks>Lines from 16 on: those below go to the 8259s, too.</remarks>
static class IoapicTests
{
    const uint Level = (uint)KvmIoapicState.Level, Masked = (uint)KvmIoapicState.Masked,
        Logical = (uint)KvmIoapicState.Logical, ActiveLow = (uint)KvmIoapicState.ActiveLow;

    public static IEnumerable<TestCase> All =>
    [
        new("ioapic/reset_state", ResetState),
        new("ioapic/registers", Registers),
        new("ioapic/register_index_out_of_range", IndexOutOfRange),
        new("ioapic/odd_accesses", OddAccesses),
        new("ioapic/edge", Edge),
        new("ioapic/level", LevelTriggered),
        new("ioapic/level_lowered_before_eoi", LevelLoweredBeforeEoi),
        new("ioapic/masked_edge", MaskedEdge),
        new("ioapic/masked_level", MaskedLevel),
        new("ioapic/masked_in_service", MaskedInService),
        new("ioapic/remote_irr", RemoteIrr),
        new("ioapic/polarity_is_ignored", Polarity),
        new("ioapic/all_pins", AllPins),
        new("ioapic/destination_physical", DestinationPhysical),
        new("ioapic/destination_logical", DestinationLogical),
        new("ioapic/destination_lowest_priority", DestinationLowestPriority),
        new("ioapic/nmi", Nmi),
        new("ioapic/eoi_reaches_all_pins_of_a_vector", SharedVector),
        new("ioapic/rerouted_in_service", ReroutedInService),
        new("ioapic/get_set_round_trip", GetSetRoundTrip),
        new("ioapic/in_flight_to_another_machine", InFlight),
        new("ioapic/pending_level_by_set", PendingLevelBySet),
        new("ioapic/set_bad_chip", SetBadChip),
        new("ioapic/to_another_cpu", ToAnotherCpu),
        new("ioapic/page_without_irqchip", PageWithoutIrqchip),
    ];

    static KvmIoapicState Get(Machine machine) => machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic;

    static void Set(Machine machine, RefAction<KvmIoapicState> change)
    {
        KvmIrqchip chip = machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic);
        change(ref chip.Ioapic);
        machine.Vm.SetIrqchip(chip);
    }

    /// <summary>Sets one entry of the redirection table from outside.</summary>
    public static void Route(this Machine machine, int pin, ulong entry, byte destination = 0) =>
        Set(machine, (ref chip) => chip.Redirtbl[pin] = entry | (ulong)destination << 56);

    static void ResetState()
    {
        using var machine = new Machine();
        KvmIoapicState chip = Get(machine);
        Check.Equal(Ioapic.Base, chip.BaseAddress, "base address");
        Check.Equal(0u, chip.Id, "ID");
        Check.Equal(0u, chip.Ioregsel, "register select");
        Check.Equal(0u, chip.Irr, "lines");
        for (int pin = 0; pin < KvmIoapicState.NumPins; pin++)
            Check.Equal(KvmIoapicState.Masked, chip.Redirtbl[pin], $"pin {pin}");
    }

    static void Registers()
    {
        using var machine = new Machine(code =>
        {
            code.IoapicWrite(Ioapic.Id, 0xFFFFFFFF);
            code.IoapicRead(Ioapic.Id);
            code.Save();
            code.IoapicWrite(Ioapic.Version, 0xFFFFFFFF);
            code.IoapicRead(Ioapic.Version);
            code.Save();
            code.mov(eax, __dword_ptr[r14]);
            code.Save();
            code.IoapicWrite(0x14, 0x000187FF & ~0x700u); // pin 2: all that may be written but the delivery mode
            code.IoapicWrite(0x15, 0xFFFFFFFF);
            code.IoapicRead(0x14);
            code.Save();
            code.IoapicRead(0x15);
            code.Save();
            code.IoapicWrite(0x16, Masked | 1 << 12 | 1 << 14 | 0x55); // pin 3: the read-only bits
            code.IoapicRead(0x16);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        Check.Equal(0x0F000000u, results[0], "ID");
        Check.Equal(0x11u, results[1] & 0xFF, "version");
        Check.Equal(23u, results[1] >> 16, "highest entry");
        Check.Equal(1u, results[2], "register select");
        Check.Equal(0x000180FFu, results[3], "entry of pin 2, low half");
        Check.Equal(0xFF000000u, results[4] & 0xFF000000, "entry of pin 2, destination");
        Check.Equal(Masked | 0x55, results[5], "entry of pin 3: delivery status and remote IRR cannot be written");
        KvmIoapicState chip = Get(machine);
        Check.Equal(0xFul, chip.Id, "ID by KVM_GET_IRQCHIP");
        Check.Equal(0x16u, chip.Ioregsel, "register select by KVM_GET_IRQCHIP");
    }

    /// <summary>CVE-2013-1798: register numbers without a register.</summary>
    static void IndexOutOfRange()
    {
        using var machine = new Machine(code =>
        {
            foreach (byte index in (byte[])[3, 0xF, 0x3F, 0x40, 0x41, 0x7F, 0x80, 0xFE, 0xFF])
            {
                code.IoapicWrite(index, 0xFFFEFFFF);
                code.IoapicRead(index);
            }
            code.mov(__dword_ptr[r14], 0x12345610);
            code.mov(eax, __dword_ptr[r14 + 0x10]);
            code.Save();
            code.IoapicWrite(0x10, Masked | 0x77);
            code.IoapicRead(0x10);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(Masked | 0x77, machine.Results[1], "pin 0");
        KvmIoapicState chip = Get(machine);
        for (int pin = 1; pin < 23; pin++)
            Check.Equal(KvmIoapicState.Masked, chip.Redirtbl[pin], $"pin {pin}");
    }

    static void OddAccesses()
    {
        using var machine = new Machine(code =>
        {
            code.mov(__dword_ptr[r14], 1);
            foreach (int at in (int[])[0, 0x10, 0x20, 0x40, 0xF0, 0xFF0])
            {
                code.mov(al, __byte_ptr[r14 + at]);
                code.mov(ax, __word_ptr[r14 + at]);
                code.mov(rax, __qword_ptr[r14 + at]);
                code.mov(__byte_ptr[r14 + at], al);
                code.mov(__word_ptr[r14 + at], ax);
                code.mov(__qword_ptr[r14 + at], rax);
            }
            code.IoapicRead(Ioapic.Version);
            code.Save();
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
        Check.Equal(KvmExit.Io, machine.Run.ExitReason, "exit reason");
        Check.Equal(0x170011u, machine.Results[0], "version");
    }

    /// <summary>A machine whose CPU takes interrupts for a moment at each step.</summary>
    static Machine Stepping(Action<Assembler>? prepare = null)
    {
        var machine = new Machine();
        machine.Program(0, code =>
        {
            prepare?.Invoke(code);
            code.TakeInterruptsInSteps();
        });
        machine.RunToDone();
        return machine;
    }

    static void Edge()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(17, 0x45));
        for (uint i = 1; i <= 3; i++)
        {
            machine.Vm.SetIrqLine(17, true);
            machine.RunToDone();
            Check.Equal(i, machine.Count(0x45), "after a rising edge");
            machine.RunToDone();
            Check.Equal(i, machine.Count(0x45), "while the line is high");
            machine.Vm.SetIrqLine(17, true);
            machine.RunToDone();
            Check.Equal(i, machine.Count(0x45), "high again");
            machine.Vm.SetIrqLine(17, false);
            machine.RunToDone();
            Check.Equal(i, machine.Count(0x45), "after the falling edge");
        }
    }

    /// <summary>As long as the line is high, each EOI brings the next one.</summary>
    static void LevelTriggered()
    {
        using var machine = new Machine(code =>
        {
            code.IoapicRoute(19, Level | 0x49);
            code.Done();
            code.sti();
            code.SpinFor(0x49, 5);
            code.cli();
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.Vm.SetIrqLine(19, true);
        // While the line is high the guest may get no further than its handler.
        machine.Start(0);
        machine.WaitForCount(0x49, 5);
        machine.Vm.SetIrqLine(19, false);
        machine.Join();
        uint before = machine.Count(0x49);
        machine.RunToDone();
        Check.That(machine.Count(0x49) <= before + 1, "at most the one that was pending comes after the line is low");
        machine.Program(0, code =>
        {
            code.TakeInterrupts();
            code.Done();
        });
        before = machine.Count(0x49);
        machine.RunToDone();
        Check.Equal(before, machine.Count(0x49), "at rest");
    }

    static void LevelLoweredBeforeEoi()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(19, Level | 0x49));
        machine.Handle(0x49, code =>
        {
            code.CountUp(0x49);
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.Vm.SetIrqLine(19, true);
        Check.Equal(1, machine.RunToDone(), "in the handler");
        machine.Vm.SetIrqLine(19, false);
        Check.Equal(0, machine.RunToDone(), "after the handler");
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x49), "interrupts");
    }

    static void MaskedEdge()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(17, Masked | 0x45));
        machine.Vm.PulseIrqLine(17);
        machine.Route(17, 0x45);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(0x45), "an edge while the pin is masked is lost");
        machine.Vm.PulseIrqLine(17);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x45), "the next one is not");
    }

    static void MaskedLevel()
    {
        using var machine = new Machine(code =>
        {
            code.IoapicRoute(19, Level | Masked | 0x49);
            code.Done();
            code.TakeInterrupts();
            code.Done();
            code.IoapicWrite(0x10 + 2 * 19, Level | 0x49);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.Vm.SetIrqLine(19, true);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(0x49), "masked");
        machine.RunToDone();
        machine.Vm.SetIrqLine(19, false);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x49), "unmasked");
    }

    /// <summary>What Linux does with a level-triggered interrupt that it wants to handle later.</summary>
    static void MaskedInService()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(19, Level | 0x49));
        machine.Handle(0x49, code =>
        {
            code.CountUp(0x49);
            code.IoapicWrite(0x10 + 2 * 19, Level | Masked | 0x49);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.Vm.SetIrqLine(19, true);
        for (int i = 0; i < 3; i++)
            machine.RunToDone();
        Check.Equal(1u, machine.Count(0x49), "masked in the handler");
        Check.Equal(0ul, Get(machine).Redirtbl[19] & KvmIoapicState.RemoteIrr, "remote IRR after EOI");
        machine.Program(0, code =>
        {
            code.IoapicWrite(0x10 + 2 * 19, Level | 0x49);
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(2u, machine.Count(0x49), "unmasked with the line high");
    }

    static void RemoteIrr()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(19, Level | 0x49));
        machine.Handle(0x49, code =>
        {
            code.IoapicRead(0x10 + 2 * 19);
            code.Save();
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.IoapicRead(0x10 + 2 * 19);
            code.Save();
            code.iretq();
        });
        machine.Vm.SetIrqLine(19, true);
        Check.That((Get(machine).Redirtbl[19] & KvmIoapicState.RemoteIrr) != 0, "accepted by the local APIC");
        Check.Equal(1u << 19, Get(machine).Irr, "lines in KVM_GET_IRQCHIP");
        machine.RunToDone();
        machine.Vm.SetIrqLine(19, false);
        machine.RunToDone();
        Check.Equal((uint)KvmIoapicState.RemoteIrr, machine.Results[0] & (uint)KvmIoapicState.RemoteIrr,
            "in the handler");
        Check.Equal(0u, machine.Results[1] & (uint)KvmIoapicState.RemoteIrr, "after EOI");
        Check.Equal(0u, Get(machine).Irr, "lines");
    }

    /// <summary>Lines are high or low as user space says; KVM_CAP_IOAPIC_POLARITY_IGNORED.</summary>
    static void Polarity()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(19, Level | ActiveLow | 0x49));
        Check.Equal(1, machine.Vm.CheckExtension(KvmCap.IoapicPolarityIgnored), "IOAPIC_POLARITY_IGNORED");
        machine.RunToDone();
        Check.Equal(0u, machine.Count(0x49), "line low, 'active low'");
        machine.Vm.PulseIrqLine(19);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x49), "line high, 'active low'");
    }

    static void AllPins()
    {
        using Machine machine = Stepping();
        for (int pin = 0; pin < KvmIoapicState.NumPins; pin++)
            machine.Route(pin, 0x40ul + (uint)pin);
        // Without the 8259 in between.
        machine.Vm.SetGsiRouting([.. Enumerable.Range(0, KvmIoapicState.NumPins).Select(
            pin => KvmIrqRoutingEntry.ToChip((uint)pin, KvmIrqchipId.Ioapic, (uint)pin))]);
        for (uint pin = 0; pin < KvmIoapicState.NumPins; pin++)
            machine.Vm.PulseIrqLine(pin);
        machine.RunToDone();
        machine.ExpectLog("all pins", [.. Enumerable.Range(0x40, KvmIoapicState.NumPins).Reverse()]);
    }

    static void Destinations(int cpus, ulong entry, params (byte Destination, uint Cpus)[] destinations)
    {
        using var machine = new Machine(cpus: cpus);
        for (int i = 0; i < destinations.Length; i++)
        {
            uint pin = (uint)i + 10;
            machine.Route((int)pin, entry | 0x40 + pin, destinations[i].Destination);
            machine.Vm.PulseIrqLine(pin);
            uint got = 0;
            for (int cpu = 0; cpu < cpus; cpu++)
                got |= machine.Pending(cpu).Contains(0x40 + (int)pin) ? 1u << cpu : 0;
            Check.Equal(destinations[i].Cpus, got, $"mask of CPUs for destination {destinations[i].Destination:x}");
        }
    }

    static void DestinationPhysical() => Destinations(3, 0, (0, 1), (1, 2), (2, 4), (3, 0), (0xFF, 7));

    static void DestinationLogical() => Destinations(3, KvmIoapicState.Logical, (1, 1), (2, 2), (6, 6), (7, 7), (8, 0),
        (0xFF, 7), (0, 0));

    static void DestinationLowestPriority()
    {
        using var machine = new Machine(cpus: 4);
        foreach (byte mask in (byte[])[1, 2, 6, 0xC, 0xF])
        {
            uint pin = mask;
            machine.Route((int)pin, KvmIoapicState.Logical | Apic.LowestPriority | 0x40 + pin, mask);
            machine.Vm.PulseIrqLine(pin);
            int[] takers = [.. Enumerable.Range(0, 4).Where(cpu => machine.Pending(cpu).Contains(0x40 + (int)pin))];
            Check.Equal(1, takers.Length, $"CPUs that took one for {mask:x}");
            Check.That((mask >> takers[0] & 1) != 0, $"{mask:x} went to CPU {takers[0]}");
        }
    }

    static void Nmi()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(20, Apic.Nmi));
        machine.Vm.PulseIrqLine(20);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(2), "NMIs");
    }

    /// <summary>An EOI is for a vector, whichever pins have it.</summary>
    static void SharedVector()
    {
        using Machine machine = Stepping(code =>
        {
            code.IoapicRoute(20, Level | 0x49);
            code.IoapicRoute(21, Level | 0x49);
        });
        machine.Handle(0x49, code =>
        {
            code.CountUp(0x49);
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.Vm.SetIrqLine(20, true);
        machine.Vm.SetIrqLine(21, true);
        machine.RunToDone();
        machine.Vm.SetIrqLine(20, false);
        Check.Equal(1, machine.RunToDone(), "pin 21 still asks");
        machine.Vm.SetIrqLine(21, false);
        Check.Equal(0, machine.RunToDone(), "after both handlers");
        Check.Equal(2u, machine.Count(0x49), "interrupts");
        KvmIoapicState chip = Get(machine);
        Check.Equal(0ul, (chip.Redirtbl[20] | chip.Redirtbl[21]) & KvmIoapicState.RemoteIrr, "remote IRR");
    }

    /// <summary>
    /// A pin gets another vector while its old one is in service; the next interrupt has the new one.
    /// </summary>
    static void ReroutedInService()
    {
        using Machine machine = Stepping(code => code.IoapicRoute(20, 0x49));
        machine.Handle(0x49, code =>
        {
            code.CountUp(0x49);
            code.IoapicRoute(20, 0x62);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.Vm.PulseIrqLine(20);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(20);
        machine.RunToDone();
        Check.Equal("1 1", $"{machine.Count(0x49)} {machine.Count(0x62)}", "interrupts of both vectors");
    }

    static void GetSetRoundTrip()
    {
        using var machine = new Machine();
        KvmIrqchip chip = machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic);
        chip.Ioapic.Id = 5;
        chip.Ioapic.Ioregsel = 0x23;
        for (int pin = 0; pin < KvmIoapicState.NumPins; pin++)
            chip.Ioapic.Redirtbl[pin] = 0x30ul + (uint)pin | KvmIoapicState.Masked
                | (pin % 2 == 0 ? KvmIoapicState.Level : 0) | (pin % 3 == 0 ? KvmIoapicState.Logical : 0)
                | (ulong)pin << 56;
        machine.Vm.SetIrqchip(chip);
        Check.Same(chip, machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic), "I/O APIC");
    }

    /// <summary>A level-triggered interrupt is taken in one machine and ended in another.</summary>
    static void InFlight()
    {
        Action<Assembler> end = code =>
        {
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.TakeInterrupts();
            code.Done(2);
        };
        using Machine source = Stepping(code => code.IoapicRoute(20, Level | 0x49));
        source.Handle(0x49, end);
        source.Vm.SetIrqLine(20, true);
        source.RunToDone();
        using var target = new Machine();
        target.Program(0, end);
        target.RunToDone();
        target.Vm.SetIrqchip(source.Vm.GetIrqchip(KvmIrqchipId.Ioapic));
        target.Vcpu.Lapic = source.Vcpu.Lapic;
        Check.That((Get(target).Redirtbl[20] & KvmIoapicState.RemoteIrr) != 0, "remote IRR in the target");
        Check.Equal("[49]", Machine.Show(target.Vcpu.Lapic.Vectors(Apic.Isr)), "in service in the target");
        // Devices tell their lines again.
        target.Vm.SetIrqLine(20, false);
        target.RunToDone();
        Check.Equal(0u, target.Count(0x49), "interrupts after the line is low");
        Check.Equal(0ul, Get(target).Redirtbl[20] & KvmIoapicState.RemoteIrr, "remote IRR after EOI");
    }

    static void PendingLevelBySet()
    {
        using Machine machine = Stepping();
        Set(machine, (ref chip) =>
        {
            chip.Irr = 1u << 20;
            chip.Redirtbl[20] = KvmIoapicState.Level | 0x49;
        });
        Check.Equal("[49]", Machine.Show(machine.Pending()), "pending");
        machine.Vm.SetIrqLine(20, false);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x49), "interrupts");
    }

    static void SetBadChip()
    {
        using var machine = new Machine();
        foreach (uint id in (uint[])[3, 4, 0x7FFFFFFF, uint.MaxValue])
        {
            var chip = new KvmIrqchip { ChipId = (KvmIrqchipId)id };
            Check.Fails(Errno.EINVAL, machine.Vm.TryCall(KvmIoctl.GetIrqchip, ref chip), $"GET_IRQCHIP {id}");
            Check.Fails(Errno.EINVAL, machine.Vm.TryCall(KvmIoctl.SetIrqchip, ref chip), $"SET_IRQCHIP {id}");
        }
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.GetIrqchip, 0x10), "GET_IRQCHIP at an address in page 0");
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.SetIrqchip, 0x10), "SET_IRQCHIP at an address in page 0");
    }

    static void ToAnotherCpu()
    {
        using var machine = new Machine(cpus: 2);
        machine.Route(20, 0x49, 1);
        machine.Program(1, code =>
        {
            code.HaltFor(0x49, 10);
            code.Done();
        });
        machine.Start(1);
        for (uint i = 1; i <= 10; i++)
        {
            machine.Vm.PulseIrqLine(20);
            machine.WaitForCount(0x49, i, 1);
        }
        machine.Join();
    }

    static void PageWithoutIrqchip()
    {
        using var machine = new Machine(code =>
        {
            code.mov(__dword_ptr[r14], 1);
            code.Done();
        }, Chips.None);
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(Ioapic.Base, machine.Run.Mmio.PhysAddr, "MMIO address");
    }
}
