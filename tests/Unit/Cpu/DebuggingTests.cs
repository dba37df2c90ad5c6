// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using Debug = SharpKvm.Cpu.Debugging<SharpKvm.Tests.Cpu.FakeVendor>;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Cpu;

public class DebuggingTests
{
    private const uint Enable = kvm_guest_debug.KVM_GUESTDBG_ENABLE;
    private const uint Hardware = kvm_guest_debug.KVM_GUESTDBG_USE_HW_BP;
    private const uint InjectDb = kvm_guest_debug.KVM_GUESTDBG_INJECT_DB;
    private const uint InjectBp = kvm_guest_debug.KVM_GUESTDBG_INJECT_BP;
    private const uint Step = kvm_guest_debug.KVM_GUESTDBG_SINGLESTEP;

    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp() => _test = new TestVcpu();

    [TearDown]
    public void TearDown() => _test.Dispose();

    [Test]
    public void RegistersComeBackAndReachTheSwitch()
    {
        for (int i = 0; i < 4; i++)
            Assert.That(Debug.TrySet(ref _test.Vcpu, i, 0x1000ul + (ulong)i), Is.EqualTo(DebugAccess.Done));
        Assert.That(_test.Vcpu.Shared.Flags, Is.EqualTo(EntryFlags.None));
        Assert.That(Debug.TrySet(ref _test.Vcpu, 7, 0xffffffff & ~DebugBits.Dr7Gd), Is.EqualTo(DebugAccess.Done));
        Assert.That(_test.Vcpu.Shared.Flags, Is.EqualTo(EntryFlags.LoadDebugRegisters));
        Assert.That((_test.Vcpu.Shared.Dr[0], _test.Vcpu.Shared.Dr[3]), Is.EqualTo((0x1000ul, 0x1003ul)));
        Assert.That(Debug.TrySet(ref _test.Vcpu, 6, 0xffffffff), Is.EqualTo(DebugAccess.Done));
        Assert.That((_test.Vcpu.Debug.Dr6, _test.Block.Dr7), Is.EqualTo((0xffffeffful, 0xffff07fful)));
        Debug.TryGet(ref _test.Vcpu, 2, out ulong dr2);
        Debug.TryGet(ref _test.Vcpu, 7, out ulong dr7);
        Assert.That((dr2, dr7), Is.EqualTo((0x1002ul, 0xffff07fful)));
    }

    [Test]
    public void OldNamesAreAliasesUnlessDe()
    {
        Debug.TrySet(ref _test.Vcpu, 5, 1);
        Assert.That(_test.Block.Dr7, Is.EqualTo(0x401));
        Debug.TryGet(ref _test.Vcpu, 4, out ulong dr6);
        Assert.That(dr6, Is.EqualTo(0xffff0ff0));
        _test.Block.Cr4 = Cr4.De;
        Assert.That(Debug.TryGet(ref _test.Vcpu, 4, out _), Is.EqualTo(DebugAccess.Undefined));
        Assert.That(Debug.TrySet(ref _test.Vcpu, 5, 0), Is.EqualTo(DebugAccess.Undefined));
    }

    [Test]
    public void PrivilegeAndUpperHalvesAreChecked()
    {
        Assert.That(Debug.TrySet(ref _test.Vcpu, 7, 1ul << 32), Is.EqualTo(DebugAccess.Protection));
        Assert.That(Debug.TrySet(ref _test.Vcpu, 6, 1ul << 63), Is.EqualTo(DebugAccess.Protection));
        _test.Block.Cpl = 3;
        Assert.That(Debug.TryGet(ref _test.Vcpu, 0, out _), Is.EqualTo(DebugAccess.Protection));
        Assert.That(Debug.TrySet(ref _test.Vcpu, 0, 1), Is.EqualTo(DebugAccess.Protection));
        Assert.That(_test.Vcpu.Debug.Guest[0], Is.Zero);
    }

    [Test]
    public void GeneralDetectTrapsTheAccess()
    {
        Debug.SetDr7(ref _test.Vcpu, DebugBits.Dr7Gd);
        Assert.That(Debug.TrySet(ref _test.Vcpu, 0, 1), Is.EqualTo(DebugAccess.Debug));
        EventInjection taken = Exceptions<FakeVendor>.Take(ref _test.Vcpu);
        Assert.That(taken.Valid, Is.True);
        Assert.That((taken.Vector, _test.Vcpu.Debug.Dr6 & DebugBits.Dr6Bd, _test.Block.Dr7),
            Is.EqualTo(((byte)1, DebugBits.Dr6Bd, 0x400ul)));
    }

