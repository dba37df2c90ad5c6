// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The two 8259A interrupt controllers and their ELCR (8259A datasheet; PIIX datasheet for 4D0h).</summary>
static class PicTests
{
    const byte ReadIrr = 0x0A, ReadIsr = 0x0B, Poll = 0x0C, NonSpecificEoi = 0x20, SpecificEoi = 0x60,
        RotateOnEoi = 0xA0, SetPriority = 0xC0;

    public static IEnumerable<TestCase> All =>
    [
        new("pic/reset_state", ResetState),
        new("pic/mask_reads_back", MaskReadsBack),
        new("pic/master_and_slave", MasterAndSlave),
        new("pic/priority", Priority),
        new("pic/no_eoi_no_lower", NoEoiNoLower),
        new("pic/higher_nests", HigherNests),
        new("pic/specific_eoi", SpecificEndOfInterrupt),
        new("pic/auto_eoi", AutoEoi),
        new("pic/rotation", Rotation),
        new("pic/masked_then_unmasked", MaskedThenUnmasked),
        new("pic/request_and_service_registers", RequestAndServiceRegisters),
        new("pic/poll_command", PollCommand),
        new("pic/special_mask_mode", SpecialMaskMode),
        new("pic/edge", Edge),
        new("pic/elcr_level", ElcrLevel),
        new("pic/elcr_bits", ElcrBits),
        new("pic/lint0_masked", Lint0Masked),
        new("pic/through_disabled_local_apic", ThroughDisabledLocalApic),
        new("pic/initialization_clears", InitializationClears),
        new("pic/get_set_round_trip", GetSetRoundTrip),
        new("pic/pending_by_set", PendingBySet),
        new("pic/wakes_halt", WakesHalt),
        new("pic/odd_accesses", OddAccesses),
        new("pic/ports_without_irqchip", PortsWithoutIrqchip),
    ];

    /// <summary>A machine whose 8259s have vectors 0x20 to 0x2F and end each interrupt; it takes interrupts for a
    /// moment at each step. They alone have the lines.</summary>
    static Machine Stepping(byte icw4 = 1, Action<Assembler>? prepare = null)
    {
        var machine = new Machine { Eoi = EoiMode.Pic };
        machine.Program(0, code =>
        {
            code.PicInit(icw4: icw4);
            prepare?.Invoke(code);
            code.TakeInterruptsInSteps();
        });
        machine.RunToDone();
        return machine;
    }

    static KvmPicState Get(Machine machine, KvmIrqchipId chip) => machine.Vm.GetIrqchip(chip).Pic;

    static void Set(Machine machine, KvmIrqchipId id, RefAction<KvmPicState> change)
    {
        KvmIrqchip chip = machine.Vm.GetIrqchip(id);
        change(ref chip.Pic);
        machine.Vm.SetIrqchip(chip);
    }

