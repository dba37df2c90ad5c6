// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Selftests;

/// <summary>The guest's time: kvmclock, KVM_GET_CLOCK and KVM_SET_CLOCK, the time stamp counter.</summary>
/// <remarks>Upper limits compare two clocks, never a clock with an expected duration.</remarks>
static class ClockTests
{
    const ulong Page = MachineLayout.Shared, SecondPage = MachineLayout.Shared + 0x1000;
    const uint TscMsr = 0x10, TscAdjustMsr = 0x3B;
    const double Millisecond = 1e6, Second = 1e9;

    public static IEnumerable<TestCase> All =>
    [
        new("clock/leaf", Leaf),
        new("clock/system_time_old_msr", () => SystemTimePage(Paravirt.SystemTimeOld, ParavirtFeature.Clocksource)),
        new("clock/system_time_new_msr", () => SystemTimePage(Paravirt.SystemTime, ParavirtFeature.Clocksource2)),
        new("clock/system_time_set_by_host", SystemTimeSetByHost),
        new("clock/system_time_switched_off", SwitchedOff),
        new("clock/system_time_runs_on", RunsOn),
        new("clock/wall_clock", WallClock),
        new("clock/get_flags", GetFlags),
        new("clock/set", Set),
        new("clock/set_moves_the_guest", SetMovesTheGuest),
        new("clock/set_back", SetBack),
        new("clock/set_with_realtime", SetWithRealtime),
        new("clock/set_bad_flags", SetBadFlags),
        new("clock/pause_and_resume", PauseAndResume),
        new("clock/to_another_machine", ToAnotherMachine),
        new("clock/monotonic_over_cpus", MonotonicOverCpus),
        new("clock/monotonic_tsc_over_cpus", MonotonicTscOverCpus),
        new("clock/kvmclock_ctrl", KvmclockCtrl),
        new("clock/kvmclock_ctrl_without_clock", KvmclockCtrlWithout),
        new("clock/tsc_set_by_host", TscSetByHost),
        new("clock/tsc_set_by_guest", TscSetByGuest),
        new("clock/tsc_adjust", TscAdjust),
        new("clock/tsc_adjust_by_host", TscAdjustByHost),
        new("clock/tsc_of_a_second_cpu", TscOfSecondCpu),
        new("clock/tsc_khz", TscKhz),
        new("clock/tsc_khz_other", TscKhzOther),
        new("clock/tsc_khz_of_machine", TscKhzOfMachine),
        new("clock/tsc_against_clock", TscAgainstClock),
        new("clock/rdtscp", Rdtscp),
    ];

