// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using NUnit.Framework;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>Zones whose writes are collected, and the ring that user space shares.</summary>
[TestFixture]
internal sealed class CoalescedIoTests
{
    private const ulong Start = 0xd000_0000;
    private const int Zones = 100, RingLength = 170;

    private VmWithoutVcpus _vm = null!;
    private nint _page;

    [SetUp]
    public void SetUp()
    {
        _vm = new VmWithoutVcpus();
        _page = _vm.Host.AllocateBlock(Page.Size);
        _vm.Vm.Coalesced = CoalescedIo.Over(_page);
    }

    [TearDown]
    public void TearDown()
    {
        _vm.Host.FreeBlock(_page);
        _vm.Dispose();
    }

    private ref kvm_coalesced_mmio_ring Ring => ref new KernelRef<kvm_coalesced_mmio_ring>(_page).Value;

    // SAFETY: the block is a page and lives as long as the test.
    private unsafe ReadOnlySpan<kvm_coalesced_mmio> Writes =>
        new((void*)(_page + Marshal.SizeOf<kvm_coalesced_mmio_ring>()), RingLength);

    private long Register(ulong start, uint size, uint pio = 0) =>
        _vm.Set(KVM_REGISTER_COALESCED_MMIO, new kvm_coalesced_mmio_zone { addr = start, size = size, pio = pio });

    private long Unregister(ulong start, uint size, uint pio = 0) =>
        _vm.Set(KVM_UNREGISTER_COALESCED_MMIO, new kvm_coalesced_mmio_zone { addr = start, size = size, pio = pio });

    private bool Write(ulong address, uint length = 4, ulong data = 0, bool port = false) =>
        CoalescedIo.TryAdd(ref _vm.Vm, port, address, length, data);

    [TestCase(Start, 4u, false, true)]
    [TestCase(Start + 12, 4u, false, true)]
    [TestCase(Start + 13, 4u, false, false)]
    [TestCase(Start - 1, 4u, false, false)]
    [TestCase(Start + 16, 1u, false, false)]
    [TestCase(Start, 4u, true, false)]
    [TestCase(ulong.MaxValue, 4u, false, false)]
    public void AWriteLiesWithinAZone(ulong address, uint length, bool port, bool added)
    {
        Assert.That(Register(Start, 16), Is.Zero);
        Assert.That(Write(address, length, port: port), Is.EqualTo(added));
        Assert.That(Ring.last, Is.EqualTo(added ? 1 : 0));
    }

    [Test]
    public void TheRingHasWhatWasWritten()
    {
        Assert.That(Register(Start, 16), Is.Zero);
        Assert.That(Register(0x80, 2, pio: 1), Is.Zero);
        Assert.That(Write(Start + 8, 8, 0x1122334455667788));
        Assert.That(Write(0x80, 2, 0xaabb, port: true));
        Assert.That(Writes[0], Is.EqualTo(
            new kvm_coalesced_mmio { phys_addr = Start + 8, len = 8, data = 0x1122334455667788 }));
        Assert.That(Writes[1], Is.EqualTo(
            new kvm_coalesced_mmio { phys_addr = 0x80, len = 2, pio = 1, data = 0xaabb }));
        Assert.That(Ring.last, Is.EqualTo(2));
        Assert.That(Ring.first, Is.Zero);
    }

    [Test]
    public void AFullRingTakesNoMoreAndGoesAround()
    {
        Assert.That(Register(Start, 16), Is.Zero);
        for (ulong i = 0; i < RingLength - 1; i++)
            Assert.That(Write(Start, data: i));
        Assert.That(Write(Start), Is.False);
        Ring.first = 2;
        Assert.That(Write(Start, data: 1000));
        Assert.That(Write(Start, data: 1001));
        Assert.That(Write(Start, data: 1002), Is.False);
        Assert.That(Writes[RingLength - 1].data, Is.EqualTo(1000));
        Assert.That(Writes[0].data, Is.EqualTo(1001));
        Assert.That(Writes[1].data, Is.EqualTo(1));
        Assert.That(Ring.last, Is.EqualTo(1));
    }

    [TestCase(0u, uint.MaxValue)]
    [TestCase(uint.MaxValue, 0u)]
    [TestCase(uint.MaxValue, uint.MaxValue)]
    [TestCase((uint)RingLength, (uint)RingLength)]
    [TestCase(0x8000_0000u, 0x7fff_ffffu)]
    public void IndicesOfAHostileUserStayWithinThePage(uint first, uint last)
    {
        Assert.That(Register(Start, 16), Is.Zero);
        (Ring.first, Ring.last) = (first, last);
        for (int i = 0; i < 2 * RingLength; i++)
            Write(Start);
        Assert.That(Ring.last, Is.EqualTo(last).Or.LessThan(RingLength), "left alone, or a place in the page");
        Assert.That(Ring.first, Is.EqualTo(first), "it is user space's");
    }

    [Test]
    public void ThereIsALimit()
    {
        for (ulong i = 0; i < Zones; i++)
            Assert.That(Register(Start + i * 16, 16), Is.Zero);
        Assert.That(Register(0, 16), Is.EqualTo(Errno.ENOSPC));
        Assert.That(Unregister(Start + 16, 32), Is.Zero);
        Assert.That(Write(Start + 16), Is.False);
        Assert.That(Write(Start + 32), Is.False);
        Assert.That(Write(Start));
        Assert.That(Write(Start + 48));
        Assert.That(Write(Start + (Zones - 1) * 16));
        Assert.That(Register(0, 16), Is.Zero);
        Assert.That(Register(0, 16), Is.Zero);
        Assert.That(Register(0, 16), Is.EqualTo(Errno.ENOSPC));
    }

    [Test]
    public void OnlyZonesWithinTheRangeEnd()
    {
        Assert.That(Register(Start, 16), Is.Zero);
        Assert.That(Register(0x80, 2, pio: 1), Is.Zero);
        Assert.That(Unregister(Start + 1, 100), Is.Zero);
        Assert.That(Unregister(Start, 15), Is.Zero);
        Assert.That(Unregister(0, 0x1000), Is.Zero);
        Assert.That(Write(Start));
        Assert.That(Write(0x80, 2, port: true));
        Assert.That(Unregister(0, uint.MaxValue, pio: 1), Is.Zero);
        Assert.That(Write(0x80, 2, port: true), Is.False);
    }

    [Test]
    public void Errors()
    {
        Assert.That(Register(Start, 16, pio: 2), Is.EqualTo(Errno.EINVAL));
        Assert.That(Unregister(Start, 16, pio: 2), Is.EqualTo(Errno.EINVAL));
        Assert.That(_vm.Ioctl(KVM_REGISTER_COALESCED_MMIO, VmWithoutVcpus.Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(_vm.Ioctl(KVM_UNREGISTER_COALESCED_MMIO, VmWithoutVcpus.Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(Write(Start), Is.False);
    }
}
