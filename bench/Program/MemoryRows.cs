// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using SharpKvm.Selftests;

namespace SharpKvm.Bench;

/// <summary>Large pages, dirty tracking and memory slots.</summary>
static unsafe partial class Rows
{
    const ulong PageSize = 4096, LogBytes = 64 << 20, LargeBytes = 32 << 20;
    const int LogPages = (int)(LogBytes / PageSize), LargePages = (int)(LargeBytes / HugeMemory.Huge);
    const int SlotChanges = 10, Patience = 60;

    static IEnumerable<Row> MemoryRows =>
    [
        new("npt_fault_large", LargeFaults),
        new("dirty_fault", () => DirtyLog(LogStep.Fault)),
        new("dirty_enable_64m", () => DirtyLog(LogStep.Enable)),
        new("dirty_get_64m", () => DirtyLog(LogStep.Get)),
        new("dirty_clear_64m", () => DirtyLog(LogStep.Clear)),
        new("slot_create_delete_1", () => SlotChange(1, moves: false)),
        new("slot_create_delete_100", () => SlotChange(100, moves: false)),
        new("slot_create_delete_10k", () => SlotChange(10_000, moves: false), NeedsRoom: true),
        new("slot_move_1", () => SlotChange(1, moves: true)),
        new("slot_move_100", () => SlotChange(100, moves: true)),
        new("slot_move_10k", () => SlotChange(10_000, moves: true), NeedsRoom: true),
        new("vm_kernel_bytes", MachineMemory, Patience, NeedsRoom: true),
        new("map_1g_kernel_bytes", MappingMemory, Patience, NeedsRoom: true),
    ];

    /// <summary>Rows by the clock, for a machine with two CPUs.</summary>
    public static IEnumerable<Row> ByClock =>
    [
        new("million_faults_1_time", () => FaultTime(cpus: 1), Patience),
        new("million_faults_2_time", () => FaultTime(cpus: 2), Patience),
    ];

    enum LogStep
    {
        Fault, Enable, Get, Clear,
    }

