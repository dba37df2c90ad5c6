// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The 8254 timer and the speaker's port (8254 datasheet; PIIX datasheet for 61h). What the pins do in modes
/// that a PC does not use is nobody's business here.</summary>
static class PitTests
{
    const int Vector = 0x20;
    const double Frequency = 1_193_182;

    public static IEnumerable<TestCase> All =>
    [
        new("pit/create", Create),
        new("pit/reset_state", ResetState),
        new("pit/mode_0_once", () => Once(0)),
        new("pit/mode_4_once", () => Once(4)),
        new("pit/mode_2_ticks", () => Ticks(2)),
        new("pit/mode_3_ticks", () => Ticks(3)),
        new("pit/mode_change_stops_ticks", ModeChange),
        new("pit/through_ioapic", ThroughIoapic),
        new("pit/counter_runs_down", CounterRunsDown),
        new("pit/counter_latch", CounterLatch),
        new("pit/access_modes", AccessModes),
        new("pit/read_back", ReadBack),
        new("pit/output_on_port_61", OutputOnPort61),
        new("pit/speaker_bits", SpeakerBits),
        new("pit/speaker_for_user_space", SpeakerForUserSpace),
        new("pit/get_set_round_trip", GetSetRoundTrip),
        new("pit/set_starts_ticking", SetStartsTicking),
        new("pit/hpet_legacy", HpetLegacy),
        new("pit/reinjection", Reinjection),
        new("pit/no_reinjection", NoReinjection),
        new("pit/reinject_control_needs_pit", ReinjectControlNeedsPit),
        new("pit/odd_accesses", OddAccesses),
        new("pit/two_cpus_at_once", TwoCpusAtOnce),
        new("pit/ports_without_pit", PortsWithoutPit),
    ];

    static Machine PitMachine(Action<Assembler>? code = null, int cpus = 1,
        uint flags = KvmPitConfig.SpeakerDummy) =>
        new(code, cpus: cpus, prepare: vm => vm.CreatePit2(flags)) { Eoi = EoiMode.Pic };

