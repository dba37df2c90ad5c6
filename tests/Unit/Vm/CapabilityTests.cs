// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Vm;

/// <summary>KVM_CHECK_EXTENSION and KVM_ENABLE_CAP; numbers from linux/kvm.h.</summary>
public class CapabilityTests
{
    private const uint ExceptionPayload = 164, TripleFaultEvent = 218, ReadOnlyMemory = 81,
        MaxVcpuId = 128, UserSpaceMsr = 188, DisableQuirks2 = 213;

    /// <summary>Capability by capability what user space is told, up to one past the last known number.</summary>
    [Test]
    public void TheAnswersAreThese()
    {
        using SimulatedHost host = new();
        Dictionary<ulong, int> answers = [];
        for (ulong capability = 0; capability < 300; capability++)
        {
            if (Capabilities.Check(capability) is int answer and not 0)
                answers.Add(capability, answer);
        }
        Dictionary<ulong, int> expected = new()
        {
            [9] = 1024, [10] = MemorySlots.MaxSlots, [15] = 2, [25] = 4096, [31] = MsrState.MaxBanks, [66] = 1024,
            [39] = 14, [74] = 7, [128] = 1024, [129] = 3, [195] = (int)DebugState.SupportedControl, [208] = 4096,
            [213] = 0x70,
            [168] = 3, [192] = 1 << 20, [223] = 1 << 20,
        };
        ulong[] present =
        [
            0, 1, 3, 4, 7, 8, 11, 12, 14, 16, 21, 22, 23, 24, 26, 30, 32, 33, 34, 35, 36, 37, 40, 41, 50, 51, 55, 56, 59,
            61, 72, 76, 77, 81, 82, 95, 97, 98, 100, 105, 121, 122, 127, 136, 153, 159, 162, 164, 183, 188, 189, 190,
            200, 218,
        ];
        foreach (ulong capability in present)
            expected.Add(capability, 1);
        Assert.That(answers, Is.EquivalentTo(expected));
    }

    [TestCase(55u)]
    [TestCase(56u)]
    public void AHostWithoutXsaveHasNoneToOffer(uint capability)
    {
        using SimulatedHost host = new();
        host.Cpu.SupportedXcr0 = 0;
        Assert.That(Capabilities.Check(capability), Is.Zero);
    }

    [Test]
    public void AnUnknownCapabilityIsAbsent() => Assert.That(Capabilities.Check(ulong.MaxValue), Is.Zero);

    [Test]
    public void ExceptionPayloadsAreSwitchedOnAndOff()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Enable(ExceptionPayload, argument: 1), Is.EqualTo(Errno.Ok));
        Assert.That(machine.Vm.Cpu.ExceptionPayload, Is.True);
        Assert.That(machine.Enable(ExceptionPayload, argument: 0), Is.EqualTo(Errno.Ok));
        Assert.That(machine.Vm.Cpu.ExceptionPayload, Is.False);
    }

    [Test]
    public void TripleFaultEventsAreSwitchedOn()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Enable(TripleFaultEvent, argument: 1), Is.EqualTo(Errno.Ok));
        Assert.That(machine.Vm.Cpu.TripleFaultEvent, Is.True);
    }

    [Test]
    public void TheLimitOfVcpuIdsIsSetOnce()
    {
        using VmWithoutVcpus machine = new();
        foreach (ulong wrong in (ulong[])[0, VcpuTable.Size + 1, ulong.MaxValue])
            Assert.That(machine.Enable(MaxVcpuId, wrong), Is.EqualTo(Errno.EINVAL));
        Assert.That(machine.Enable(MaxVcpuId, 2), Is.Zero);
        Assert.That(machine.Enable(MaxVcpuId, 3), Is.EqualTo(Errno.EINVAL));
        Assert.That(machine.Ioctl(Ioctl.KVM_CREATE_VCPU, 2), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void QuirksAreDisabledAsAWhole()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Enable(DisableQuirks2, 0x80), Is.EqualTo(Errno.EINVAL));
        Assert.That(machine.Vm.Cpu.Has(Quirks.FixHypercall), Is.True);
        Assert.That(machine.Enable(DisableQuirks2, 0x20), Is.Zero);
        Assert.That(machine.Vm.Cpu.Has(Quirks.FixHypercall), Is.False);
        Assert.That(machine.Enable(DisableQuirks2, 0x10), Is.Zero);
        Assert.That(machine.Vm.Cpu.Has(Quirks.FixHypercall), Is.True);
    }

    [Test]
    public void OnlyKnownReasonsSendMsrsToUserSpace()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Enable(UserSpaceMsr, 8), Is.EqualTo(Errno.EINVAL));
        Assert.That(machine.Enable(UserSpaceMsr, 7), Is.Zero);
        Assert.That(machine.Vm.Cpu.UserMsrReasons, Is.EqualTo(7));
    }

    [Test]
    public void WhatCannotBeEnabledIsRefused()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Enable(ReadOnlyMemory, argument: 1), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void FlagsAreRefused()
    {
        using VmWithoutVcpus machine = new();
        Assert.That(machine.Enable(ExceptionPayload, argument: 1, flags: 1), Is.EqualTo(Errno.EINVAL));
        Assert.That(machine.Vm.Cpu.ExceptionPayload, Is.False);
    }
}
