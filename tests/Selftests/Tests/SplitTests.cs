// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel; I/O APIC, 8259s and 8254 in user space.</summary>
static class SplitTests
{
    const byte Vector = 0x61;

    public static IEnumerable<TestCase> All =>
    [
        new("split/arguments", Arguments),
        new("split/local_apic", LocalApic),
        new("split/chips_are_user_spaces", ChipsAreUserSpaces),
        new("split/chip_requests_refused", ChipRequestsRefused),
        new("split/routes_to_chips_refused", RoutesToChips),
        new("split/messages", Messages),
        new("split/eoi_exit", EoiExit),
        new("split/eoi_exit_x2apic", EoiExitX2Apic),
        new("split/eoi_exit_only_for_level", EoiOnlyForLevel),
        new("split/eoi_exit_only_for_pins", EoiOnlyForPins),
        new("split/eoi_exit_only_for_destination", EoiOnlyForDestination),
        new("split/eoi_exit_after_table_changes", EoiAfterTableChanges),
        new("split/eoi_broadcast_suppressed", EoiSuppressed),
        new("split/eoi_level_again", EoiLevelAgain),
        new("split/interrupt_from_8259", ExtInt),
        new("split/interrupt_from_8259_twice", ExtIntTwice),
        new("split/interrupt_window", InterruptWindow),
        new("split/interrupt_from_8259_masked", ExtIntMasked),
        new("split/interrupt_from_8259_wakes_halt", ExtIntWakes),
        new("split/interrupt_from_8259_and_apic", ExtIntAndApic),
        new("split/halt_and_timer", HaltAndTimer),
        new("split/irqfd", Irqfd),
        new("split/start_by_sipi", StartBySipi),
        new("split/whole_io_apic_in_user_space", WholeIoApic),
    ];

