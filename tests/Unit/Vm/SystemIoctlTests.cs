// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>ioctls on /dev/kvm.</summary>
public class SystemIoctlTests
{
    [TestCase(KVM_GET_API_VERSION, 12)]
    [TestCase(KVM_GET_VCPU_MMAP_SIZE, 12288)]
    public void AQuestionHasItsAnswer(uint command, long answer) =>
        Assert.That(SystemIoctls.Dispatch(command, 0), Is.EqualTo(answer));

    [TestCase(KVM_GET_API_VERSION)]
    [TestCase(KVM_GET_VCPU_MMAP_SIZE)]
    [TestCase(KVM_CREATE_VM)]
    public void AnArgumentThatMeansNothingIsRefused(uint command) =>
        Assert.That(SystemIoctls.Dispatch(command, 1), Is.EqualTo(Errno.EINVAL));

    [Test]
    public void CreatingAVmReturnsAFile()
    {
        using SimulatedHost host = new();
        Assert.That(SystemIoctls.Dispatch(KVM_CREATE_VM, 0), Is.EqualTo(10));
    }

    [TestCase(KVM_SET_USER_MEMORY_REGION)]
    [TestCase(KVM_GET_REGS)]
    [TestCase(0u)]
    [TestCase(~0u)]
    public void AnUnknownCommandIsRefused(uint command) =>
        Assert.That(SystemIoctls.Dispatch(command, 0), Is.EqualTo(Errno.EINVAL));

    [TestCase(KVM_GET_SUPPORTED_CPUID)]
    [TestCase(KVM_GET_EMULATED_CPUID)]
    [TestCase(KVM_GET_MSR_INDEX_LIST)]
    [TestCase(KVM_GET_MSR_FEATURE_INDEX_LIST)]
    [TestCase(KVM_GET_MSRS)]
    [TestCase(KVM_X86_GET_MCE_CAP_SUPPORTED)]
    public void AnAddressWithoutMemoryIsAFault(uint command)
    {
        using SimulatedHost host = new();
        Assert.That(SystemIoctls.Dispatch(command, 0x1000), Is.EqualTo(Errno.EFAULT));
    }
}
