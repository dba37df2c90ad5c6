// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Selftests;

/// <summary>Machines that come and go, in several threads and processes, in good order and in bad.</summary>
static class LifecycleTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("lifecycle/two_machines_at_once", TwoMachinesAtOnce),
        new("lifecycle/two_cpus_share_memory", TwoCpusShareMemory),
        new("lifecycle/cpu_moves_between_threads", CpuMovesBetweenThreads),
        new("lifecycle/ioctl_while_running", IoctlWhileRunning),
        new("lifecycle/slot_change_while_running", SlotChangeWhileRunning),
        new("lifecycle/close_while_other_runs", CloseWhileOtherRuns),
        new("lifecycle/close_in_any_order", CloseInAnyOrder),
        new("lifecycle/killed_while_running", KilledWhileRunning, Own: true),
        new("lifecycle/create_destroy_200", CreateDestroy200, Own: true),
        new("lifecycle/run_destroy_no_leak", RunDestroyNoLeak, Own: true),
        new("lifecycle/many_machines_at_once", ManyMachinesAtOnce),
        new("lifecycle/preempted_guest", PreemptedGuest),
        new("lifecycle/run_page_scribbled", RunPageScribbled),
        new("lifecycle/random_ioctls", RandomIoctls, Own: true),
    ];

    static Action<Assembler> Counting(ulong limit) => code =>
    {
        Label again = code.CreateLabel();
        code.mov(rcx, limit);
        code.Label(ref again);
        code.inc(rax);
        code.@out(0x10, al);
        code.cmp(rax, rcx);
        code.jb(again);
        code.hlt();
    };

    static void RunCounting(Guest guest, ulong limit)
    {
        for (ulong i = 1; i <= limit; i++)
            Check.Equal((byte)i, guest.ExpectPort(KvmRunIo.Out, 0x10, 1)[0], "byte");
        guest.RunToHalt();
    }

    static void InThreads(params Action[] bodies)
    {
        var failures = new Exception?[bodies.Length];
        Thread[] threads =
        [
            .. bodies.Select((body, i) => new Thread(() =>
            {
                try
                {
                    body();
                }
                catch (Exception failure)
                {
                    failures[i] = failure;
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

    static void TwoMachinesAtOnce() => InThreads(
        [.. Enumerable.Range(0, 2).Select<int, Action>(_ => () =>
        {
            using var guest = new Guest(GuestMode.Long, Counting(1000));
            RunCounting(guest, 1000);
        })]);

    static Vcpu SecondCpu(Guest guest, ulong rip)
    {
        Vcpu second = guest.Vm.CreateVcpu(1);
        second.Cpuid = guest.Kvm.GetSupportedCpuid();
        KvmSregs sregs = guest.Vcpu.Sregs;
        second.Sregs = sregs;
        second.Regs = new() { Rip = rip, Rsp = GuestLayout.UserStackTop, Rflags = 2 };
        return second;
    }

    static void TwoCpusShareMemory()
    {
        Action<Assembler> add = code =>
        {
            Label again = code.CreateLabel();
            code.mov(ecx, 20000);
            code.Label(ref again);
            code.@lock.inc(__qword_ptr[(long)GuestLayout.Data]);
            code.dec(ecx);
            code.jnz(again);
            code.hlt();
        };
        using var guest = new Guest(GuestMode.Long, add);
        Vcpu second = SecondCpu(guest, GuestLayout.Code);
        InThreads(() => guest.RunToHalt(), () => Check.Equal(KvmExit.Hlt, second.RunOnce(), "second CPU"));
        Check.Equal(40000ul, guest.Memory.Read<ulong>(GuestLayout.Data), "locked increments");
    }

    static void CpuMovesBetweenThreads()
    {
        using var guest = new Guest(GuestMode.Long, Counting(20));
        for (int i = 1; i <= 20; i++)
            InThreads(() => Check.Equal((byte)i, guest.ExpectPort(KvmRunIo.Out, 0x10, 1)[0], "byte"));
        guest.RunToHalt();
    }

    static Guest Endless() => new(GuestMode.Long, code =>
    {
        Label self = code.CreateLabel();
        code.mov(rbx, GuestLayout.Data);
        code.Label(ref self);
        code.inc(__qword_ptr[rbx]);
        code.jmp(self);
    });

    /// <summary>Another thread's ioctl on a running CPU waits for it; signals get it out.</summary>
    static void IoctlWhileRunning()
    {
        using Guest guest = Endless();
        bool answered = false;
        var other = new Thread(() =>
        {
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > 0, "the guest to run");
            _ = guest.Vcpu.Regs;
            Volatile.Write(ref answered, true);
        });
        other.Start();
        using (new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(300)))
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
        Check.That(other.Join(TimeSpan.FromSeconds(10)) && answered, "the other thread's KVM_GET_REGS came back");
    }

    static void SlotChangeWhileRunning()
    {
        const ulong Extra = 0x40000000;
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label self = code.CreateLabel();
            code.mov(rbx, GuestLayout.Data);
            code.mov(rdx, Extra);
            code.Label(ref self);
            code.inc(__qword_ptr[rbx]);
            code.mov(rax, __qword_ptr[rdx]);
            code.jmp(self);
        });
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4096);
        int changes = 0;
        bool stop = false;
        var changer = new Thread(() =>
        {
            for (; changes < 50 && !Volatile.Read(ref stop); changes++)
            {
                guest.Vm.SetMemoryRegion(1, 0, Extra, 0, 0);
                guest.Vm.SetMemoryRegion(1, 0, Extra, 4096, memory.HostAddress);
            }
        });
        changer.Start();
        long start = Stopwatch.GetTimestamp();
        while (changer.IsAlive && Stopwatch.GetElapsedTime(start).TotalSeconds < 20)
        {
            using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(100));
            // While the slot is away the read is MMIO.
            int result = guest.Vcpu.TryRun();
            Check.That(result == -(int)Errno.EINTR || guest.Run.ExitReason == KvmExit.Mmio,
                $"KVM_RUN {result} {guest.DescribeExit()}");
        }
        Volatile.Write(ref stop, true);
        changer.Join();
        Check.That(changes > 10, $"{changes} changes of the slot");
    }

    static void CloseWhileOtherRuns()
    {
        using Guest guest = Endless();
        var other = new Thread(() =>
        {
            for (int i = 0; i < 10; i++)
            {
                using var short_lived = new Guest(GuestMode.Real, [0xF4]);
                short_lived.RunToHalt();
            }
        });
        other.Start();
        while (other.IsAlive)
        {
            using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(100));
            Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "KVM_RUN");
        }
    }

    static void CloseInAnyOrder()
    {
        foreach (int[] order in (int[][])[[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
        {
            Kvm kvm = TestEnvironment.OpenKvm();
            int vm = kvm.Call(KvmIoctl.CreateVm);
            int vcpu = Libc.Ioctl(vm, KvmIoctl.CreateVcpu, 0);
            Check.That(vcpu >= 0, "CREATE_VCPU");
            int[] descriptors = [kvm.Fd, vm, vcpu];
            foreach (int i in order)
                Check.Equal(0, i == 0 ? Close(kvm) : Libc.Close(descriptors[i]), "close");
        }

        static int Close(Kvm kvm)
        {
            kvm.Dispose();
            return 0;
        }
    }

    /// <summary>A VMM that dies in the middle of KVM_RUN leaves nothing behind, and others go on.</summary>
    static void KilledWhileRunning()
    {
        for (int i = 0; i < 5; i++)
        {
            // A program of its own, because a machine cannot be run by a forked child.
            using var child = System.Diagnostics.Process.Start(new ProcessStartInfo(Environment.ProcessPath!,
                ["--device", TestEnvironment.Device, "--run-one", "helper/endless"]) { RedirectStandardOutput =
                    true })!;
            Check.Equal("running", child.StandardOutput.ReadLine(), "the child's first line");
            Thread.Sleep(50 * i);
            child.Kill();
            Check.That(child.WaitForExit(TimeSpan.FromSeconds(20)), "the killed VMM ends");
            using var guest = new Guest(GuestMode.Real, [0xF4]);
            guest.RunToHalt();
        }
    }

    /// <summary>Not a test by itself: the program that <see cref="KilledWhileRunning"/> kills.</summary>
    public static void RunEndlessly()
    {
        using Guest guest = Endless();
        new Thread(() =>
        {
            Wait.Until(() => guest.Memory.Read<ulong>(GuestLayout.Data) > 0, "the guest to run");
            Console.WriteLine("running");
            Console.Out.Flush();
        }) { IsBackground = true }.Start();
        _ = guest.Vcpu.TryRun();
    }

    static void CreateDestroy200()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        HostMemory.ExpectNoGrowth(Body, 20, 200, "machines");

        void Body(int cycles)
        {
            for (int i = 0; i < cycles; i++)
            {
                using Vm vm = kvm.CreateVm();
                vm.CreateVcpu(0);
                vm.CreateVcpu(1);
                vm.AddMemory(0, 0, 1 << 20);
            }
        }
    }

    static void RunDestroyNoLeak()
    {
        HostMemory.ExpectNoGrowth(Body, 5, 40, "machines that ran");

        static void Body(int cycles)
        {
            for (int i = 0; i < cycles; i++)
            {
                using var guest = new Guest(GuestMode.Long, code =>
                {
                    Label again = code.CreateLabel();
                    code.mov(rbx, 0x40000000);
                    code.mov(ecx, 512);
                    code.Label(ref again);
                    code.mov(__dword_ptr[rbx], ecx);
                    code.add(rbx, 4096);
                    code.dec(ecx);
                    code.jnz(again);
                    code.hlt();
                });
                guest.Vm.AddMemory(1, 0x40000000, 512 * 4096);
                guest.RunToHalt();
            }
        }
    }

    static void ManyMachinesAtOnce()
    {
        Guest[] guests = [.. Enumerable.Range(0, 30).Select(i => new Guest(GuestMode.Long, Counting((ulong)i + 1)))];
        for (int i = guests.Length - 1; i >= 0; i--)
            RunCounting(guests[i], (ulong)i + 1);
        foreach (Guest guest in guests)
            guest.Dispose();
    }

    /// <summary>Two guests that compute for a while on shared CPUs: registers survive being scheduled away.</summary>
    static void PreemptedGuest() => InThreads(
        [.. Enumerable.Range(1, 4).Select<int, Action>(seed => () =>
        {
            const uint Rounds = 3_000_000;
            using var guest = new Guest(GuestMode.Long, code =>
            {
                Label again = code.CreateLabel();
                code.mov(ecx, Rounds);
                code.mov(rax, (ulong)seed);
                code.movq(xmm3, rax);
                code.Label(ref again);
                code.add(rax, 3);
                code.paddq(xmm3, xmm3);
                code.dec(ecx);
                code.jnz(again);
                code.movq(xmm4, rax);
                code.movq(rbx, xmm4);
                code.hlt();
            });
            guest.RunToHalt();
            Check.Equal((ulong)seed + 3ul * Rounds, guest.Vcpu.Regs.Rbx, "sum");
        })]);

    /// <summary>What the kernel writes into the shared page it must not read back as truth (CVE-2021-3501).</summary>
    static void RunPageScribbled()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, GuestLayout.Mmio);
            code.mov(eax, __dword_ptr[rbx]);
            code.@in(al, 0x10);
            code.mov(__dword_ptr[rbx], eax);
            code.hlt();
        });
        Random random = TestEnvironment.FixedRandom;
        for (int i = 0; i < 4; i++)
        {
            KvmExit exit = guest.Vcpu.RunOnce();
            if (exit is KvmExit.Hlt or KvmExit.InternalError)
                break;
            Span<byte> page = System.Runtime.InteropServices.MemoryMarshal.AsBytes(new Span<KvmRun>(ref guest.Run));
            random.NextBytes(page[8..288]);
            guest.Run.ImmediateExit = 0;
            guest.Run.RequestInterruptWindow = 0;
            guest.Run.Cr8 = 0;
        }
        _ = guest.Vcpu.Regs;
    }

    /// <summary>Random requests with random arguments: whatever they answer, the kernel lives and a new machine
    /// runs.</summary>
    static void RandomIoctls()
    {
        Random random = TestEnvironment.FixedRandom;
        byte[] buffer = new byte[16384];
        uint[] requests =
        [
            KvmIoctl.GetRegs, KvmIoctl.SetRegs, KvmIoctl.GetSregs, KvmIoctl.SetSregs, KvmIoctl.GetSregs2,
                KvmIoctl.SetSregs2,
            KvmIoctl.GetFpu, KvmIoctl.SetFpu, KvmIoctl.GetXsave, KvmIoctl.SetXsave, KvmIoctl.GetXcrs, KvmIoctl.SetXcrs,
            KvmIoctl.GetMsrs, KvmIoctl.SetMsrs, KvmIoctl.GetDebugregs, KvmIoctl.SetDebugregs, KvmIoctl.GetVcpuEvents,
            KvmIoctl.SetVcpuEvents, KvmIoctl.GetMpState, KvmIoctl.SetMpState, KvmIoctl.SetCpuid2, KvmIoctl.GetCpuid2,
            KvmIoctl.Translate, KvmIoctl.Interrupt, KvmIoctl.Nmi, KvmIoctl.GetTscKhz,
        ];
        for (int round = 0; round < 20; round++)
        {
            using var guest = new Guest(GuestModes.All[round % GuestModes.All.Length], [0xF4]);
            for (int i = 0; i < 200; i++)
            {
                random.NextBytes(buffer);
                // Some of the randomness sparse, so that structures come near to valid ones.
                if (random.Next(2) == 0)
                    buffer.AsSpan(random.Next(64)).Clear();
                _ = guest.Vcpu.TryCall(requests[random.Next(requests.Length)], buffer);
                if (i % 20 != 19)
                    continue;
                using var kicker = new Kicker(guest.Vcpu, TimeSpan.FromMilliseconds(20));
                _ = guest.Vcpu.TryRun();
            }
        }
        using var sane = new Guest(GuestMode.Long, [0xF4]);
        sane.RunToHalt();
    }
}
