// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The local APIC's timer: never early, never lost (SDM volume 3, section 11.5.4).</summary>
/// <remarks>There are no upper limits of time but the one of each test: the machine below may be busy.</remarks>
static class LapicTimerTests
{
    const int Vector = 0x31;

    /// <summary>The timer's clock before it is divided, the one of KVM's interface.</summary>
    const double NanosecondsPerTick = 1;

    public static IEnumerable<TestCase> All =>
    [
        new("lapic/timer_one_shot", OneShot),
        new("lapic/timer_divisors", Divisors),
        new("lapic/timer_one_shot_is_one", OneShotIsOne),
        new("lapic/timer_counts_down", CountsDown),
        new("lapic/timer_stopped", Stopped),
        new("lapic/timer_masked", MaskedTimer),
        new("lapic/timer_periodic", Periodic),
        new("lapic/timer_periodic_count", PeriodicCount),
        new("lapic/timer_restarted", Restarted),
        new("lapic/timer_wakes_halt", WakesHalt),
        new("lapic/timer_short_halts", ShortHalts),
        new("lapic/timer_deadline", Deadline),
        new("lapic/timer_deadline_past", DeadlinePast),
        new("lapic/timer_deadline_disarmed", DeadlineDisarmed),
        new("lapic/timer_deadline_other_modes", DeadlineOtherModes),
        new("lapic/timer_deadline_needs_cpuid", DeadlineNeedsCpuid),
        new("lapic/timer_deadline_saved", DeadlineSaved),
        new("lapic/timer_in_x2apic_mode", InX2ApicMode),
        new("lapic/timer_two_cpus", TwoCpus),
        new("lapic/timer_while_user_space_has_the_cpu", WhileOutside),
    ];

    static double Elapsed(Machine machine, int result) => machine.SecondsFrom(result) * 1e9;

    static void NotEarly(double expected, double elapsed, string what) =>
        // Two clocks and their rounding.
        Check.That(elapsed >= expected * 0.995, $"{what}: after {elapsed:0} ns, expected {expected:0}");

    static void StartTimer(this Assembler code, uint lvt, uint count, uint divide = Apic.DivideBy1)
    {
        code.ApicWrite(Apic.TimerDivide, divide);
        code.ApicWrite(Apic.LvtTimer, lvt | Vector);
        code.ApicWrite(Apic.TimerInitial, count);
    }

    static void OneShot()
    {
        uint[] counts = [1, 1000, 100_000, 3_000_000, 20_000_000];
        using var machine = new Machine(code =>
        {
            code.sti();
            for (uint i = 0; i < counts.Length; i++)
            {
                code.SaveTsc();
                code.StartTimer(0, counts[i]);
                code.SpinFor(Vector, i + 1);
                code.SaveTsc();
            }
            code.Done();
        });
        machine.RunToDone();
        for (int i = 0; i < counts.Length; i++)
            NotEarly(counts[i] * NanosecondsPerTick, Elapsed(machine, i * 4), $"{counts[i]} ticks");
    }

    static void Divisors()
    {
        const uint Count = 50_000;
        (uint Register, int Divisor)[] divisors =
            [(0xB, 1), (0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128)];
        using var machine = new Machine(code =>
        {
            code.sti();
            for (int i = 0; i < divisors.Length; i++)
            {
                code.SaveTsc();
                // A new divisor counts for a running timer at once: it is stopped first.
                code.ApicWrite(Apic.TimerInitial, 0);
                code.StartTimer(0, Count, divisors[i].Register);
                code.SpinFor(Vector, (uint)i + 1);
                code.SaveTsc();
            }
            code.Done();
        });
        machine.RunToDone();
        for (int i = 0; i < divisors.Length; i++)
            NotEarly(Count * NanosecondsPerTick * divisors[i].Divisor, Elapsed(machine, i * 4),
                $"divided by {divisors[i].Divisor}");
    }