    [Test]
    public void BreakpointsOfUserSpaceHideTheGuestsAndGiveThemBack()
    {
        Debug.TrySet(ref _test.Vcpu, 0, 0x1111);
        Debug.TrySet(ref _test.Vcpu, 7, 1);
        kvm_guest_debug debug = new() { control = Enable | Hardware };
        debug.debugreg[0] = 0x2222;
        debug.debugreg[7] = 4;
        Assert.That(_test.Set(KVM_SET_GUEST_DEBUG, debug), Is.Zero);
        Assert.That((_test.Vcpu.Shared.Dr[0], _test.Block.Dr7), Is.EqualTo((0x2222ul, 0x404ul)));
        Debug.TryGet(ref _test.Vcpu, 7, out ulong guest);
        Assert.That(guest, Is.EqualTo(0x401));
        Debug.TrySet(ref _test.Vcpu, 7, 2);
        Assert.That(_test.Block.Dr7, Is.EqualTo(0x404));
        Assert.That(_test.Get<kvm_debugregs>(KVM_GET_DEBUGREGS).dr7, Is.EqualTo(0x402));
        Assert.That(_test.Set(KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = Hardware }), Is.Zero);
        Assert.That((_test.Vcpu.Debug.Control, _test.Vcpu.Shared.Dr[0], _test.Block.Dr7),
            Is.EqualTo((0u, 0x1111ul, 0x402ul)));
    }

    [Test]
    public void SteppingSetsTfBehindTheGuestsBack()
    {
        _test.Set(KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = Enable | Step });
        ref DebugState debug = ref _test.Vcpu.Debug;
        Assert.That(debug.EntryRflags(2), Is.EqualTo(0x102));
        Assert.That((debug.ExitRflags(0x146, 2), debug.ExitRflags(0x146, 0x102)), Is.EqualTo((0x46ul, 0x146ul)));
        debug.Control = 0;
        Assert.That((debug.EntryRflags(2), debug.ExitRflags(0x102, 2)), Is.EqualTo((2ul, 0x102ul)));
    }

    [TestCase(InjectDb, 1)]
    [TestCase(InjectBp, 3)]
    public void AnExceptionIsInjectedUnlessOneWaits(uint control, byte vector)
    {
        Assert.That(_test.Set(KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = Enable | control }), Is.Zero);
        Assert.That(_test.Vcpu.Events.Exception.Vector.Value, Is.EqualTo(vector));
        Assert.That(_test.Set(KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = Enable | control }),
            Is.EqualTo(Errno.EBUSY));
    }

    [Test]
    public void UnknownFlagsAreRefused()
    {
        foreach (uint flag in new[] { 4u, 0x8000u, 0x100000u, 1u << 31 })
        {
            Assert.That(_test.Set(KVM_SET_GUEST_DEBUG, new kvm_guest_debug { control = Enable | flag }),
                Is.EqualTo(Errno.EINVAL));
        }
        Assert.That(_test.Vcpu.Debug.Control, Is.Zero);
    }

    [Test]
    public void DebugRegistersComeBackAndAreChecked()
    {
        kvm_debugregs debug = new() { dr6 = 0xffff4ff1, dr7 = 0x455 };
        for (int i = 0; i < 4; i++)
            debug.db[i] = 0xffff_8000_0000_0000 + (ulong)i;
        Assert.That(_test.Set(KVM_SET_DEBUGREGS, debug), Is.Zero);
        StateIoctlsTests.AssertSame(_test.Get<kvm_debugregs>(KVM_GET_DEBUGREGS), debug);
        kvm_debugregs[] refused = [new() { flags = 1 }, new() { dr6 = 1ul << 32 }, new() { dr7 = 1ul << 32 }];
        foreach (kvm_debugregs bad in refused)
            Assert.That(_test.Set(KVM_SET_DEBUGREGS, bad), Is.EqualTo(Errno.EINVAL));
        StateIoctlsTests.AssertSame(_test.Get<kvm_debugregs>(KVM_GET_DEBUGREGS), debug);
    }
}