    /// <summary>"KVMKVMKVM", and only bits that have a meaning.</summary>
    static void Leaf()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        KvmCpuidEntry2? signature = Paravirt.Leaf(kvm, Paravirt.SignatureLeaf);
        Check.Needs(signature != null, "the leaves of KVM");
        Check.Equal((0x4B4D564Bu, 0x564B4D56u, 0x4Du),
            (signature!.Value.Ebx, signature.Value.Ecx, signature.Value.Edx), "signature");
        Check.That(signature.Value.Eax is 0 or >= Paravirt.FeatureLeaf, $"last leaf {signature.Value.Eax:x}");
        uint features = Paravirt.Leaf(kvm, Paravirt.FeatureLeaf)?.Eax ?? 0;
        foreach (int bit in (int[])[8, 18, 19, 20, 21, 22, 23, 25, 31])
            Check.Equal(0u, features >> bit & 1, $"bit {bit}");
        Check.Equal(features & 1, features >> (int)ParavirtFeature.Clocksource2 & 1, "both generations of the clock");
    }

    static byte[] PageBytes(Machine machine, ulong address = Page) => machine.Memory.Slice(address, 32).ToArray();

    /// <summary>The time that the guest would read with this time stamp.</summary>
    static double TimeAt(ReadOnlySpan<byte> page, ulong tsc)
    {
        ulong delta = tsc - BitConverter.ToUInt64(page[Paravirt.ClockTsc..]);
        double scaled = delta * Math.Pow(2, (sbyte)page[Paravirt.ClockShift]);
        return scaled * BitConverter.ToUInt32(page[Paravirt.ClockMul..]) / 4294967296d
            + BitConverter.ToUInt64(page[Paravirt.ClockSystemTime..]);
    }

    /// <summary>Two readings of the system time by the guest, one after the other.</summary>
    static (double First, double Second) ReadTwice(Machine machine)
    {
        ulong[] times = new ulong[2];
        for (int i = 0; i < 2; i++)
        {
            machine.RunToDone();
            times[i] = machine.Vcpu.Regs.R12;
        }
        return (times[0], times[1]);
    }

    /// <summary>A machine that has its clock at <see cref="Page"/> and reads it, to r12, at each step.</summary>
    static Machine ClockMachine(uint msr = Paravirt.SystemTime, ParavirtFeature feature = ParavirtFeature.Clocksource2)
    {
        Paravirt.Needs(feature);
        var machine = new Machine();
        machine.Program(0, code =>
        {
            Label again = code.CreateLabel();
            code.WriteMsr(msr, Page | 1);
            code.mov(edi, (uint)Page);
            code.Label(ref again);
            code.ReadClock();
            code.mov(r12, rax);
            code.Done();
            code.jmp(again);
        });
        return machine;
    }

    static void SystemTimePage(uint msr, ParavirtFeature feature)
    {
        using Machine machine = ClockMachine(msr, feature);
        double before = machine.Vm.Clock.Clock;
        (double first, double second) = ReadTwice(machine);
        double after = machine.Vm.Clock.Clock;
        byte[] page = PageBytes(machine);
        uint version = BitConverter.ToUInt32(page);
        Check.That(version != 0 && version % 2 == 0, $"version {version}");
        Check.Equal(0, page[Paravirt.ClockFlags] & ~(Paravirt.FlagTscStable | Paravirt.FlagGuestStopped), "flags");
        Check.That(first < second, $"time runs: {first:0}, {second:0}");
        Check.That(before - Millisecond <= first && second <= after + Millisecond,
            $"the guest's time is KVM_GET_CLOCK's: {before:0} {first:0} {second:0} {after:0}");
        Check.Equal(Page | 1, machine.Vcpu.GetMsr(msr), "the MSR reads back");
        // The page tells the frequency of the time stamp counter.
        double nanoseconds = TimeAt(page, machine.Vcpu.GetMsr(TscMsr) + (ulong)machine.Vcpu.TscKhz * 1000)
            - TimeAt(page, machine.Vcpu.GetMsr(TscMsr));
        Check.That(nanoseconds is > 0.9 * Second and < 1.5 * Second, $"a second has {nanoseconds:0} ns");
    }

    static void SystemTimeSetByHost()
    {
        using var machine = new Machine(code =>
        {
            code.mov(edi, (uint)Page);
            code.ReadClock();
            code.mov(r12, rax);
            code.Done();
        });
        Paravirt.Needs(ParavirtFeature.Clocksource2);
        machine.Vcpu.SetMsr(Paravirt.SystemTime, Page | 1);
        machine.RunToDone();
        Check.That(machine.Vcpu.Regs.R12 > 0, "time");
    }

    static void SwitchedOff()
    {
        using Machine machine = ClockMachine();
        ReadTwice(machine);
        machine.Vcpu.SetMsr(Paravirt.SystemTime, 0);
        machine.Memory.Slice(Page, 32).Clear();
        machine.Vm.Clock = new() { Clock = 1_000_000_000_000 };
        machine.Program(0, code =>
        {
            code.ReadMsr(Paravirt.SystemTime);
            code.Save();
            code.Done();
        });
        machine.RunToDone();
        Check.Equal(0u, machine.Results[0], "MSR");
        Check.That(!PageBytes(machine).AsSpan().ContainsAnyExcept((byte)0), "the page is left alone");
    }

    static void RunsOn()
    {
        using Machine machine = ClockMachine();
        long start = Stopwatch.GetTimestamp();
        (double first, _) = ReadTwice(machine);
        double between = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
        long middle = Stopwatch.GetTimestamp();
        Thread.Sleep(50);
        double slept = Stopwatch.GetElapsedTime(middle).TotalNanoseconds;
        (double second, _) = ReadTwice(machine);
        double all = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
        Check.That(second - first >= slept - Millisecond && second - first <= all + Millisecond,
            $"the guest has {second - first:0} ns between {slept:0} and {all:0} of the host ({between:0} at first)");
    }

    /// <summary>Wall clock and system time are together the host's time of day.</summary>
    static void WallClock()
    {
        foreach ((uint wall, uint system, ParavirtFeature feature) in new[]
            {
                (Paravirt.WallClockOld, Paravirt.SystemTimeOld, ParavirtFeature.Clocksource),
                (Paravirt.WallClock, Paravirt.SystemTime, ParavirtFeature.Clocksource2),
            })
        {
            using var machine = new Machine();
            Paravirt.Needs(feature);
            machine.Program(0, code =>
            {
                code.WriteMsr(system, Page | 1);
                code.WriteMsr(wall, SecondPage + 0x10);
                code.mov(edi, (uint)Page);
                code.ReadClock();
                code.mov(r12, rax);
                code.Done();
            });
            double before = (DateTime.UtcNow - DateTime.UnixEpoch).TotalNanoseconds;
            machine.RunToDone();
            double after = (DateTime.UtcNow - DateTime.UnixEpoch).TotalNanoseconds;
            uint version = machine.Memory.Read<uint>(SecondPage + 0x10);
            Check.That(version != 0 && version % 2 == 0, $"version {version}");
            Check.That(machine.Memory.Read<uint>(SecondPage + 0x18) < Second, "nanoseconds of the second");
            double now = machine.Memory.Read<uint>(SecondPage + 0x14) * Second
                + machine.Memory.Read<uint>(SecondPage + 0x18) + machine.Vcpu.Regs.R12;
            Check.That(now >= before - 20 * Millisecond && now <= after + 20 * Millisecond,
                $"{(now - before) / Millisecond:0} ms after the test's start, {(after - now) / Millisecond:0} before"
                + " its end");
        }
    }

    static void GetFlags()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Vcpu vcpu = vm.CreateVcpu();
        int supported = kvm.CheckExtension(KvmCap.AdjustClock);
        const uint Known = KvmClockData.FlagTscStable | KvmClockData.FlagRealtime | KvmClockData.FlagHostTsc;
        Check.That(supported != 0 && (supported & ~Known & ~1u) == 0, $"KVM_CAP_ADJUST_CLOCK {supported:x}");
        double before = (DateTime.UtcNow - DateTime.UnixEpoch).TotalNanoseconds;
        KvmClockData first = vm.Clock, second = vm.Clock;
        Check.That(first.Clock <= second.Clock, $"clock {first.Clock}, {second.Clock}");
        Check.Equal(0u, first.Flags & ~(uint)supported, "flags beyond KVM_CAP_ADJUST_CLOCK");
        Check.Equal("0 0 0", $"{first.Pad0} {first.Pad1} {first.Pad2}", "padding");
        if ((first.Flags & KvmClockData.FlagRealtime) != 0)
        {
            double after = (DateTime.UtcNow - DateTime.UnixEpoch).TotalNanoseconds;
            Check.That(first.Realtime >= before - 20 * Millisecond && first.Realtime <= after + 20 * Millisecond,
                $"realtime {first.Realtime}");
        }
        else
            Check.Equal(0ul, first.Realtime, "realtime without its flag");
        if ((first.Flags & KvmClockData.FlagHostTsc) != 0)
            Check.That(second.HostTsc > first.HostTsc, $"host_tsc {first.HostTsc}, {second.HostTsc}");
        else
            Check.Equal(0ul, first.HostTsc, "host_tsc without its flag");
        _ = vcpu.Id;
    }

    static void Set()
    {
        using var machine = new Machine();
        foreach (ulong nanoseconds in (ulong[])[0, 1_000_000_000, 1ul << 60, 5_000_000])
        {
            long start = Stopwatch.GetTimestamp();
            machine.Vm.Clock = new() { Clock = nanoseconds };
            ulong clock = machine.Vm.Clock.Clock;
            double elapsed = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
            Check.That(clock >= nanoseconds && clock - nanoseconds <= elapsed + Millisecond,
                $"set to {nanoseconds}, {clock - nanoseconds} more after {elapsed:0}");
        }
    }

    static void SetMovesTheGuest()
    {
        const ulong Hour = 3600_000_000_000;
        using Machine machine = ClockMachine();
        ReadTwice(machine);
        ulong before = machine.Vm.Clock.Clock;
        machine.Vm.Clock = new() { Clock = before + Hour };
        (double first, _) = ReadTwice(machine);
        double after = machine.Vm.Clock.Clock;
        Check.That(first >= before + Hour && first <= after, $"{before} + an hour: {first:0}, then {after:0}");
    }

    static void SetBack()
    {
        using Machine machine = ClockMachine();
        machine.Vm.Clock = new() { Clock = 7_000_000_000_000 };
        ReadTwice(machine);
        machine.Vm.Clock = new() { Clock = 1_000_000_000 };
        (double first, _) = ReadTwice(machine);
        Check.That(first is >= Second and < 1000 * Second, $"{first:0} after it was set back to a second");
    }

    /// <summary>With the time of day at which the clock had that value, what has passed since is added.</summary>
    static void SetWithRealtime()
    {
        using var machine = new Machine();
        Check.Needs(KvmCap.AdjustClock, (int)KvmClockData.FlagRealtime);
        const ulong Away = 100_000_000_000;
        ulong now = (ulong)(DateTime.UtcNow - DateTime.UnixEpoch).TotalNanoseconds;
        long start = Stopwatch.GetTimestamp();
        machine.Vm.Clock = new() { Clock = 5_000_000, Realtime = now - Away, Flags = KvmClockData.FlagRealtime };
        ulong clock = machine.Vm.Clock.Clock;
        double elapsed = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
        Check.That(clock >= 5_000_000 + Away - 20_000_000 && clock <= 5_000_000 + Away + elapsed + 20 * Millisecond,
            $"clock {clock} after 100 seconds away");
        // A time of day that is still to come changes nothing.
        machine.Vm.Clock = new() { Clock = 5_000_000, Realtime = now + Away, Flags = KvmClockData.FlagRealtime };
        Check.That(machine.Vm.Clock.Clock is >= 5_000_000 and < Away, "clock with a time of day in the future");
    }

    static void SetBadFlags()
    {
        using var machine = new Machine();
        machine.Vm.Clock = new() { Clock = 1ul << 50 };
        foreach (uint flags in (uint[])[1, 16, 0x80000000])
        {
            var clock = new KvmClockData { Clock = 5, Flags = flags };
            Check.Fails(Errno.EINVAL, machine.Vm.TryCall(KvmIoctl.SetClock, ref clock), $"flags {flags:x}");
        }
        Check.That(machine.Vm.Clock.Clock >= 1ul << 50, "clock after refusals");
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.SetClock, 0x10), "SET_CLOCK, an address in page 0");
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.GetClock, 0x10), "GET_CLOCK, an address in page 0");
    }

    /// <summary>A pause as QEMU makes it: what the host slept the guest does not see.</summary>
    static void PauseAndResume()
    {
        using Machine machine = ClockMachine();
        (_, double last) = ReadTwice(machine);
        ulong stopped = machine.Vm.Clock.Clock;
        Thread.Sleep(200);
        long start = Stopwatch.GetTimestamp();
        machine.Vm.Clock = new() { Clock = stopped };
        (double first, double second) = ReadTwice(machine);
        double since = Stopwatch.GetElapsedTime(start).TotalNanoseconds;
        Check.That(first >= last && second > first, $"time goes on: {last:0} {first:0} {second:0}");
        Check.That(first >= stopped && second <= stopped + since + Millisecond,
            $"stopped at {stopped}, {second - stopped:0} more, of which {since:0} are real");
    }

    static void ToAnotherMachine()
    {
        using Machine source = ClockMachine();
        source.Vm.Clock = new() { Clock = 9_000_000_000_000 };
        (_, double last) = ReadTwice(source);
        ulong stopped = source.Vm.Clock.Clock;
        using Machine target = ClockMachine();
        target.Vcpu.SetMsr(TscMsr, source.Vcpu.GetMsr(TscMsr));
        target.Vm.Clock = new() { Clock = stopped };
        (double first, double second) = ReadTwice(target);
        Check.That(first >= last && second > first && first - last < 1000 * Second,
            $"time goes on in the target: {last:0} {first:0} {second:0}");
    }

    /// <summary>Two CPUs take turns to read the time; no reading is older than the one before.</summary>
    static void Monotonic(Action<Assembler, int> enable, Action<Assembler> read, string what)
    {
        const int Rounds = 2000;
        const ulong Turn = MachineLayout.Shared + 0x2000, Last = Turn + 8, Bad = Turn + 16;
        using var machine = new Machine(cpus: 2);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                Label again = code.CreateLabel(), wait = code.CreateLabel(), good = code.CreateLabel();
                enable(code, cpu);
                code.mov(edi, (uint)(Page + 0x40 * (ulong)cpu));
                code.xor(ebx, ebx);
                code.Label(ref again);
                code.nop();
                code.Label(ref wait);
                code.pause();
                code.cmp(__dword_ptr[(long)Turn], cpu);
                code.jne(wait);
                read(code);
                code.cmp(rax, __qword_ptr[(long)Last]);
                code.jae(good);
                code.inc(__dword_ptr[(long)Bad]);
                code.Label(ref good);
                code.mov(__qword_ptr[(long)Last], rax);
                code.mov(__dword_ptr[(long)Turn], 1 - cpu);
                code.inc(ebx);
                code.cmp(ebx, Rounds);
                code.jb(again);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
        bool stable = true;
        for (ulong cpu = 0; cpu < 2; cpu++)
            stable &= (PageBytes(machine, Page + cpu * 0x40)[Paravirt.ClockFlags] & Paravirt.FlagTscStable) != 0;
        if (what == "system time")
            Check.Needs(stable, "a clock with TSC_STABLE: without it CPUs may differ");
        Check.Equal(0u, machine.Memory.Read<uint>(Bad), $"{what}: steps back in {2 * Rounds} readings");
    }

    static void MonotonicOverCpus()
    {
        Paravirt.Needs(ParavirtFeature.Clocksource2);
        Monotonic((code, cpu) => code.WriteMsr(Paravirt.SystemTime, Page + 0x40 * (ulong)cpu | 1),
            code => code.ReadClock(), "system time");
    }

    static void MonotonicTscOverCpus() => Monotonic((_, _) => { }, code => code.ReadTsc(), "TSC");

    /// <summary>The guest learns that it was paused, once.</summary>
    static void KvmclockCtrl()
    {
        using Machine machine = ClockMachine();
        ReadTwice(machine);
        Check.Equal(0, PageBytes(machine)[Paravirt.ClockFlags] & Paravirt.FlagGuestStopped, "flag before");
        Check.Succeeds(machine.Vcpu.TryKvmclockCtrl(), "KVMCLOCK_CTRL");
        ReadTwice(machine);
        Check.That((PageBytes(machine)[Paravirt.ClockFlags] & Paravirt.FlagGuestStopped) != 0, "flag afterwards");
        // It is the guest that clears it.
        machine.Memory.Slice(Page, 32)[Paravirt.ClockFlags] &= unchecked((byte)~Paravirt.FlagGuestStopped);
        machine.Vm.Clock = new() { Clock = machine.Vm.Clock.Clock };
        ReadTwice(machine);
        Check.Equal(0, PageBytes(machine)[Paravirt.ClockFlags] & Paravirt.FlagGuestStopped, "flag once cleared");
    }

    static void KvmclockCtrlWithout()
    {
        using var machine = new Machine();
        Check.Fails(Errno.EINVAL, machine.Vcpu.TryKvmclockCtrl(), "KVMCLOCK_CTRL without a clock");
    }

    static Machine TscMachine(Action<Assembler>? code = null) => new(code ?? (code =>
    {
        Label again = code.CreateLabel();
        code.Label(ref again);
        code.ReadTsc();
        code.mov(r12, rax);
        code.Done();
        code.jmp(again);
    }));

    static ulong GuestTsc(Machine machine)
    {
        machine.RunToDone();
        return machine.Vcpu.Regs.R12;
    }

    static void TscSetByHost()
    {
        using Machine machine = TscMachine();
        ulong last = GuestTsc(machine);
        foreach (ulong value in (ulong[])[1ul << 50, 1ul << 40, 1ul << 62])
        {
            machine.Vcpu.SetMsr(TscMsr, value);
            ulong first = machine.Vcpu.GetMsr(TscMsr), guest = GuestTsc(machine), second = machine.Vcpu.GetMsr(TscMsr);
            Check.That(first >= value && guest >= first && second >= guest && second - value < 1ul << 45,
                $"set to {value:x}: {first:x}, in the guest {guest:x}, {second:x}; before {last:x}");
            last = guest;
        }
    }

    static void TscSetByGuest()
    {
        using Machine machine = TscMachine(code =>
        {
            code.WriteMsr(TscMsr, 1ul << 52);
            code.ReadTsc();
            code.mov(r12, rax);
            code.ReadMsr(TscMsr);
            code.shl(rdx, 32);
            code.or(rax, rdx);
            code.mov(rbx, rax);
            code.Done();
        });
        ulong read = GuestTsc(machine), msr = machine.Vcpu.Regs.Rbx;
        Check.That(read >= 1ul << 52 && msr >= read && msr - read < 1ul << 45, $"RDTSC {read:x}, RDMSR {msr:x}");
    }

    /// <summary>IA32_TSC_ADJUST (SDM volume 3, 18.17.3): a change of it moves the counter as much, and a write of the
    /// counter moves it.</summary>
    static void TscAdjust()
    {
        const ulong Step = 1ul << 48;
        using Machine machine = TscMachine(code =>
        {
            code.ReadTsc();
            code.mov(r12, rax);
            code.WriteMsr(TscAdjustMsr, Step);
            code.ReadTsc();
            code.mov(rbx, rax);
            code.Done();
            code.ReadMsr(TscAdjustMsr);
            code.shl(rdx, 32);
            code.or(rax, rdx);
            code.mov(r12, rax);
            code.WriteMsr(TscAdjustMsr, 0);
            code.ReadTsc();
            code.mov(rbx, rax);
            code.Done();
        });
        Check.Needs(machine.Kvm.GetSupportedCpuid().Any(leaf => leaf is { Function: 7, Index: 0 }
            && (leaf.Ebx & 2) != 0), "IA32_TSC_ADJUST");
        ulong before = GuestTsc(machine), after = machine.Vcpu.Regs.Rbx;
        Check.That(after - before >= Step && after - before < Step + (1ul << 45), $"{before:x} to {after:x}");
        Check.Equal(Step, GuestTsc(machine), "the MSR reads back");
        ulong back = machine.Vcpu.Regs.Rbx;
        Check.That(back > before && back < after, $"back at {back:x}");
    }

    /// <summary>User space restores the MSR without moving the counter again.</summary>
    static void TscAdjustByHost()
    {
        using Machine machine = TscMachine();
        Check.Needs(machine.Kvm.GetSupportedCpuid().Any(leaf => leaf is { Function: 7, Index: 0 }
            && (leaf.Ebx & 2) != 0), "IA32_TSC_ADJUST");
        ulong before = GuestTsc(machine);
        machine.Vcpu.SetMsr(TscAdjustMsr, 1ul << 50);
        ulong after = GuestTsc(machine);
        Check.That(after - before < 1ul << 45, $"{before:x} to {after:x}");
        Check.Equal(1ul << 50, machine.Vcpu.GetMsr(TscAdjustMsr), "the MSR reads back");
    }

    /// <summary>CPUs of a machine have one time stamp counter, whenever they are made.</summary>
    static void TscOfSecondCpu()
    {
        using Machine machine = TscMachine();
        ulong first = GuestTsc(machine);
        int cpu = machine.AddCpu(1);
        ulong second = machine.Cpus[cpu].GetMsr(TscMsr);
        ulong third = machine.Vcpu.GetMsr(TscMsr);
        Check.That(first <= second && second <= third, $"{first} {second} {third}");
    }

    static void TscKhz()
    {
        using var machine = new Machine();
        int khz = machine.Vcpu.TscKhz;
        Check.That(khz > 1000, $"{khz} kHz");
        machine.Vcpu.TscKhz = khz;
        Check.Equal(khz, machine.Vcpu.TscKhz, "the same again");
        Check.Succeeds(machine.Vcpu.TryCall(KvmIoctl.SetTscKhz, 0), "0 is the host's");
        Check.Equal(khz, machine.Vcpu.TscKhz, "after 0");
        // More than the hardware can scale; without scaling KVM may take it and catch up in software.
        int result = machine.Vcpu.TryCall(KvmIoctl.SetTscKhz, 0x7FFFFFFF);
        Check.That(result is 0 or -(int)Errno.EINVAL, $"2^31-1 kHz: {result}");
        machine.Vcpu.TscKhz = khz;
        Check.Equal(khz, machine.Vcpu.TscKhz, "the first one again");
    }

    /// <summary>Another frequency: by scaling, where the hardware has it.</summary>
    static void TscKhzOther()
    {
        using Machine machine = ClockMachine();
        Check.Needs(KvmCap.TscControl);
        int khz = machine.Vcpu.TscKhz / 2;
        machine.Vcpu.TscKhz = khz;
        Check.Equal(khz, machine.Vcpu.TscKhz, "frequency");
        ReadTwice(machine);
        byte[] page = PageBytes(machine);
        ulong start = machine.Vcpu.GetMsr(TscMsr);
        double second = TimeAt(page, start + (ulong)khz * 1000) - TimeAt(page, start);
        Check.That(second is > 0.99 * Second and < 1.01 * Second, $"a second has {second:0} ns");
    }

    static void TscKhzOfMachine()
    {
        Check.Needs(KvmCap.VmTscControl);
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        int khz = vm.Call(KvmIoctl.GetTscKhz);
        Check.Succeeds(vm.TryCall(KvmIoctl.SetTscKhz, (nuint)khz), "SET_TSC_KHZ of the machine");
        Vcpu vcpu = vm.CreateVcpu();
        Check.Equal(khz, vcpu.TscKhz, "frequency of its CPU");
    }

    /// <summary>The counter runs at the frequency that is told.</summary>
    static void TscAgainstClock()
    {
        using Machine machine = TscMachine();
        // Between which bounds the two clocks differ, from the host's readings before and after.
        double[] lower = new double[2], upper = new double[2];
        for (int i = 0; i < 2; i++)
        {
            long before = Stopwatch.GetTimestamp();
            double guest = GuestTsc(machine) * 1e6 / machine.Vcpu.TscKhz;
            lower[i] = guest - Stopwatch.GetTimestamp();
            upper[i] = guest - before;
            if (i == 0)
                Thread.Sleep(300);
        }
        double drift = Math.Max(0, Math.Max(lower[1] - upper[0], lower[0] - upper[1]));
        Check.That(drift < 15 * Millisecond, $"the clocks ran apart by {drift / Millisecond:0.0} ms in 300");
    }

    static void Rdtscp()
    {
        using Machine machine = TscMachine(code =>
        {
            code.rdtscp();
            code.shl(rdx, 32);
            code.or(rax, rdx);
            code.mov(rbx, rax);
            code.mov(r12d, ecx);
            code.ReadTsc();
            code.mov(rdi, rax);
            code.Done();
        });
        Check.Needs(machine.Kvm.GetSupportedCpuid().Any(leaf =>
            leaf.Function == 0x80000001 && (leaf.Edx & 1 << 27) != 0), "RDTSCP");
        machine.Vcpu.SetMsr(0xC0000103, 0x1234);
        machine.RunToDone();
        Check.Equal(0x1234ul, machine.Vcpu.Regs.R12, "TSC_AUX");
        Check.That(machine.Vcpu.Regs.Rbx <= machine.Vcpu.Regs.Rdi, "RDTSCP before RDTSC");
    }
}
