// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Cpu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;
using Lapics = SharpKvm.Interrupts.Apic<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Interrupts;

/// <summary>IA32_APIC_BASE and the MSRs of x2APIC mode.</summary>
[TestFixture]
internal sealed class ApicModeTests
{
    [Test]
    public void TheWaysBetweenTheModes(
        [Values(ApicMode.Disabled, ApicMode.Xapic, ApicMode.X2apic)] ApicMode from,
        [Values] ApicMode to, [Values] bool host)
    {
        using ApicVm vm = new(1);
        Assert.That(vm.TrySetMode(1, from, host: true), Is.True);
        bool isLegal = to != ApicMode.Invalid
            && (host || (from, to) is not ((ApicMode.X2apic, ApicMode.Xapic) or (ApicMode.Disabled, ApicMode.X2apic)));
        Assert.That(vm.TrySetMode(1, to, host), Is.EqualTo(isLegal));
        ApicMode mode = isLegal ? to : from;
        Assert.That(vm[1].Apic.Mode, Is.EqualTo(mode));
        Assert.That(vm[1].Msrs.ApicBase, Is.EqualTo(0xfee00000 | (ulong)mode << 10));
    }

    [TestCase(0xfee00800UL, true), TestCase(0xfee00900UL, true), TestCase(0xfec00900UL, true)]
    [TestCase(0x5_6789_9900UL, true), TestCase(0x1_0000_fee0_0900UL, false)]
    [TestCase(0xfee00901UL, false), TestCase(0xfee00980UL, false), TestCase(0xfee00b00UL, false)]
    public void TheBaseIsAnAddressOfTheGuest(ulong value, bool isValid)
    {
        using ApicVm vm = new(0);
        ulong before = vm[0].Msrs.ApicBase;
        Assert.That(Lapics.TrySetBase(ref vm[0], value, host: false), Is.EqualTo(isValid));
        Assert.That(Lapics.IsValidBase(ref vm[0], value), Is.EqualTo(isValid));
        Assert.That(vm[0].Msrs.ApicBase, Is.EqualTo(isValid ? value : before));
    }

    [Test]
    public void X2apicModeNeedsTheFeature([Values] bool host)
    {
        using ApicVm vm = new(0);
        vm.Host.Process.Map(TestVcpu.Argument, 1);
        Assert.That(UserMemory.TryWrite(new Hva(TestVcpu.Argument), new kvm_cpuid2 { nent = 1 }), Is.True);
        Assert.That(UserMemory.TryWrite(new Hva(TestVcpu.Argument + 8), TestVcpu.Entry(1)), Is.True);
        Assert.That(VcpuIoctls<FakeVendor>.Dispatch(ref vm[0], KVM_SET_CPUID2, TestVcpu.Argument), Is.Zero);
        Assert.That(vm.TrySetMode(0, ApicMode.X2apic, host), Is.False);
        vm.Write(0, ApicRegister.LvtTimer, 0x700ff);
        Assert.That(vm.Read(0, ApicRegister.LvtTimer), Is.EqualTo(0x300ff), "no deadline mode either");
    }

