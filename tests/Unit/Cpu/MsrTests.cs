// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;
using Machine = SharpKvm.Cpu.Msrs<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Cpu;

public class MsrTests
{
    private const ulong NonCanonical = 0x0000_8000_0000_0000;
    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp()
    {
        _test = new TestVcpu();
        _test.SetSupportedCpuid();
    }

    [TearDown]
    public void TearDown() => _test.Dispose();

    private bool Guest(uint index, ulong value) => Machine.TryWrite(ref _test.Vcpu, index, value);
    private bool User(uint index, ulong value) => Machine.TrySet(ref _test.Vcpu, index, value, host: true);
    private bool Exists(uint index) => Machine.TryRead(ref _test.Vcpu, index, out _);

    private ulong Read(uint index)
    {
        Assert.That(Machine.TryRead(ref _test.Vcpu, index, out ulong value), Is.True, $"{index:x}");
        return value;
    }

    [TestCase(Msr.Lstar)]
    [TestCase(Msr.Cstar)]
    [TestCase(Msr.KernelGsBase)]
    [TestCase(Msr.FsBase)]
    [TestCase(Msr.GsBase)]
    public void AddressesMustBeCanonical(uint index)
    {
        Assert.That(Guest(index, 0xffff_8000_0000_0001), Is.True);
        Assert.That(Guest(index, NonCanonical), Is.False);
        Assert.That(User(index, NonCanonical), Is.False);
        Assert.That(User(index, 0xffff_7fff_ffff_ffff), Is.False);
        Assert.That(Read(index), Is.EqualTo(0xffff_8000_0000_0001));
    }

    [Test]
    public void WithFiveLevelsMoreIsCanonical()
    {
        _test.Block.Cr4 = Cr4.La57;
        Assert.That(Guest(Msr.Lstar, NonCanonical), Is.True);
        Assert.That(Guest(Msr.Lstar, 0x0100_0000_0000_0000), Is.False);
    }

    [TestCase(Msr.SysenterEsp)]
    [TestCase(Msr.SysenterEip)]
    public void SysenterAddressesBecomeCanonical(uint index)
    {
        Assert.That(Guest(index, NonCanonical), Is.True);
        Assert.That(Read(index), Is.EqualTo(0xffff_8000_0000_0000));
    }

    [TestCase(0x0007040600070406ul, true)]
    [TestCase(0x0007040600070402ul, false)]
    [TestCase(0x0307040600070406ul, false)]
    [TestCase(0x0807040600070406ul, false)]
    [TestCase(0x0101010101010101ul, true)]
    public void PatTakesOnlyMemoryTypes(ulong value, bool valid) =>
        Assert.That(Guest(Msr.Pat, value), Is.EqualTo(valid));

    [TestCase(Efer.Sce | Efer.Lme | Efer.Nxe, true)]
    [TestCase(Efer.Svme, false)]
    [TestCase(1ul << 13, false)]
    [TestCase(1ul << 63, false)]
    public void EferTakesWhatTheGuestHas(ulong value, bool valid)
    {
        Assert.That(Guest(Msr.Efer, value), Is.EqualTo(valid));
        Assert.That(User(Msr.Efer, value), Is.EqualTo(valid));
    }

    [Test]
    public void LmaIsNotWritableAndLmeNotWhilePaging()
    {
        Assert.That(Guest(Msr.Efer, Efer.Lme | Efer.Lma), Is.True);
        Assert.That(Read(Msr.Efer), Is.EqualTo(Efer.Lme));
        _test.Vcpu.Efer = Efer.Lme | Efer.Lma;
        _test.Block.Cr0 = Cr0.Pe | Cr0.Pg;
        Assert.That(Guest(Msr.Efer, Efer.Lme | Efer.Sce), Is.True);
        Assert.That(Read(Msr.Efer), Is.EqualTo(Efer.Lme | Efer.Lma | Efer.Sce));
        Assert.That(Guest(Msr.Efer, Efer.Sce), Is.False);
    }

    [Test]
    public void AGuestWithoutNxCannotSetNxeButUserSpaceCan()
    {
        Assert.That(_test.SetCpuid(TestVcpu.Entry(0x80000001, edx: 1 << 29)), Is.Zero);
        Assert.That(Guest(Msr.Efer, Efer.Nxe), Is.False);
        Assert.That(User(Msr.Efer, Efer.Nxe), Is.True);
    }