    /// <summary>After its end it is still: the count stays 0.</summary>
    static void OneShotIsOne()
    {
        using var machine = new Machine(code =>
        {
            code.sti();
            code.StartTimer(0, 10_000);
            code.SpinFor(Vector, 1);
            code.ApicSave(Apic.TimerCurrent);
            code.ApicSave(Apic.TimerInitial);
            code.Done();
        });
        machine.RunToDone();
        Thread.Sleep(20);
        machine.Program(0, code =>
        {
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
        machine.SetLapic(0, (ref lapic) => Check.Equal(0u, lapic[Apic.TimerCurrent], "current count"));
    }

    static void CountsDown()
    {
        const uint Start = 4_000_000_000;
        using var machine = new Machine(code =>
        {
            code.StartTimer(Apic.Masked, Start);
            for (int i = 0; i < 10; i++)
                code.ApicSave(Apic.TimerCurrent);
            code.ApicSave(Apic.TimerInitial);
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        uint last = Start;
        foreach (uint count in results[..10])
        {
            Check.That(count > 0 && count < last, $"count {count} after {last}");
            last = count;
        }
        Check.Equal(Start, results[10], "initial count");
        uint now = machine.Vcpu.Lapic[Apic.TimerCurrent];
        Check.That(now < last, $"KVM_GET_LAPIC has the count of now: {now} after {last}");
    }

    static void Stopped()
    {
        using var machine = new Machine(code =>
        {
            code.StartTimer(0, 30_000_000);
            code.ApicWrite(Apic.TimerInitial, 0);
            code.ApicSave(Apic.TimerCurrent);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0u, machine.Results[0], "current count");
        Thread.Sleep(60);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(Vector), "interrupts");
    }

    /// <summary>It counts but does not interrupt.</summary>
    static void MaskedTimer()
    {
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.sti();
            code.StartTimer(Apic.Masked, 100_000);
            code.Label(ref again);
            code.ApicRead(Apic.TimerCurrent);
            code.test(eax, eax);
            code.jnz(again);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0u, machine.Count(Vector), "interrupts");
        Check.Equal("[]", Machine.Show(machine.Pending()), "pending");
    }

    static void Periodic()
    {
        const uint Period = 2_000_000, Ticks = 12;
        using var machine = new Machine(code =>
        {
            code.sti();
            code.SaveTsc();
            code.StartTimer(Apic.TimerPeriodic, Period);
            code.SpinFor(Vector, Ticks);
            code.SaveTsc();
            code.ApicWrite(Apic.TimerInitial, 0);
            code.Done();
        });
        machine.RunToDone();
        NotEarly(Period * NanosecondsPerTick * Ticks, Elapsed(machine, 0), $"{Ticks} periods");
    }

    /// <summary>The current count starts anew in each period.</summary>
    static void PeriodicCount()
    {
        const uint Period = 500_000;
        using var machine = new Machine(code =>
        {
            code.sti();
            code.StartTimer(Apic.TimerPeriodic, Period);
            for (uint i = 1; i <= 10; i++)
            {
                code.SpinFor(Vector, i);
                code.ApicSave(Apic.TimerCurrent);
            }
            code.ApicWrite(Apic.TimerInitial, 0);
            code.Done();
        });
        machine.RunToDone();
        foreach (uint count in machine.Results)
            Check.That(count is > 0 and <= Period, $"current count {count}");
        Check.That(machine.Results.Distinct().Count() > 1, "current counts differ");
    }

    /// <summary>A new initial count starts from there, and the old one's end does not interrupt.</summary>
    static void Restarted()
    {
        const uint Count = 10_000_000;
        using var machine = new Machine(code =>
        {
            code.sti();
            code.StartTimer(0, 1_000_000_000);
            code.SaveTsc();
            code.ApicWrite(Apic.TimerInitial, Count);
            code.SpinFor(Vector, 1);
            code.SaveTsc();
            code.ApicSave(Apic.TimerCurrent);
            code.Done();
        });
        machine.RunToDone();
        NotEarly(Count * NanosecondsPerTick, Elapsed(machine, 0), "the second count");
        Check.Equal(0u, machine.Results[4], "current count");
    }

    static void WakesHalt()
    {
        const uint Count = 20_000_000;
        using var machine = new Machine(code =>
        {
            code.SaveTsc();
            code.StartTimer(0, Count);
            code.HaltFor(Vector, 1);
            code.SaveTsc();
            code.Done();
        });
        machine.RunToDone();
        NotEarly(Count * NanosecondsPerTick, Elapsed(machine, 0), "halted");
    }

    /// <summary>Timers that end just when the CPU halts: no wake-up is lost.</summary>
    static void ShortHalts()
    {
        const int Rounds = 300;
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.xor(ebx, ebx);
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.LvtTimer, Vector);
            code.Label(ref again);
            code.imul(eax, ebx, 397);
            code.and(eax, 0xFFFF);
            code.inc(eax);
            code.inc(ebx);
            code.mov(__dword_ptr[r15 + Apic.TimerInitial], eax);
            code.HaltFor(Vector, ebx);
            code.cmp(ebx, Rounds);
            code.jb(again);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal((uint)Rounds, machine.Count(Vector), "interrupts");
    }

    static Machine DeadlineMachine(Action<Assembler> code)
    {
        Check.Needs(KvmCap.TscDeadlineTimer);
        var machine = new Machine();
        machine.Vcpu.Cpuid = [.. machine.Kvm.GetSupportedCpuid().Select(leaf => leaf.Function == 1
            ? leaf with { Ecx = leaf.Ecx | 1u << 24 } : leaf)];
        machine.Program(0, code);
        return machine;
    }

    /// <summary>Arms the timer for so many cycles from now; saves the deadline as 64 bits.</summary>
    static void ArmDeadline(this Assembler code, uint cycles)
    {
        code.ReadTsc();
        code.add(rax, (int)cycles);
        code.mov(__qword_ptr[r13], rax);
        code.add(r13, 8);
        code.mov(rdx, rax);
        code.shr(rdx, 32);
        code.mov(ecx, Apic.DeadlineMsr);
        code.wrmsr();
    }

    static void Deadline()
    {
        uint[] cycles = [100, 10_000, 1_000_000, 50_000_000];
        using Machine machine = DeadlineMachine(code =>
        {
            code.sti();
            code.ApicWrite(Apic.LvtTimer, Apic.TimerDeadline | Vector);
            for (uint i = 0; i < cycles.Length; i++)
            {
                code.ArmDeadline(cycles[i]);
                if (i % 2 == 0)
                    code.SpinFor(Vector, i + 1);
                else
                    code.HaltFor(Vector, i + 1);
                code.SaveTsc();
            }
            code.ReadMsr(Apic.DeadlineMsr);
            code.or(eax, edx);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        for (int i = 0; i < cycles.Length; i++)
        {
            ulong deadline = results[i * 4] | (ulong)results[i * 4 + 1] << 32;
            ulong seen = results[i * 4 + 2] | (ulong)results[i * 4 + 3] << 32;
            Check.That(seen >= deadline, $"{cycles[i]} cycles: {deadline - seen} too early");
        }
        Check.Equal(0u, results[^1], "deadline afterwards");
    }

    static void DeadlinePast()
    {
        using Machine machine = DeadlineMachine(code =>
        {
            code.sti();
            code.ApicWrite(Apic.LvtTimer, Apic.TimerDeadline | Vector);
            code.WriteMsr(Apic.DeadlineMsr, 1);
            code.SpinFor(Vector, 1);
            code.WriteMsr(Apic.DeadlineMsr, 1);
            code.HaltFor(Vector, 2);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(2u, machine.Count(Vector), "interrupts");
    }

    static void DeadlineDisarmed()
    {
        using Machine machine = DeadlineMachine(code =>
        {
            code.ApicWrite(Apic.LvtTimer, Apic.TimerDeadline | Vector);
            code.ArmDeadline(60_000_000);
            code.ReadMsr(Apic.DeadlineMsr);
            code.Save();
            code.mov(eax, edx);
            code.Save();
            code.WriteMsr(Apic.DeadlineMsr, 0);
            code.ReadMsr(Apic.DeadlineMsr);
            code.or(eax, edx);
            code.Save();
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        uint[] results = machine.Results;
        Check.Equal(results[0], results[2], "deadline read back, low half");
        Check.Equal(results[1], results[3], "deadline read back, high half");
        Check.Equal(0u, results[4], "deadline after 0");
        Thread.Sleep(100);
        machine.RunToDone();
        Check.Equal(0u, machine.Count(Vector), "interrupts");
    }

    /// <summary>The MSR does nothing in the other modes, the initial count nothing in this one.</summary>
    static void DeadlineOtherModes()
    {
        using Machine machine = DeadlineMachine(code =>
        {
            code.ApicWrite(Apic.LvtTimer, Vector);
            code.WriteMsr(Apic.DeadlineMsr, 1);
            code.ReadMsr(Apic.DeadlineMsr);
            code.or(eax, edx);
            code.Save();
            code.TakeInterrupts();
            code.ApicWrite(Apic.LvtTimer, Apic.TimerDeadline | Vector);
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.TimerInitial, 1000);
            code.ApicSave(Apic.TimerCurrent);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        machine.RunToDone();
        Thread.Sleep(10);
        machine.RunToDone();
        Check.Equal(0u, machine.Results[0], "deadline in one-shot mode");
        Check.Equal(0u, machine.Results[1], "current count in deadline mode");
        Check.Equal(0u, machine.Count(Vector), "interrupts");
    }

    /// <summary>Without the feature the mode's bit is not there.</summary>
    static void DeadlineNeedsCpuid()
    {
        using var machine = new Machine();
        machine.Vcpu.Cpuid = [.. machine.Kvm.GetSupportedCpuid().Select(leaf => leaf.Function == 1
            ? leaf with { Ecx = leaf.Ecx & ~(1u << 24) } : leaf)];
        machine.Program(0, code =>
        {
            code.ApicWrite(Apic.LvtTimer, Apic.Masked | Apic.TimerDeadline | Vector);
            code.ApicSave(Apic.LvtTimer);
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(Apic.Masked | Vector, machine.Results[0], "LVT timer");
    }

    /// <summary>A deadline moves to another machine with the MSRs.</summary>
    static void DeadlineSaved()
    {
        using Machine source = DeadlineMachine(code =>
        {
            code.ApicWrite(Apic.LvtTimer, Apic.TimerDeadline | Vector);
            code.ArmDeadline(2_000_000_000);
            code.Done();
        });
        source.RunToDone();
        ulong deadline = source.Vcpu.GetMsr(Apic.DeadlineMsr);
        Check.That(deadline != 0, "deadline of the source");
        using Machine target = DeadlineMachine(code =>
        {
            code.HaltFor(Vector, 1);
            code.Done();
        });
        target.Vcpu.Lapic = source.Vcpu.Lapic;
        ulong near = target.Vcpu.GetMsr(0x10) + 10_000_000;
        target.Vcpu.SetMsr(Apic.DeadlineMsr, near);
        Check.Equal(near, target.Vcpu.GetMsr(Apic.DeadlineMsr), "deadline of the target");
        target.RunToDone();
        Check.Equal(1u, target.Count(Vector), "interrupts");
    }

    static void InX2ApicMode()
    {
        const uint Count = 1_000_000;
        using var machine = new Machine(code =>
        {
            code.X2Write(Apic.TimerDivide, Apic.DivideBy1);
            code.X2Write(Apic.LvtTimer, Apic.TimerPeriodic | Vector);
            code.SaveTsc();
            code.X2Write(Apic.TimerInitial, Count);
            code.HaltFor(Vector, 5);
            code.SaveTsc();
            code.X2Write(Apic.TimerInitial, 0);
            code.Done();
        }) { Eoi = EoiMode.X2Apic };
        machine.EnableX2Apic(0);
        machine.RunToDone();
        NotEarly(Count * NanosecondsPerTick * 5, Elapsed(machine, 0), "five periods");
    }

    static void TwoCpus()
    {
        using var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                code.StartTimer(Apic.TimerPeriodic, 700_000 + (uint)cpu * 100_000);
                code.HaltFor(Vector, 20);
                code.ApicWrite(Apic.TimerInitial, 0);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
    }

    /// <summary>A timer that ends while the CPU is in user space has interrupted it when it runs again.</summary>
    static void WhileOutside()
    {
        using var machine = new Machine(code =>
        {
            code.StartTimer(0, 5_000_000);
            code.Done();
            code.SpinFor(Vector, 0);
            code.sti();
            code.nop();
            code.nop();
            code.cli();
            code.Done();
        });
        machine.RunToDone();
        Wait.Until(() => machine.Vcpu.Lapic[Apic.TimerCurrent] == 0, "the timer's end");
        machine.RunToDone();
        Check.Equal(1u, machine.Count(Vector), "interrupts");
    }
}
