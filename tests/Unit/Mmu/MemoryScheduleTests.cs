// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Mmu;

/// <summary>
/// Two vCPUs fault while Linux changes the process's memory and the VMM its slots, in many orders of events that repeat
/// (<see cref="Schedule"/>). The simulated VM checks at each invalidation that no TLB keeps what went, and at each page
/// that is freed that no processor can still walk it.
/// </summary>
[TestFixture]
internal sealed class MemoryScheduleTests
{
    private const int Seeds = 400, Accesses = 12, Changes = 10;
    private const ulong Pages = 6;
    private static readonly ulong s_user = TestMemory.UserAddress(1, 0);

    [Test]
    public void FaultsWhileLinuxChangesMemoryAndTheVmmItsSlots()
    {
        for (int seed = 0; seed < Seeds; seed++)
        {
            using Race race = new(seed, logs: false);
            Random vmm = new(seed + 1);
            race.Run(() =>
            {
                // The slot is there, with or without a log, elsewhere, or nowhere.
                bool there = true;
                for (int i = 0; i <= Changes; i++)
                {
                    int choice = i < Changes ? vmm.Next(5) : 3;
                    ulong pages = there && choice == 0 ? 0 : Pages;
                    uint flags = choice > 2 ? kvm_userspace_memory_region.KVM_MEM_LOG_DIRTY_PAGES : 0;
                    Schedule.Enter();
                    Assert.That(race.Memory.SetRegion(1, choice == 1 ? 512UL : 0, pages, s_user, flags), Is.Zero);
                    there = pages != 0;
                }
            });
        }
    }

    [Test]
    public void LogsEachWriteWhileTheLogIsRead()
    {
        for (int seed = 0; seed < Seeds; seed++)
        {
            using Race race = new(seed, logs: true);
            race.Memory.Process.Map(TestMemory.UserAddress(9, 0), 1);
            race.Run(() =>
            {
                for (int i = 0; i < Changes / 2; i++)
                {
                    Schedule.Enter();
                    race.ReadLog();
                }
            });
            race.ReadLog();
            Assert.That(race.Unlogged, Is.Empty, $"seed {seed}: pages written after the last log that names them");
        }
    }

    /// <summary>The threads of one run, and what they did to the memory.</summary>
    private sealed class Race : IDisposable
    {
        private readonly int _seed;
        private readonly KernelRef<Vcpu> _second;
        /// <summary>When a page was written last, and when the last log that names it was complete.</summary>
        private readonly Dictionary<ulong, int> _written = [], _logged = [];
        private int _time;

        public Race(int seed, bool logs)
        {
            _seed = seed;
            _second = Memory.Machine.MakeVcpu(1);
            Memory.AddMemory(1, 0, Pages, logs ? kvm_userspace_memory_region.KVM_MEM_LOG_DIRTY_PAGES : 0);
        }

        public TestMemory Memory { get; } = new();

        public IEnumerable<ulong> Unlogged =>
            _written.Where(page => _logged.GetValueOrDefault(page.Key) < page.Value).Select(page => page.Key);

        public void Run(Action vmm)
        {
            Schedule.Run(
                Memory.Host, _seed, () => RunGuest(Memory.VcpuRef), () => RunGuest(_second), ChangeMemory, vmm);
            _second.Value.SpareTables.Free();
            Memory.CheckInvariants();
        }

        public void ReadLog()
        {
            ulong buffer = TestMemory.UserAddress(9, 0);
            Assert.That(Memory.GetDirtyLog(1, buffer), Is.Zero);
            Span<byte> bits = stackalloc byte[sizeof(ulong)];
            Assert.That(Memory.Process.Read(buffer, bits), Is.True);
            _time++;
            for (ulong page = 0; page < Pages; page++)
            {
                if ((MemoryMarshal.Read<ulong>(bits) >> (int)page & 1) != 0)
                    _logged[page] = _time;
            }
        }

        private void RunGuest(KernelRef<Vcpu> vcpu)
        {
            Random random = new(HashCode.Combine(_seed, vcpu.Value.Id));
            for (int i = 0; i < Accesses; i++)
                Schedule.Read(() => Access(vcpu, (ulong)random.NextInt64((long)Pages), write: random.Next(2) == 0));
        }

        /// <summary>A few attempts: the slot may be gone, the page may be away.</summary>
        private void Access(KernelRef<Vcpu> vcpu, ulong frame, bool write)
        {
            for (int attempt = 0; attempt < 5; attempt++)
            {
                if (Memory.Machine.Access(new Gfn(frame), write) != null)
                {
                    if (write)
                        _written[frame] = ++_time;
                    return;
                }
                bool present = Memory.Machine.Access(new Gfn(frame), write: false) != null;
                NestedFault.Handle<Npt>(ref vcpu.Value, new Gfn(frame).Address, write, present, wait: true);
            }
        }

        private void ChangeMemory()
        {
            Random random = new(_seed);
            for (int i = 0; i < Changes; i++)
            {
                ulong first = (ulong)random.NextInt64((long)Pages);
                ulong count = 1 + (ulong)random.NextInt64((long)(Pages - first));
                ulong start = s_user + (first << Page.Shift);
                switch (random.Next(4))
                {
                    case 0: Memory.Process.Migrate(start, count); break;
                    case 1: Memory.Process.Share(start, count); break;
                    case 2: Memory.Process.Protect(start, count, writable: random.Next(3) != 0); break;
                    default: Memory.Process.Map(start, count); break;
                }
                Schedule.Point();
            }
        }

        public void Dispose()
        {
            Memory.Destroy();
            Memory.Dispose();
        }
    }
}
