// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace SharpKvm.Selftests;

/// <summary>The log that user space clears itself, and dirty rings.</summary>
static unsafe class DirtyTests
{
    const ulong Page = 4096, Extra = 0x40000000;
    const int Pages = 130, RingBytes = 4096, Entries = RingBytes / 16, RingPageOffset = 64;

    public static IEnumerable<TestCase> All =>
    [
        new("dirty/manual_options", ManualOptions),
        new("dirty/manual_clear", ManualClear),
        new("dirty/manual_clear_errors", ManualClearErrors),
        new("dirty/initially_set", InitiallySet),
        new("dirty/ring_options", RingOptions),
        new("dirty/ring_names_pages", RingNamesPages),
        new("dirty/ring_full", RingFull),
        new("dirty/ring_replaces_bitmap", RingReplacesBitmap),
        new("dirty/ring_mapping", RingMapping),
        new("dirty/ring_hostile", RingHostile),
    ];

    static int TryEnable(Vm vm, KvmCap capability, ulong argument)
    {
        var request = new KvmEnableCap { Cap = (uint)capability };
        request.Args[0] = argument;
        return vm.TryCall(KvmIoctl.EnableCap, ref request);
    }

    static void ManualOptions()
    {
        Check.Needs(KvmCap.ManualDirtyLogProtect2);
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Check.Equal(3, vm.CheckExtension(KvmCap.ManualDirtyLogProtect2), "options");
        Check.Fails(Errno.EINVAL, TryEnable(vm, KvmCap.ManualDirtyLogProtect2, 2), "INITIALLY_SET alone");
        Check.Fails(Errno.EINVAL, TryEnable(vm, KvmCap.ManualDirtyLogProtect2, 4), "an unknown option");
        foreach (ulong options in (ulong[])[1, 3, 0])
            Check.Succeeds(TryEnable(vm, KvmCap.ManualDirtyLogProtect2, options), $"options {options}");
    }

    static PageGuest WithLog(ulong options, out GuestMemory memory, ulong pages = Pages)
    {
        Check.Needs(KvmCap.ManualDirtyLogProtect2, (int)options);
        var guest = new PageGuest();
        guest.Vm.EnableCap(KvmCap.ManualDirtyLogProtect2, options);
        memory = guest.Vm.AddMemory(1, Extra, pages * Page, KvmMem.LogDirtyPages);
        return guest;
    }

    static string Dirty(PageGuest guest)
    {
        ulong[] bitmap = guest.Vm.GetDirtyLog(1, Pages);
        return string.Join(',', Enumerable.Range(0, Pages).Where(page => (bitmap[page / 64] >> (page % 64) & 1) != 0));
    }

    static int TryClear(PageGuest guest, ulong first, uint count, params ReadOnlySpan<ulong> bits)
    {
        fixed (ulong* pointer = bits)
        {
            var request = new KvmClearDirtyLog
            {
                Slot = 1, FirstPage = first, NumPages = count, DirtyBitmap = (ulong)pointer,
            };
            return guest.Vm.TryCall(KvmIoctl.ClearDirtyLog, ref request);
        }
    }

    static void ManualClear()
    {
        using PageGuest guest = WithLog(1, out _);
        foreach (ulong page in (ulong[])[3, 64, 65, 129])
            guest.Write(Extra + page * Page, 1, 1);
        Check.Equal("3,64,65,129", Dirty(guest), "pages written");
        Check.Equal("3,64,65,129", Dirty(guest), "reading does not clear");
        Check.Succeeds(TryClear(guest, 64, 64, 0b101), "clear");
        Check.Equal("3,65,129", Dirty(guest), "without the one that was named");
        Check.Succeeds(TryClear(guest, 128, 2, 0b10), "clear the end");
        Check.Equal("3,65", Dirty(guest), "without the last");
        guest.Write(Extra + 64 * Page, 1, 2);
        guest.Write(Extra + 129 * Page, 1, 2);
        Check.Equal("3,64,65,129", Dirty(guest), "written again");
    }

