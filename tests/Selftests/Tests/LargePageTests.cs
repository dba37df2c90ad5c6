// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Guest memory in huge pages of the host: transparent ones and those of hugetlbfs.</summary>
static class LargePageTests
{
    const ulong Page = 4096, Extra = 0x40000000, Huge = HugeMemory.Huge, PagesPerHuge = Huge / Page;
    const int MapHugeTlb = 0x40000, MapHuge1G = 30 << 26;

    public static IEnumerable<TestCase> All =>
    [
        new("large/one_fault", OneFault, Own: true),
        new("large/misaligned_slot", MisalignedSlot, Own: true),
        new("large/split_by_host", SplitByHost, Own: true),
        new("large/collapse", Collapse, Own: true),
        new("large/dirty_log", DirtyLog, Own: true),
        new("large/log_ends", LogEnds, Own: true),
        new("large/hugetlbfs_2m", () => HugeTlb(Huge, 0, "hugepages-2048kB"), Own: true),
        new("large/hugetlbfs_1g", () => HugeTlb(1UL << 30, MapHuge1G, "hugepages-1048576kB"), Own: true),
    ];

    /// <summary>Entries into the guest since load; 0 on stock KVM.</summary>
    static ulong Entries()
    {
        const string Path = "/sys/kernel/debug/sharpkvm/counters";
        return !TestEnvironment.IsSharpKvm || !File.Exists(Path) ? 0
            : ulong.Parse(File.ReadLines(Path).First(line => line.StartsWith("vmrun", StringComparison.Ordinal))
                .Split(' ', StringSplitOptions.RemoveEmptyEntries)[1]);
    }

    /// <summary>Runs and says whether that took at most so many entries; always true on stock KVM.</summary>
    static void Within(ulong limit, string what, Action run)
    {
        ulong before = Entries();
        run();
        ulong entries = Entries() - before;
        Check.That(entries <= limit, $"{what}: {entries} entries into the guest, at most {limit} expected");
    }

    static HugeMemory Add(PageGuest guest, ulong size, ulong address = Extra, KvmMem flags = KvmMem.None)
    {
        ulong had = HugeMemory.HugeBytes;
        var memory = new HugeMemory(size, huge: true);
        memory.Bytes(0, (int)size).Fill(1);
        Check.Needs(HugeMemory.HugeBytes >= had + size, "transparent huge pages");
        guest.Vm.SetMemoryRegion(1, flags, address, size, memory.Address);
        return memory;
    }

    static void OneFault()
    {
        using var guest = new PageGuest();
        using HugeMemory memory = Add(guest, 2 * Huge);
        Within(60, "1,024 pages", () => guest.Write(Extra, 2 * PagesPerHuge, 0x1234));
        for (ulong page = 0; page < 2 * PagesPerHuge; page++)
            Check.Equal(0x1234ul, memory.Read<ulong>(page * Page), $"page {page}");
    }

    static void MisalignedSlot()
    {
        using var guest = new PageGuest();
        using HugeMemory memory = Add(guest, 2 * Huge, Extra + Page);
        guest.Write(Extra + Page, 2 * PagesPerHuge, 0x77);
        Check.Equal(0x77ul, memory.Read<ulong>(Huge), "the second huge page");
        Check.Equal(0x77ul, memory.Read<ulong>(2 * Huge - Page), "the last page");
    }

    /// <summary>Linux takes one page of a huge one away: only that is zero afterwards.</summary>
    static void SplitByHost()
    {
        using var guest = new PageGuest();
        using HugeMemory memory = Add(guest, Huge);
        guest.Write(Extra, PagesPerHuge, 5);
        memory.TakeAway(7 * Page);
        guest.Verify(Extra, 7, 5, "before it");
        guest.Verify(Extra + 7 * Page, 1, 0, "the page itself");
        guest.Verify(Extra + 8 * Page, PagesPerHuge - 8, 5, "behind it");
        guest.Write(Extra, PagesPerHuge, 6);
        Check.Equal(6ul, memory.Read<ulong>(7 * Page), "written again");
    }

    static void Collapse()
    {
        using var guest = new PageGuest();
        using var memory = new HugeMemory(Huge, huge: false);
        guest.Vm.SetMemoryRegion(1, 0, Extra, Huge, memory.Address);
        guest.Write(Extra, PagesPerHuge, 8);
        Check.Needs(memory.Collapse(), "madvise(MADV_COLLAPSE)");
        Within(60, "after the pages became one", () => guest.Verify(Extra, PagesPerHuge, 8, "the same contents"));
        guest.Write(Extra, PagesPerHuge, 9);
        Check.Equal(9ul, memory.Read<ulong>(Huge - Page), "written by the guest");
    }

    static void DirtyLog()
    {
        using var guest = new PageGuest();
        using HugeMemory memory = Add(guest, Huge);
        guest.Write(Extra, PagesPerHuge, 1);
        guest.Vm.SetMemoryRegion(1, KvmMem.LogDirtyPages, Extra, Huge, memory.Address);
        _ = guest.Vm.GetDirtyLog(1, (int)PagesPerHuge);
        guest.Write(Extra + 9 * Page, 2, 2);
        ulong[] log = guest.Vm.GetDirtyLog(1, (int)PagesPerHuge);
        Check.Equal(3ul << 9, log[0], "the two pages, not the huge one");
        Check.That(log.AsSpan(1).IndexOfAnyExcept(0ul) < 0, "no other page");
        guest.Verify(Extra + 11 * Page, 100, 1, "the others");
    }

    static void LogEnds()
    {
        using var guest = new PageGuest();
        using HugeMemory memory = Add(guest, Huge, flags: KvmMem.LogDirtyPages);
        guest.Write(Extra, PagesPerHuge, 1);
        guest.Vm.SetMemoryRegion(1, 0, Extra, Huge, memory.Address);
        Within(60, "after logging", () => guest.Verify(Extra, PagesPerHuge, 1, "the contents"));
        Within(10, "once more", () => guest.Write(Extra, PagesPerHuge, 2));
        Check.Equal(2ul, memory.Read<ulong>(3 * Page), "written by the guest");
    }

    static void HugeTlb(ulong size, int kind, string pool)
    {
        string count = $"/sys/kernel/mm/hugepages/{pool}/nr_hugepages";
        Check.Needs(File.Exists(count), pool);
        string before = File.ReadAllText(count);
        File.WriteAllText(count, "1");
        try
        {
            Check.Needs(File.ReadAllText(count).Trim() != "0", $"memory for {pool}");
            nint at = Libc.MemoryMap(0, (nuint)size, Libc.ProtRead | Libc.ProtWrite,
                Libc.MapPrivate | Libc.MapAnonymous | MapHugeTlb | kind, -1, 0);
            Check.That(at != Libc.MapFailed, "mmap");
            using (var guest = new PageGuest())
            {
                guest.Vm.SetMemoryRegion(1, 0, Extra, size, (ulong)at);
                Within(60, "2,048 pages, or fewer", () => guest.Write(Extra, Math.Min(2048, size / Page), 3));
                guest.Write(Extra + size - Page, 1, 3);
                guest.Verify(Extra, Math.Min(2048, size / Page), 3, "the contents");
            }
            Check.Equal(0, Libc.MemoryUnmap(at, (nuint)size), "munmap");
        }
        finally
        {
            File.WriteAllText(count, before);
        }
    }
}