    [Test]
    public void FixedAndDefaultMtrrsTakeOnlyMemoryTypes() => Assert.Multiple(() =>
    {
        foreach (uint index in new uint[] { 0x250, 0x258, 0x259, 0x268, 0x26f })
        {
            Assert.That(Guest(index, 0x0605040100060606), Is.True);
            Assert.That(Guest(index, 0x0605040100060603), Is.False);
            Assert.That(Read(index), Is.EqualTo(0x0605040100060606));
        }
        Assert.That(Guest(Msr.MtrrDefType, 0xc06), Is.True);
        Assert.That(Guest(Msr.MtrrDefType, 0xc02), Is.False);
        Assert.That(Guest(Msr.MtrrDefType, 0x106), Is.False);
        Assert.That(Read(Msr.MtrrDefType), Is.EqualTo(0xc06));
        Assert.That(Read(Msr.MtrrCap), Is.EqualTo(0x508));
        Assert.That(Guest(Msr.MtrrCap, 0x508), Is.False);
    });

    [Test]
    public void VariableMtrrsFollowTheAddressWidth()
    {
        Assert.That(Guest(0x200, 0xc000_0006), Is.True);
        Assert.That(Guest(0x200, 0xc000_0007), Is.False);
        Assert.That(Guest(0x200, 0xc000_0106), Is.False);
        Assert.That(Guest(0x201, 0xffff_c000_0800), Is.True);
        Assert.That(Guest(0x201, 0x1_ffff_c000_0800), Is.False, "48 bits");
        Assert.That(Guest(0x201, 0xffff_c000_0801), Is.False);
        Assert.That(Guest(0x20f, 0x800), Is.True);
        Assert.That((Read(0x200), Read(0x201)), Is.EqualTo((0xc000_0006ul, 0xffff_c000_0800ul)));
    }

    /// <summary>What a wider guest left in a register does not stand in the way of a narrower one.</summary>
    [Test]
    public void VariableMtrrsCanBeWrittenAfterTheAddressWidthShrank()
    {
        Assert.That(Guest(0x201, 0xffff_c000_0800), Is.True);
        _test.SetCpuid(TestVcpu.Entry(0x80000008, eax: 40));
        Assert.That((Guest(0x201, 0xffff_c000_0800), Guest(0x201, 0xff_c000_0800)), Is.EqualTo((false, true)));
        Assert.That(Read(0x201), Is.EqualTo(0xff_c000_0800));
    }

    /// <summary>Numbers beside the MTRRs that were once taken for them.</summary>
    [TestCase(0x210u)]
    [TestCase(0x251u)]
    [TestCase(0x25au)]
    [TestCase(0x270u)]
    [TestCase(0x2f8u)]
    [TestCase(0x2feu)]
    [TestCase(0x300u)]
    public void NeighboursOfTheMtrrsDoNotExist(uint index)
    {
        Assert.That(Guest(index, 0), Is.False);
        Assert.That(User(index, 6), Is.False);
        Assert.That(Exists(index), Is.False);
    }

    [Test]
    public void TheApicBaseHasReservedBits()
    {
        Assert.That(Read(Msr.ApicBase), Is.EqualTo(0xfee00900));
        Assert.That(Guest(Msr.ApicBase, 0xfee00800), Is.True);
        foreach (ulong bad in new[] { 0xfee00801ul, 0xfee00a00, 0xfee00c00, 0xfee00400, 1ul << 48 })
            Assert.That(Guest(Msr.ApicBase, bad), Is.False, $"{bad:x}");
        Assert.That(Read(Msr.ApicBase), Is.EqualTo(0xfee00800));
    }

    [Test]
    public void TheGuestMovesItsTscAndItsAdjustmentTogether()
    {
        _test.Host.Cpu.Tsc = 1_000_000;
        ulong now = Read(Msr.Tsc);
        Assert.That(Guest(Msr.Tsc, now + 500), Is.True);
        Assert.That((Read(Msr.Tsc), Read(Msr.TscAdjust)), Is.EqualTo((now + 500, 500ul)));
        Assert.That(Guest(Msr.TscAdjust, 100), Is.True);
        Assert.That(Read(Msr.Tsc), Is.EqualTo(now + 100));
        Assert.That(User(Msr.TscAdjust, 7), Is.True);
        Assert.That((Read(Msr.Tsc), Read(Msr.TscAdjust)), Is.EqualTo((now + 100, 7ul)));
    }