    static void ManualClearErrors()
    {
        using PageGuest guest = WithLog(1, out _);
        Check.Fails(Errno.EINVAL, TryClear(guest, 1, 64, 0), "first page not a multiple of 64");
        Check.Fails(Errno.EINVAL, TryClear(guest, 0, 63, 0), "count not a multiple of 64");
        Check.Fails(Errno.EINVAL, TryClear(guest, 0, Pages + 1, 0, 0, 0), "more than there are");
        Check.Fails(Errno.EINVAL, TryClear(guest, 192, 0, 0), "behind the end");
        Check.Succeeds(TryClear(guest, 0, Pages, 0, 0, 0), "all");
        var request = new KvmClearDirtyLog { Slot = 1, NumPages = 64, DirtyBitmap = 16 };
        Check.Fails(Errno.EFAULT, guest.Vm.TryCall(KvmIoctl.ClearDirtyLog, ref request), "bad pointer");
        request.Slot = 0;
        Check.Fails(Errno.ENOENT, guest.Vm.TryCall(KvmIoctl.ClearDirtyLog, ref request), "a slot without log");
        request.Slot = 0xFFFF;
        Check.Fails(Errno.EINVAL, guest.Vm.TryCall(KvmIoctl.ClearDirtyLog, ref request), "slot 65535");
    }

    static void InitiallySet()
    {
        using PageGuest guest = WithLog(3, out _);
        Check.Equal(string.Join(',', Enumerable.Range(0, Pages)), Dirty(guest), "all pages at first");
        Check.Succeeds(TryClear(guest, 0, Pages, ulong.MaxValue, ulong.MaxValue, 3), "clear all");
        Check.Equal("", Dirty(guest), "none");
        guest.Write(Extra + 70 * Page, 2, 1);
        Check.Equal("70,71", Dirty(guest), "pages written");
    }

