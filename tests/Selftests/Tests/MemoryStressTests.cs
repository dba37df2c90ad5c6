// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Selftests;

/// <summary>Everything that can happen to guest memory, at once, while vCPUs check all of theirs.</summary>
static unsafe class MemoryStressTests
{
    const ulong Page = 4096, Extra = 0x40000000, Elsewhere = 0x48000000;
    const ulong PerCpu = HugeMemory.Huge;
    const int Cpus = 2;
    static readonly TimeSpan Patience = TimeSpan.FromSeconds(40);

    public static IEnumerable<TestCase> All => [new("stress/memory", () => Run(TimeSpan.FromSeconds(5)), Own: true)];

    /// <summary>A minute of it.</summary>
    public static void RunLong() => Run(TimeSpan.FromSeconds(60));

    static void Run(TimeSpan time)
    {
        using var guest = new Guest(GuestMode.Long, Verify);
        using var memory = new HugeMemory(Cpus * PerCpu, huge: true);
        guest.Vm.SetMemoryRegion(1, 0, Extra, memory.Size, memory.Address);
        Vcpu[] cpus = [guest.Vcpu, guest.AddCpu(1, GuestLayout.Code, GuestLayout.StackTop - 0x800)];
        for (int i = 0; i < Cpus; i++)
        {
            ulong start = Extra + (ulong)i * PerCpu;
            cpus[i].Regs = cpus[i].Regs with { R8 = start, R9 = PerCpu / Page, R10 = 0 };
        }
        TryWrite("/sys/kernel/mm/ksm/run", "1");
        Disturbance disturbance = new(guest.Vm, memory);
        long begin = Stopwatch.GetTimestamp();
        ulong passes = 0;
        try
        {
            // On a busy machine the vCPUs may need more time to see all of their memory at least twice.
            for (int round = 0; passes < 2 || Stopwatch.GetElapsedTime(begin) < time; round++)
            {
                Check.That(Stopwatch.GetElapsedTime(begin) < time + Patience, $"only {passes} passes");
                Round(guest, cpus, disturbance, logs: round % 2 == 1);
                passes = cpus.Min(cpu => cpu.Regs.R10);
            }
        }
        finally
        {
            TryWrite("/sys/kernel/mm/ksm/run", "0");
        }
    }

    /// <summary>The pass's number stands at both ends of each page: it is compared, and the next one written.</summary>
    static void Verify(Assembler code)
    {
        Label pass = code.CreateLabel(), page = code.CreateLabel(), bad = code.CreateLabel();
        code.Label(ref pass);
        code.mov(rbx, r8);
        code.mov(rcx, r9);
        code.Label(ref page);
        code.cmp(__qword_ptr[rbx], r10);
        code.jne(bad);
        code.cmp(__qword_ptr[rbx + 0xff8], r10);
        code.jne(bad);
        code.lea(rax, __[r10 + 1]);
        code.mov(__qword_ptr[rbx], rax);
        code.mov(__qword_ptr[rbx + 0xff8], rax);
        code.add(rbx, (int)Page);
        code.dec(rcx);
        code.jnz(page);
        code.inc(r10);
        code.jmp(pass);
        code.Label(ref bad);
        code.hlt();
    }

    /// <summary>
    /// A second of disturbance. With logging, a copy of the memory is kept by the log alone, as a migration would: it
    /// is the memory when the vCPUs have stopped.
    /// </summary>
    static void Round(Guest guest, Vcpu[] cpus, Disturbance disturbance, bool logs)
    {
        disturbance.SetLogging(logs);
        byte[] copy = new byte[disturbance.Memory.Size];
        if (logs)
            disturbance.Memory.Bytes(0, copy.Length).CopyTo(copy);
        Runner[] runners = [.. cpus.Select(cpu => new Runner(guest, cpu, disturbance))];
        long begin = Stopwatch.GetTimestamp();
        while (Stopwatch.GetElapsedTime(begin).TotalSeconds < 1 && runners.All(runner => runner.Failure == null))
        {
            disturbance.Step(logs);
            if (logs)
                CopyDirty(disturbance, copy);
        }
        foreach (Runner runner in runners)
            runner.Stop();
        foreach (Runner runner in runners)
            Check.That(runner.Failure == null, runner.Failure ?? "");
        if (!logs)
            return;
        CopyDirty(disturbance, copy);
        int differs = disturbance.Memory.Bytes(0, copy.Length).CommonPrefixLength(copy);
        Check.That(differs == copy.Length, $"a write to page {differs / (int)Page} is missing in the dirty log");
    }

