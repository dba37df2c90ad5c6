// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>ioctls on a VM.</summary>
public class VmIoctlTests
{
    [TestCase(KVM_GET_REGS)]
    [TestCase(KVM_GET_API_VERSION)]
    [TestCase(0u)]
    [TestCase(~0u)]
    public void AnUnknownCommandIsNotForThisFile(uint command)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(command), Is.EqualTo(Errno.ENOTTY));
    }

    [TestCase(KVM_SET_USER_MEMORY_REGION)]
    [TestCase(KVM_GET_DIRTY_LOG)]
    [TestCase(KVM_SET_IDENTITY_MAP_ADDR)]
    [TestCase(KVM_ENABLE_CAP)]
    public void AnAddressWithoutMemoryIsAFault(uint command)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(command, VmWithoutVcpus.Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [TestCase(0ul)]
    [TestCase(254ul)]
    public void AVcpuIsAFile(ulong id)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_CREATE_VCPU, id), Is.EqualTo(10));
    }

    [TestCase(1024ul)]
    [TestCase(1ul << 32)]
    [TestCase(ulong.MaxValue)]
    public void AnIdThatIsTooHighIsRefused(ulong id)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_CREATE_VCPU, id), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void AnIdIsTakenOnce()
    {
        using VmWithoutVcpus machine = new();
        machine.Ioctl(KVM_CREATE_VCPU, 64);
        Assert.That(machine.Ioctl(KVM_CREATE_VCPU, 64), Is.EqualTo(Errno.EEXIST));
        Assert.That(machine.Ioctl(KVM_CREATE_VCPU, 0), Is.Positive);
    }

    [Test]
    public void AnIdWhoseVcpuCouldNotBeMadeIsFree()
    {
        using VmWithoutVcpus machine = new();
        machine.Host.Thread.NextDescriptor = Errno.ENOMEM;
        Assert.That(machine.Ioctl(KVM_CREATE_VCPU, 3), Is.EqualTo(Errno.ENOMEM));
        machine.Host.Thread.NextDescriptor = 10;
        Assert.That(machine.Ioctl(KVM_CREATE_VCPU, 3), Is.EqualTo(10));
    }

    [Test]
    public void TheIdentityMapMovesBeforeTheFirstVcpuOnly()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_SET_IDENTITY_MAP_ADDR, 0xfeff_0000ul), Is.EqualTo(Errno.EFAULT));
        Assert.That(machine.Set<ulong>(KVM_SET_IDENTITY_MAP_ADDR, 0xfeff_0000), Is.EqualTo(Errno.Ok));
        machine.Ioctl(KVM_CREATE_VCPU, 0);
        Assert.That(machine.Set<ulong>(KVM_SET_IDENTITY_MAP_ADDR, 0xfeff_0000), Is.EqualTo(Errno.EINVAL));
    }

    [TestCase(0xffff_d000ul, 0)]
    [TestCase(0xffff_d001ul, Errno.EINVAL)]
    [TestCase(1ul << 32, Errno.EINVAL)]
    public void TheTaskStateStaysBelow4GiB(ulong address, int result)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_SET_TSS_ADDR, address), Is.EqualTo(result));
    }

    [TestCase(63ul, Errno.EINVAL)]
    [TestCase(64ul, 0)]
    public void ALimitOfNestedTablesIsTakenAndIgnored(ulong pages, int result)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_SET_NR_MMU_PAGES, pages), Is.EqualTo(result));
        Assert.That(machine.Ioctl(KVM_GET_NR_MMU_PAGES), Is.Zero);
    }

    [TestCase(2_000_000ul, 0)]
    [TestCase(2_000_400ul, 0)]
    [TestCase(3_000_000ul, Errno.EINVAL)]
    public void TheTimeStampCounterRunsAtTheHostsRate(ulong khz, int result)
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_SET_TSC_KHZ, khz), Is.EqualTo(result));
        Assert.That(machine.Ioctl(KVM_GET_TSC_KHZ), Is.EqualTo(2_000_000));
    }

    [Test]
    public void AVmAnswersForItsExtensions()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Ioctl(KVM_CHECK_EXTENSION, 66), Is.EqualTo(1024));
    }
}