    static void RingOptions()
    {
        Check.Needs(KvmCap.DirtyLogRing);
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        int limit = vm.CheckExtension(KvmCap.DirtyLogRing);
        Check.Equal(1 << 20, limit, "largest ring");
        Check.Fails(Errno.EINVAL, TryEnable(vm, KvmCap.DirtyLogRing, 0), "no ring");
        Check.Fails(Errno.EINVAL, TryEnable(vm, KvmCap.DirtyLogRing, 2048), "half a page");
        Check.Fails(Errno.EINVAL, TryEnable(vm, KvmCap.DirtyLogRing, 3 * 4096), "not a power of two");
        Check.Fails(Errno.E2BIG, TryEnable(vm, KvmCap.DirtyLogRing, (ulong)limit * 2), "too large");
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.ResetDirtyRings), "reset without rings");
        Check.Succeeds(TryEnable(vm, KvmCap.DirtyLogRing, 4096), "a page");
        Check.Fails(Errno.EINVAL, TryEnable(vm, KvmCap.DirtyLogRing, 4096), "twice");
        Check.Equal(0, vm.TryCall(KvmIoctl.ResetDirtyRings), "nothing to reset");
        using Vm late = kvm.CreateVm();
        late.CreateVcpu();
        Check.Fails(Errno.EINVAL, TryEnable(late, KvmCap.DirtyLogRing, 4096), "after a vCPU");
    }

    /// <summary><c>struct kvm_dirty_gfn</c></summary>
    struct Entry
    {
        public uint Flags, Slot;
        public ulong Offset;
    }

    /// <summary>A guest with a ring of one page, and its memory in a slot that logs.</summary>
    sealed class RingGuest : IDisposable
    {
        readonly Entry* _ring;
        int _next;

        public RingGuest(ulong pages = 1000)
        {
            Check.Needs(KvmCap.DirtyLogRing);
            Pages = new PageGuest(vm => vm.EnableCap(KvmCap.DirtyLogRing, RingBytes));
            Memory = Pages.Vm.AddMemory(1, Extra, pages * Page, KvmMem.LogDirtyPages);
            nint map = Map(Libc.ProtRead | Libc.ProtWrite, Libc.MapShared);
            Check.That(map != Libc.MapFailed, "mmap of the ring");
            _ring = (Entry*)map;
        }

        public PageGuest Pages { get; }
        public GuestMemory Memory { get; }
        public Span<Entry> Ring => new(_ring, Entries);

        public nint Map(int protection, int flags, int pages = 1, int first = RingPageOffset) => Libc.MemoryMap(
            0, (nuint)(pages * RingBytes), protection, flags, Pages.Guest.Vcpu.Fd, first * (long)Page);

        /// <summary>What the ring names since the last call.</summary>
        public List<ulong> Harvest()
        {
            List<ulong> found = [];
            for (; (Volatile.Read(ref _ring[_next % Entries].Flags) & 3) == 1; _next++)
            {
                Check.Equal(1u, _ring[_next % Entries].Slot, "slot");
                found.Add(_ring[_next % Entries].Offset);
                Volatile.Write(ref _ring[_next % Entries].Flags, 2);
            }
            return found;
        }

        public int Reset() => Pages.Vm.Call(KvmIoctl.ResetDirtyRings);

        public void Dispose()
        {
            _ = Libc.MemoryUnmap((nint)_ring, RingBytes);
            Pages.Dispose();
        }
    }

    static void RingNamesPages()
    {
        using var guest = new RingGuest();
        guest.Pages.Write(Extra + 5 * Page, 3, 1);
        guest.Pages.Write(Extra + 6 * Page, 1, 2);
        Check.Equal("5,6,7", string.Join(',', guest.Harvest()), "pages written");
        Check.Equal(3, guest.Reset(), "entries taken back");
        Check.Equal(0, guest.Reset(), "once more");
        guest.Pages.Write(Extra + 6 * Page, 1, 3);
        Check.Equal("6", string.Join(',', guest.Harvest()), "a page written again");
    }

    static void RingFull()
    {
        const ulong All = 900;
        using var guest = new RingGuest();
        SortedSet<ulong> named = [];
        guest.Pages.Prepare(Extra, All, 7, compare: false);
        int full = 0;
        while (true)
        {
            Check.Succeeds(guest.Pages.Guest.Vcpu.TryRun(), "KVM_RUN");
            named.UnionWith(guest.Harvest());
            if (guest.Pages.Guest.Run.ExitReason == KvmExit.Hlt)
                break;
            Check.Equal(KvmExit.DirtyRingFull, guest.Pages.Guest.Run.ExitReason, "exit");
            Check.That(guest.Reset() >= Entries / 2, "entries taken back");
            Check.That(++full < 100, "the guest makes progress");
        }
        Check.That(full >= 3, $"{full} exits with {All} pages and {Entries} entries");
        Check.Equal((int)All, named.Count(page => page < All), "pages named");
    }

    /// <summary>A full ring keeps the guest from running until entries were taken back.</summary>
    static void RingReplacesBitmap()
    {
        using var guest = new RingGuest();
        var log = new KvmDirtyLog { Slot = 1 };
        Check.Fails(Errno.ENXIO, guest.Pages.Vm.TryCall(KvmIoctl.GetDirtyLog, ref log), "GET_DIRTY_LOG");
        var clear = new KvmClearDirtyLog { Slot = 1 };
        Check.Fails(Errno.ENXIO, guest.Pages.Vm.TryCall(KvmIoctl.ClearDirtyLog, ref clear), "CLEAR_DIRTY_LOG");
        guest.Pages.Prepare(Extra, 500, 7, compare: false);
        guest.Pages.Guest.RunTo(KvmExit.DirtyRingFull);
        ulong left = guest.Pages.Guest.Vcpu.Regs.Rcx;
        guest.Pages.Guest.RunTo(KvmExit.DirtyRingFull, "again without a reset");
        Check.Equal(left, guest.Pages.Guest.Vcpu.Regs.Rcx, "pages left");
    }

    static void RingMapping()
    {
        using var guest = new RingGuest();
        Check.Equal(Libc.MapFailed, guest.Map(Libc.ProtRead, Libc.MapPrivate), "a private mapping");
        Check.Equal(Libc.MapFailed, guest.Map(Libc.ProtRead | Libc.ProtExec, Libc.MapShared), "an executable one");
        nint behind = guest.Map(Libc.ProtRead, Libc.MapShared, pages: 2);
        Check.That(behind != Libc.MapFailed, "a page too many");
        Check.That(Process.CanRead(behind) && !Process.CanRead(behind + (nint)Page), "only the ring is there");
        _ = Libc.MemoryUnmap(behind, (nuint)(2 * Page));
    }

    /// <summary>User space writes nonsense into the ring.</summary>
    static void RingHostile()
    {
        Check.Needs(TestEnvironment.IsSharpKvm, "this module: stock KVM is not asked");
        using var guest = new RingGuest();
        Random random = TestEnvironment.FixedRandom;
        for (int round = 0; round < 50; round++)
        {
            foreach (ref Entry entry in guest.Ring)
            {
                entry = new Entry
                {
                    Flags = (uint)random.Next(4), Slot = random.Next(3) == 0 ? (uint)random.NextInt64() : 1,
                    Offset = random.Next(3) == 0 ? (ulong)random.NextInt64() : (ulong)random.Next(1100),
                };
            }
            guest.Pages.Prepare(Extra + (ulong)random.Next(900) * Page, 50, 7, compare: false);
            Check.Succeeds(guest.Pages.Guest.Vcpu.TryRun(), "KVM_RUN");
            Check.That(guest.Reset() is >= 0 and <= Entries, "entries taken back");
        }
    }
}