    static void CopyDirty(Disturbance disturbance, byte[] copy)
    {
        int pages = (int)(disturbance.Memory.Size / Page);
        ulong[] bitmap = disturbance.Vm.GetDirtyLog(1, pages);
        HashSet<ulong> written = disturbance.TakeWritten();
        for (int page = 0; page < pages; page++)
        {
            if ((bitmap[page / 64] >> (page % 64) & 1) != 0 || written.Contains((ulong)page))
                disturbance.Memory.Bytes((ulong)page * Page, (int)Page).CopyTo(copy.AsSpan(page * (int)Page));
        }
    }

    static void TryWrite(string path, string text)
    {
        if (File.Exists(path))
            File.WriteAllText(path, text);
    }

    /// <summary>A vCPU's thread: goes on after whatever the disturbance causes, and notes a mismatch.</summary>
    sealed class Runner
    {
        readonly Guest _guest;
        readonly Vcpu _vcpu;
        readonly Disturbance _disturbance;
        readonly Thread _thread;
        int _tid;
        bool _stop;

        public Runner(Guest guest, Vcpu vcpu, Disturbance disturbance)
        {
            ThreadSignals.IgnoreByHandler(ThreadSignals.Kick);
            (_guest, _vcpu, _disturbance) = (guest, vcpu, disturbance);
            vcpu.Run.ImmediateExit = 0;
            _thread = new Thread(Serve);
            _thread.Start();
        }

        public string? Failure { get; private set; }

        public void Stop()
        {
            Volatile.Write(ref _stop, true);
            while (!_thread.Join(1))
            {
                _vcpu.Run.ImmediateExit = 1;
                ThreadSignals.Send(Volatile.Read(ref _tid), ThreadSignals.Kick);
            }
        }

        void Serve()
        {
            Volatile.Write(ref _tid, ThreadSignals.CurrentThread);
            while (!Volatile.Read(ref _stop) && Failure == null)
            {
                int result = _vcpu.TryRun();
                if (result is -(int)Errno.EINTR or -(int)Errno.EFAULT)
                    Thread.Yield();
                else if (result < 0)
                    Failure = $"KVM_RUN: {(Errno)(-result)}";
                else if (_vcpu.Run.ExitReason == KvmExit.Mmio)
                    _disturbance.Access(ref _vcpu.Run.Mmio);
                else
                    Failure = $"{_guest.DescribeExit(_vcpu)}, page {_vcpu.Regs.Rbx:x}, pass {_vcpu.Regs.R10}";
            }
        }
    }

    /// <summary>The VMM and Linux.</summary>
    sealed class Disturbance(Vm vm, HugeMemory memory)
    {
        const int Cold = 20, PageOut = 21, HugePages = 14, NoHugePages = 15, Collapse = 25, Mergeable = 12,
            Unmergeable = 13;
        const ulong MayMoveFixed = 3;

        static readonly nint ForkAndWait = HostCode.Load(code =>
        {
            Label parent = code.CreateLabel();
            code.mov(eax, 57);
            code.syscall();
            code.test(eax, eax);
            code.jnz(parent);
            code.xor(edi, edi);
            code.mov(eax, 231);
            code.syscall();
            code.Label(ref parent);
            code.ret();
        });

        static readonly nint SystemCallCode = HostCode.Load(code =>
        {
            code.mov(r11, rdi);
            code.mov(rax, __qword_ptr[r11]);
            code.mov(rdi, __qword_ptr[r11 + 8]);
            code.mov(rsi, __qword_ptr[r11 + 16]);
            code.mov(rdx, __qword_ptr[r11 + 24]);
            code.mov(r10, __qword_ptr[r11 + 32]);
            code.mov(r8, __qword_ptr[r11 + 40]);
            code.syscall();
            code.ret();
        });

        readonly Random _random = TestEnvironment.FixedRandom;
        readonly object _access = new();
        HashSet<ulong> _written = [];
        KvmMem _flags;
        ulong _place = Extra;

        public Vm Vm => vm;
        public HugeMemory Memory => memory;

        public void SetLogging(bool logs)
        {
            _flags = logs ? KvmMem.LogDirtyPages : KvmMem.None;
            vm.SetMemoryRegion(1, _flags, _place, memory.Size, memory.Address);
        }

