// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>KVM_IRQFD: eventfds as interrupt lines.</summary>
static class IrqfdTests
{
    const uint Line = 20;
    const int Vector = 0x55;

    public static IEnumerable<TestCase> All =>
    [
        new("irqfd/interrupts", Interrupts),
        new("irqfd/to_message", ToMessage),
        new("irqfd/signalled_before", SignalledBefore),
        new("irqfd/count_is_one_interrupt", CountIsOne),
        new("irqfd/wakes_halt", WakesHalt),
        new("irqfd/ping_pong", PingPong),
        new("irqfd/resample", Resample),
        new("irqfd/resample_still_pending", ResampleStillPending),
        new("irqfd/two_resample_on_one_line", TwoResample),
        new("irqfd/resample_without_event", ResampleOfOthers),
        new("irqfd/two_on_one_line", TwoOnOneLine),
        new("irqfd/deassigned", Deassigned),
        new("irqfd/deassigned_while_high", DeassignedWhileHigh),
        new("irqfd/deassign_unknown", DeassignUnknown),
        new("irqfd/twice", Twice),
        new("irqfd/closed_eventfd", ClosedEventFd),
        new("irqfd/outlives_machine", OutlivesMachine),
        new("irqfd/bad_arguments", BadArguments),
        new("irqfd/line_out_of_range", LineOutOfRange),
        new("irqfd/needs_irqchip", NeedsIrqchip),
        new("irqfd/route_made_later", RouteMadeLater),
        new("irqfd/many", Many),
        new("irqfd/assigned_and_signalled_at_once", Race),
    ];

    static Machine Stepping()
    {
        var machine = new Machine(code => code.TakeInterruptsInSteps());
        machine.RunToDone();
        machine.Route((int)Line, Vector);
        return machine;
    }

    /// <summary>Signals may arrive a moment later, through a worker of the kernel's.</summary>
    static void ExpectPending(Machine machine, string what, params int[] vectors) =>
        Wait.Until(() => machine.Pending().SequenceEqual(vectors),
            $"{what}: {Machine.Show(vectors)} pending, not {Machine.Show(machine.Pending())}");

    /// <summary>Time enough for what must not come.</summary>
    static void ExpectNothing(Machine machine, string what)
    {
        Thread.Sleep(20);
        Check.Equal("[]", Machine.Show(machine.Pending()), $"{what}: pending");
    }

