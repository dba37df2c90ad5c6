// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>How lines (GSIs) find their way: the routing table, messages, what KVM_IRQ_LINE_STATUS tells.</summary>
static class RoutingTests
{
    const uint MaxRoutes = 4096;

    public static IEnumerable<TestCase> All =>
    [
        new("routing/default", Default),
        new("routing/replaced", Replaced),
        new("routing/high_gsi", HighGsi),
        new("routing/empty", Empty),
        new("routing/one_line_to_all_chips", OneLineToAllChips),
        new("routing/slave_pins", SlavePins),
        new("routing/bad_entries", BadEntries),
        new("routing/bad_counts", BadCounts),
        new("routing/conflicts", Conflicts),
        new("routing/needs_irqchip", NeedsIrqchip),
        new("routing/line_out_of_range", LineOutOfRange),
        new("routing/line_status", LineStatus),
        new("routing/line_status_masked", LineStatusMasked),
        new("routing/line_status_of_clock", LineStatusOfClock),
        new("routing/line_status_level", LineStatusLevel),
        new("routing/message_formats", MessageFormats),
        new("routing/message_nmi", MessageNmi),
        new("routing/message_to_nobody", MessageToNobody),
        new("routing/message_flags", MessageFlags),
        new("routing/message_extended_destination", ExtendedDestination),
        new("routing/message_level_triggered", MessageLevelTriggered),
        new("routing/message_to_running_cpu", MessageToRunningCpu),
        new("routing/several_sources_of_a_level", SeveralSources),
        new("routing/changed_while_in_use", ChangedWhileInUse),
        new("routing/line_stays_high_over_change", LineStaysHighOverChange),
    ];

    public static KvmMsi Message(uint vector, byte destination = 0, uint data = 0) => new()
    {
        AddressLo = (uint)Apic.Base | (uint)destination << 12, Data = vector | data,
    };

    /// <summary>Lines 0 to 15 at the 8259s and the I/O APIC, 16 to 23 at the I/O APIC only.</summary>
    static void Default()
    {
        using var machine = new Machine();
        for (uint line = 0; line < 24; line++)
        {
            machine.Vm.SetIrqLine(line, true);
            KvmIrqchipId pic = line < 8 ? KvmIrqchipId.PicMaster : KvmIrqchipId.PicSlave;
            Check.Equal(1u << (int)line, machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Irr, $"line {line}: I/O APIC");
            if (line is < 16 and not 2)
                Check.That((machine.Vm.GetIrqchip(pic).Pic.Irr >> (int)(line & 7) & 1) != 0, $"line {line}: 8259");
            machine.Vm.SetIrqLine(line, false);
        }
    }

