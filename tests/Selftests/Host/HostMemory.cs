// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>What the kernel has handed out, for finding leaks.</summary>
sealed record HostMemory(long UnreclaimableSlabKib, long PageTablesKib, long AvailableKib, long Percpu)
{
    /// <summary>A debug kernel keeps what was freed, to catch its late use; its leak checker then knows more.</summary>
    static readonly bool FreeIsKept = File.Exists("/sys/kernel/debug/kmemleak");

    /// <summary>Reads when nothing changes any more: memory is given back after grace periods.</summary>
    static HostMemory Settled()
    {
        HostMemory last = Read();
        for (int i = 0; i < 30; i++)
        {
            Thread.Sleep(100);
            HostMemory now = Read();
            if (Math.Abs(now.AvailableKib - last.AvailableKib) < 128
                && now.UnreclaimableSlabKib == last.UnreclaimableSlabKib)
                return now;
            last = now;
        }
        return last;
    }

    /// <summary>Does something so many times after it was done often enough for caches to fill.</summary>
    public static void ExpectNoGrowth(Action<int> body, int first, int times, string what)
    {
        body(first);
        HostMemory before = Settled();
        body(times);
        Settled().ExpectNoGrowthSince(before, $"{times} {what}");
    }

    /// <summary>Bounds that one leaked page or structure per machine exceeds.</summary>
    void ExpectNoGrowthSince(HostMemory before, string what)
    {
        Check.That(PageTablesKib - before.PageTablesKib < 600, $"{what}: page tables grew from {before} to {this}");
        Check.That(Percpu - before.Percpu < 600, $"{what}: per-CPU memory grew from {before} to {this}");
        if (FreeIsKept)
            return;
        Check.That(UnreclaimableSlabKib - before.UnreclaimableSlabKib < 600,
            $"{what}: slabs grew from {before} to {this}");
        Check.That(before.AvailableKib - AvailableKib < 20000, $"{what}: free memory shrank from {before} to {this}");
    }

    static HostMemory Read()
    {
        var values = File.ReadLines("/proc/meminfo").Select(line => line.Split(':'))
            .ToDictionary(words => words[0], words => long.Parse(words[1].Split(' ',
                StringSplitOptions.RemoveEmptyEntries)[0]));
        return new(values["SUnreclaim"], values["PageTables"], values["MemAvailable"], values["Percpu"]);
    }
}
