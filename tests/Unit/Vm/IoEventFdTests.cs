// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Host;
using SharpKvm.Tests.Svm;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;
using static SharpKvm.Abi.kvm_ioeventfd;

namespace SharpKvm.Tests.Vm;

/// <summary>KVM_IOEVENTFD: which writes signal, what collides, and that no eventfd is held too long.</summary>
[TestFixture]
internal sealed class IoEventFdTests
{
    private const int Limit = 1000, First = 5, Second = 6;
    private const ulong Address = 0xd000_0000;

    private static readonly kvm_ioeventfd s_word = new() { addr = Address, len = 4, fd = First };

    private static VmWithoutVcpus VmWithEvents()
    {
        VmWithoutVcpus vm = new();
        vm.Host.Events.Create(First);
        vm.Host.Events.Create(Second);
        return vm;
    }

    private static bool Write(VmWithoutVcpus vm, ulong address, uint length, ulong data = 0, bool port = false) =>
        vm.Vm.IoEventFds.TrySignal(port, address, length, data);

    [TestCase(4u, 0u, false, 4u, 7ul, true)]
    [TestCase(4u, 0u, false, 2u, 7ul, false)]
    [TestCase(4u, 0u, false, 8u, 7ul, false)]
    [TestCase(0u, 0u, false, 1u, 7ul, true)]
    [TestCase(0u, 0u, false, 8u, 7ul, true)]
    [TestCase(4u, KVM_IOEVENTFD_FLAG_DATAMATCH, false, 4u, 7ul, true)]
    [TestCase(4u, KVM_IOEVENTFD_FLAG_DATAMATCH, false, 4u, 8ul, false)]
    [TestCase(8u, KVM_IOEVENTFD_FLAG_DATAMATCH, false, 8u, 1ul << 32 | 7, false)]
    [TestCase(4u, 0u, true, 4u, 7ul, false)]
    [TestCase(4u, KVM_IOEVENTFD_FLAG_PIO, true, 4u, 7ul, true)]
    [TestCase(4u, KVM_IOEVENTFD_FLAG_PIO, false, 4u, 7ul, false)]
    public void WhichWritesMatch(uint length, uint flags, bool port, uint written, ulong data, bool signals)
    {
        using VmWithoutVcpus vm = VmWithEvents();
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { len = length, flags = flags, datamatch = 7 }), Is.Zero);
        Assert.That(Write(vm, Address, written, data, port), Is.EqualTo(signals));
        Assert.That(vm.Host.Events.Count(First), Is.EqualTo(signals ? 1 : 0));
        Assert.That(Write(vm, Address + 1, written, data, port), Is.False);
        Assert.That(Write(vm, Address - 1, written, data, port), Is.False);
    }

    [Test]
    public void DataChoosesTheEvent()
    {
        using VmWithoutVcpus vm = VmWithEvents();
        kvm_ioeventfd matching = s_word with { flags = KVM_IOEVENTFD_FLAG_DATAMATCH };
        Assert.That(vm.Set(KVM_IOEVENTFD, matching with { datamatch = 1 }), Is.Zero);
        Assert.That(vm.Set(KVM_IOEVENTFD, matching with { datamatch = 2, fd = Second }), Is.Zero);
        Write(vm, Address, 4, 2);
        Assert.That(vm.Host.Events.Count(First), Is.Zero);
        Assert.That(vm.Host.Events.Count(Second), Is.EqualTo(1));
    }

    [TestCase(4u, 0u, 4u, 0u, true)]
    [TestCase(4u, 0u, 2u, 0u, false)]
    [TestCase(4u, 0u, 0u, 0u, true)]
    [TestCase(0u, 0u, 8u, KVM_IOEVENTFD_FLAG_DATAMATCH, true)]
    [TestCase(4u, 0u, 4u, KVM_IOEVENTFD_FLAG_DATAMATCH, true)]
    [TestCase(4u, KVM_IOEVENTFD_FLAG_DATAMATCH, 4u, KVM_IOEVENTFD_FLAG_DATAMATCH, true)]
    [TestCase(4u, 0u, 4u, KVM_IOEVENTFD_FLAG_PIO, false)]
    public void TwoForOneWriteCollide(uint length, uint flags, uint otherLength, uint otherFlags, bool collides)
    {
        using VmWithoutVcpus vm = VmWithEvents();
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { len = length, flags = flags }), Is.Zero);
        long result = vm.Set(KVM_IOEVENTFD, s_word with { len = otherLength, flags = otherFlags, fd = Second });
        Assert.That(result, Is.EqualTo(collides ? Errno.EEXIST : Errno.Ok));
        Assert.That(vm.Host.Events.Holders, Is.EqualTo(collides ? 1 : 2));
    }

    private static IEnumerable<TestCaseData> BadRequests()
    {
        yield return Case("flags", s_word with { flags = 8 }, Errno.EINVAL);
        yield return Case("length", s_word with { len = 3 }, Errno.EINVAL);
        yield return Case("long", s_word with { len = 16 }, Errno.EINVAL);
        yield return Case("wraps", s_word with { addr = ulong.MaxValue - 2 }, Errno.EINVAL);
        yield return Case("match of nothing", s_word with { len = 0, flags = 1 }, Errno.EINVAL);
        yield return Case("no descriptor", s_word with { fd = -1 }, SimulatedEvents.BadDescriptor);
        yield return Case("no eventfd", s_word with { fd = SimulatedEvents.NoEvent }, Errno.EINVAL);

        static TestCaseData Case(string name, kvm_ioeventfd request, int error) =>
            new TestCaseData((object)request, error).SetArgDisplayNames(name);
    }

    [TestCaseSource(nameof(BadRequests))]
    public void BadRequestsHoldNoEvent(object request, int error)
    {
        using VmWithoutVcpus vm = VmWithEvents();
        Assert.That(vm.Set(KVM_IOEVENTFD, (kvm_ioeventfd)request), Is.EqualTo(error));
        Assert.That(vm.Ioctl(KVM_IOEVENTFD, VmWithoutVcpus.Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(vm.Host.Events.Holders, Is.Zero);
    }

    [Test]
    public void OnlyTheSameIsTakenAway()
    {
        using VmWithoutVcpus vm = VmWithEvents();
        kvm_ioeventfd added = s_word with { flags = KVM_IOEVENTFD_FLAG_DATAMATCH, datamatch = 7 };
        kvm_ioeventfd removed = added with { flags = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN };
        Assert.That(vm.Set(KVM_IOEVENTFD, removed), Is.EqualTo(Errno.ENOENT));
        Assert.That(vm.Set(KVM_IOEVENTFD, added), Is.Zero);
        foreach (kvm_ioeventfd other in (kvm_ioeventfd[])[removed with { fd = Second }, removed with { len = 2 },
            removed with { datamatch = 8 }, removed with { addr = Address + 4 },
            removed with { flags = KVM_IOEVENTFD_FLAG_DEASSIGN },
            removed with { flags = removed.flags | KVM_IOEVENTFD_FLAG_PIO }])
            Assert.That(vm.Set(KVM_IOEVENTFD, other), Is.EqualTo(Errno.ENOENT));
        Assert.That(vm.Host.Events.Holders, Is.EqualTo(1));
        Assert.That(vm.Set(KVM_IOEVENTFD, removed), Is.Zero);
        Assert.That(vm.Host.Events.Holders, Is.Zero);
        Assert.That(Write(vm, Address, 4, 7), Is.False);
    }

    [Test]
    public void ThereIsALimit()
    {
        using VmWithoutVcpus vm = VmWithEvents();
        // Not in the order of their addresses.
        for (ulong i = 0; i < Limit; i++)
            Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { addr = Address + i * 7 % Limit * 8 }), Is.Zero);
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { addr = 0 }), Is.EqualTo(Errno.ENOSPC));
        Assert.That(vm.Host.Events.Holders, Is.EqualTo(Limit));
        for (ulong i = 0; i < Limit; i++)
            Assert.That(Write(vm, Address + i * 8, 4), $"{i}");
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { flags = KVM_IOEVENTFD_FLAG_DEASSIGN }), Is.Zero);
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { addr = 0 }), Is.Zero);
        Assert.That(Write(vm, 0, 4));
    }

    [TestCase(0u)]
    [TestCase(KVM_IOEVENTFD_FLAG_DEASSIGN)]
    public void WithoutMemoryTheTableStays(uint flags)
    {
        using VmWithoutVcpus vm = VmWithEvents();
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word), Is.Zero);
        Assert.That(vm.Set(KVM_IOEVENTFD, s_word with { addr = 0x100, fd = Second }), Is.Zero);
        vm.Host.FailingAllocation = vm.Host.Allocations;
        kvm_ioeventfd request = s_word with { flags = flags, addr = flags == 0 ? 0x200 : Address };
        Assert.That(vm.Set(KVM_IOEVENTFD, request), Is.EqualTo(Errno.ENOMEM));
        Assert.That(vm.Host.Events.Holders, Is.EqualTo(2));
        Assert.That(Write(vm, Address, 4));
        Assert.That(Write(vm, 0x100, 4));
        Assert.That(Write(vm, 0x200, 4), Is.False);
    }

    [Test]
    public void OnlyTheItemsThatMatchAreServed()
    {
        using VmWithoutVcpus vm = VmWithEvents();
        Assert.That(vm.Set(KVM_IOEVENTFD, new kvm_ioeventfd
        {
            addr = 0x80, len = 2, fd = First, datamatch = 0x0202,
            flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH,
        }), Is.Zero);
        byte[] items = [2, 2, 2, 2, 3, 3, 2, 2];
        Assert.That(KernelDevices<FakeVendor>.Ports(ref vm.Vm, true, 0x80, 2, 4, items), Is.EqualTo(2));
        Assert.That(vm.Host.Events.Count(First), Is.EqualTo(2));
        Assert.That(KernelDevices<FakeVendor>.Ports(ref vm.Vm, false, 0x80, 2, 4, items), Is.Zero, "reads never match");
        Assert.That(KernelDevices<FakeVendor>.Ports(ref vm.Vm, true, 0x80, 1, 8, items), Is.Zero,
            "bytes are other writes");
    }

    [Test]
    public void AStringGoesOnInUserSpaceWhereItCeasesToMatch()
    {
        using SvmGuest guest = new();
        guest.Host.Events.Create(First);
        Assert.That(IoEventFds.Change(ref guest.Vm, new kvm_ioeventfd
        {
            addr = 0x3f8, len = 1, fd = First, datamatch = 'l',
            flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH,
        }), Is.Zero);
        guest.Assemble(a => a.rep.outsb());
        guest.Write(0x4000, "llama"u8);
        guest.Registers[Gpr.Rsi] = 0x4000;
        guest.Registers[Gpr.Rcx] = 5;
        guest.Registers[Gpr.Rdx] = 0x3f8;
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Exit(ExitCode.Ioio, 0x3f8_0000 | 1 << 4 | 1 << 3 | 1 << 2));
        Assert.That(guest.Host.Events.Count(First), Is.EqualTo(2));
        Assert.That(guest.RunPage.io.count, Is.EqualTo(3));
        ulong offset = guest.RunPage.io.data_offset - kvm_run.KVM_PIO_PAGE_OFFSET * Page.Size;
        Assert.That(guest.Port.Slice((int)offset, 3).ToArray(), Is.EqualTo("ama"u8.ToArray()));
        guest.RunThrough();
        Assert.That(guest.Registers[Gpr.Rcx], Is.Zero);
        Assert.That(guest.Registers[Gpr.Rsi], Is.EqualTo(0x4005));
    }
}
