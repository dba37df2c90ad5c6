// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Mmu;

[TestFixture]
internal sealed class DirtyRingTests
{
    private const int Entries = Page.Size / 16;
    private const ulong First = 100, Pages = 1000;
    private TestMemory _memory = null!;

    [SetUp]
    public void SetUp()
    {
        _memory = new TestMemory();
        Assert.That(DirtyRing.Enable(ref _memory.Vm, Page.Size), Is.EqualTo(Errno.Ok));
        Assert.That(DirtyRing.Create(ref _memory.Vcpu), Is.EqualTo(Errno.Ok));
        _memory.Vm.Vcpus.Add(0, _memory.VcpuRef);
        _memory.AddMemory(1, First, Pages, flags: 1);
    }

    [TearDown]
    public void TearDown()
    {
        _memory.CheckInvariants();
        _memory.Destroy();
        _memory.Dispose();
    }

    /// <summary>Entries are in memory that user space has mapped: this is what it sees, and may change.</summary>
    private unsafe Span<kvm_dirty_gfn> Ring => new((void*)_memory.Host.Rings[0], Entries);

    private void Write(ulong page) => Assert.That(_memory.Access(First + page, write: true, out _), Is.Not.Null);

    /// <summary>Reads entries from <paramref name="index"/> on as user space does.</summary>
    private List<ulong> Harvest(ref int index)
    {
        List<ulong> pages = [];
        for (; (Ring[index % Entries].flags & 3) == kvm_dirty_gfn.KVM_DIRTY_GFN_F_DIRTY; index++)
        {
            Assert.That(Ring[index % Entries].slot, Is.EqualTo(1));
            pages.Add(Ring[index % Entries].offset);
            Ring[index % Entries].flags |= kvm_dirty_gfn.KVM_DIRTY_GFN_F_RESET;
        }
        return pages;
    }

    [Test]
    public void NamesEachPageOnceUntilItIsReset()
    {
        int index = 0;
        Write(5);
        Write(7);
        Write(5);
        GuestMemory.TryWrite(ref _memory.Vm, new Gfn(First + 7).Address, 1);
        GuestMemory.TryWrite(ref _memory.Vm, new Gfn(First + 9).Address, 1);
        Assert.That(Harvest(ref index), Is.EqualTo(new ulong[] { 5, 7, 9 }));
        Assert.That(DirtyRing.ResetAll(ref _memory.Vm), Is.EqualTo(3));
        Assert.That(DirtyRing.ResetAll(ref _memory.Vm), Is.Zero);
        Assert.That(_memory.Machine.Access(new Gfn(First + 5), write: true), Is.Null, "protected, and the TLB flushed");
        Write(5);
        Assert.That(Harvest(ref index), Is.EqualTo(new ulong[] { 5 }));
    }

    [Test]
    public void KeepsEntriesBackAndLosesNone()
    {
        int index = 0;
        for (ulong page = 0; page < Entries - 64; page++)
        {
            Assert.That(_memory.Vcpu.DirtyRing.IsSoftFull, Is.False);
            Write(page);
        }
        Assert.That(_memory.Vcpu.DirtyRing.IsSoftFull);
        Assert.That(_memory.Vcpu.Shared.Requests, Is.EqualTo(VcpuRequests.RingFull));
        for (ulong page = Entries - 64; page < Entries; page++)
            Write(page);
        Assert.That(_memory.Vcpu.DirtyRing.TryPush(1, 0), Is.False);
        Assert.That(Harvest(ref index), Is.EqualTo(Enumerable.Range(0, Entries).Select(page => (ulong)page)));
        Assert.That(DirtyRing.ResetAll(ref _memory.Vm), Is.EqualTo(Entries));
        Assert.That(_memory.Vcpu.DirtyRing.IsSoftFull, Is.False);
    }

    /// <summary>What one ring has no room for goes to another.</summary>
    [Test]
    public void UsesAnyRing()
    {
        KernelRef<Vcpu> other = _memory.Machine.MakeVcpu(1);
        Assert.That(DirtyRing.Create(ref other.Value), Is.EqualTo(Errno.Ok));
        _memory.Vm.Vcpus.Add(1, other);
        for (ulong page = 0; page <= Entries; page++)
            Write(page);
        Assert.That(other.Value.DirtyRing.TryPush(1, 999), Is.True);
        Span<kvm_dirty_gfn> second;
        unsafe
        {
            second = new((void*)_memory.Host.Rings[1], Entries);
        }
        Assert.That((second[0].offset, second[1].offset), Is.EqualTo(((ulong)Entries, 999UL)));
    }

    [TestCase(0UL, ExpectedResult = Errno.EINVAL)]
    [TestCase(2048UL, ExpectedResult = Errno.EINVAL)]
    [TestCase(4096UL + 16, ExpectedResult = Errno.EINVAL)]
    [TestCase(1UL << 20, ExpectedResult = Errno.Ok)]
    [TestCase(1UL << 21, ExpectedResult = Errno.E2BIG)]
    public int RefusesSizes(ulong bytes)
    {
        SimulatedVm machine = new(_memory.Host);
        return DirtyRing.Enable(ref machine.Vm, bytes);
    }

    [Test]
    public void RefusesWhatComesTooLateOrDoesNotGoWithIt()
    {
        Assert.That(DirtyRing.Enable(ref _memory.Vm, Page.Size), Is.EqualTo(Errno.EINVAL), "twice");
        Assert.That(_memory.GetDirtyLog(1, 0), Is.EqualTo(Errno.ENXIO));
        Assert.That(_memory.ClearDirtyLog(1, 0, 0, 0), Is.EqualTo(Errno.ENXIO));
        SimulatedVm machine = new(_memory.Host);
        Assert.That(DirtyRing.ResetAll(ref machine.Vm), Is.EqualTo(Errno.EINVAL), "no rings");
        machine.Vm.Vcpus.Add(3, _memory.VcpuRef);
        Assert.That(DirtyRing.Enable(ref machine.Vm, Page.Size), Is.EqualTo(Errno.EINVAL), "after a vCPU");
    }

    /// <summary>User space writes anything into the ring: no trap, no endless loop, no other memory touched.</summary>
    [Test]
    public void SurvivesAnyContents() => Gen.Select(Gen.UInt[0, 3], Gen.OneOf(Gen.UInt[0, 3], Gen.UInt),
        Gen.OneOf(Gen.ULong[0, Pages + 1], Gen.ULong), Gen.Int[0, Entries - 1], Gen.ULong[0, Pages - 1])
        .Array[200].Sample(steps =>
        {
            foreach ((uint flags, uint slot, ulong offset, int at, ulong page) in steps)
            {
                Ring[at] = new kvm_dirty_gfn { flags = flags, slot = slot, offset = offset };
                if (!_memory.Vcpu.DirtyRing.IsSoftFull)
                    Write(page);
                Assert.That(DirtyRing.ResetAll(ref _memory.Vm), Is.InRange(0, Entries));
                _memory.CheckInvariants();
            }
        }, iter: 20, threads: 1);
}
