// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Svm;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Svm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>ioctls on a vCPU, as far as they are not about its registers.</summary>
public class VcpuIoctlTests
{
    private const ulong Mask = 0x1122334455667788;

    [TestCase(KVM_CREATE_VCPU)]
    [TestCase(KVM_GET_API_VERSION)]
    [TestCase(0u)]
    [TestCase(~0u)]
    public void AnUnknownCommandIsRefused(uint command)
    {
        using SvmGuest guest = new();
        Assert.That(guest.Ioctl(command), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void TheCountersOffsetIsAnAttribute()
    {
        const ulong Value = TestVcpu.Argument + 0x100;
        using SvmGuest guest = new();
        kvm_device_attr attribute = new() { addr = Value };
        Assert.That(guest.Set(KVM_HAS_DEVICE_ATTR, attribute), Is.Zero);
        Assert.That(UserMemory.TryWrite(new Hva(Value), 0x1234ul), Is.True);
        Assert.That(guest.Set(KVM_SET_DEVICE_ATTR, attribute), Is.Zero);
        Assert.That(guest.Vcpu.TscOffset, Is.EqualTo(0x1234));
        Msrs<SvmVendor>.SetTscOffset(ref guest.Vcpu, 0x5678);
        Assert.That(guest.Set(KVM_GET_DEVICE_ATTR, attribute), Is.Zero);
        Assert.That(UserMemory.TryRead(new Hva(Value), out ulong offset), Is.True);
        Assert.That(offset, Is.EqualTo(0x5678));
        Assert.That(guest.Set(KVM_SET_DEVICE_ATTR, attribute with { addr = 8 }), Is.EqualTo(Errno.EFAULT));
        foreach (uint command in (uint[])[KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR])
        {
            Assert.That(guest.Set(command, attribute with { group = 1 }), Is.EqualTo(Errno.ENXIO));
            Assert.That(guest.Set(command, attribute with { attr = 1 }), Is.EqualTo(Errno.ENXIO));
        }
    }

    [Test]
    public void ASignalMaskIsKept()
    {
        using SvmGuest guest = new();
        Assert.That(SetMask(guest, 8, Mask), Is.EqualTo(Errno.Ok));
        Assert.That(guest.Host.Thread.SignalMask, Is.EqualTo((Mask, true)));
    }

    [Test]
    public void ANullPointerEndsTheMasking()
    {
        using SvmGuest guest = new();
        SetMask(guest, 8, Mask);
        Assert.That(guest.Ioctl(KVM_SET_SIGNAL_MASK, 0), Is.EqualTo(Errno.Ok));
        Assert.That(guest.Host.Thread.SignalMask.Active, Is.False);
    }

    [TestCase(0u)]
    [TestCase(4u)]
    [TestCase(16u)]
    public void ASignalMaskOfAnotherSizeIsRefused(uint size)
    {
        using SvmGuest guest = new();
        Assert.That(SetMask(guest, size, Mask), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void ASignalMaskWithoutMemoryIsAFault()
    {
        using SvmGuest guest = new();
        Assert.That(guest.Ioctl(KVM_SET_SIGNAL_MASK, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void ASignalMaskThatIsCutOffIsAFault()
    {
        const ulong LastWord = TestVcpu.Argument + TestVcpu.ArgumentPages * Page.Size - sizeof(uint);
        using SvmGuest guest = new();
        Assert.That(UserMemory.TryWrite(new Hva(LastWord), 8u));
        Assert.That(guest.Ioctl(KVM_SET_SIGNAL_MASK, LastWord), Is.EqualTo(Errno.EFAULT));
    }

    private static long SetMask(SvmGuest guest, uint size, ulong mask)
    {
        Assert.That(UserMemory.TryWrite(new Hva(TestVcpu.Argument + sizeof(uint)), mask));
        return guest.Set(KVM_SET_SIGNAL_MASK, size);
    }
}