    /// <summary>The first write to each of some 2 MiB pages that the process has touched.</summary>
    static Measurement LargeFaults()
    {
        using var memory = new HugeMemory(LargeBytes, huge: true);
        memory.Bytes(0, (int)LargeBytes).Fill(1);
        Check.Needs(HugeMemory.HugeBytes >= LargeBytes, "transparent huge pages");
        using Guest guest = Toucher(LargePages, HugeMemory.Huge);
        return Measurement.Take(5, LargePages, () =>
        {
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, LargeBytes, memory.Address);
            ulong ticks = RunToHalt(guest);
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, 0, 0);
            return ticks;
        });
    }

    /// <summary>A step of dirty tracking, on 64 MiB of small pages all of which are mapped and written.</summary>
    static Measurement DirtyLog(LogStep step)
    {
        using var memory = new HugeMemory(LogBytes, huge: false);
        memory.Bytes(0, (int)LogBytes).Fill(1);
        using Guest guest = Toucher(LogPages, PageSize);
        if (step == LogStep.Clear)
            guest.Vm.EnableCap(KvmCap.ManualDirtyLogProtect2, 1);
        var bitmap = new ulong[LogPages / 64];
        return Measurement.Take(3, step == LogStep.Fault ? LogPages : 1, () =>
        {
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, LogBytes, memory.Address);
            RunToHalt(guest);
            ulong enable = Time(() =>
                guest.Vm.SetMemoryRegion(1, KvmMem.LogDirtyPages, FaultMemory, LogBytes, memory.Address));
            ulong fault = RunToHalt(guest);
            Array.Fill(bitmap, ulong.MaxValue);
            ulong get, clear;
            fixed (ulong* pointer = bitmap)
            {
                var log = new KvmDirtyLog { Slot = 1, DirtyBitmap = (ulong)pointer };
                get = Time(() => guest.Vm.Call(KvmIoctl.GetDirtyLog, ref log));
                var chosen = new KvmClearDirtyLog { Slot = 1, NumPages = (uint)LogPages, DirtyBitmap = (ulong)pointer };
                clear = step == LogStep.Clear ? Time(() => guest.Vm.Call(KvmIoctl.ClearDirtyLog, ref chosen)) : 0;
            }
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, 0, 0);
            return step switch
            {
                LogStep.Fault => fault, LogStep.Enable => enable, LogStep.Get => get, _ => clear,
            };
        });
    }

    /// <summary>A slot is made and deleted, or moved there and back, beside so many others.</summary>
    static Measurement SlotChange(int others, bool moves)
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        using var memory = new GuestMemory(0, PageSize);
        for (int slot = 1; slot < others; slot++)
            vm.SetMemoryRegion((uint)slot, 0, (ulong)slot * 4 * PageSize, PageSize, memory.HostAddress);
        ulong place = (ulong)others * 4 * PageSize;
        var first = new KvmUserspaceMemoryRegion
        {
            Slot = (uint)others, GuestPhysAddr = place, MemorySize = PageSize, UserspaceAddr = memory.HostAddress,
        };
        KvmUserspaceMemoryRegion second = first;
        if (moves)
        {
            vm.SetMemoryRegion((uint)others, 0, place, PageSize, memory.HostAddress);
            first.GuestPhysAddr += PageSize;
        }
        else
            second.MemorySize = 0;
        KvmUserspaceMemoryRegion* requests = stackalloc[] { first, second };
        nint address = (nint)requests;
        return Measurement.Take(5, 2 * SlotChanges, () => HostLoop.Run(
            SystemCall.Ioctl(vm.Fd, KvmIoctl.SetUserMemoryRegion, address),
            SystemCall.Ioctl(vm.Fd, KvmIoctl.SetUserMemoryRegion, address + sizeof(KvmUserspaceMemoryRegion)),
            SlotChanges, 0));
    }

    /// <summary>What a machine with one slot and one CPU is charged for.</summary>
    static Measurement MachineMemory()
    {
        const int Machines = 128;
        using Kvm kvm = TestEnvironment.OpenKvm();
        using var memory = new GuestMemory(0, 1 << 20);
        List<Vm> machines = [];
        double before = ChargedBytes();
        try
        {
            for (int i = 0; i < Machines; i++)
            {
                Vm vm = kvm.CreateVm();
                machines.Add(vm);
                vm.SetMemoryRegion(0, 0, 0, memory.Size, memory.HostAddress);
                vm.CreateVcpu();
            }
            return Measurement.Once((ChargedBytes() - before) / Machines);
        }
        finally
        {
            machines.ForEach(vm => vm.Dispose());
        }
    }

    /// <summary>What mapping 1 GiB in small pages is charged for.</summary>
    static Measurement MappingMemory()
    {
        const int Part = 8;
        const ulong Bytes = (1 << 30) / Part;
        using var memory = new HugeMemory(Bytes, huge: false);
        memory.Bytes(0, (int)Bytes).Fill(1);
        using Guest guest = Toucher((int)(Bytes / PageSize), PageSize);
        guest.Vm.SetMemoryRegion(1, 0, FaultMemory, Bytes, memory.Address);
        double before = ChargedBytes();
        RunToHalt(guest);
        return Measurement.Once((ChargedBytes() - before) * Part);
    }

    /// <summary>Kernel memory that this process's cgroup is charged with.</summary>
    static double ChargedBytes()
    {
        string group = File.ReadAllText("/proc/self/cgroup").Split("::")[^1].Trim();
        string file = $"/sys/fs/cgroup{group}/memory.stat";
        Check.Needs(File.Exists(file), "a memory cgroup of its own");
        string line = File.ReadLines(file).First(line => line.StartsWith("kernel ", StringComparison.Ordinal));
        return double.Parse(line.Split(' ')[1]);
    }

    /// <summary>Seconds in which the vCPUs of a machine together take a million faults on memory that their process has
    /// touched.</summary>
    static Measurement FaultTime(int cpus)
    {
        const ulong Share = 64 << 20;
        ulong bytes = Share * (ulong)cpus;
        using var memory = new HugeMemory(bytes, huge: false);
        memory.Bytes(0, (int)bytes).Fill(1);
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Touch(code, PageSize);
            code.hlt();
        });
        List<Vcpu> vcpus = [guest.Vcpu];
        while (vcpus.Count < cpus)
            vcpus.Add(guest.AddCpu((uint)vcpus.Count, GuestLayout.Code, GuestLayout.StackTop - 0x800));
        double faults = bytes / PageSize;
        List<double> seconds = [];
        for (int sample = 0; sample < 5; sample++)
        {
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, bytes, memory.Address);
            for (int i = 0; i < cpus; i++)
            {
                vcpus[i].Regs = vcpus[i].Regs with
                {
                    Rip = GuestLayout.Code, Rbx = FaultMemory + (ulong)i * Share, Rsi = Share / PageSize,
                };
            }
            long start = Stopwatch.GetTimestamp();
            Thread[] threads = [.. vcpus.Select(vcpu => new Thread(() => vcpu.TryRun()))];
            Array.ForEach(threads, thread => thread.Start());
            Array.ForEach(threads, thread => thread.Join());
            seconds.Add(Stopwatch.GetElapsedTime(start).TotalSeconds / faults * 1_000_000);
            Check.That(vcpus.TrueForAll(vcpu => vcpu.Regs.Rsi == 0), "every page is touched");
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, 0, 0);
        }
        return Measurement.Once(seconds.Min());
    }

    static ulong Time(Action action)
    {
        ulong start = HostLoop.Ticks();
        action();
        return HostLoop.Ticks() - start;
    }
}
