// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using static SharpKvm.Abi.Ioctl;
using Machine = SharpKvm.Cpu.Msrs<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Cpu;

public class MachineCheckTests
{
    private const ulong Valid = 1ul << 63, Overflow = 1ul << 62, Uncorrected = 1ul << 61;
    private const ulong ControlPresent = 1 << 8;
    private const uint Ctl0 = 0x400, Status0 = 0x401, Address0 = 0x402;

    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp() => _test = new TestVcpu();

    [TearDown]
    public void TearDown() => _test.Dispose();

    private ulong Read(uint index)
    {
        Assert.That(Machine.TryRead(ref _test.Vcpu, index, out ulong value), Is.True);
        return value;
    }

    [TestCase(10ul | ControlPresent, true)]
    [TestCase(32ul | 1 << 24, true)]
    [TestCase(0ul, false)]
    [TestCase(33ul, false)]
    [TestCase(1ul | 1 << 9, false)]
    [TestCase(1ul | 1ul << 40, false)]
    public void OnlySupportedCapabilitiesAreTaken(ulong capability, bool valid)
    {
        Assert.That(_test.Set(KVM_X86_SETUP_MCE, capability), Is.EqualTo(valid ? 0 : Errno.EINVAL));
        Assert.That(Read(Msr.McgCap), Is.EqualTo(valid ? capability : 32));
    }

    [Test]
    public void ThereAreAsManyBanksAsSetUp()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2 | ControlPresent);
        Assert.That((Read(Ctl0), Read(Ctl0 + 4), Read(Msr.McgCtl)), Is.EqualTo((~0ul, ~0ul, ~0ul)));
        Assert.That(Machine.TryRead(ref _test.Vcpu, Ctl0 + 8, out _), Is.False);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Ctl0 + 8, 0), Is.False);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Ctl0, 5), Is.False, "all or nothing");
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Ctl0, ~0ul ^ 1 << 10), Is.True);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Status0, 1), Is.False);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Msr.Hwcr, 1 << 18), Is.True);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Status0, 1), Is.True);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Msr.McgCtl, 5), Is.False);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Msr.McgCap, 5), Is.False);
    }

    [Test]
    public void WithoutTheControlRegisterThereIsNone()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2ul);
        Assert.That(Machine.TryRead(ref _test.Vcpu, Msr.McgCtl, out _), Is.False);
        Assert.That(Machine.TryWrite(ref _test.Vcpu, Msr.McgCtl, 0), Is.False);
        Assert.That(Machine.TrySet(ref _test.Vcpu, Msr.McgCtl, 0, host: true), Is.True);
    }

    [Test]
    public void AnUncorrectedErrorRaisesAMachineCheck()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2 | ControlPresent);
        _test.Block.Cr4 = Cr4.Mce;
        kvm_x86_mce error = new() { status = Valid | Uncorrected, addr = 0x5000, misc = 7, mcg_status = 5, bank = 1 };
        Assert.That(_test.Set(KVM_X86_SET_MCE, error), Is.Zero);
        Assert.That(_test.Vcpu.Events.Exception.Vector.Value, Is.EqualTo(18));
        Assert.That((Read(Status0 + 4), Read(Address0 + 4), Read(Msr.McgStatus)),
            Is.EqualTo((Valid | Uncorrected, 0x5000ul, 5ul)));
        Assert.That(_test.Vcpu.Events.TripleFault, Is.False);
        Assert.That(_test.Set(KVM_X86_SET_MCE, error), Is.Zero);
        Assert.That(_test.Vcpu.Events.TripleFault, Is.True, "one is in progress");
    }

    [Test]
    public void WithoutCr4MceTheGuestShutsDown()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2 | ControlPresent);
        Assert.That(_test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid | Uncorrected }), Is.Zero);
        Assert.That(_test.Vcpu.Events.TripleFault, Is.True);
    }

    [Test]
    public void CorrectedErrorsOverflowButDoNotHideUncorrectedOnes()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2ul);
        _test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid | 1, addr = 1 });
        _test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid | 2, addr = 2 });
        Assert.That((Read(Status0), Read(Address0)), Is.EqualTo((Valid | Overflow | 2, 2ul)));
        _test.Vcpu.Msrs.Banks[1] = Valid | Uncorrected;
        _test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid | 3, addr = 3 });
        Assert.That((Read(Status0), Read(Address0)), Is.EqualTo((Valid | Uncorrected | Overflow, 2ul)));
        Assert.That(_test.Vcpu.Events.HasException, Is.False);
    }

    [Test]
    public void DisabledReportingSwallowsTheError()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2 | ControlPresent);
        _test.Vcpu.Msrs.Banks[0] = 0;
        Assert.That(_test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid | Uncorrected }), Is.Zero);
        Assert.That((Read(Status0), _test.Vcpu.Events.TripleFault), Is.EqualTo((0ul, false)));
    }

    [Test]
    public void ABankThatIsNotThereIsRefused()
    {
        _test.Set(KVM_X86_SETUP_MCE, 2ul);
        Assert.That(_test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid, bank = 2 }), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { status = Valid, bank = 255 }),
            Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.Set(KVM_X86_SET_MCE, new kvm_x86_mce { bank = 1 }), Is.EqualTo(Errno.EINVAL));
    }
}