        /// <summary>The guest finds no memory while its slot is elsewhere: what it does is done here.</summary>
        public void Access(ref KvmRunMmio mmio)
        {
            lock (_access)
            {
                Span<byte> place = memory.Bytes(mmio.PhysAddr - Extra, (int)mmio.Len);
                Span<byte> data = mmio.Data;
                if (mmio.IsWrite != 0)
                {
                    data[..(int)mmio.Len].CopyTo(place);
                    _written.Add((mmio.PhysAddr - Extra) / Page);
                }
                else
                    place.CopyTo(data);
            }
        }

        /// <summary>Pages that <see cref="Access"/> has written since the last call: the kernel knows nothing of them.
        /// </summary>
        public HashSet<ulong> TakeWritten()
        {
            lock (_access)
            {
                HashSet<ulong> written = _written;
                _written = [];
                return written;
            }
        }

        public void Step(bool logs)
        {
            ulong page = (ulong)_random.NextInt64((long)(memory.Size / Page));
            ulong pages = 1 + (ulong)_random.NextInt64((long)(memory.Size / Page - page));
            nint at = (nint)(memory.Address + page * Page);
            nuint length = (nuint)(pages * Page);
            switch (_random.Next(11))
            {
                case 0:
                    // Every page is there again before a vCPU's MMIO can be served: that reads the memory, too.
                    lock (_access)
                    {
                        _ = Process.Protect(at, length, Libc.ProtRead);
                        Thread.Yield();
                        _ = Process.Protect(at, length, Libc.ProtRead | Libc.ProtWrite);
                    }
                    break;
                case 1:
                    int child = (int)HostCode.Call(ForkAndWait, null);
                    Check.That(child > 0, "fork");
                    _ = Process.WaitPid(child, out _, 0);
                    break;
                case 2:
                    lock (_access)
                        Remap(at, length);
                    break;
                case 3 or 4 when !logs:
                    vm.SetMemoryRegion(1, _flags, _place, 0, 0);
                    vm.SetMemoryRegion(1, _flags, _place, memory.Size, memory.Address);
                    break;
                case 3 or 4:
                    Move(Elsewhere);
                    Move(Extra);
                    break;
                case 5:
                    _ = Process.Advise(at, length, _random.Next(2) == 0 ? Cold : PageOut);
                    break;
                case 6:
                    _ = Process.Advise(at, length, _random.Next(2) == 0 ? HugePages : NoHugePages);
                    break;
                case 7:
                    _ = Process.Advise((nint)memory.Address, (nuint)memory.Size, HugePages);
                    _ = Process.Advise((nint)memory.Address, (nuint)memory.Size, Collapse);
                    break;
                case 8:
                    _ = Process.Advise(at, length, _random.Next(2) == 0 ? Mergeable : Unmergeable);
                    break;
                case 9:
                    TryWrite("/proc/sys/vm/compact_memory", "1");
                    TryWrite("/proc/sys/vm/drop_caches", "2");
                    break;
                case 10 when !logs:
                    vm.SetMemoryRegion(1, KvmMem.LogDirtyPages, _place, memory.Size, memory.Address);
                    _ = vm.GetDirtyLog(1, (int)(memory.Size / Page));
                    vm.SetMemoryRegion(1, _flags, _place, memory.Size, memory.Address);
                    break;
            }
            // What Linux does holds the process's memory lock for most of the time: the vCPUs need it for their faults.
            Thread.Sleep(_random.Next(2, 25));
        }

        void Move(ulong place)
        {
            _place = place;
            vm.SetMemoryRegion(1, _flags, place, memory.Size, memory.Address);
        }

        /// <summary>mremap to another place and back.</summary>
        static void Remap(nint at, nuint length)
        {
            nint other = Libc.MemoryMap(0, length, Libc.ProtNone, Libc.MapPrivate | Libc.MapAnonymous, -1, 0);
            Check.That(other != Libc.MapFailed, "mmap");
            ulong[] there = [25, (ulong)at, length, length, MayMoveFixed, (ulong)other];
            ulong[] back = [25, (ulong)other, length, length, MayMoveFixed, (ulong)at];
            fixed (ulong* first = there, second = back)
            {
                // The memory may consist of several mappings by now: then Linux refuses. The other place is free again
                // in either case.
                if ((nint)HostCode.Call(SystemCallCode, first) == other)
                    Check.Equal((ulong)at, HostCode.Call(SystemCallCode, second), "mremap back");
            }
        }
    }
}