    [Test]
    public void TscsThatUserSpaceSetsAlikeAreOne()
    {
        _test.Host.Cpu.Tsc = 10_000_000_000;
        Vcpu other = default;
        _test.PowerOn(ref other, 1);
        Assert.That(User(Msr.Tsc, 50_000_000_000), Is.True);
        _test.Host.Cpu.Tsc += 1_000_000;
        Assert.That(Machine.TrySet(ref other, Msr.Tsc, 50_000_000_100, host: true), Is.True);
        Machine.TryRead(ref other, Msr.Tsc, out ulong second);
        Assert.That(second, Is.EqualTo(Read(Msr.Tsc)));
        Assert.That(Machine.TrySet(ref other, Msr.Tsc, 0, host: true), Is.True);
        Machine.TryRead(ref other, Msr.Tsc, out second);
        Assert.That(second, Is.EqualTo(Read(Msr.Tsc)));
        Assert.That(Machine.TrySet(ref other, Msr.Tsc, 5, host: true), Is.True);
        Machine.TryRead(ref other, Msr.Tsc, out second);
        Assert.That(second, Is.EqualTo(5));
        FakeVendor.DestroyVcpu(ref other);
        other.Apic.Free();
    }

    [Test]
    public void TscAuxNeedsItsFeatureAndHas32Bits()
    {
        Assert.That(Guest(Msr.TscAux, 0x1_0000_0007), Is.True);
        Assert.That((Read(Msr.TscAux), _test.Vcpu.Shared.TscAux), Is.EqualTo((7ul, 7ul)));
        _test.SetCpuid(TestVcpu.Entry(0));
        Assert.That((Guest(Msr.TscAux, 1), Exists(Msr.TscAux), User(Msr.TscAux, 2)), Is.EqualTo((false, false, true)));
        Assert.That(_test.Vcpu.Shared.TscAux, Is.EqualTo(2));
    }

    [Test]
    public void AnIbpbReachesTheHost()
    {
        Assert.That(Guest(Msr.PredCmd, 1), Is.True);
        Assert.That((Guest(Msr.PredCmd, 2), Exists(Msr.PredCmd)), Is.EqualTo((false, false)));
        _test.SetCpuid(TestVcpu.Entry(0));
        Assert.That(Guest(Msr.PredCmd, 1), Is.False);
        Assert.That(_test.Host.Cpu.PredictorFlushes, Is.EqualTo(1));
    }

    [Test]
    public void SpecCtrlTakesOnlyBitsOfTheHost()
    {
        Assert.That(Guest(Msr.SpecCtrl, 0), Is.False, "not in the guest's CPUID");
        Assert.That((User(Msr.SpecCtrl, 0x87), User(Msr.SpecCtrl, 8)), Is.EqualTo((true, false)));
        Assert.That(_test.Vcpu.Shared.SpecCtrl, Is.EqualTo(0x87));
        CpuidLeaf leaf = _test.Host.Cpu.Cpuid[(0x80000008, 0)];
        leaf.Ebx = 1 << 15;
        _test.Host.Cpu.Cpuid[(0x80000008, 0)] = leaf;
        Assert.That((User(Msr.SpecCtrl, 2), User(Msr.SpecCtrl, 4)), Is.EqualTo((true, false)));
    }

    [Test]
    public void PlatformRegistersReadAsZero() => Assert.Multiple(() =>
    {
        foreach (uint index in new uint[]
            { 0x17, 0x2a, 0x1d9, 0xc0010000, 0xc0010007, 0xc0010010, 0xc001001a, 0xc001001f, 0xc0010055, 0xc0010062,
              0xc0010114, 0xc0011022 })
            Assert.That(Read(index), Is.Zero, $"{index:x}");
        Assert.That(Guest(0xc001001f, 5), Is.True);
        Assert.That((Guest(0x1d9, 1), Guest(0x1d9, 1 << 6)), Is.EqualTo((true, false)), "DEBUGCTL");
    });

