// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Requests for interrupt controllers and timers in odd order, and from several threads at once.</summary>
static class OrderTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("order/irqchip_after_cpu", IrqchipAfterCpu),
        new("order/irqchip_twice", IrqchipTwice),
        new("order/requests_before_irqchip", BeforeIrqchip),
        new("order/cpu_requests_before_irqchip", CpuRequestsBeforeIrqchip),
        new("order/requests_after_refused_irqchip", AfterRefusedIrqchip),
        new("order/pit_without_irqchip", PitWithoutIrqchip),
        new("order/irqchip_without_cpus", IrqchipWithoutCpus),
        new("order/set_irqchip_before_cpus", SetIrqchipBeforeCpus),
        new("order/cap_after_cpu", CapAfterCpu),
        new("order/lapic_before_cpuid", LapicBeforeCpuid),
        new("order/irqchip_from_threads", IrqchipFromThreads),
        new("order/irqchip_and_split_at_once", IrqchipAndSplit),
        new("order/irqchip_and_cpu_at_once", IrqchipAndCpu),
        new("order/pit_from_threads", PitFromThreads),
        new("order/lines_from_threads", LinesFromThreads),
        new("order/state_from_threads", StateFromThreads),
        new("order/routes_and_irqchip_at_once", RoutesAndIrqchip),
        new("order/set_irqchip_while_running", SetIrqchipWhileRunning),
        new("order/closed_while_interrupting", ClosedWhileInterrupting),
        new("order/create_destroy_with_chips", CreateDestroy, Own: true),
        new("order/random_requests", RandomRequests, Own: true),
    ];

    static void IrqchipAfterCpu()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Vcpu vcpu = vm.CreateVcpu();
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.CreateIrqchip), "CREATE_IRQCHIP");
        Check.Fails(Errno.EINVAL, vcpu.TryCall(KvmIoctl.GetLapic, new byte[1024]), "GET_LAPIC");
    }

    static void IrqchipTwice()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreateIrqchip), "twice");
        var split = new KvmEnableCap { Cap = (uint)KvmCap.SplitIrqchip };
        split.Args[0] = 24;
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.EnableCap, ref split), "SPLIT_IRQCHIP afterwards");
        vm.CreateVcpu();
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreateIrqchip), "after a CPU");
    }

    /// <summary>Requests of the machine that need the chips, and how they are refused without.</summary>
    static readonly (string Name, uint Request, int Size, Errno Error)[] NeedChips =
    [
        (nameof(KvmIoctl.GetIrqchip), KvmIoctl.GetIrqchip, 520, Errno.ENXIO),
        (nameof(KvmIoctl.SetIrqchip), KvmIoctl.SetIrqchip, 520, Errno.ENXIO),
        (nameof(KvmIoctl.IrqLine), KvmIoctl.IrqLine, 8, Errno.ENXIO),
        (nameof(KvmIoctl.IrqLineStatus), KvmIoctl.IrqLineStatus, 8, Errno.ENXIO),
        (nameof(KvmIoctl.SetGsiRouting), KvmIoctl.SetGsiRouting, 8, Errno.EINVAL),
        (nameof(KvmIoctl.SignalMsi), KvmIoctl.SignalMsi, 32, Errno.EINVAL),
        (nameof(KvmIoctl.GetPit2), KvmIoctl.GetPit2, 112, Errno.ENXIO),
        (nameof(KvmIoctl.SetPit2), KvmIoctl.SetPit2, 112, Errno.ENXIO),
        (nameof(KvmIoctl.ReinjectControl), KvmIoctl.ReinjectControl, 32, Errno.ENXIO),
    ];

    static void ExpectRefused(Vm vm)
    {
        foreach ((string name, uint request, int size, Errno error) in NeedChips)
            Check.Fails(error, vm.TryCall(request, new byte[size]), name);
    }

    static void BeforeIrqchip()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        ExpectRefused(vm);
        vm.CreateIrqchip();
        vm.CreateVcpu();
        _ = vm.GetIrqchip(KvmIrqchipId.Ioapic);
    }

    /// <summary>CVE-2018-19406 among them.</summary>
    static void CpuRequestsBeforeIrqchip()
    {
        using var machine = new Machine(code =>
        {
            code.mov(eax, 5);
            code.mov(cr8, rax);
            code.mov(rax, cr8);
            code.Save();
            code.Done();
        }, Chips.None);
        foreach ((uint request, int size) in new[] { (KvmIoctl.GetLapic, 1024), (KvmIoctl.SetLapic, 1024) })
            Check.Fails(Errno.EINVAL, machine.Vcpu.TryCall(request, new byte[size]), $"request {request:x}");
        Check.Equal(0, machine.Vcpu.TrySetMsrs([new(Apic.Msr(Apic.Tpr), 0, 0)]), "x2APIC MSRs set");
        ulong address = 0;
        Check.Fails(Errno.EINVAL, machine.Vcpu.TryCall(KvmIoctl.SetVapicAddr, ref address), "SET_VAPIC_ADDR");
        Check.Succeeds(machine.Vcpu.TryCall(KvmIoctl.Nmi), "KVM_NMI");
        machine.Vcpu.Cpuid = machine.Kvm.GetSupportedCpuid();
        KvmExit exit = machine.Vcpu.RunOnce();
        if (exit == KvmExit.SetTpr)
            exit = machine.Vcpu.RunOnce();
        Check.Equal(KvmExit.Io, exit, "exit reason");
        Check.Equal(5u, machine.Results[0], "CR8");
        Check.Equal(5ul, machine.Run.Cr8, "cr8 of the run page");
    }

    static void AfterRefusedIrqchip()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateVcpu();
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.CreateIrqchip), "CREATE_IRQCHIP");
        ExpectRefused(vm);
        vm.CreateVcpu(1);
    }

    /// <summary>Refused, or a timer whose ticks go nowhere.</summary>
    static void PitWithoutIrqchip()
    {
        using var machine = new Machine(chips: Chips.None, prepare: vm =>
        {
            var config = new KvmPitConfig();
            int result = vm.TryCall(KvmIoctl.CreatePit2, ref config);
            Check.That(result is 0 or -(int)Errno.ENOENT or -(int)Errno.EINVAL or -(int)Errno.ENXIO,
                $"CREATE_PIT2: {result}");
        });
        machine.Program(0, code =>
        {
            code.PitProgram(0, 2, 1000);
            code.Done();
            code.TakeInterrupts();
            code.Done();
        });
        for (int done = 0; done < 2;)
        {
            machine.RunTo(KvmExit.Io);
            if (machine.Run.Io.Port != MachineLayout.DonePort)
                continue;
            done++;
            Thread.Sleep(10);
        }
    }

    static void IrqchipWithoutCpus()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        vm.CreatePit2();
        vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(1, RoutingTests.Message(0x51)),
            KvmIrqRoutingEntry.ToChip(2, KvmIrqchipId.Ioapic, 2), KvmIrqRoutingEntry.ToChip(3, KvmIrqchipId.PicMaster,
                3));
        foreach (uint line in (uint[])[1, 2, 3])
            vm.PulseIrqLine(line);
        Check.That(vm.TrySignalMsi(RoutingTests.Message(0x51)) <= 0, "SIGNAL_MSI");
        KvmIrqchip chip = vm.GetIrqchip(KvmIrqchipId.Ioapic);
        chip.Ioapic.Irr = 0xFFFFFF;
        for (int pin = 0; pin < KvmIoapicState.NumPins; pin++)
            chip.Ioapic.Redirtbl[pin] = KvmIoapicState.Level | 0x60;
        vm.SetIrqchip(chip);
        KvmIrqchip pic = vm.GetIrqchip(KvmIrqchipId.PicMaster);
        pic.Pic.Irr = 0xFF;
        vm.SetIrqchip(pic);
    }

    static void SetIrqchipBeforeCpus()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        KvmIrqchip chip = vm.GetIrqchip(KvmIrqchipId.Ioapic);
        chip.Ioapic.Redirtbl[20] = 0x55;
        vm.SetIrqchip(chip);
        Vcpu vcpu = vm.CreateVcpu();
        KvmLapicState lapic = vcpu.Lapic;
        lapic[Apic.Svr] = Apic.SvrEnable | 0xFF;
        vcpu.Lapic = lapic;
        vm.PulseIrqLine(20);
        Check.Equal("[55]", Machine.Show(vcpu.Lapic.Vectors(Apic.Irr)), "pending");
    }

    static void CapAfterCpu()
    {
        using var machine = new Machine();
        machine.Vm.EnableCap(KvmCap.X2apicApi, (ulong)KvmX2apicApi.Use32BitIds);
        machine.EnableX2Apic(0);
        int cpu = machine.AddCpu(7);
        machine.EnableX2Apic(cpu);
        Check.Equal(7u, machine.Cpus[cpu].Lapic[Apic.Id], "ID in the 32-bit format");
    }

    static void LapicBeforeCpuid()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateIrqchip();
        Vcpu vcpu = vm.CreateVcpu();
        KvmLapicState lapic = vcpu.Lapic;
        lapic[Apic.Svr] = Apic.SvrEnable | 0xFF;
        lapic[Apic.LvtTimer] = Apic.TimerPeriodic | 0x31;
        lapic[Apic.TimerInitial] = 100_000;
        vcpu.Lapic = lapic;
        vcpu.Cpuid = kvm.GetSupportedCpuid();
        Check.Equal(Apic.SvrEnable | 0xFF, vcpu.Lapic[Apic.Svr], "SVR");
        Check.Equal(Apic.TimerPeriodic | 0x31, vcpu.Lapic[Apic.LvtTimer], "LVT timer");
    }

    /// <summary>Runs bodies at the same time, again and again; each gets its round.</summary>
    static void AtOnce(int rounds, Action<int> prepare, params Action<int>[] bodies)
    {
        using var barrier = new Barrier(bodies.Length, barrier => prepare((int)barrier.CurrentPhaseNumber + 1));
        var failures = new Exception?[bodies.Length];
        prepare(0);
        Thread[] threads =
        [
            .. bodies.Select((body, i) => new Thread(() =>
            {
                for (int round = 0; round < rounds; round++)
                {
                    try
                    {
                        body(round);
                    }
                    catch (Exception failure)
                    {
                        failures[i] ??= failure;
                    }
                    barrier.SignalAndWait();
                }
            })),
        ];
        foreach (Thread thread in threads)
            thread.Start();
        foreach (Thread thread in threads)
            thread.Join();
        if (failures.FirstOrDefault(failure => failure != null) is { } first)
            throw new TestFailure($"in a thread: {first.Message}");
    }

    /// <summary>A fresh machine for each of the rounds of <see cref="AtOnce"/>.</summary>
    sealed class Fresh : IDisposable
    {
        readonly Kvm _kvm = TestEnvironment.OpenKvm();

        public Vm Vm { get; private set; } = null!;
        public int Taken;

        public void Next()
        {
            Vm?.Dispose();
            Vm = _kvm.CreateVm();
            Taken = 0;
        }

        public void Dispose()
        {
            Vm.Dispose();
            _kvm.Dispose();
        }
    }

    static void IrqchipFromThreads()
    {
        using var fresh = new Fresh();
        Action<int> create = _ =>
        {
            int result = fresh.Vm.TryCall(KvmIoctl.CreateIrqchip);
            if (result == 0)
                Interlocked.Increment(ref fresh.Taken);
            else
                Check.Fails(Errno.EEXIST, result, "CREATE_IRQCHIP");
        };
        AtOnce(30, round =>
        {
            if (round > 0)
                Check.Equal(1, fresh.Taken, "threads that made it");
            fresh.Next();
        }, create, create, create);
    }

    static void IrqchipAndSplit()
    {
        using var fresh = new Fresh();
        AtOnce(30, round =>
        {
            if (round > 0)
                Check.Equal(1, fresh.Taken, "threads that made it");
            fresh.Next();
        }, _ => Count(fresh.Vm.TryCall(KvmIoctl.CreateIrqchip)), _ =>
        {
            var split = new KvmEnableCap { Cap = (uint)KvmCap.SplitIrqchip };
            split.Args[0] = 24;
            Count(fresh.Vm.TryCall(KvmIoctl.EnableCap, ref split));
        });

        void Count(int result)
        {
            if (result == 0)
                Interlocked.Increment(ref fresh.Taken);
            else
                Check.Fails(Errno.EEXIST, result, "the later one");
        }
    }

    /// <summary>CVE-2018-19407: either the CPU has a local APIC or there are no chips.</summary>
    static void IrqchipAndCpu()
    {
        using var fresh = new Fresh();
        AtOnce(40, _ => fresh.Next(), _ =>
        {
            int result = fresh.Vm.TryCall(KvmIoctl.CreateIrqchip);
            Check.That(result is 0 or -(int)Errno.EINVAL or -(int)Errno.EEXIST, $"CREATE_IRQCHIP: {result}");
        }, _ =>
        {
            Vcpu vcpu = fresh.Vm.CreateVcpu();
            int result = vcpu.TryCall(KvmIoctl.GetLapic, new byte[1024]);
            Check.That(result is 0 or -(int)Errno.EINVAL, $"GET_LAPIC: {result}");
            vcpu.Cpuid = fresh.Vm.Kvm.GetSupportedCpuid();
            vcpu.Sregs = vcpu.Sregs;
        });
    }

    static void PitFromThreads()
    {
        using var fresh = new Fresh();
        Action<int> create = _ =>
        {
            var config = new KvmPitConfig();
            int result = fresh.Vm.TryCall(KvmIoctl.CreatePit2, ref config);
            if (result == 0)
                Interlocked.Increment(ref fresh.Taken);
            else
                Check.Fails(Errno.EEXIST, result, "CREATE_PIT2");
            KvmPitState2 state = fresh.Vm.Pit2;
            fresh.Vm.Pit2 = state;
        };
        AtOnce(30, round =>
        {
            if (round > 0)
                Check.Equal(1, fresh.Taken, "threads that made it");
            fresh.Next();
            fresh.Vm.CreateIrqchip();
        }, create, create);
    }

    /// <summary>Several threads drive lines while the guest runs.</summary>
    static void LinesFromThreads()
    {
        using var machine = new Machine(code =>
        {
            code.sti();
            code.SpinFor(0x60, 1);
            code.Done();
        }, cpus: 2);
        for (int pin = 16; pin < 20; pin++)
            machine.Route(pin, (pin % 2 == 0 ? KvmIoapicState.Level : 0) | 0x40ul + (uint)pin);
        machine.Route(20, 0x60);
        machine.Start(0);
        AtOnce(100, _ => { }, _ => machine.Vm.PulseIrqLine(16), _ => machine.Vm.PulseIrqLine(17),
            _ => machine.Vm.PulseIrqLine(18), _ => machine.Vm.TrySignalMsi(RoutingTests.Message(0x58)));
        machine.Vm.PulseIrqLine(20);
        machine.Join();
        for (int vector = 0x50; vector <= 0x52; vector++)
            Check.That(machine.Count(vector) > 0, $"interrupts of {vector:x}");
    }

    /// <summary>Get and set of all chips by several threads while interrupts come.</summary>
    static void StateFromThreads()
    {
        using var machine = new Machine(code =>
        {
            code.sti();
            code.SpinFor(0x60, 1);
            code.Done();
        }, prepare: vm => vm.CreatePit2());
        machine.Route(20, 0x60);
        machine.Start(0);
        AtOnce(50, _ => { },
            _ => machine.Vm.SetIrqchip(machine.Vm.GetIrqchip(KvmIrqchipId.PicMaster)),
            _ => { machine.Vm.Pit2 = machine.Vm.Pit2; },
            _ => { machine.Vm.Clock = machine.Vm.Clock with { Flags = 0 }; },
            _ => machine.Vm.TrySignalMsi(RoutingTests.Message(0x50)));
        machine.Vm.PulseIrqLine(20);
        machine.Join();
    }

    static void RoutesAndIrqchip()
    {
        using var fresh = new Fresh();
        AtOnce(40, _ => fresh.Next(), _ => fresh.Vm.CreateIrqchip(), _ =>
        {
            int result = fresh.Vm.TrySetGsiRouting(KvmIrqRoutingEntry.ToMsi(5, RoutingTests.Message(0x51)));
            Check.That(result is 0 or -(int)Errno.EINVAL, $"SET_GSI_ROUTING: {result}");
            var line = new KvmIrqLevel { Irq = 5, Level = 1 };
            result = fresh.Vm.TryCall(KvmIoctl.IrqLine, ref line);
            Check.That(result is 0 or -(int)Errno.ENXIO, $"IRQ_LINE: {result}");
        }, _ =>
        {
            using var eventFd = new EventFd();
            int result = fresh.Vm.TryIrqfd(eventFd, 5);
            Check.That(result is 0 or -(int)Errno.EINVAL, $"IRQFD: {result}");
            eventFd.Signal();
        });
    }

    static void SetIrqchipWhileRunning()
    {
        using var machine = new Machine(code =>
        {
            code.sti();
            code.SpinFor(0x55, 200);
            code.Done();
        });
        machine.Route(20, 0x55);
        VcpuThread thread = machine.Start(0);
        uint last = 0;
        for (int i = 0; i < 2000 && !thread.Ended; i++)
        {
            machine.Vm.SetIrqchip(machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic));
            machine.Vm.PulseIrqLine(20);
            Wait.Until(() => thread.Ended || machine.Count(0x55) > last, "an interrupt");
            last = machine.Count(0x55);
        }
        machine.Join();
    }

    /// <summary>A machine goes while eventfds and timers still interrupt it.</summary>
    static void ClosedWhileInterrupting()
    {
        for (int i = 0; i < 10; i++)
        {
            using var source = new EventFd();
            bool stop = false;
            var signaller = new Thread(() =>
            {
                while (!Volatile.Read(ref stop))
                    source.Signal();
            });
            using (var machine = new Machine(code =>
            {
                code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
                code.ApicWrite(Apic.LvtTimer, Apic.TimerPeriodic | 0x31);
                code.ApicWrite(Apic.TimerInitial, 100_000);
                code.PitProgram(0, 2, 1000);
                code.Done();
            }, prepare: vm => vm.CreatePit2()))
            {
                machine.Route(20, 0x55);
                Check.Succeeds(machine.Vm.TryIrqfd(source, 20), "IRQFD");
                signaller.Start();
                machine.RunToDone();
            }
            Volatile.Write(ref stop, true);
            signaller.Join();
        }
    }

    static void CreateDestroy()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        HostMemory.ExpectNoGrowth(Body, 10, 100, "machines with chips");

        void Body(int cycles)
        {
            for (int i = 0; i < cycles; i++)
            {
                using var source = new EventFd();
                using Vm vm = kvm.CreateVm();
                vm.CreateIrqchip();
                vm.CreatePit2();
                vm.CreateVcpu(0);
                vm.CreateVcpu(1);
                vm.SetGsiRouting([.. Enumerable.Range(0, 100).Select(
                    gsi => KvmIrqRoutingEntry.ToMsi((uint)gsi, RoutingTests.Message(0x51)))]);
                Check.Succeeds(vm.TryIrqfd(source, 5), "IRQFD");
                Check.Succeeds(vm.TryIoeventfd(new() { Addr = 0x1000, Len = 4, Fd = source.Fd }), "IOEVENTFD");
                Check.Succeeds(vm.TryRegisterCoalesced(0x2000, 0x100), "zone");
                vm.PulseIrqLine(5);
            }
        }
    }

    /// <summary>Random requests with random arguments, also while the guest runs: whatever they answer, the kernel
    /// lives and a new machine runs.</summary>
    static void RandomRequests()
    {
        Random random = TestEnvironment.FixedRandom;
        byte[] buffer = new byte[16384];
        uint[] machineRequests =
        [
            KvmIoctl.CreateIrqchip, KvmIoctl.GetIrqchip, KvmIoctl.SetIrqchip, KvmIoctl.IrqLine, KvmIoctl.IrqLineStatus,
            KvmIoctl.CreatePit2, KvmIoctl.GetPit2, KvmIoctl.SetPit2, KvmIoctl.ReinjectControl, KvmIoctl.SetGsiRouting,
            KvmIoctl.SignalMsi, KvmIoctl.Irqfd, KvmIoctl.Ioeventfd, KvmIoctl.RegisterCoalescedMmio,
            KvmIoctl.UnregisterCoalescedMmio, KvmIoctl.GetClock, KvmIoctl.SetClock, KvmIoctl.EnableCap,
            KvmIoctl.SetBootCpuId, KvmIoctl.SetTssAddr,
        ];
        uint[] cpuRequests =
        [
            KvmIoctl.GetLapic, KvmIoctl.SetLapic, KvmIoctl.GetMpState, KvmIoctl.SetMpState, KvmIoctl.SetMsrs,
            KvmIoctl.Interrupt, KvmIoctl.Nmi, KvmIoctl.SetVapicAddr, KvmIoctl.TprAccessReporting,
            KvmIoctl.KvmclockCtrl, KvmIoctl.SetTscKhz, KvmIoctl.SetVcpuEvents, KvmIoctl.SetSregs,
        ];
        for (int round = 0; round < 12; round++)
        {
            using var machine = new Machine(code =>
            {
                code.sti();
                code.Idle();
            }, (Chips)(round % 3), cpus: 2);
            for (int i = 0; i < 250; i++)
            {
                random.NextBytes(buffer);
                // Some of the randomness sparse and small, so that structures come near to valid ones.
                if (random.Next(4) != 0)
                {
                    for (int at = 0; at < 64; at += 4)
                        BitConverter.TryWriteBytes(buffer.AsSpan(at), random.Next(random.Next(2) == 0 ? 8 : 300));
                    buffer.AsSpan(64 + random.Next(600)).Clear();
                }
                if (random.Next(2) == 0)
                    _ = machine.Vm.TryCall(machineRequests[random.Next(machineRequests.Length)], buffer);
                else
                    _ = machine.Cpus[random.Next(2)].TryCall(cpuRequests[random.Next(cpuRequests.Length)], buffer);
                if (i % 25 != 24)
                    continue;
                using var kicker = new Kicker(machine.Vcpu, TimeSpan.FromMilliseconds(10));
                _ = machine.Vcpu.TryRun();
            }
        }
        using var sane = new Machine(code =>
        {
            code.Ipi(Apic.ToSelf | 0x50);
            code.TakeInterrupts();
            code.Done();
        });
        sane.RunToDone();
        sane.ExpectLog("a sane machine afterwards", 0x50);
    }
}
