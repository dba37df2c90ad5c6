// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Mmu;
using SharpKvm.Vm;
using static SharpKvm.Abi.kvm_clock_data;

namespace SharpKvm.Tests.Paravirt;

/// <summary>kvmclock: pages, master clock, wall clock, KVM_GET_CLOCK and KVM_SET_CLOCK.</summary>
public class ClockTests
{
    private const ulong PageA = 0x1000, PageB = 0x2040, Enable = 1;

    [TestCase(KvmMsr.SystemTime)]
    [TestCase(KvmMsr.SystemTimeOld)]
    public void TheGuestReadsTheTimeSinceTheVmsCreation(uint msr)
    {
        using ParavirtVm vm = new();
        vm.Pass(1_000_000);
        vm.Write(0, msr, PageA | Enable);
        Assert.That(vm.GuestTime(0, PageA), Is.EqualTo(1_000_000));
        vm.Pass(123_456_789);
        Assert.That(vm.GuestTime(0, PageA), Is.EqualTo(124_456_789));
        Assert.That((vm.Get(0, KvmMsr.SystemTime), vm.Get(0, KvmMsr.SystemTimeOld)),
            Is.EqualTo((PageA | Enable, PageA | Enable)));
    }

    [Test]
    public void ADisabledClockWritesNothing()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.SystemTime, PageA);
        Assert.That(vm.Read<ulong>(PageA + 16), Is.Zero);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        uint version = vm.Read<uint>(PageA);
        vm.Write(0, KvmMsr.SystemTime, 0);
        vm.Write(0, Msr.Tsc, 77);
        Assert.That(vm.Read<uint>(PageA), Is.EqualTo(version));
    }

    [Test]
    public void AllVcpusReadTheSameOnAMasterClock()
    {
        using ParavirtVm vm = new(2);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Pass(999);
        vm.Write(1, KvmMsr.SystemTime, PageB | Enable);
        Assert.That((vm.Page(PageA), vm.Page(PageB).Flags), Is.EqualTo((vm.Page(PageB), (byte)1)));
        for (int i = 0; i < 1000; i++)
        {
            vm.Pass(1);
            Assert.That(vm.GuestTime(0, PageA), Is.EqualTo(vm.GuestTime(1, PageB)));
        }
    }

    [Test]
    public void CountersThatDifferEndTheMasterClockAndEqualOnesBringItBack()
    {
        using ParavirtVm vm = new(2);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Write(1, KvmMsr.SystemTime, PageB | Enable);
        ulong common = vm.Get(0, Msr.Tsc);
        vm.Write(1, Msr.Tsc, 1_000_000_000_000);
        Assert.That((vm.Page(PageA).Flags, vm.Page(PageB).Flags, vm.GetClock().flags),
            Is.EqualTo(((byte)0, (byte)0, 0)));
        Assert.That(vm.GuestTime(1, PageB), Is.EqualTo(vm.GuestTime(0, PageA)));
        vm.Write(1, Msr.Tsc, common);
        Assert.That((vm.Page(PageA).Flags, vm.Page(PageB).Flags), Is.EqualTo(((byte)1, (byte)1)));
    }

    [Test]
    public void AnAdjustedCounterIsAChangeToo()
    {
        using ParavirtVm vm = new(2);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Vm.TakeKicks();
        Assert.That(vm.Set(1, Msr.TscAdjust, 1000), Is.True);
        Assert.That(vm.Vm.TakeKicks(), Does.Contain(0));
        vm.Handle();
        Assert.That(vm.Page(PageA).Flags, Is.Zero);
    }

    [Test]
    public void AVcpuThatComesLaterWithAnotherCounterEndsTheMasterClock()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Write(0, Msr.Tsc, 1_000_000_000_000);
        Assert.That(vm.Page(PageA).Flags, Is.EqualTo(1));
        vm.Vm.Add(1);
        vm.Handle();
        Assert.That(vm.Page(PageA).Flags, Is.Zero);
    }

    [Test]
    public void ANewCounterDoesNotMoveTheClock()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Pass(1000);
        vm.Write(0, Msr.Tsc, 0x1234_5678_9abc);
        Assert.That(vm.GuestTime(0, PageA), Is.EqualTo(1000));
    }

    [Test]
    public void WithAnUnreliableCounterEachVcpuSamplesAfterAMove()
    {
        using ParavirtVm vm = new(stableTsc: false);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        Assert.That((vm.Page(PageA).Flags, vm.GetClock().flags), Is.EqualTo(((byte)0, 0)));
        vm.Pass(500);
        vm.Host.Cpu.Tsc -= 4_000_000_000;
        vm.Migrate(0);
        Assert.That(vm.GuestTime(0, PageA), Is.EqualTo(500));
    }

    [Test]
    public void AMoveCostsNothingOnAMasterClock()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        uint version = vm.Read<uint>(PageA);
        vm.Migrate(0);
        Assert.That(vm.Read<uint>(PageA), Is.EqualTo(version));
    }

    [Test]
    public void ACounterThatIsFoundUnreliableMakesNoJump()
    {
        using ParavirtVm vm = new(2);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Write(1, KvmMsr.SystemTime, PageB | Enable);
        vm.Pass(1_000_000);
        vm.Host.Cpu.TscIsStable = false;
        vm.Migrate(0);
        Assert.That(vm.GuestTime(0, PageA), Is.EqualTo(1_000_000));
        vm.Handle();
        Assert.That((vm.Page(PageB).Flags, vm.GuestTime(1, PageB)), Is.EqualTo(((byte)0, 1_000_000)));
    }

    [Test]
    public void NoVcpuSeesTheClockGoBackwards() =>
        Gen.Select(Gen.UInt[500_000, 5_000_000], Gen.Select(Gen.Int[0, 5], Gen.ULong[0, 1_000_000]).Array[1, 60])
            .Sample((khz, steps) =>
            {
                using ParavirtVm vm = new(2);
                vm.Host.Cpu.TscKhz = khz;
                vm.Vm.Vm.Clock.Start();
                vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
                vm.Write(1, KvmMsr.SystemTime, PageB | Enable);
                ulong last = 0;
                foreach ((int step, ulong amount) in steps)
                {
                    uint id = (uint)step & 1;
                    vm.Pass(amount);
                    if (step is 2 or 3)
                        vm.Write(id, KvmMsr.SystemTime, (id == 0 ? PageA : PageB) | Enable);
                    else if (step is 4 or 5)
                        vm.Migrate(id);
                    ulong now = vm.GuestTime(id, id == 0 ? PageA : PageB);
                    Assert.That(now, Is.GreaterThanOrEqualTo(last));
                    Assert.That(vm.GetClock().clock, Is.EqualTo(now), "user space sees another clock");
                    last = now;
                }
            }, iter: 200, seed: "0N0XIzNsQ0O2", threads: 1);

    [Test]
    public void TheVersionIsOddWhileThePageChanges()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        Assert.That(vm.SetClock(new() { clock = 77 }), Is.Zero);
        List<(uint, ulong)> seen = [];
        vm.Host.Process.AfterWrite = () => seen.Add((vm.Read<uint>(PageA), vm.Read<ulong>(PageA + 16)));
        vm.Handle();
        Assert.That(seen, Is.EqualTo(new[] { (3u, 0ul), (3u, 77ul), (4u, 77ul) }));
    }

    [Test]
    public void AnOddVersionOfTheGuestsBecomesEven()
    {
        using ParavirtVm vm = new();
        vm.Put(PageA, uint.MaxValue);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        Assert.That(vm.Read<uint>(PageA) & 1, Is.Zero);
    }

    /// <summary>CVE-2013-1796, CVE-2013-1797: across pages, across the end of memory, memory that goes.</summary>
    [TestCase(0x1ff0ul)]
    [TestCase(0x1003ul & ~1ul)]
    [TestCase(0xfff4ul)]
    [TestCase(0xfffcul)]
    [TestCase(ParavirtVm.Nowhere)]
    [TestCase(0xffff_ffff_ffff_fff0ul)]
    [TestCase(0xffff_ffff_ffff_fffeul)]
    public void NoAddressDoesHarm(ulong address)
    {
        using ParavirtVm vm = new();
        foreach (uint msr in new[] { KvmMsr.SystemTime, KvmMsr.WallClock, KvmMsr.SystemTimeOld, KvmMsr.WallClockOld })
            Assert.That(vm.Set(0, msr, address | Enable), Is.True);
        vm.Handle();
        vm.Host.Process.Unmap(TestMemory.UserAddress(0, 0), ParavirtVm.MemoryPages);
        Assert.That(vm.Set(0, Msr.Tsc, 99), Is.True);
        vm.Handle();
    }

    [Test]
    public void PagesThatAreWrittenAreLoggedAsDirty()
    {
        using ParavirtVm vm = new();
        vm.Memory.AddMemory(1, 0x100, 1, kvm_userspace_memory_region.KVM_MEM_LOG_DIRTY_PAGES);
        vm.Write(0, KvmMsr.SystemTime, 0x100_000 | Enable);
        Assert.That(vm.Memory.GetDirtyLog(1, ParavirtVm.Argument), Is.Zero);
        Assert.That(UserMemory.TryRead(new Hva(ParavirtVm.Argument), out ulong dirty), Is.True);
        Assert.That(dirty, Is.EqualTo(1));
    }

    [Test]
    public void TheGuestLearnsThatItWasPausedAndClearsTheFlag()
    {
        using ParavirtVm vm = new();
        Assert.That(Pause(), Is.EqualTo(Errno.EINVAL), "without a clock");
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        Assert.That(Pause(), Is.Zero);
        vm.Handle();
        Assert.That(vm.Page(PageA).Flags, Is.EqualTo(3));
        vm.SetClock(new() { clock = 5 });
        vm.Handle();
        Assert.That(vm.Page(PageA).Flags, Is.EqualTo(3), "kept until the guest has seen it");
        vm.Put(PageA + 29, (byte)1);
        vm.SetClock(new() { clock = 6 });
        vm.Handle();
        Assert.That(vm.Page(PageA).Flags, Is.EqualTo(1));

        long Pause() => VcpuIoctls<FakeVendor>.Dispatch(ref vm[0], Ioctl.KVM_KVMCLOCK_CTRL, 0);
    }

    [TestCase(KvmMsr.WallClock)]
    [TestCase(KvmMsr.WallClockOld)]
    public void TheWallClockIsTheTimeOfDayAtZero(uint msr)
    {
        using ParavirtVm vm = new();
        vm.Pass(3_000_000_000);
        vm.Host.Cpu.RealNanoseconds = 1_700_000_003_123_456_789;
        vm.Write(0, msr, PageA);
        Assert.That((vm.Read<uint>(PageA), vm.Read<uint>(PageA + 4), vm.Read<uint>(PageA + 8)),
            Is.EqualTo((2, 1_700_000_000, 123_456_789)));
        Assert.That(vm.Get(0, KvmMsr.WallClock), Is.EqualTo(PageA));
    }

    [Test]
    public void UserSpaceReadsTheClockAndTheHostsWithIt()
    {
        using ParavirtVm vm = new();
        vm.Pass(4242);
        kvm_clock_data data = vm.GetClock();
        Assert.That((data.clock, data.flags, data.realtime, data.host_tsc, data.pad0), Is.EqualTo(
            (4242ul, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC, vm.Host.Cpu.RealNanoseconds,
            vm.Host.Cpu.Tsc, 0u)));
        Assert.That(VmIoctls.Dispatch(ref vm.Vm.Vm, Ioctl.KVM_GET_CLOCK, 0x999_0000), Is.EqualTo(Errno.EFAULT));
    }

    [TestCase(0u, 1000ul)]
    [TestCase(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_HOST_TSC, 1000ul)]
    [TestCase(KVM_CLOCK_REALTIME, 1500ul)]
    public void UserSpaceSetsTheClock(uint flags, ulong expected)
    {
        using ParavirtVm vm = new(2);
        vm.Write(0, KvmMsr.SystemTime, PageA | Enable);
        vm.Write(1, KvmMsr.SystemTime, PageB | Enable);
        vm.Pass(99);
        vm.Vm.TakeKicks();
        Assert.That(vm.SetClock(new() { clock = 1000, flags = flags, realtime = vm.Host.Cpu.RealNanoseconds - 500 }),
            Is.Zero);
        Assert.That(vm.Vm.TakeKicks(), Is.EqualTo(new uint[] { 0, 1 }));
        vm.Handle();
        Assert.That((vm.GetClock().clock, vm.GuestTime(0, PageA), vm.GuestTime(1, PageB)),
            Is.EqualTo((expected, expected, expected)));
    }

    [Test]
    public void TheClockIsNotSetBackBecauseTheHostsTimeWas()
    {
        using ParavirtVm vm = new();
        vm.SetClock(new() { clock = 7, flags = KVM_CLOCK_REALTIME, realtime = vm.Host.Cpu.RealNanoseconds + 500 });
        Assert.That(vm.GetClock().clock, Is.EqualTo(7));
    }

    [TestCase(1u)]
    [TestCase(1u << 4)]
    [TestCase(1u << 31)]
    public void UnknownFlagsChangeNothing(uint flag)
    {
        using ParavirtVm vm = new();
        Assert.That(vm.SetClock(new() { clock = 1000, flags = flag }), Is.EqualTo(Errno.EINVAL));
        Assert.That(vm.GetClock().clock, Is.Zero);
        Assert.That(VmIoctls.Dispatch(ref vm.Vm.Vm, Ioctl.KVM_SET_CLOCK, 0x999_0000), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void TheCapabilityTellsTheFlags()
    {
        Assert.That(Capabilities.Check(39), Is.EqualTo(0xe));
        Assert.That(Capabilities.Check(76), Is.EqualTo(1));
    }
}