    [Test]
    public void ModelRegistersOfAmd()
    {
        Assert.That(Guest(Msr.Hwcr, 1 << 18 | 1 << 3 | 1 << 6), Is.True);
        Assert.That(Read(Msr.Hwcr), Is.EqualTo(1 << 18));
        Assert.That(Guest(Msr.Hwcr, 1 << 30), Is.False);
        Assert.That((Guest(Msr.DeCfg, 2), User(Msr.DeCfg, 2), Guest(Msr.DeCfg, 2), User(Msr.DeCfg, 4)),
            Is.EqualTo((false, true, true, false)));
        Assert.That(Guest(Msr.MicrocodeRevision, 0), Is.True, "ignored");
        Assert.That(User(Msr.MicrocodeRevision, 0x0800), Is.True);
        Assert.That(Read(Msr.MicrocodeRevision), Is.EqualTo(0x0800));
    }

    [Test]
    public void MiscEnableKeepsItsReadOnlyBits()
    {
        Assert.That(Read(Msr.MiscEnable), Is.EqualTo(0x1800));
        Assert.That(User(Msr.MiscEnable, 1), Is.True);
        Assert.That(Read(Msr.MiscEnable), Is.EqualTo(0x1801));
        Assert.That((Guest(Msr.MiscEnable, 0), Guest(Msr.MiscEnable, 0x1800)), Is.EqualTo((false, true)));
    }

    [Test]
    public void UnknownOnesFaultUnlessIgnored()
    {
        Assert.That((Exists(0xdeadbeef), Guest(0xdeadbeef, 0)), Is.EqualTo((false, false)));
        _test.Host.Cpu.IgnoreMsrs = true;
        Assert.That((Read(0xdeadbeef), Guest(0xdeadbeef, 1)), Is.EqualTo((0ul, true)));
        Assert.That(Guest(Msr.Pat, 2), Is.False, "a bad value is not an unknown MSR");
        PutMsrs(Entry(0xdead, 5), Entry(Msr.Pat, 2));
        Assert.That((_test.Call(KVM_GET_MSRS), Value(0), _test.Call(KVM_SET_MSRS)), Is.EqualTo((2, 0ul, 2)));
    }

    [Test]
    public void IgnoredOnesReadAsZeroWhateverUserSpaceWroteToThem()
    {
        Assert.That((User(Msr.SpecCtrl, 1), User(Msr.TscAux, 2)), Is.EqualTo((true, true)));
        _test.SetCpuid(TestVcpu.Entry(0));
        _test.Host.Cpu.IgnoreMsrs = true;
        Assert.That((Read(Msr.SpecCtrl), Read(Msr.TscAux)), Is.EqualTo((0ul, 0ul)));
    }

    /// <summary>
    /// Without a local APIC there are no pages to be told of by interrupt, but a VMM restores the MSRs.
    /// </summary>
    [TestCase(0x4b564d02u)]
    [TestCase(0x4b564d06u)]
    [TestCase(0x4b564d07u)]
    public void AsynchronousFaultsAreOffWithoutAnApic(uint index)
    {
        Assert.That((User(index, 0), User(index, 1), Guest(index, 0), Guest(index, 1)),
            Is.EqualTo((true, false, true, false)));
        Assert.That(Machine.TryGet(ref _test.Vcpu, index, host: true, out ulong value), Is.True);
        Assert.That(value, Is.Zero);
    }

    [Test]
    public void NoNumberAndValueBreaksTheModel() => Gen.Select(
        Gen.OneOf(Gen.UInt, Gen.UInt[0, 0x500], Gen.UInt[0xc0000080, 0xc0000110], Gen.UInt[0xc0010000, 0xc0011100]),
        Gen.ULong, Gen.Bool).Sample((index, value, host) =>
        {
            bool written = Machine.TrySet(ref _test.Vcpu, index, value, host);
            bool read = Machine.TryGet(ref _test.Vcpu, index, host, out _);
            Assert.That(!written || read || index == Msr.PredCmd, $"{index:x} can be written but not read");
        }, iter: 20_000, threads: 1);