    static void ResetState()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        foreach (KvmIrqchipId id in (KvmIrqchipId[])[KvmIrqchipId.PicMaster, KvmIrqchipId.PicSlave])
        {
            KvmPicState pic = vm.GetIrqchip(id).Pic;
            Check.Equal("0 0 0 0 0", $"{pic.Irr} {pic.Isr} {pic.Elcr} {pic.InitState} {pic.AutoEoi}", $"{id}");
            Check.Equal(id == KvmIrqchipId.PicMaster ? 0xF8 : 0xDE, pic.ElcrMask, $"{id}: lines that may be level");
        }
    }

    static void MaskReadsBack()
    {
        using var machine = new Machine(code =>
        {
            code.PicInit(0x5AA5);
            code.PortIn(0x21);
            code.Save();
            code.PortIn(0xA1);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0xA5u, machine.Results[0], "mask of the first");
        Check.Equal(0x5Au, machine.Results[1], "mask of the second");
        Check.Equal(0xA5, Get(machine, KvmIrqchipId.PicMaster).Imr, "imr");
        Check.Equal(0x20, Get(machine, KvmIrqchipId.PicMaster).IrqBase, "irq_base of the first");
        Check.Equal(0x28, Get(machine, KvmIrqchipId.PicSlave).IrqBase, "irq_base of the second");
    }

    static void MasterAndSlave()
    {
        using Machine machine = Stepping();
        foreach (uint line in (uint[])[0, 1, 3, 7, 8, 10, 15])
        {
            machine.Vm.PulseIrqLine(line);
            machine.RunToDone();
            Check.Equal(1u, machine.Count(0x20 + (int)line), $"line {line}");
        }
        Check.Equal(7, machine.Log().Length, "interrupts in all");
    }

    /// <summary>Line 2 is where the second one is, so its lines come before 3.</summary>
    static void Priority()
    {
        using Machine machine = Stepping();
        foreach (uint line in (uint[])[7, 3, 1, 0, 15, 8])
            machine.Vm.PulseIrqLine(line);
        machine.RunToDone();
        machine.ExpectLog("lowest line first", 0x20, 0x21, 0x28, 0x2F, 0x23, 0x27);
    }

    static void NoEoiNoLower()
    {
        using Machine machine = Stepping();
        machine.Eoi = EoiMode.None;
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(4);
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        machine.ExpectLog("3 is in service", 0x23);
        machine.Vm.PulseIrqLine(1);
        machine.RunToDone();
        machine.ExpectLog("1 is higher", 0x23, 0x21);
    }

    static void HigherNests()
    {
        using Machine machine = Stepping();
        machine.Handle(0x23, code =>
        {
            code.Done(1);
            code.TakeInterrupts();
            code.Done(2);
            code.PortOut(0x20, NonSpecificEoi);
            code.iretq();
        });
        machine.Vm.PulseIrqLine(3);
        Check.Equal(1, machine.RunToDone(), "in the handler of 3");
        machine.Vm.PulseIrqLine(5);
        machine.Vm.PulseIrqLine(1);
        Check.Equal(2, machine.RunToDone(), "still in the handler of 3");
        machine.ExpectLog("nested in 3", 0x21);
        machine.RunToDone();
        machine.ExpectLog("after 3", 0x21, 0x25);
    }

    static void SpecificEndOfInterrupt()
    {
        using Machine machine = Stepping();
        machine.Eoi = EoiMode.None;
        machine.Vm.PulseIrqLine(5);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        Check.Equal(0x28, Get(machine, KvmIrqchipId.PicMaster).Isr, "in service");
        machine.Program(0, code =>
        {
            code.PortOut(0x20, SpecificEoi | 5);
            code.Done();
            code.PortOut(0x20, NonSpecificEoi);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0x08, Get(machine, KvmIrqchipId.PicMaster).Isr, "after the specific EOI of 5");
        machine.RunToDone();
        Check.Equal(0, Get(machine, KvmIrqchipId.PicMaster).Isr, "after the non-specific EOI");
    }

    static void AutoEoi()
    {
        using Machine machine = Stepping(icw4: 3);
        machine.Eoi = EoiMode.None;
        for (int i = 0; i < 3; i++)
        {
            machine.Vm.PulseIrqLine(3);
            machine.Vm.PulseIrqLine(12);
            machine.RunToDone();
        }
        Check.Equal("3 3", $"{machine.Count(0x23)} {machine.Count(0x2C)}", "interrupts of both");
        Check.Equal(0, Get(machine, KvmIrqchipId.PicMaster).Isr, "in service");
    }

    /// <summary>Set priority: line 3 is the lowest, 4 the highest; rotation on EOI makes the one just served the
    /// lowest.</summary>
    static void Rotation()
    {
        using Machine machine = Stepping(prepare: code => code.PortOut(0x20, SetPriority | 3));
        foreach (uint line in (uint[])[3, 4, 5, 1])
            machine.Vm.PulseIrqLine(line);
        machine.RunToDone();
        machine.ExpectLog("4 is highest", 0x24, 0x25, 0x21, 0x23);

        using Machine rotating = Stepping();
        foreach (int vector in (int[])[0x21, 0x24])
        {
            rotating.Handle(vector, code =>
            {
                code.mov(eax, vector);
                code.Save();
                code.PortOut(0x20, RotateOnEoi);
                code.iretq();
            });
        }
        rotating.Vm.PulseIrqLine(1);
        rotating.RunToDone();
        rotating.Vm.PulseIrqLine(1);
        rotating.Vm.PulseIrqLine(4);
        rotating.RunToDone();
        Check.Equal("21 24 21", string.Join(' ', rotating.Results.Select(vector => vector.ToString("x"))),
            "order with rotation on EOI");
    }

    static void MaskedThenUnmasked()
    {
        using Machine machine = Stepping(prepare: code => code.PortOut(0x21, 0x08));
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(0x23), "masked");
        machine.Program(0, code =>
        {
            code.PortOut(0x21, 0);
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x23), "an edge while masked is remembered");
    }

    static void RequestAndServiceRegisters()
    {
        using Machine machine = Stepping();
        machine.Handle(0x23, code =>
        {
            code.Done(1);
            foreach (byte command in (byte[])[ReadIsr, ReadIrr])
            {
                code.PortOut(0x20, command);
                code.PortIn(0x20);
                code.Save();
            }
            code.PortOut(0x20, NonSpecificEoi);
            code.PortIn(0x20);
            code.Save();
            code.iretq();
        });
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(6);
        machine.RunToDone();
        Check.Equal("8 40 40", string.Join(' ', machine.Results.Select(value => value.ToString("x"))),
            "ISR, IRR in the handler, IRR after EOI");
    }

    /// <summary>The poll command takes the highest request as an interrupt acknowledge does.</summary>
    static void PollCommand()
    {
        using Machine machine = Stepping();
        machine.Vm.PulseIrqLine(5);
        machine.Vm.PulseIrqLine(6);
        machine.Program(0, code =>
        {
            for (int i = 0; i < 3; i++)
            {
                code.PortOut(0x20, Poll);
                code.PortIn(0x20);
                code.Save();
                code.PortOut(0x20, NonSpecificEoi);
            }
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        // Bit 7 says that there was one; stock KVM has it never.
        uint there = TestEnvironment.IsSharpKvm ? 0x80u : 0;
        uint[] results = machine.Results;
        Check.Equal(there | 5, results[0], "first poll");
        Check.Equal(there | 6, results[1], "second poll");
        Check.Equal(0u, results[2] & 0x80, "nothing left");
        machine.ExpectLog("polled ones do not interrupt");
    }

    /// <summary>In special mask mode a masked line in service does not hold back lower ones.</summary>
    static void SpecialMaskMode()
    {
        Check.Needs(TestEnvironment.IsSharpKvm, "the special mask mode");
        using Machine machine = Stepping();
        machine.Handle(0x23, code =>
        {
            code.PortOut(0x21, 0x08);
            code.PortOut(0x20, 0x68);
            code.Done(1);
            code.TakeInterrupts();
            code.Done(2);
            code.PortOut(0x20, 0x48);
            code.PortOut(0x21, 0);
            code.PortOut(0x20, SpecificEoi | 3);
            code.iretq();
        });
        machine.Eoi = EoiMode.None;
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(5);
        machine.RunToDone();
        machine.ExpectLog("5 in the handler of 3", 0x25);
    }

    static void Edge()
    {
        using Machine machine = Stepping();
        machine.Vm.SetIrqLine(5, true);
        machine.RunToDone();
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x25), "while the line stays high");
        machine.Vm.SetIrqLine(5, false);
        machine.Vm.SetIrqLine(5, true);
        machine.RunToDone();
        Check.Equal(2u, machine.Count(0x25), "after the next edge");
    }

    /// <summary>A level-triggered line comes again after each EOI, and not at all once it is low.</summary>
    static void ElcrLevel()
    {
        using Machine machine = Stepping(prepare: code => code.PortOut(0x4D0, 0x20));
        machine.Handle(0x25, code =>
        {
            code.CountUp(0x25);
            code.Done(1);
            code.PortOut(0x20, NonSpecificEoi);
            code.iretq();
        });
        machine.Vm.SetIrqLine(5, true);
        for (int i = 0; i < 3; i++)
            Check.Equal(1, machine.RunToDone(), "in the handler");
        machine.Vm.SetIrqLine(5, false);
        Check.Equal(0, machine.RunToDone(), "after the line is low");
        Check.Equal(3u, machine.Count(0x25), "interrupts");
        machine.Vm.PulseIrqLine(5);
        machine.RunToDone();
        Check.Equal(3u, machine.Count(0x25), "high and low again before the CPU looks");
    }

    /// <summary>Timer, keyboard, cascade, clock and coprocessor are always edge-triggered.</summary>
    static void ElcrBits()
    {
        using var machine = new Machine(code =>
        {
            code.PortOut(0x4D0, 0xFF);
            code.PortOut(0x4D1, 0xFF);
            code.PortIn(0x4D0);
            code.Save();
            code.PortIn(0x4D1);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0xF8u, machine.Results[0], "4D0h");
        Check.Equal(0xDEu, machine.Results[1], "4D1h");
        Check.Equal(0xF8, Get(machine, KvmIrqchipId.PicMaster).Elcr, "elcr");
    }

    static void Lint0Masked()
    {
        using Machine machine = Stepping(prepare: code => code.ApicWrite(Apic.LvtLint0, Apic.Masked | Apic.ModeExtInt));
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(0x23), "LINT0 masked");
        machine.Program(0, code =>
        {
            code.ApicWrite(Apic.LvtLint0, Apic.ModeExtInt);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        // Stock KVM looks for the request only when something else happens.
        machine.Vcpu.Regs = machine.Vcpu.Regs;
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x23), "LINT0 as ExtINT");
    }

    /// <summary>Disabled by APIC_BASE, the local APIC's LINT0 pin is the CPU's INTR pin.</summary>
    static void ThroughDisabledLocalApic()
    {
        using Machine machine = Stepping();
        machine.Vcpu.SetMsr(Apic.BaseMsr, Apic.Base | Apic.BaseBsp);
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x23), "interrupts");
    }

    static void InitializationClears()
    {
        using Machine machine = Stepping();
        machine.Eoi = EoiMode.None;
        machine.Vm.PulseIrqLine(3);
        machine.RunToDone();
        machine.Vm.PulseIrqLine(4);
        machine.Program(0, code =>
        {
            code.PicInit();
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        KvmPicState pic = Get(machine, KvmIrqchipId.PicMaster);
        Check.Equal("0 0", $"{pic.Irr} {pic.Imr}", "IRR, IMR after ICW1");
        machine.RunToDone();
        machine.ExpectLog("the request is gone", 0x23);
    }

    static void GetSetRoundTrip()
    {
        using var machine = new Machine();
        foreach (KvmIrqchipId id in (KvmIrqchipId[])[KvmIrqchipId.PicMaster, KvmIrqchipId.PicSlave])
        {
            KvmIrqchip chip = machine.Vm.GetIrqchip(id);
            chip.Pic.LastIrr = 0x01;
            chip.Pic.Imr = 0xA4;
            chip.Pic.Isr = 0x02;
            chip.Pic.PriorityAdd = 3;
            chip.Pic.IrqBase = 0x70;
            chip.Pic.ReadRegSelect = 1;
            chip.Pic.SpecialMask = 1;
            chip.Pic.SpecialFullyNestedMode = 1;
            chip.Pic.Init4 = 1;
            chip.Pic.Elcr = (byte)(chip.Pic.ElcrMask & 0x48);
            machine.Vm.SetIrqchip(chip);
            Check.Same(chip, machine.Vm.GetIrqchip(id), $"{id}");
        }
    }

    static void PendingBySet()
    {
        using Machine machine = Stepping();
        Set(machine, KvmIrqchipId.PicMaster, (ref pic) => pic.Irr = 0x20);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(0x25), "interrupts");
    }

    static void WakesHalt()
    {
        using var machine = new Machine { Eoi = EoiMode.Pic };
        machine.Program(0, code =>
        {
            code.PicInit();
            code.HaltFor(0x2B, 5);
            code.Done();
        });
        machine.Start(0);
        for (uint i = 1; i <= 5; i++)
        {
            // The first edge may come before the 8259 is set up, which forgets it.
            Wait.Until(() =>
            {
                machine.Vm.PulseIrqLine(11);
                return machine.Count(0x2B) >= i;
            }, $"interrupt {i}");
        }
        machine.Join();
    }

    static void OddAccesses()
    {
        using var machine = new Machine(code =>
        {
            foreach (ushort port in (ushort[])[0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1])
            {
                code.mov(dx, port);
                code.@in(ax, dx);
                code.@in(eax, dx);
                code.xor(eax, eax);
                code.@out(dx, ax);
                code.@out(dx, eax);
            }
            code.PicInit(0x1234);
            code.PortIn(0x21);
            code.Save();
            code.Done();
        });
        for (int exits = 0; exits < 100; exits++)
        {
            Check.Succeeds(machine.Vcpu.TryRun(), "KVM_RUN");
            Check.Equal(KvmExit.Io, machine.Run.ExitReason, "exit reason");
            if (machine.Run.Io.Port == MachineLayout.DonePort)
                break;
        }
        Check.Equal(0x34u, machine.Results[0], "mask");
    }

    static void PortsWithoutIrqchip()
    {
        using var machine = new Machine(code =>
        {
            code.PortOut(0x21, 0x55);
            code.Done();
        }, Chips.None);
        machine.RunTo(KvmExit.Io);
        Check.Equal(0x21, machine.Run.Io.Port, "port");
    }
}
