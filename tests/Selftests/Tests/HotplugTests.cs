// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>CPUs of the host go and come while guests with interrupt controllers run on them.</summary>
static class HotplugTests
{
    const string Switch = "/sys/devices/system/cpu/cpu1/online";
    const int TimerVector = 0x31, IpiVector = 0x41;

    public static IEnumerable<TestCase> All =>
    [
        new("hotplug/guest_with_timers_and_ipis", TimersAndIpis, Own: true),
        new("hotplug/halted_guest", HaltedGuest, Own: true),
        new("hotplug/clock_goes_on", ClockGoesOn, Own: true),
        new("hotplug/machine_made_on_one_cpu", MadeOnOneCpu, Own: true),
    ];

    static void SetOnline(bool online) => File.WriteAllText(Switch, online ? "1" : "0");

    /// <summary>The host's second CPU goes and comes, while <paramref name="alive"/> is asked in between.</summary>
    static void OffAndOn(int times, Action<string> alive)
    {
        Check.Needs(File.Exists(Switch), "a second CPU that can be switched off");
        try
        {
            for (int i = 0; i < times; i++)
            {
                SetOnline(false);
                alive("with one CPU");
                SetOnline(true);
                alive("with two CPUs again");
            }
        }
        finally
        {
            SetOnline(true);
        }
    }

    /// <summary>A guest whose CPUs have a periodic timer each and send each other IPIs until vector 0x60
    /// comes.</summary>
    static Machine Busy()
    {
        var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel();
                code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
                code.ApicWrite(Apic.LvtTimer, Apic.TimerPeriodic | TimerVector);
                code.ApicWrite(Apic.TimerInitial, 3_000_000);
                code.sti();
                code.Label(ref again);
                code.hlt();
                code.Ipi(IpiVector, 1 - (uint)cpu);
                code.cmp(MachineAssembler.CountOf(0x60), 1);
                code.jb(again);
                code.Done();
            });
            machine.Start(cpu);
        }
        return machine;
    }

    static void ExpectProgress(Machine machine, string when)
    {
        for (int cpu = 0; cpu < 2; cpu++)
        {
            foreach (int vector in (int[])[TimerVector, IpiVector])
            {
                uint before = machine.Count(vector, cpu);
                Wait.Until(() => machine.Count(vector, cpu) > before + 2, $"{vector:x} at CPU {cpu} {when}");
            }
        }
    }

    static void TimersAndIpis()
    {
        using Machine machine = Busy();
        ExpectProgress(machine, "at first");
        OffAndOn(3, when => ExpectProgress(machine, when));
        // A HLT may just lie between the test and the last interrupt: the timers go on.
        for (byte cpu = 0; cpu < 2; cpu++)
            machine.Vm.TrySignalMsi(RoutingTests.Message(0x60, cpu));
        machine.Join();
    }

    static void HaltedGuest()
    {
        using var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel();
                code.sti();
                code.Label(ref again);
                code.hlt();
                code.jmp(again);
            });
            machine.Start(cpu);
        }
        OffAndOn(2, _ =>
        {
            for (byte cpu = 0; cpu < 2; cpu++)
            {
                uint before = machine.Count(IpiVector, cpu);
                machine.Vm.TrySignalMsi(RoutingTests.Message(IpiVector, cpu));
                machine.WaitForCount(IpiVector, before + 1, cpu);
            }
        });
    }

    /// <summary>kvmclock and TSC never step back, although the guest's CPU moves.</summary>
    static void ClockGoesOn()
    {
        const ulong Page = MachineLayout.Shared, Bad = Page + 0x100, Rounds = Page + 0x108;
        Paravirt.Needs(ParavirtFeature.Clocksource2);
        using var machine = new Machine();
        machine.Program(0, code =>
        {
            Label again = code.CreateLabel(), good = code.CreateLabel(), tscGood = code.CreateLabel();
            code.WriteMsr(Paravirt.SystemTime, Page | 1);
            code.mov(edi, (uint)Page);
            code.xor(r12, r12);
            code.xor(r11, r11);
            code.sti();
            code.Label(ref again);
            code.ReadClock();
            code.cmp(rax, r12);
            code.jae(good);
            code.inc(__dword_ptr[(long)Bad]);
            code.Label(ref good);
            code.mov(r12, rax);
            code.ReadTsc();
            code.cmp(rax, r11);
            code.jae(tscGood);
            code.inc(__dword_ptr[(long)Bad + 4]);
            code.Label(ref tscGood);
            code.mov(r11, rax);
            code.inc(__dword_ptr[(long)Rounds]);
            code.cmp(MachineAssembler.CountOf(0x60), 1);
            code.jb(again);
            code.Done();
        });
        machine.Start(0);
        OffAndOn(2, when =>
        {
            uint before = machine.Memory.Read<uint>(Rounds);
            Wait.Until(() => machine.Memory.Read<uint>(Rounds) > before + 100, when);
        });
        machine.Vm.TrySignalMsi(RoutingTests.Message(0x60));
        machine.Join();
        Check.Equal("0 0", $"{machine.Memory.Read<uint>(Bad)} {machine.Memory.Read<uint>(Bad + 4)}",
            "steps back of kvmclock and TSC");
    }

    static void MadeOnOneCpu()
    {
        Machine? machine = null;
        try
        {
            OffAndOn(1, when =>
            {
                machine ??= Busy();
                ExpectProgress(machine, when);
            });
        }
        finally
        {
            machine?.Dispose();
        }
    }
}