    static void Interrupts()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        for (uint i = 1; i <= 3; i++)
        {
            source.Signal();
            ExpectPending(machine, "signalled", Vector);
            machine.RunToDone();
            Check.Equal(i, machine.Count(Vector), "interrupts");
        }
        Check.Equal(0ul, source.Take(), "the counter is taken by the kernel");
    }

    static void ToMessage()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(100, RoutingTests.Message(0x61)));
        Check.Succeeds(machine.Vm.TryIrqfd(source, 100), "IRQFD");
        source.Signal();
        ExpectPending(machine, "a message", 0x61);
    }

    static void SignalledBefore()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        source.Signal();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        ExpectPending(machine, "signalled before", Vector);
    }

    static void CountIsOne()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        source.Signal(1000);
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        ExpectPending(machine, "signalled 1000 times", Vector);
        machine.RunToDone();
        ExpectNothing(machine, "afterwards");
        Check.Equal(1u, machine.Count(Vector), "interrupts");
    }

    static void WakesHalt()
    {
        using var machine = new Machine(code =>
        {
            code.HaltFor(Vector, 10);
            code.Done();
        });
        machine.Route((int)Line, Vector);
        using var source = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        machine.Start(0);
        for (uint i = 1; i <= 10; i++)
        {
            source.Signal();
            machine.WaitForCount(Vector, i);
        }
        machine.Join();
    }

    /// <summary>The whole way of a virtual device: the guest's doorbell to an eventfd, the answer as an
    /// interrupt.</summary>
    static void PingPong()
    {
        const uint Rounds = 200;
        const ushort Doorbell = 0x510;
        using var machine = new Machine(code =>
        {
            Label round = code.CreateLabel();
            code.xor(ebx, ebx);
            code.Label(ref round);
            code.inc(ebx);
            code.mov(dx, Doorbell);
            code.@out(dx, eax);
            code.HaltFor(Vector, ebx);
            code.cmp(ebx, (int)Rounds);
            code.jb(round);
            code.Done();
        });
        using var source = new EventFd();
        using var doorbell = new EventFd();
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(100, RoutingTests.Message(Vector)));
        Check.Succeeds(machine.Vm.TryIrqfd(source, 100), "IRQFD");
        Check.Succeeds(machine.Vm.TryIoeventfd(new()
        {
            Addr = Doorbell, Len = 4, Fd = doorbell.Fd, Flags = KvmIoeventfd.FlagPio,
        }), "IOEVENTFD");
        VcpuThread thread = machine.Start(0);
        uint rounds = 0;
        while (rounds < Rounds && !thread.Ended)
        {
            if (!doorbell.Wait(1000) || doorbell.Take() == 0)
                continue;
            rounds++;
            source.Signal();
        }
        machine.Join();
        Check.Equal(Rounds, rounds, "doorbells");
        Check.Equal(Rounds, machine.Count(Vector), "interrupts");
    }

    static Machine Level()
    {
        var machine = new Machine(code => code.TakeInterruptsInSteps());
        machine.RunToDone();
        machine.Route((int)Line, KvmIoapicState.Level | Vector);
        machine.Handle(Vector, code =>
        {
            code.CountUp(Vector);
            code.Done(1);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        return machine;
    }

    static bool IsHigh(Machine machine) =>
        (machine.Vm.GetIrqchip(KvmIrqchipId.Ioapic).Ioapic.Irr >> (int)Line & 1) != 0;

    static void Resample()
    {
        using Machine machine = Level();
        using var source = new EventFd();
        using var resample = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, resample), "IRQFD");
        for (uint i = 1; i <= 3; i++)
        {
            source.Signal();
            Wait.Until(() => IsHigh(machine), "the line to be high");
            Check.Equal(1, machine.RunToDone(), "in the handler");
            Check.That(IsHigh(machine) && resample.Take() == 0, "before the EOI");
            Check.Equal(0, machine.RunToDone(), "after the handler");
            Check.Equal(1ul, resample.Take(), "event of the EOI");
            Check.That(!IsHigh(machine), "the line is low");
            Check.Equal(i, machine.Count(Vector), "interrupts");
        }
    }

    /// <summary>The device still wants service: it signals again, as VFIO does.</summary>
    static void ResampleStillPending()
    {
        using Machine machine = Level();
        using var source = new EventFd();
        using var resample = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, resample), "IRQFD");
        machine.Program(0, code =>
        {
            code.HaltFor(Vector, 3);
            code.Done(2);
        });
        machine.Handle(Vector, code =>
        {
            code.CountUp(Vector);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        source.Signal();
        machine.Start(0);
        for (int i = 0; i < 2; i++)
        {
            Wait.Until(() => resample.Take() == 1, "the event of the EOI");
            source.Signal();
        }
        machine.Join();
        Check.Equal(3u, machine.Count(Vector), "interrupts");
    }

    static void TwoResample()
    {
        using Machine machine = Level();
        EventFd[] sources = [new(), new()], resamples = [new(), new()];
        for (int i = 0; i < 2; i++)
            Check.Succeeds(machine.Vm.TryIrqfd(sources[i], Line, resamples[i]), "IRQFD");
        sources[0].Signal();
        machine.RunToDone();
        machine.RunToDone();
        Check.Equal("1 1", string.Join(' ', resamples.Select(resample => resample.Take())),
            "each is told of the EOI, whoever was it");
        Check.Succeeds(machine.Vm.TryIrqfd(sources[0], Line, resamples[0], deassign: true), "deassign one");
        sources[1].Signal();
        machine.RunToDone();
        machine.RunToDone();
        Check.Equal("0 1", string.Join(' ', resamples.Select(resample => resample.Take())), "the one that is left");
        Check.Equal(2u, machine.Count(Vector), "interrupts");
        foreach (EventFd eventFd in (EventFd[])[.. sources, .. resamples])
            eventFd.Dispose();
    }

    /// <summary>An EOI of an interrupt that KVM_IRQ_LINE made is told, too.</summary>
    static void ResampleOfOthers()
    {
        using Machine machine = Level();
        using var source = new EventFd();
        using var resample = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, resample), "IRQFD");
        machine.Vm.SetIrqLine(Line, true);
        machine.RunToDone();
        machine.Vm.SetIrqLine(Line, false);
        machine.RunToDone();
        Check.Equal(1ul, resample.Take(), "event of the EOI");
    }

    static void TwoOnOneLine()
    {
        using Machine machine = Stepping();
        using var first = new EventFd();
        using var second = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(first, Line), "IRQFD");
        Check.Succeeds(machine.Vm.TryIrqfd(second, Line), "a second IRQFD");
        foreach (EventFd source in (EventFd[])[first, second, first])
        {
            source.Signal();
            ExpectPending(machine, "signalled", Vector);
            machine.RunToDone();
        }
        Check.Equal(3u, machine.Count(Vector), "interrupts");
    }

    static void Deassigned()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, deassign: true), "deassign");
        source.Signal();
        ExpectNothing(machine, "after deassign");
        Check.Equal(1ul, source.Take(), "the counter is user space's again");
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD again");
        source.Signal();
        ExpectPending(machine, "assigned again", Vector);
    }

    /// <summary>The last resampling irqfd takes its side of the line with it.</summary>
    static void DeassignedWhileHigh()
    {
        using Machine machine = Level();
        using var source = new EventFd();
        using var resample = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, resample), "IRQFD");
        source.Signal();
        Wait.Until(() => IsHigh(machine), "the line to be high");
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, resample, deassign: true), "deassign");
        Wait.Until(() => !IsHigh(machine), "the line to be low");
        machine.RunToDone();
        Check.Equal(0, machine.RunToDone(), "no more after the one that was pending");
    }

    static void DeassignUnknown()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line, deassign: true), "deassign of what was not assigned");
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line + 1, deassign: true), "deassign of another line");
        source.Signal();
        ExpectPending(machine, "still assigned", Vector);
    }

    static void Twice()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
        Check.Fails(Errno.EBUSY, machine.Vm.TryIrqfd(source, Line), "the same again");
        Check.Fails(Errno.EBUSY, machine.Vm.TryIrqfd(source, Line + 1), "for another line");
    }

    /// <summary>Who closes the eventfd ends the irqfd, too.</summary>
    static void ClosedEventFd()
    {
        using Machine machine = Stepping();
        for (int i = 0; i < 20; i++)
        {
            using var source = new EventFd();
            Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
            source.Signal();
            ExpectPending(machine, "signalled", Vector);
            machine.RunToDone();
        }
        machine.RunToDone();
        Check.Equal(20u, machine.Count(Vector), "interrupts");
    }

    static void OutlivesMachine()
    {
        using var source = new EventFd();
        using (Machine machine = Stepping())
        {
            Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
            source.Signal();
        }
        source.Take();
        source.Signal();
        Thread.Sleep(20);
        Check.Equal(1ul, source.Take(), "the counter is user space's");
    }

    static void BadArguments()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        var good = new KvmIrqfd { Fd = source.Fd, Gsi = Line };
        foreach ((string what, KvmIrqfd bad, Errno error) in new (string, KvmIrqfd, Errno)[]
            {
                ("flag 4", good with { Flags = 4 }, Errno.EINVAL),
                ("all flags", good with { Flags = uint.MaxValue }, Errno.EINVAL),
                ("no descriptor", good with { Fd = -1 }, Errno.EBADF),
                ("closed descriptor", good with { Fd = 9999 }, Errno.EBADF),
                ("not an eventfd", good with { Fd = machine.Vm.Fd }, Errno.EINVAL),
                ("no descriptor for resampling", good with { Flags = KvmIrqfd.FlagResample, Resamplefd = -1 },
                    Errno.EBADF),
                ("resampling is no eventfd", good with { Flags = KvmIrqfd.FlagResample, Resamplefd = machine.Vm.Fd },
                    Errno.EINVAL),
                ("deassign of no descriptor", good with { Flags = KvmIrqfd.FlagDeassign, Fd = -1 }, Errno.EBADF),
            })
        {
            KvmIrqfd request = bad;
            Check.Fails(error, machine.Vm.TryCall(KvmIoctl.Irqfd, ref request), what);
        }
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.Irqfd, 0x10), "an address in page 0");
        Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "a good one afterwards");
    }

    /// <summary>CVE-2017-1000252: lines that no table can have.</summary>
    static void LineOutOfRange()
    {
        using Machine machine = Stepping();
        foreach (uint line in (uint[])[4095, 4096, 0x10000, 0x7FFFFFFF, uint.MaxValue])
        {
            using var source = new EventFd();
            // Refused, or without effect.
            int result = machine.Vm.TryIrqfd(source, line);
            Check.That(result is 0 or -(int)Errno.EINVAL, $"line {line}: {result}");
            source.Signal();
        }
        ExpectNothing(machine, "lines out of range");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(4095, RoutingTests.Message(0x61)));
        machine.RunToDone();
    }

    static void NeedsIrqchip()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        using var source = new EventFd();
        using var resample = new EventFd();
        Check.Fails(Errno.EINVAL, vm.TryIrqfd(source, 5, resample), "resampling without interrupt controllers");
    }

    static void RouteMadeLater()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        Check.Succeeds(machine.Vm.TryIrqfd(source, 200), "IRQFD of a line that goes nowhere");
        source.Signal();
        ExpectNothing(machine, "without a route");
        foreach (uint vector in (uint[])[0x61, 0x62])
        {
            machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(200, RoutingTests.Message(vector)));
            source.Signal();
            ExpectPending(machine, "with a route", (int)vector);
            machine.RunToDone();
        }
    }

    static void Many()
    {
        const uint Number = 100;
        using Machine machine = Stepping();
        machine.Vm.SetGsiRouting([.. Enumerable.Range(0, (int)Number).Select(
            i => KvmIrqRoutingEntry.ToMsi((uint)i + 100, RoutingTests.Message(0x30 + (uint)i)))]);
        EventFd[] sources = [.. Enumerable.Range(0, (int)Number).Select(_ => new EventFd())];
        for (uint i = 0; i < Number; i++)
            Check.Succeeds(machine.Vm.TryIrqfd(sources[i], 100 + i), "IRQFD");
        foreach (EventFd source in sources)
            source.Signal();
        ExpectPending(machine, "all", [.. Enumerable.Range(0x30, (int)Number)]);
        foreach (EventFd source in sources)
            source.Dispose();
    }

    /// <summary>Assigning, signalling and deassigning race, and nothing is left behind.</summary>
    static void Race()
    {
        using Machine machine = Stepping();
        using var source = new EventFd();
        bool stop = false;
        var signaller = new Thread(() =>
        {
            while (!Volatile.Read(ref stop))
                source.Signal();
        });
        signaller.Start();
        try
        {
            for (int i = 0; i < 200; i++)
            {
                Check.Succeeds(machine.Vm.TryIrqfd(source, Line), "IRQFD");
                Check.Succeeds(machine.Vm.TryIrqfd(source, Line, deassign: true), "deassign");
            }
        }
        finally
        {
            Volatile.Write(ref stop, true);
            signaller.Join();
        }
        machine.RunToDone();
        machine.RunToDone();
        ExpectNothing(machine, "afterwards");
    }
}