    static void Arguments()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.That(kvm.CheckExtension(KvmCap.SplitIrqchip) > 0, "KVM_CAP_SPLIT_IRQCHIP");
        using Vm vm = kvm.CreateVm();
        var request = new KvmEnableCap { Cap = (uint)KvmCap.SplitIrqchip };
        request.Args[0] = 100_000;
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.EnableCap, ref request), "100000 pins");
        request.Args[0] = ulong.MaxValue;
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.EnableCap, ref request), "2^64-1 pins");
        request.Args[0] = 24;
        Check.Succeeds(vm.TryCall(KvmIoctl.EnableCap, ref request), "24 pins");
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.EnableCap, ref request), "twice");
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreateIrqchip), "the whole set afterwards");
        using Vm late = kvm.CreateVm();
        late.CreateVcpu();
        Check.Fails(Errno.EEXIST, late.TryCall(KvmIoctl.EnableCap, ref request), "after a CPU");
        using Vm none = kvm.CreateVm();
        request.Args[0] = 0;
        Check.Succeeds(none.TryCall(KvmIoctl.EnableCap, ref request), "no pins at all");
        none.CreateVcpu();
    }

    static void LocalApic()
    {
        using var machine = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x50);
            code.Ipi(Apic.ToSelf | 0x60);
            code.TakeInterrupts();
            code.Done();
        }, Chips.Split);
        machine.RunToDone();
        machine.ExpectLog("self IPIs", 0x60, 0x50);
    }

    static void ChipsAreUserSpaces()
    {
        using var machine = new Machine(code =>
        {
            foreach (ushort port in (ushort[])[0x20, 0x21, 0xA0, 0xA1, 0x40, 0x43, 0x61, 0x4D0])
                code.PortOut(port, 0);
            code.mov(__dword_ptr[r14], 1);
            code.mov(eax, __dword_ptr[r14 + 0x10]);
            code.Done();
        }, Chips.Split);
        foreach (ushort port in (ushort[])[0x20, 0x21, 0xA0, 0xA1, 0x40, 0x43, 0x61, 0x4D0])
        {
            machine.RunTo(KvmExit.Io);
            Check.Equal(port, machine.Run.Io.Port, "port");
        }
        foreach (ulong address in (ulong[])[Ioapic.Base, Ioapic.Base + 0x10])
        {
            machine.RunTo(KvmExit.Mmio);
            Check.Equal(address, machine.Run.Mmio.PhysAddr, "address");
        }
        machine.RunToDone();
    }

    static void ChipRequestsRefused()
    {
        using var machine = new Machine(chips: Chips.Split);
        var chip = new KvmIrqchip();
        Check.Fails(Errno.ENXIO, machine.Vm.TryCall(KvmIoctl.GetIrqchip, ref chip), "GET_IRQCHIP");
        Check.Fails(Errno.ENXIO, machine.Vm.TryCall(KvmIoctl.SetIrqchip, ref chip), "SET_IRQCHIP");
        Check.Fails(Errno.ENXIO, machine.Vm.TryCall(KvmIoctl.GetPit2, new byte[112]), "GET_PIT2");
    }

    static void RoutesToChips()
    {
        using var machine = new Machine(chips: Chips.Split);
        Check.Fails(Errno.EINVAL, machine.Vm.TrySetGsiRouting(KvmIrqRoutingEntry.ToChip(1, KvmIrqchipId.Ioapic, 1)),
            "an entry for the kernel's I/O APIC");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(1, RoutingTests.Message(Vector)));
    }

    static void Messages()
    {
        using var machine = new Machine(chips: Chips.Split, cpus: 2);
        Check.Equal(1, machine.Vm.TrySignalMsi(RoutingTests.Message(0x51, 1)), "SIGNAL_MSI");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(3, RoutingTests.Message(0x52, 1)));
        machine.Vm.PulseIrqLine(3);
        Check.Equal("[51 52]", Machine.Show(machine.Pending(1)), "pending");
    }

    /// <summary>The CPU takes an interrupt at each step, and is then at its next.</summary>
    static Machine Stepping(Action<Machine>? prepare = null, EoiMode eoi = EoiMode.XApic)
    {
        var machine = new Machine(chips: Chips.Split) { Eoi = eoi };
        prepare?.Invoke(machine);
        machine.Program(0, code => code.TakeInterruptsInSteps());
        machine.RunToDone();
        return machine;
    }

    static KvmIrqRoutingEntry LevelPin(uint pin, uint vector, byte destination = 0) => KvmIrqRoutingEntry.ToMsi(pin,
        RoutingTests.Message(vector, destination, Apic.Level | Apic.Assert));

    static void ExpectEoi(Machine machine, byte vector)
    {
        machine.RunTo(KvmExit.IoapicEoi, $"EOI of {vector:x}");
        Check.Equal(vector, machine.Run.EoiVector, "vector");
    }

    static void EoiExit()
    {
        using Machine machine = Stepping();
        machine.Vm.SetGsiRouting(LevelPin(5, Vector));
        for (uint i = 1; i <= 3; i++)
        {
            machine.Vm.PulseIrqLine(5);
            ExpectEoi(machine, Vector);
            Check.Equal(i, machine.Count(Vector), "interrupts");
            machine.RunToDone();
        }
    }

    static void EoiExitX2Apic()
    {
        using Machine machine = Stepping(machine => machine.EnableX2Apic(0), EoiMode.X2Apic);
        machine.Vm.SetGsiRouting(LevelPin(5, Vector));
        machine.Vm.PulseIrqLine(5);
        ExpectEoi(machine, Vector);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
    }

    static void EoiOnlyForLevel()
    {
        using Machine machine = Stepping();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(5, RoutingTests.Message(Vector)), LevelPin(6, 0x62));
        machine.Vm.PulseIrqLine(5);
        machine.RunToDone();
        machine.Vm.TrySignalMsi(RoutingTests.Message(0x63));
        machine.RunToDone();
        machine.ExpectLog("edges", Vector, 0x63);
    }

    /// <summary>Entries from the number of pins on are devices' messages.</summary>
    static void EoiOnlyForPins()
    {
        using Machine machine = Stepping();
        machine.Vm.SetGsiRouting(LevelPin(24, 0x62), LevelPin(23, Vector));
        machine.Vm.PulseIrqLine(24);
        machine.RunToDone();
        machine.ExpectLog("line 24", 0x62);
        machine.Vm.PulseIrqLine(23);
        ExpectEoi(machine, Vector);
        machine.RunToDone();
    }

    /// <summary>The vector of a pin that goes to another CPU is nothing special here.</summary>
    static void EoiOnlyForDestination()
    {
        using Machine machine = Stepping(machine => machine.EnableApic(machine.AddCpu(1)));
        machine.Vm.SetGsiRouting(LevelPin(5, Vector, 1));
        machine.Vm.TrySignalMsi(RoutingTests.Message(Vector));
        machine.RunToDone();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
        machine.Program(1, code =>
        {
            code.TakeInterrupts();
            code.Done();
        });
        int eois = 0;
        machine.Vm.PulseIrqLine(5);
        machine.Start(1, vcpu =>
        {
            eois += vcpu.Run.ExitReason == KvmExit.IoapicEoi && vcpu.Run.EoiVector == Vector ? 1 : 0;
            return true;
        });
        machine.Join();
        Check.Equal(1, eois, "EOI exits of CPU 1");
    }

    static void EoiAfterTableChanges()
    {
        using Machine machine = Stepping();
        machine.Vm.SetGsiRouting(LevelPin(5, 0x62));
        machine.Vm.SetGsiRouting(LevelPin(5, Vector));
        machine.Vm.TrySignalMsi(RoutingTests.Message(0x62));
        machine.RunToDone();
        machine.Vm.PulseIrqLine(5);
        ExpectEoi(machine, Vector);
        machine.RunToDone();
        machine.Vm.SetGsiRouting();
        machine.Vm.TrySignalMsi(RoutingTests.Message(Vector));
        machine.RunToDone();
        machine.ExpectLog("without a table", 0x62, Vector, Vector);
    }

    /// <summary>SVR bit 12: the guest tells the I/O APIC itself.</summary>
    static void EoiSuppressed()
    {
        using Machine machine = Stepping();
        KvmLapicState lapic = machine.Vcpu.Lapic;
        Check.That((lapic[Apic.Version] & Apic.VersionDirectedEoi) != 0, "the version register has directed EOI");
        machine.Vm.SetGsiRouting(LevelPin(5, Vector));
        machine.Program(0, code =>
        {
            code.ApicWrite(Apic.Svr, Apic.SvrSuppressEoiBroadcast | Apic.SvrEnable | 0xFF);
            code.ApicSave(Apic.Svr);
            code.Done();
            code.TakeInterrupts();
            code.Done(2);
        });
        machine.RunToDone();
        Check.Equal(Apic.SvrSuppressEoiBroadcast | Apic.SvrEnable | 0xFF, machine.Results[0], "SVR");
        machine.Vm.PulseIrqLine(5);
        if (TestEnvironment.IsSharpKvm) // stock KVM leaves all the same
            Check.Equal(2, machine.RunToDone(), "no exit at the EOI");
        using var whole = new Machine(code =>
        {
            code.ApicSave(Apic.Version);
            code.ApicWrite(Apic.Svr, Apic.SvrSuppressEoiBroadcast | Apic.SvrEnable | 0xFF);
            code.ApicSave(Apic.Svr);
            code.Done();
        });
        whole.RunToDone();
        // The kernel's I/O APIC, version 11h, has no EOI register.
        Check.Equal(0u, whole.Results[0] & Apic.VersionDirectedEoi, "version with the kernel's I/O APIC");
        Check.Equal(Apic.SvrEnable | 0xFF, whole.Results[1], "SVR with the kernel's I/O APIC");
    }

    /// <summary>User space's I/O APIC sends again at the EOI when its line is still high.</summary>
    static void EoiLevelAgain()
    {
        using Machine machine = Stepping();
        machine.Vm.SetGsiRouting(LevelPin(5, Vector));
        machine.Vm.PulseIrqLine(5);
        for (int i = 0; i < 4; i++)
        {
            ExpectEoi(machine, Vector);
            machine.Vm.PulseIrqLine(5);
        }
        ExpectEoi(machine, Vector);
        machine.RunToDone();
        Check.Equal(5u, machine.Count(Vector), "interrupts");
    }

    static void ExtInt()
    {
        using Machine machine = Stepping();
        machine.Eoi = EoiMode.None;
        for (uint i = 1; i <= 3; i++)
        {
            Check.Succeeds(machine.Vcpu.TryInterrupt(0x30), "KVM_INTERRUPT");
            machine.RunToDone();
            Check.Equal(i, machine.Count(0x30), "interrupts");
        }
        Check.Equal("[]", Machine.Show(machine.Vcpu.Lapic.Vectors(Apic.Isr)), "the local APIC has no part in it");
    }

    static void ExtIntTwice()
    {
        using Machine machine = Stepping();
        Check.Fails(Errno.EINVAL, machine.Vcpu.TryInterrupt(256), "vector 256");
        Check.Succeeds(machine.Vcpu.TryInterrupt(0x30), "KVM_INTERRUPT");
        Check.Fails(Errno.EEXIST, machine.Vcpu.TryInterrupt(0x31), "while one is queued");
        machine.Eoi = EoiMode.None;
        machine.RunToDone();
        machine.ExpectLog("the first", 0x30);
    }

    static void InterruptWindow()
    {
        using var machine = new Machine(code =>
        {
            code.Done(1);
            code.nop();
            code.sti();
            code.nop();
            code.nop();
            code.Done(2);
        }, Chips.Split) { Eoi = EoiMode.None };
        machine.RunToDone();
        Check.Equal(0, machine.Run.ReadyForInterruptInjection, "ready with interrupts off");
        machine.Run.RequestInterruptWindow = 1;
        machine.RunTo(KvmExit.IrqWindowOpen, "the window");
        Check.Equal(1, machine.Run.ReadyForInterruptInjection, "ready");
        machine.Run.RequestInterruptWindow = 0;
        Check.Succeeds(machine.Vcpu.TryInterrupt(0x30), "KVM_INTERRUPT");
        Check.Equal(2, machine.RunToDone(), "the rest");
        machine.ExpectLog("in the window", 0x30);
    }

    static void ExtIntMasked()
    {
        using Machine machine = Stepping(machine =>
            machine.SetLapic(0, (ref lapic) => lapic[Apic.LvtLint0] = Apic.Masked | Apic.ModeExtInt));
        machine.Eoi = EoiMode.None;
        Check.Equal(0, machine.Run.ReadyForInterruptInjection, "ready with LINT0 masked");
    }

    static void ExtIntWakes()
    {
        using var machine = new Machine(code =>
        {
            code.HaltFor(0x30, 1);
            code.Done();
        }, Chips.Split) { Eoi = EoiMode.None };
        machine.Start(0);
        Wait.Until(() =>
        {
            // As QEMU does: the CPU is kicked out of its sleep to be given the interrupt.
            machine.StopThreads();
            bool halted = machine.Vcpu.MpState == KvmMpState.Halted;
            if (!halted)
                machine.StartAsIs(0);
            return halted;
        }, "the CPU to sleep");
        Check.Succeeds(machine.Vcpu.TryInterrupt(0x30), "KVM_INTERRUPT");
        machine.StartAsIs(0);
        machine.Join();
        Check.Equal(1u, machine.Count(0x30), "interrupts");
    }

    /// <summary>The 8259's comes first, then the local APIC's.</summary>
    static void ExtIntAndApic()
    {
        using Machine machine = Stepping();
        machine.Vm.TrySignalMsi(RoutingTests.Message(0x70));
        Check.Succeeds(machine.Vcpu.TryInterrupt(0x30), "KVM_INTERRUPT");
        machine.RunToDone();
        machine.RunToDone();
        Check.Equal("1 1", $"{machine.Count(0x30)} {machine.Count(0x70)}", "interrupts of both");
    }

    static void HaltAndTimer()
    {
        using var machine = new Machine(code =>
        {
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.LvtTimer, Apic.TimerPeriodic | 0x31);
            code.ApicWrite(Apic.TimerInitial, 1_000_000);
            code.HaltFor(0x31, 5);
            code.Done();
        }, Chips.Split);
        machine.RunToDone();
    }

    static void Irqfd()
    {
        using var machine = new Machine(code =>
        {
            code.HaltFor(0x51, 1);
            code.Done();
        }, Chips.Split);
        using var source = new EventFd();
        using var resample = new EventFd();
        Check.Fails(Errno.EINVAL, machine.Vm.TryIrqfd(source, 5, resample), "resampling is user space's");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(40, RoutingTests.Message(0x51)));
        Check.Succeeds(machine.Vm.TryIrqfd(source, 40), "IRQFD");
        source.Signal();
        machine.RunToDone();
    }

    static void StartBySipi()
    {
        using var machine = new Machine(chips: Chips.Split, cpus: 2);
        machine.ProgramForSipi(1, code =>
        {
            code.mov(__dword_ptr[(long)MachineLayout.Shared], 1);
            code.Done();
        });
        machine.Program(0, code =>
        {
            code.StartCpus();
            code.SpinUntil(MachineLayout.Shared, 1);
            code.Done();
        });
        machine.StartAsIs(1);
        machine.RunToDone();
        machine.Join();
    }

    /// <summary>As QEMU's: the guest programs a pin, user space makes a route of it; a level-triggered line with its
    /// remote IRR.</summary>
    static void WholeIoApic()
    {
        using var machine = new Machine(code =>
        {
            code.IoapicRoute(9, (uint)KvmIoapicState.Level | Vector);
            code.Done(1);
            code.HaltFor(Vector, 3);
            code.Done(2);
        }, Chips.Split);
        uint select = 0;
        ulong entry = KvmIoapicState.Masked;
        machine.Start(0, vcpu =>
        {
            KvmRunMmio access = vcpu.Run.Mmio;
            Check.Equal(KvmExit.Mmio, vcpu.Run.ExitReason, "exit reason");
            uint value = BitConverter.ToUInt32(access.Data);
            if (access.PhysAddr == Ioapic.Base)
                select = value;
            else if (select == 0x10 + 2 * 9)
                entry = entry & ~0xFFFFFFFFul | value;
            else
                entry = entry & 0xFFFFFFFF | (ulong)value << 32;
            return true;
        });
        machine.Join("programming");
        Check.Equal(KvmIoapicState.Level | Vector, entry, "redirection entry");
        machine.Vm.SetGsiRouting(LevelPin(9, (byte)entry, (byte)(entry >> 56)));
        machine.Vm.PulseIrqLine(9);
        int eois = 0;
        machine.Start(0, vcpu =>
        {
            Check.Equal(KvmExit.IoapicEoi, vcpu.Run.ExitReason, "exit reason");
            if (++eois < 3)
                machine.Vm.PulseIrqLine(9);
            return true;
        });
        machine.Join("interrupts");
        Check.Equal(3, eois, "EOIs");
        Check.Equal(3u, machine.Count(Vector), "interrupts");
    }
}