    [Test]
    public void EnteringX2apicModeKeepsTheStateButForTheIds()
    {
        using ApicVm vm = new(0x123);
        vm.Write(0x123, ApicRegister.Tpr, 0x20);
        vm.Write(0x123, ApicRegister.Ldr, 0x42000000);
        vm.Write(0x123, ApicRegister.LvtError, 0xfe);
        vm.Send(0x123, 0x80, wide: true);
        vm.Take(0x123);
        vm.Send(0x123, 0x90, wide: true);
        vm.EnterX2apic(0x123);
        Assert.Multiple(() =>
        {
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Id), Is.EqualTo(0x123));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Ldr), Is.EqualTo(0x120008));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Tpr), Is.EqualTo(0x20));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Svr), Is.EqualTo(ApicVm.SvrEnabled));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.LvtError), Is.EqualTo(0xfe));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Isr + 4), Is.EqualTo(1));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Irr + 4), Is.EqualTo(0x10000));
            Assert.That(vm.ReadMsr(0x123, ApicRegister.Ppr), Is.EqualTo(0x80));
        });
    }

    [Test]
    public void DisablingLosesTheStateAndTheTimer()
    {
        using ApicVm vm = new(1);
        vm.Write(1, ApicRegister.Ldr, 0x42000000);
        vm.Write(1, ApicRegister.LvtTimer, 0x20031);
        vm.Write(1, ApicRegister.InitialCount, 1_000_000);
        vm.Send(1, 0x80);
        Assert.That(vm.TrySetMode(1, ApicMode.Disabled), Is.True);
        Assert.That(vm.TimeLeft(1), Is.Null);
        Assert.That(vm[1].Apic.HighestPending(), Is.EqualTo(-1));
        Assert.That(vm.TrySetMode(1, ApicMode.Xapic), Is.True);
        Assert.That(vm.Read(1, ApicRegister.Ldr), Is.Zero);
        Assert.That(vm.Read(1, ApicRegister.Svr), Is.EqualTo(0xff));
        Assert.That(vm.Read(1, ApicRegister.LvtTimer), Is.EqualTo(ApicVm.Masked));
        Assert.That(vm.Take(1), Is.EqualTo(-1));
    }

    [Test]
    public void CpuidShowsWhetherItIsEnabled()
    {
        using ApicVm vm = new(0);
        vm.Host.Process.Map(TestVcpu.Argument, 8);
        Assert.That(UserMemory.TryWrite(new Hva(TestVcpu.Argument), new kvm_cpuid2 { nent = 100 }), Is.True);
        Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, TestVcpu.Argument), Is.Zero);
        Assert.That(VcpuIoctls<FakeVendor>.Dispatch(ref vm[0], KVM_SET_CPUID2, TestVcpu.Argument), Is.Zero);
        Assert.That(vm.TrySetMode(0, ApicMode.Disabled), Is.True);
        Assert.That(HasApic(), Is.False);
        Assert.That(vm.TrySetMode(0, ApicMode.Xapic), Is.True);
        Assert.That(HasApic(), Is.True);

        bool HasApic()
        {
            vm[0].Cpuid.Query(1, 0, out CpuidLeaf leaf);
            return (leaf.Edx >> 9 & 1) != 0;
        }
    }

    [Test]
    public void TheMsrsAreThoseOfTheManual()
    {
        using ApicVm vm = new(0);
        for (uint register = 0; register < 0x100; register++)
            Assert.That(vm.TryReadMsr(0, (int)register, out _) || vm.TryWriteMsr(0, (int)register, 0), Is.False);

        vm.EnterX2apic(0);
        HashSet<int> readOnly = [ApicRegister.Id, ApicRegister.Version, ApicRegister.Ppr, ApicRegister.Ldr,
            ApicRegister.CurrentCount, .. Enumerable.Range(ApicRegister.Isr, 24)];
        HashSet<int> writeOnly = [ApicRegister.Eoi, ApicRegister.SelfIpi];
        HashSet<int> both = [ApicRegister.Tpr, ApicRegister.Svr, ApicRegister.Esr, ApicRegister.Icr,
            .. Enumerable.Range(ApicRegister.LvtTimer, 6), ApicRegister.InitialCount, ApicRegister.Divide];
        Assert.Multiple(() =>
        {
            for (int register = 0; register < 0x100; register++)
            {
                Assert.That(vm.TryReadMsr(0, register, out _),
                    Is.EqualTo(readOnly.Contains(register) || both.Contains(register)), $"RDMSR {register:x}");
                Assert.That(vm.TryWriteMsr(0, register, 0),
                    Is.EqualTo(writeOnly.Contains(register) || both.Contains(register)), $"WRMSR {register:x}");
            }
        });
    }

    [TestCase(ApicRegister.Tpr, 0xffUL), TestCase(ApicRegister.Eoi, 0UL), TestCase(ApicRegister.Esr, 0UL)]
    [TestCase(ApicRegister.Svr, 0x3ffUL), TestCase(ApicRegister.LvtTimer, 0x710ffUL)]
    [TestCase(ApicRegister.LvtThermal, 0x117ffUL), TestCase(ApicRegister.LvtPerformance, 0x117ffUL)]
    [TestCase(ApicRegister.Lint0, 0x1f7ffUL), TestCase(ApicRegister.Lint1, 0x1f7ffUL)]
    [TestCase(ApicRegister.LvtError, 0x110ffUL), TestCase(ApicRegister.InitialCount, 0xffffffffUL)]
    [TestCase(ApicRegister.Divide, 0xbUL), TestCase(ApicRegister.SelfIpi, 0xffUL)]
    [TestCase(ApicRegister.Icr, 0xffffffff_000cdfffUL)]
    public void ReservedBitsFault(int register, ulong allowed)
    {
        using ApicVm vm = new(0);
        vm.EnterX2apic(0);
        for (int bit = 0; bit < 64; bit++)
        {
            Assert.That(vm.TryWriteMsr(0, register, 1ul << bit), Is.EqualTo((allowed >> bit & 1) != 0), $"bit {bit}");
        }
    }

    [Test]
    public void IcrIsOneRegister()
    {
        using ApicVm vm = new(0, 1);
        vm.EnterX2apic(0, 1);
        vm.WriteMsr(0, ApicRegister.Icr, 0x00000001_00001071);
        Assert.That(vm.ReadMsr(0, ApicRegister.Icr), Is.EqualTo(0x00000001_00000071));
        Assert.That(vm.Take(1), Is.EqualTo(0x71));
    }

    [Test]
    public void TheTaskPriorityAndTheEndOfInterrupts()
    {
        using ApicVm vm = new(0);
        vm.EnterX2apic(0);
        vm.Send(0, 0x55);
        vm.WriteMsr(0, ApicRegister.Tpr, 0x50);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        vm.WriteMsr(0, ApicRegister.Tpr, 0x40);
        Assert.That(vm.Take(0), Is.EqualTo(0x55));
        vm.WriteMsr(0, ApicRegister.Eoi, 0);
        Assert.That(vm.ReadMsr(0, ApicRegister.Ppr), Is.EqualTo(0x40));
    }
}