    [Test]
    public void TheListsNameOnlyWhatExists()
    {
        _test.Put(3u);
        Assert.That(SystemIoctls.Dispatch(KVM_GET_MSR_INDEX_LIST, TestVcpu.Argument), Is.EqualTo(Errno.E2BIG));
        uint count = _test.Take<uint>();
        _test.Put(count);
        Assert.That(SystemIoctls.Dispatch(KVM_GET_MSR_INDEX_LIST, TestVcpu.Argument), Is.Zero);
        for (uint i = 0; i < count; i++)
        {
            uint index = _test.Take<uint>(4 + 4 * (ulong)i);
            Assert.That(Machine.TryGet(ref _test.Vcpu, index, host: true, out ulong value), Is.True, $"{index:x}");
            Assert.That(User(index, value), Is.True, $"{index:x}");
        }
        Assert.That(SystemIoctls.Dispatch(KVM_GET_MSR_INDEX_LIST, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT));
        Assert.That(SystemIoctls.Dispatch(KVM_X86_GET_MCE_CAP_SUPPORTED, TestVcpu.Argument), Is.Zero);
        Assert.That(_test.Take<ulong>(), Is.EqualTo(0x1000100));
        Assert.That(SystemIoctls.Dispatch(KVM_X86_GET_MCE_CAP_SUPPORTED, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void FeatureMsrsComeFromTheHost()
    {
        _test.Put(10u);
        Assert.That(SystemIoctls.Dispatch(KVM_GET_MSR_FEATURE_INDEX_LIST, TestVcpu.Argument), Is.Zero);
        Assert.That(_test.Take<uint>(), Is.EqualTo(2));
        PutMsrs(Entry(Msr.MicrocodeRevision, 1), Entry(Msr.DeCfg, 1), Entry(Msr.Pat, 1));
        Assert.That(SystemIoctls.Dispatch(KVM_GET_MSRS, TestVcpu.Argument), Is.EqualTo(2));
        Assert.That((Value(0), Value(1)), Is.EqualTo((0x08001227ul, 2ul)));
    }

    [Test]
    public void TheIoctlsStopAtTheFirstThatFails()
    {
        PutMsrs(Entry(Msr.Lstar, 0x1000), Entry(Msr.Cstar, 0x2000), Entry(Msr.Pat, 2), Entry(Msr.Star, 3));
        Assert.That(_test.Call(KVM_SET_MSRS), Is.EqualTo(2));
        PutMsrs(Entry(Msr.Lstar, 0), Entry(Msr.Cstar, 0), Entry(0xdead, 0), Entry(Msr.Star, 9));
        Assert.That(_test.Call(KVM_GET_MSRS), Is.EqualTo(2));
        Assert.That((Value(0), Value(1), Value(3)), Is.EqualTo((0x1000ul, 0x2000ul, 9ul)));
    }

    [Test]
    public void TheIoctlsTakeAtMost255()
    {
        _test.Put(new kvm_msrs { nmsrs = 256 });
        Assert.That(_test.Call(KVM_SET_MSRS), Is.EqualTo(Errno.E2BIG));
        Assert.That(_test.Call(KVM_GET_MSRS), Is.EqualTo(Errno.E2BIG));
        Assert.That(SystemIoctls.Dispatch(KVM_GET_MSRS, TestVcpu.Argument), Is.EqualTo(Errno.E2BIG));
        PutMsrs([.. Enumerable.Repeat(Entry(Msr.Pat, 0), 255)]);
        Assert.That(_test.Call(KVM_GET_MSRS), Is.EqualTo(255));
        Assert.That(Value(254), Is.EqualTo(0x0007040600070406));
        _test.Put(new kvm_msrs());
        Assert.That((_test.Call(KVM_SET_MSRS), _test.Call(KVM_GET_MSRS)), Is.EqualTo((0, 0)));
    }

    private static kvm_msr_entry Entry(uint index, ulong value) => new() { index = index, data = value };

    private void PutMsrs(params ReadOnlySpan<kvm_msr_entry> entries)
    {
        _test.Put(new kvm_msrs { nmsrs = (uint)entries.Length });
        for (int i = 0; i < entries.Length; i++)
            _test.Put(entries[i], 8 + 16 * (ulong)i);
    }

    private ulong Value(ulong entry) => _test.Take<kvm_msr_entry>(8 + 16 * entry).data;
}