    static void Create()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        var config = new KvmPitConfig();
        vm.CreateIrqchip();
        vm.CreatePit2();
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreatePit2, ref config), "a second one");
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreatePit), "a second one by the old request");
        using Vm old = kvm.CreateVm();
        old.CreateIrqchip();
        Check.Succeeds(old.TryCall(KvmIoctl.CreatePit), "KVM_CREATE_PIT");
        Check.Equal(0u, old.Pit2.Flags, "flags");
    }

    static void ResetState()
    {
        using Machine machine = PitMachine();
        KvmPitState2 state = machine.Vm.Pit2;
        for (int i = 0; i < 3; i++)
        {
            Check.Equal(0x10000u, state.Channels[i].Count, $"count of channel {i}");
            Check.Equal(i == 2 ? 0 : 1, state.Channels[i].Gate, $"gate of channel {i}");
        }
        Check.Equal(0u, state.Flags, "flags");
    }

    static void NotEarly(double ticks, double seconds, string what) =>
        Check.That(seconds * Frequency >= ticks * 0.995, $"{what}: after {seconds * Frequency:0} ticks of {ticks}");

    static void Once(int mode)
    {
        const ushort Count = 12_000;
        using Machine machine = PitMachine(code =>
        {
            code.PicInit();
            code.sti();
            code.SaveTsc();
            code.PitProgram(0, mode, Count);
            code.SpinFor(Vector, 1);
            code.SaveTsc();
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        NotEarly(Count, machine.SecondsFrom(0), $"mode {mode}");
        Thread.Sleep(30);
        machine.RunToDone();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
    }

    static void Ticks(int mode)
    {
        const ushort Count = 3_000;
        const int Number = 8;
        using Machine machine = PitMachine(code =>
        {
            code.PicInit();
            code.sti();
            code.SaveTsc();
            code.PitProgram(0, mode, Count);
            code.HaltFor(Vector, Number);
            code.SaveTsc();
            code.Done();
        });
        machine.RunToDone();
        NotEarly(Count * Number, machine.SecondsFrom(0), $"{Number} ticks in mode {mode}");
    }

    static void ModeChange()
    {
        using Machine machine = PitMachine(code =>
        {
            code.PicInit();
            code.sti();
            code.PitProgram(0, 2, 2_000);
            code.SpinFor(Vector, 3);
            code.PitProgram(0, 0, 1_000);
            code.cli();
            code.Done();
            code.TakeInterrupts();
            code.mov(eax, MachineAssembler.CountOf(Vector));
            code.Save();
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        Thread.Sleep(20);
        machine.RunToDone();
        Thread.Sleep(20);
        machine.RunToDone();
        Check.Equal(machine.Results[0], machine.Count(Vector), "ticks after the one of mode 0");
    }

    /// <summary>Line 0, which a PC has at the I/O APIC's pin 2.</summary>
    static void ThroughIoapic()
    {
        using Machine machine = PitMachine();
        machine.Eoi = EoiMode.XApic;
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToChip(0, KvmIrqchipId.Ioapic, 2));
        machine.Program(0, code =>
        {
            code.IoapicRoute(2, 0x42);
            code.PitProgram(0, 2, 20_000);
            code.HaltFor(0x42, 5);
            code.Done();
        });
        machine.RunToDone();
    }

    static void ReadCounter(this Assembler code, int channel)
    {
        code.PortOut(0x43, (byte)(channel << 6));
        code.PortIn((ushort)(0x40 + channel));
        code.mov(ebx, eax);
        code.PortIn((ushort)(0x40 + channel));
        code.shl(eax, 8);
        code.or(eax, ebx);
    }

    static void CounterRunsDown()
    {
        using Machine machine = PitMachine(code =>
        {
            Label again = code.CreateLabel();
            code.PortOut(0x61, 1);
            code.PitProgram(2, 0, 0xFFFF);
            for (int i = 0; i < 6; i++)
            {
                code.ReadCounter(2);
                code.Save();
            }
            // In mode 2 it starts anew at the count.
            code.PitProgram(0, 2, 1_000);
            code.mov(r12d, 200);
            code.xor(edi, edi);
            code.Label(ref again);
            code.ReadCounter(0);
            code.cmp(eax, edi);
            code.cmova(edi, eax);
            code.dec(r12d);
            code.jnz(again);
            code.mov(eax, edi);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        // It may pass 0 when the machine below is busy.
        Check.That(results[..6].Distinct().Count() > 1, $"counts {string.Join(' ', results[..6])}");
        Check.That(results[6] is > 0 and <= 1_000, $"highest count in mode 2: {results[6]}");
    }

    static void CounterLatch()
    {
        using Machine machine = PitMachine(code =>
        {
            Label again = code.CreateLabel();
            code.PitProgram(0, 2, 0);
            code.PortOut(0x43, 0);
            code.PortIn(0x40);
            code.Save();
            code.mov(ecx, 20_000);
            code.Label(ref again);
            code.pause();
            code.dec(ecx);
            code.jnz(again);
            code.PortOut(0x43, 0); // latched already: no effect
            code.PortIn(0x40);
            code.Save();
            code.Done();
        });
        machine.RunTo(KvmExit.Io);
        Check.Equal(0x10000u, machine.Vm.Pit2.Channels[0].Count, "a count of 0 is 65536");
        Check.Equal(0, machine.Vm.Pit2.Channels[0].CountLatched, "nothing is latched after both bytes");
        Check.That(machine.Results.All(value => value <= 0xFF), "bytes");
    }

    static void AccessModes()
    {
        using Machine machine = PitMachine(code =>
        {
            code.PortOut(0x43, 0xB0);
            code.PortOut(0x42, 0x34);
            code.PortOut(0x42, 0x12);
            code.Done();
            code.PortOut(0x43, 0x90); // low byte only
            code.PortOut(0x42, 0x56);
            code.Done();
            code.PortOut(0x43, 0xA0); // high byte only
            code.PortOut(0x42, 0x78);
            code.Done();
        });
        foreach (uint count in (uint[])[0x1234, 0x56, 0x7800])
        {
            machine.RunToDone();
            Check.Equal(count, machine.Vm.Pit2.Channels[2].Count, "count");
        }
    }

    /// <summary>The read-back command: status of channels, mode and access as programmed.</summary>
    static void ReadBack()
    {
        using Machine machine = PitMachine(code =>
        {
            code.PitProgram(0, 2, 0x4000);
            code.PitProgram(2, 3, 0x2000);
            code.PortOut(0x43, 0xE0 | 2 | 8); // status of channels 0 and 2
            code.PortIn(0x40);
            code.Save();
            code.PortIn(0x42);
            code.Save();
            code.PortOut(0x43, 0xD0 | 2); // count of channel 0
            code.PortIn(0x40);
            code.mov(ebx, eax);
            code.PortIn(0x40);
            code.shl(eax, 8);
            code.or(eax, ebx);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0x34u, machine.Results[0] & 0x3F, "status of channel 0: access, mode, BCD");
        Check.Equal(0x36u, machine.Results[1] & 0x3F, "status of channel 2");
        Check.That(machine.Results[2] <= 0x4000, $"count {machine.Results[2]:x}");
    }

    /// <summary>Bit 5 is channel 2's output: in mode 0 low until the count is over.</summary>
    static void OutputOnPort61()
    {
        using Machine machine = PitMachine(code =>
        {
            Label again = code.CreateLabel();
            code.PortOut(0x61, 1);
            code.PitProgram(2, 0, 0xFFFF);
            code.PortIn(0x61);
            code.Save();
            code.Label(ref again);
            code.PortIn(0x61);
            code.test(al, 0x20);
            code.jz(again);
            code.Save();
            // The refresh bit toggles.
            Label toggled = code.CreateLabel();
            code.PortIn(0x61);
            code.mov(ebx, eax);
            code.Label(ref toggled);
            code.PortIn(0x61);
            code.xor(eax, ebx);
            code.test(al, 0x10);
            code.jz(toggled);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Results[0] & 0x23, "counting");
        Check.Equal(0x21u, machine.Results[1] & 0x23, "over");
    }

    static void SpeakerBits()
    {
        using Machine machine = PitMachine(code =>
        {
            foreach (byte value in (byte[])[0, 1, 2, 3, 0xFC])
            {
                code.PortOut(0x61, value);
                code.PortIn(0x61);
                code.Save();
            }
            code.PortOut(0x61, 3);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal("0 1 2 3 0", string.Join(' ', machine.Results.Select(value => value & 3)), "gate and speaker");
        KvmPitState2 state = machine.Vm.Pit2;
        Check.Equal(KvmPitState2.SpeakerDataOn, state.Flags & KvmPitState2.SpeakerDataOn, "SPEAKER_DATA_ON");
        Check.Equal(1, state.Channels[2].Gate, "gate of channel 2");
    }

    static void SpeakerForUserSpace()
    {
        using Machine machine = PitMachine(code => code.PortOut(0x61, 1), flags: 0);
        machine.RunTo(KvmExit.Io);
        Check.Equal(0x61, machine.Run.Io.Port, "port");
    }

    static void GetSetRoundTrip()
    {
        using Machine machine = PitMachine();
        KvmPitState2 state = machine.Vm.Pit2;
        state.Channels[1].Count = 0x1234;
        state.Channels[1].Mode = 2;
        state.Channels[1].RwMode = 3;
        state.Channels[1].LatchedCount = 0x55AA;
        state.Channels[1].CountLatched = 3;
        state.Channels[2].Count = 0x4321;
        state.Channels[2].Mode = 3;
        state.Channels[2].RwMode = 1;
        state.Channels[2].Gate = 1;
        state.Channels[2].WriteState = 3;
        state.Channels[2].WriteLatch = 0x77;
        state.Channels[2].ReadState = 1;
        state.Channels[2].Status = 0x36;
        state.Channels[2].StatusLatched = 1;
        state.Flags = KvmPitState2.SpeakerDataOn;
        machine.Vm.Pit2 = state;
        KvmPitState2 read = machine.Vm.Pit2;
        // When a count was loaded is the machine's own time.
        for (int i = 0; i < 3; i++)
            read.Channels[i].CountLoadTime = state.Channels[i].CountLoadTime;
        Check.Same(state, read, "PIT");
    }

    static void SetStartsTicking()
    {
        using Machine source = PitMachine(code =>
        {
            code.PitProgram(0, 2, 2_000);
            code.Done();
        });
        source.RunToDone();
        using Machine target = PitMachine(code =>
        {
            code.PicInit();
            code.HaltFor(Vector, 4);
            code.Done();
        });
        target.Vm.Pit2 = source.Vm.Pit2;
        target.RunToDone();
    }

    /// <summary>With the HPET in the timer's place channel 0 does not interrupt.</summary>
    static void HpetLegacy()
    {
        using Machine machine = PitMachine(code =>
        {
            code.PicInit();
            code.Done();
            code.PitProgram(0, 2, 1_000);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        machine.Vm.Pit2 = machine.Vm.Pit2 with { Flags = KvmPitState2.HpetLegacy };
        machine.RunToDone();
        Check.Equal(KvmPitState2.HpetLegacy, machine.Vm.Pit2.Flags & KvmPitState2.HpetLegacy, "flags");
        Thread.Sleep(30);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(Vector), "interrupts");
    }

    const ushort Period = 60_000;
    const int Blocked = 10;

    static void SpinForCycles(this Assembler code, ulong cycles)
    {
        Label again = code.CreateLabel();
        code.ReadTsc();
        code.mov(rbx, cycles);
        code.add(rbx, rax);
        code.Label(ref again);
        code.ReadTsc();
        code.cmp(rax, rbx);
        code.jb(again);
    }

    /// <summary>Interrupts are off for ten periods; all those ticks come afterwards.</summary>
    static void Reinjection()
    {
        using Machine machine = PitMachine();
        ulong period = (ulong)(machine.Vcpu.TscKhz * 1000d * Period / Frequency);
        Check.Succeeds(machine.Vm.TryReinjectControl(true), "REINJECT_CONTROL");
        machine.Program(0, code =>
        {
            Label again = code.CreateLabel();
            code.PicInit();
            code.ReadTsc();
            code.mov(r12, rax);
            code.PitProgram(0, 2, Period);
            code.SpinForCycles(period * Blocked);
            code.sti();
            // Until the ticks that are missing are three at most.
            code.Label(ref again);
            code.ReadTsc();
            code.sub(rax, r12);
            code.mov(ebx, MachineAssembler.CountOf(Vector));
            code.add(ebx, 3);
            code.mov(rcx, period);
            code.imul(rbx, rcx);
            code.cmp(rbx, rax);
            code.jb(again);
            code.Done();
        });
        machine.RunToDone("ticks that were held back come later");
        Check.That(machine.Count(Vector) >= Blocked - 3, $"{machine.Count(Vector)} ticks");
    }

    static void NoReinjection()
    {
        using Machine machine = PitMachine();
        ulong period = (ulong)(machine.Vcpu.TscKhz * 1000d * Period / Frequency);
        Check.Succeeds(machine.Vm.TryReinjectControl(false), "REINJECT_CONTROL");
        machine.Program(0, code =>
        {
            code.PicInit();
            code.SaveTsc();
            code.PitProgram(0, 2, Period);
            code.SpinForCycles(period * Blocked);
            code.sti();
            code.SpinFor(Vector, 4);
            code.SaveTsc();
            code.Done();
        });
        machine.RunToDone();
        double periods = machine.SecondsFrom(0) * Frequency / Period;
        Check.That(machine.Count(Vector) <= periods - Blocked / 2,
            $"{machine.Count(Vector)} ticks in {periods:0.0} periods");
    }

    static void ReinjectControlNeedsPit()
    {
        using var machine = new Machine();
        Check.Fails(Errno.ENXIO, machine.Vm.TryReinjectControl(true), "REINJECT_CONTROL");
        Check.Fails(Errno.ENXIO, machine.Vm.TryCall(KvmIoctl.GetPit2, new byte[112]), "GET_PIT2");
        Check.Fails(Errno.ENXIO, machine.Vm.TryCall(KvmIoctl.SetPit2, new byte[112]), "SET_PIT2");
    }

    /// <summary>CVE-2010-0309: any read of any of its ports, in any size.</summary>
    static void OddAccesses()
    {
        using Machine machine = PitMachine(code =>
        {
            foreach (ushort port in (ushort[])[0x40, 0x41, 0x42, 0x43, 0x61])
            {
                code.mov(dx, port);
                code.@in(al, dx);
                code.@in(ax, dx);
                code.@in(eax, dx);
                code.mov(eax, 0xFFFFFFFF);
                code.@out(dx, ax);
                code.@out(dx, eax);
            }
            for (int command = 0; command < 256; command += 5)
            {
                code.PortOut(0x43, (byte)command);
                code.PortIn((ushort)(0x40 + command % 4));
            }
            code.Done();
        });
        for (int exits = 0; exits < 100; exits++)
        {
            Check.Succeeds(machine.Vcpu.TryRun(), "KVM_RUN");
            Check.Equal(KvmExit.Io, machine.Run.ExitReason, "exit reason");
            if (machine.Run.Io.Port == MachineLayout.DonePort)
                break;
        }
        _ = machine.Vm.Pit2;
    }

    /// <summary>CVE-2014-3611: two CPUs program the same channel.</summary>
    static void TwoCpusAtOnce()
    {
        using Machine machine = PitMachine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel();
                code.mov(r12d, 150);
                code.Label(ref again);
                code.PitProgram(0, 2 - cpu * 2, (ushort)(100 + cpu));
                code.ReadCounter(0);
                code.dec(r12d);
                code.jnz(again);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
        Check.That(machine.Vm.Pit2.Channels[0].Mode <= 5, "mode");
    }

    static void PortsWithoutPit()
    {
        using var machine = new Machine(code => code.PortOut(0x43, 0x34));
        machine.RunTo(KvmExit.Io);
        Check.Equal(0x43, machine.Run.Io.Port, "port");
    }
}
