// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Mmu;
using Steal = SharpKvm.Paravirt.StealTime<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Paravirt;

/// <summary>Steal time, and TLB flushes of vCPUs that do not run.</summary>
public class StealTimeTests
{
    private const ulong Record = 0x3040, Preempted = Record + 16, Enable = 1;

    [Test]
    public void TheGuestLearnsHowLongTheThreadWaitedSinceItAsked()
    {
        using ParavirtVm vm = new();
        vm[0].Shared.RunDelay = 1_000_000;
        vm.Write(0, KvmMsr.StealTime, Record | Enable);
        Assert.That(vm.Read<ulong>(Record), Is.Zero, "what came before was not stolen");
        Load(vm, 1_000_300);
        Load(vm, 1_000_700);
        Assert.That((vm.Read<ulong>(Record), vm.Read<uint>(Record + 8)), Is.EqualTo((700, 6)));
    }

    [Test]
    public void AnotherThreadHasWaitedAnotherTime()
    {
        using ParavirtVm vm = new();
        vm[0].Shared.RunDelay = 5000;
        vm.Write(0, KvmMsr.StealTime, Record | Enable);
        Load(vm, 100);
        Load(vm, 350);
        Assert.That(vm.Read<ulong>(Record), Is.EqualTo(250));
    }

    [Test]
    public void TheShimAsksOnlyWhenTheGuestWantsToKnow()
    {
        using ParavirtVm vm = new();
        Assert.That(vm[0].Shared.OnLoad, Is.Zero);
        vm.Write(0, KvmMsr.StealTime, Record | Enable);
        Assert.That(vm[0].Shared.OnLoad, Is.EqualTo((uint)VcpuRequests.Steal));
        vm.Write(0, KvmMsr.StealTime, 0);
        Assert.That(vm[0].Shared.OnLoad, Is.Zero);
        Load(vm, 50);
        Load(vm, 90);
        Assert.That(vm.Read<ulong>(Record), Is.Zero);
    }

    [Test]
    public void TheVersionIsOddWhileTheTimeChanges()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.StealTime, Record | Enable);
        List<(uint, ulong)> seen = [];
        vm.Host.Process.AfterWrite = () => seen.Add((vm.Read<uint>(Record + 8), vm.Read<ulong>(Record)));
        Load(vm, 40);
        Assert.That(seen, Is.EqualTo(new[] { (3u, 0ul), (3u, 40ul), (4u, 40ul) }));
    }

    [TestCase(2ul)]
    [TestCase(0x20ul)]
    [TestCase(0x3ful)]
    public void ReservedBitsFault(ulong bits)
    {
        using ParavirtVm vm = new();
        Assert.That(vm.Set(0, KvmMsr.StealTime, Record | bits), Is.False);
        Assert.That(vm.Set(0, KvmMsr.StealTime, Record | bits, host: true), Is.False);
        Assert.That(vm.Get(0, KvmMsr.StealTime), Is.Zero);
    }

    [Test]
    public void AVcpuThatDoesNotRunIsMarked()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.StealTime, Record | Enable);
        byte during = 0;
        vm.Host.Thread.Work = _ =>
        {
            during = vm.Read<byte>(Preempted);
            return false;
        };
        Assert.That(Steal.Work(ref vm[0]), Is.False);
        Assert.That((during, vm.Read<byte>(Preempted), Flushes(vm)), Is.EqualTo(((byte)1, (byte)0, 0)));
        during = 0;
        vm.Host.Thread.Halt = _ =>
        {
            during = vm.Read<byte>(Preempted);
            return HaltEnd.Woken;
        };
        Assert.That(Steal.Halt(ref vm[0], 0), Is.EqualTo(HaltEnd.Woken));
        Assert.That((during, vm.Read<byte>(Preempted), Flushes(vm)), Is.EqualTo(((byte)1, (byte)0, 0)));
    }

    [Test]
    public void AFlushLeftMeanwhileIsCarriedOut()
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.StealTime, Record | Enable);
        vm.Host.Thread.Work = _ =>
        {
            vm.Put(Preempted, (byte)(kvm_steal_time.KVM_VCPU_PREEMPTED | kvm_steal_time.KVM_VCPU_FLUSH_TLB));
            return true;
        };
        Assert.That(Steal.Work(ref vm[0]), Is.True);
        Assert.That((vm.Read<byte>(Preempted), Flushes(vm)), Is.EqualTo(((byte)0, 1)));
    }

    [Test]
    public void WithoutStealTimeNothingIsWrittenOrFlushed()
    {
        using ParavirtVm vm = new();
        vm.Host.Process.AfterWrite = () => Assert.Fail("a write");
        Steal.Work(ref vm[0]);
        Steal.Halt(ref vm[0], 0);
        Assert.That(Flushes(vm), Is.Zero);
    }

    /// <summary>The address may be anything; a flush that someone may rely on happens all the same.</summary>
    [TestCase(ParavirtVm.Nowhere)]
    [TestCase(0xffff_ffff_ffff_ffc0ul)]
    [TestCase(Record)]
    public void MemoryThatIsNotThereIsNotWritten(ulong address)
    {
        using ParavirtVm vm = new();
        vm.Write(0, KvmMsr.StealTime, address | Enable);
        vm.Host.Process.Unmap(TestMemory.UserAddress(0, 0), ParavirtVm.MemoryPages);
        Load(vm, 10);
        Load(vm, 20);
        Steal.Work(ref vm[0]);
        Assert.That(Flushes(vm), Is.EqualTo(1));
    }

    private static void Load(ParavirtVm vm, ulong delay)
    {
        vm[0].Shared.RunDelay = delay;
        vm[0].Shared.Request((VcpuRequests)vm[0].Shared.OnLoad);
        vm.Handle();
    }

    private static int Flushes(ParavirtVm vm) => FakeControlBlock.Of(ref vm[0]).TlbFlushes - s_initial;

    private static readonly int s_initial = Initial();

    private static int Initial()
    {
        using ParavirtVm vm = new();
        return FakeControlBlock.Of(ref vm[0]).TlbFlushes;
    }
}