    static void Replaced()
    {
        using var machine = new Machine();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(3, Message(0x55)),
            KvmIrqRoutingEntry.ToChip(4, KvmIrqchipId.Ioapic, 20));
        machine.Route(20, 0x56);
        machine.Route(5, 0x57);
        foreach (uint line in (uint[])[3, 4, 5])
            machine.Vm.PulseIrqLine(line);
        Check.Equal("[55 56]", Machine.Show(machine.Pending()), "lines 3 and 4; 5 is no more");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(3, Message(0x58)));
        machine.Vm.PulseIrqLine(3);
        machine.Vm.PulseIrqLine(4);
        Check.Equal("[55 56 58]", Machine.Show(machine.Pending()), "after another table");
    }

    static void HighGsi()
    {
        using var machine = new Machine();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(24, Message(0x51)),
            KvmIrqRoutingEntry.ToMsi(1023, Message(0x52)), KvmIrqRoutingEntry.ToMsi(MaxRoutes - 1, Message(0x53)));
        foreach (uint line in (uint[])[24, 1023, MaxRoutes - 1, 25])
            machine.Vm.PulseIrqLine(line);
        Check.Equal("[51 52 53]", Machine.Show(machine.Pending()), "pending");
        Check.Equal((int)MaxRoutes, machine.Kvm.CheckExtension(KvmCap.IrqRouting), "KVM_CAP_IRQ_ROUTING");
    }

    static void Empty()
    {
        using var machine = new Machine();
        machine.Route(20, 0x55);
        machine.Vm.SetGsiRouting();
        machine.Vm.PulseIrqLine(20);
        Check.Equal("[]", Machine.Show(machine.Pending()), "pending");
        Check.Equal(-1, machine.Vm.SetIrqLineStatus(20, true), "status");
    }

    static void OneLineToAllChips()
    {
        using var machine = new Machine();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToChip(30, KvmIrqchipId.PicMaster, 5),
            KvmIrqRoutingEntry.ToChip(30, KvmIrqchipId.PicSlave, 6),
            KvmIrqRoutingEntry.ToChip(30, KvmIrqchipId.Ioapic, 7));
        machine.Vm.SetIrqLine(30, true);
        Check.Equal(1u << 5, machine.Vm.GetIrqchip(KvmIrqchipId.PicMaster).Pic.Irr & ~4u, "first 8259");
        Check.Equal(1u << 6, machine.Vm.GetIrqchip(KvmIrqchipId.PicSlave).Pic.Irr, "second 8259");
        Check.Equal(1u << 7, machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Irr, "I/O APIC");
    }

    static void SlavePins()
    {
        using var machine = new Machine();
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(KvmIrqRoutingEntry.ToChip(0, KvmIrqchipId.PicSlave, 8)),
            "pin 8 of the second 8259");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToChip(0, KvmIrqchipId.PicSlave, 7));
        machine.Vm.SetIrqLine(0, true);
        Check.Equal(0x80, machine.Vm.GetIrqchip(KvmIrqchipId.PicSlave).Pic.Irr, "requests of the second 8259");
    }

    /// <summary>CVE-2012-2137 among them; a refused table leaves the old one.</summary>
    static void BadEntries()
    {
        using var machine = new Machine();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(3, Message(0x55)));
        KvmIrqRoutingEntry good = KvmIrqRoutingEntry.ToMsi(7, Message(0x66));
        foreach ((string what, KvmIrqRoutingEntry bad) in new (string, KvmIrqRoutingEntry)[]
            {
                ("GSI out of range", good with { Gsi = MaxRoutes }),
                ("greatest GSI", good with { Gsi = uint.MaxValue }),
                ("no type", good with { Type = 0 }),
                ("an s390 adapter", good with { Type = 3 }),
                ("unknown type", good with { Type = 6 }),
                ("greatest type", good with { Type = uint.MaxValue }),
                ("unknown flag", good with { Flags = 2 }),
                ("flags of a chip", KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.Ioapic, 1) with { Flags = 1 }),
                ("no such chip", KvmIrqRoutingEntry.ToChip(1, (KvmIrqchipId)3, 0)),
                ("greatest chip", KvmIrqRoutingEntry.ToChip(1, (KvmIrqchipId)uint.MaxValue, 0)),
                ("pin of the first 8259", KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.PicMaster, 8)),
                ("pin of the I/O APIC", KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.Ioapic, 24)),
                ("greatest pin", KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.Ioapic, uint.MaxValue)),
                ("greatest pin of an 8259", KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.PicSlave, uint.MaxValue)),
            })
            Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(good, bad), what);
        machine.Vm.PulseIrqLine(7);
        machine.Vm.PulseIrqLine(3);
        Check.Equal("[55]", Machine.Show(machine.Pending()), "pending by the table before");
    }

    static void BadCounts()
    {
        using var machine = new Machine();
        byte[] table = new byte[8 + 48];
        foreach (uint count in (uint[])[MaxRoutes + 1, 0x10000, 0x05555556, 0x80000000, uint.MaxValue])
        {
            BitConverter.TryWriteBytes(table, count);
            Check.Fails(Errno.EINVAL, machine.Vm.TryCall(KvmIoctl.SetGsiRouting, table), $"{count} entries");
        }
        BitConverter.TryWriteBytes(table, 0);
        BitConverter.TryWriteBytes(table.AsSpan(4), 1);
        Check.Fails(Errno.EINVAL, machine.Vm.TryCall(KvmIoctl.SetGsiRouting, table), "flags");
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.SetGsiRouting, 0x10), "an address in page 0");
        machine.Vm.SetGsiRouting([.. Enumerable.Range(0, (int)MaxRoutes).Select(
            gsi => KvmIrqRoutingEntry.ToMsi((uint)gsi, Message(0x20 + (uint)gsi % 0xD0)))]);
        machine.Vm.PulseIrqLine(MaxRoutes - 1);
        Check.Equal(1, machine.Pending().Length, "interrupts by the last of 4096 entries");
    }

    static void Conflicts()
    {
        using var machine = new Machine();
        KvmIrqRoutingEntry pin = KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.Ioapic, 1),
            message = KvmIrqRoutingEntry.ToMsi(1, Message(0x55));
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(message, message), "two messages");
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(pin, message), "a pin and a message");
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(message, pin), "a message and a pin");
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(pin, pin with { Pin = 2 }), "two pins of one chip");
        machine.Vm.SetGsiRouting(pin, pin with { Gsi = 2 });
    }

    static void NeedsIrqchip()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Check.Fails(Errno.EINVAL, vm.TrySetGsiRouting(KvmIrqRoutingEntry.ToMsi(1, Message(0x55))), "SET_GSI_ROUTING");
        Check.Fails(Errno.EINVAL, vm.TrySignalMsi(Message(0x55)), "SIGNAL_MSI");
        var line = new KvmIrqLevel { Irq = 1, Level = 1 };
        Check.Fails(Errno.ENXIO, vm.TryCall(KvmIoctl.IrqLine, ref line), "IRQ_LINE");
        Check.Fails(Errno.ENXIO, vm.TryCall(KvmIoctl.IrqLineStatus, ref line), "IRQ_LINE_STATUS");
        var chip = new KvmIrqchip();
        Check.Fails(Errno.ENXIO, vm.TryCall(KvmIoctl.GetIrqchip, ref chip), "GET_IRQCHIP");
        Check.Fails(Errno.ENXIO, vm.TryCall(KvmIoctl.SetIrqchip, ref chip), "SET_IRQCHIP");
    }

    static void LineOutOfRange()
    {
        using var machine = new Machine();
        foreach (uint line in (uint[])[24, 100, MaxRoutes - 1, MaxRoutes, 0x7FFFFFFF, 0x80000000, uint.MaxValue])
        {
            Check.Equal(-1, machine.Vm.SetIrqLineStatus(line, true), $"status of line {line}");
            machine.Vm.SetIrqLine(line, true);
        }
        Check.Equal("[]", Machine.Show(machine.Pending()), "pending");
    }

    /// <summary>1: it interrupts; 0: the line was high before, or the 8259 has its request still.</summary>
    static void LineStatus()
    {
        using var machine = new Machine();
        machine.Route(20, 0x55);
        for (int i = 0; i < 2; i++)
        {
            Check.Equal(1, machine.Vm.SetIrqLineStatus(20, true), "a rising edge at the I/O APIC");
            Check.Equal(0, machine.Vm.SetIrqLineStatus(20, true), "high again");
            machine.Vm.SetIrqLine(20, false);
        }
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToChip(3, KvmIrqchipId.PicMaster, 3));
        Check.Equal(1, machine.Vm.SetIrqLineStatus(3, true), "a rising edge at the 8259");
        machine.Vm.SetIrqLine(3, false);
        Check.Equal(0, machine.Vm.SetIrqLineStatus(3, true), "another one while the first is pending");
    }

    static void LineStatusMasked()
    {
        using var machine = new Machine();
        Check.Equal(-1, machine.Vm.SetIrqLineStatus(20, true), "masked at the I/O APIC");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(0, Message(0x55)));
        Check.Equal(1, machine.Vm.SetIrqLineStatus(0, true), "a message");
        machine.SetLapic(0, (ref lapic) => lapic[Apic.Svr] = 0xFF);
        Check.That(machine.Vm.SetIrqLineStatus(0, true) <= 0, "a message to a disabled APIC");
    }

    /// <summary>For the clock's line 8 'pending' lasts until the EOI, so that user space can hold back the next
    /// tick.</summary>
    static void LineStatusOfClock()
    {
        using var machine = new Machine(code =>
        {
            code.TakeInterrupts();
            code.Done();
        });
        machine.Handle(0x58, code =>
        {
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToChip(8, KvmIrqchipId.Ioapic, 8));
        machine.Route(8, 0x58);
        Check.Equal(1, Pulse(), "the first");
        machine.RunToDone();
        Check.Equal(0, Pulse(), "while the first is in service");
        machine.RunToDone();
        Check.Equal(1, Pulse(), "after its EOI");

        int Pulse()
        {
            int status = machine.Vm.SetIrqLineStatus(8, true);
            machine.Vm.SetIrqLineStatus(8, false);
            return status;
        }
    }

    static void LineStatusLevel()
    {
        using var machine = new Machine();
        machine.Route(20, KvmIoapicState.Level | 0x55);
        Check.Equal(1, machine.Vm.SetIrqLineStatus(20, true), "raised");
        Check.Equal(1, machine.Pending().Length, "pending");
    }

    static void MessageFormats()
    {
        const uint LogicalMode = 4, RedirectionHint = 8;
        using var machine = new Machine(cpus: 4);
        foreach ((KvmMsi message, uint cpus) in new (KvmMsi, uint)[]
            {
                (Message(0x51), 1), (Message(0x52, 2), 4), (Message(0x53, 0xFF), 0xF), (Message(0x54, 9), 0),
                (With(Message(0x55, 6), LogicalMode), 6), (With(Message(0x56, 0xFF), LogicalMode), 0xF),
                (Message(0x57, 3, Apic.Assert), 8), (Message(0x58, 1) with { AddressHi = 0x12345600 }, 2),
            })
        {
            int result = machine.Vm.TrySignalMsi(message);
            uint got = 0;
            for (int cpu = 0; cpu < 4; cpu++)
                got |= machine.Pending(cpu).Contains((int)message.Data & 0xFF) ? 1u << cpu : 0;
            Check.Equal(cpus, got, $"mask of CPUs for address {message.AddressLo:x}, data {message.Data:x}");
            Check.Equal(cpus != 0, result > 0, $"delivered, for address {message.AddressLo:x}: {result}");
        }
        KvmMsi lowest = With(Message(0x60, 0xC, Apic.LowestPriority), LogicalMode | RedirectionHint);
        Check.Equal(1, machine.Vm.TrySignalMsi(lowest), "lowest priority");
        Check.Equal(1, Enumerable.Range(0, 4).Count(cpu => machine.Pending(cpu).Contains(0x60)), "takers");
        Check.Equal(0, Enumerable.Range(0, 2).Count(cpu => machine.Pending(cpu).Contains(0x60)), "wrong takers");

        static KvmMsi With(KvmMsi message, uint bits) => message with { AddressLo = message.AddressLo | bits };
    }

    static void MessageNmi()
    {
        using var machine = new Machine(code =>
        {
            code.nop();
            code.nop();
            code.Done();
        });
        Check.Equal(1, machine.Vm.TrySignalMsi(Message(0x51, 0, Apic.Nmi)), "delivered");
        machine.RunToDone();
        Check.Equal(1u, machine.Count(2), "NMIs");
    }

    static void MessageToNobody()
    {
        using var machine = new Machine();
        Check.That(machine.Vm.TrySignalMsi(Message(0x51, 0x33)) <= 0, "to an ID that is not there");
        machine.SetLapic(0, (ref lapic) => lapic[Apic.Svr] = 0xFF);
        Check.That(machine.Vm.TrySignalMsi(Message(0x51)) <= 0, "to an APIC that is disabled");
        Check.Equal("[]", Machine.Show(machine.Pending()), "pending");
    }

    static void MessageFlags()
    {
        using var machine = new Machine();
        foreach (uint flags in (uint[])[2, 4, 0x80000000])
            Check.Fails(Errno.EINVAL, machine.Vm.TrySignalMsi(Message(0x51) with { Flags = flags }), $"flags {flags:x}");
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.SignalMsi, 0x10), "an address in page 0");
    }

    /// <summary>With KVM_CAP_X2APIC_API bits 31 to 8 of the upper address are the ID's; the rest must be 0.</summary>
    static void ExtendedDestination()
    {
        using var machine = new Machine(prepare: vm => vm.EnableCap(KvmCap.X2apicApi,
            (ulong)(KvmX2apicApi.Use32BitIds | KvmX2apicApi.DisableBroadcastQuirk)));
        machine.EnableX2Apic(0);
        int cpu = machine.AddCpu(0x123);
        machine.EnableX2Apic(cpu);
        KvmMsi message = Message(0x51, 0x23) with { AddressHi = 0x100 };
        Check.Equal(1, machine.Vm.TrySignalMsi(message), "delivered");
        Check.Equal("[51]", Machine.Show(machine.Pending(cpu)), "pending in the CPU with ID 123");
        Check.Fails(Errno.EINVAL, machine.Vm.TrySignalMsi(message with { AddressHi = 0x101 }), "reserved bits");
        KvmIrqRoutingEntry entry = KvmIrqRoutingEntry.ToMsi(5, message with { Data = 0x52 });
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(entry with { AddressHi = 0x101 }),
            "reserved bits in a table");
        machine.Vm.SetGsiRouting(entry);
        machine.Vm.PulseIrqLine(5);
        Check.Equal("[51 52]", Machine.Show(machine.Pending(cpu)), "pending after a line");
        Check.Equal("[]", Machine.Show(machine.Pending()), "pending in the other");
    }

    static void MessageLevelTriggered()
    {
        using var machine = new Machine(code =>
        {
            code.TakeInterrupts();
            code.Done();
        });
        Check.Equal(1, machine.Vm.TrySignalMsi(Message(0x51, 0, Apic.Level | Apic.Assert)), "delivered");
        machine.RunToDone();
        machine.ExpectLog("once", 0x51);
    }

    static void MessageToRunningCpu()
    {
        using var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                code.sti();
                code.SpinFor(0x51, 20);
                code.HaltFor(0x51, 40);
                code.Done();
            });
            machine.Start(cpu);
        }
        for (uint i = 1; i <= 40; i++)
        {
            for (int cpu = 0; cpu < 2; cpu++)
                Check.Equal(1, machine.Vm.TrySignalMsi(Message(0x51, (byte)cpu)), "delivered");
            for (int cpu = 0; cpu < 2; cpu++)
                machine.WaitForCount(0x51, i, cpu);
        }
        machine.Join();
    }

    /// <summary>A level-triggered pin is high while any of its sources is: here KVM_IRQ_LINE and a resampling
    /// irqfd.</summary>
    static void SeveralSources()
    {
        using var machine = new Machine(code => code.TakeInterruptsInSteps());
        machine.RunToDone();
        using var source = new EventFd();
        using var resample = new EventFd();
        machine.Handle(0x55, code =>
        {
            code.CountUp(0x55);
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        machine.Route(20, KvmIoapicState.Level | 0x55);
        Check.Succeeds(machine.Vm.TryIrqfd(source, 20, resample), "IRQFD");
        machine.Vm.SetIrqLine(20, true);
        source.Signal();
        Check.Equal(1, machine.RunToDone(), "both are high");
        machine.Vm.SetIrqLine(20, false);
        Check.That((machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Irr >> 20 & 1) != 0,
            "the irqfd keeps the line high");
        Check.Equal(0, machine.RunToDone(), "the EOI lowers the irqfd's side");
        Check.Equal(1ul, resample.Take(), "resampling event");
        Check.Equal(1u, machine.Count(0x55), "interrupts");
        machine.Vm.SetIrqLine(20, true);
        source.Signal();
        Check.Equal(1, machine.RunToDone(), "both are high again");
        Check.Equal(1, machine.RunToDone(), "the EOI lowers the irqfd's side only");
        machine.Vm.SetIrqLine(20, false);
        Check.Equal(0, machine.RunToDone(), "both are low");
        Check.Equal(3u, machine.Count(0x55), "interrupts");
    }

    /// <summary>The table changes between two good ones all the time; each pulse arrives by one of them.</summary>
    static void ChangedWhileInUse()
    {
        const int Pulses = 150;
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.sti();
            code.Label(ref again);
            code.mov(eax, MachineAssembler.CountOf(0x51));
            code.add(eax, MachineAssembler.CountOf(0x52));
            code.cmp(eax, Pulses);
            code.jb(again);
            code.Done();
        });
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(40, Message(0x51)));
        bool stop = false;
        int changes = 0;
        var changer = new Thread(() =>
        {
            for (; !Volatile.Read(ref stop); changes++)
                machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(40, Message(0x51 + (uint)changes % 2)));
        });
        changer.Start();
        machine.Start(0);
        try
        {
            for (uint i = 1; i <= Pulses; i++)
            {
                machine.Vm.PulseIrqLine(40);
                Wait.Until(() => machine.Count(0x51) + machine.Count(0x52) >= i, $"pulse {i}");
            }
        }
        finally
        {
            Volatile.Write(ref stop, true);
            changer.Join();
        }
        machine.Join();
        Check.That(changes > 3, $"{changes} changes of the table");
    }

    static void LineStaysHighOverChange()
    {
        using var machine = new Machine();
        machine.Vm.SetIrqLine(20, true);
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToChip(20, KvmIrqchipId.Ioapic, 20));
        Check.Equal(1u << 20, machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Irr, "lines");
        machine.Vm.SetIrqLine(20, false);
        Check.Equal(0u, machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Irr, "lines after it is low");
    }
}
