// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using Control = SharpKvm.Cpu.ControlRegisters<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Cpu;

public class ControlRegisterTests
{
    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp()
    {
        _test = new TestVcpu();
        _test.SetSupportedCpuid();
    }

    [TearDown]
    public void TearDown() => _test.Dispose();

    [TestCase(Cr0.Pe, Cr0.Pe | Cr0.Et)]
    [TestCase(Cr0.Pe | 1 << 8 | 1 << 28, Cr0.Pe | Cr0.Et)]
    [TestCase(Cr0.Cd | Cr0.Nw, Cr0.Cd | Cr0.Nw | Cr0.Et)]
    [TestCase(Cr0.Pg, null)]
    [TestCase(Cr0.Nw, null)]
    [TestCase(1ul << 32, null)]
    public void Cr0TakesValidCombinations(ulong value, ulong? result)
    {
        ulong before = _test.Block.Cr0;
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, value), Is.EqualTo(result.HasValue));
        Assert.That(_test.Block.Cr0, Is.EqualTo(result ?? before));
    }

    [Test]
    public void PagingEntersAndLeavesLongMode()
    {
        _test.Vcpu.Efer = Efer.Lme;
        _test.Block.Cr0 = Cr0.Pe | Cr0.Et;
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, Cr0.Pe | Cr0.Pg), Is.False, "no PAE");
        _test.Block.Cr4 = Cr4.Pae;
        SetCodeLong(true);
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, Cr0.Pe | Cr0.Pg), Is.False, "CS.L");
        SetCodeLong(false);
        Assert.That(_test.Vcpu.Efer, Is.EqualTo(Efer.Lme));
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, Cr0.Pe | Cr0.Pg), Is.True);
        Assert.That(_test.Vcpu.Efer, Is.EqualTo(Efer.Lme | Efer.Lma));
        SetCodeLong(true);
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, Cr0.Pe), Is.False, "from 64-bit code");
        SetCodeLong(false);
        _test.Block.Cr4 |= Cr4.Pcide;
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, Cr0.Pe), Is.False, "PCIDE");
        _test.Block.Cr4 = Cr4.Pae;
        Assert.That(Control.TrySetCr0(ref _test.Vcpu, Cr0.Pe), Is.True);
        Assert.That(_test.Vcpu.Efer, Is.EqualTo(Efer.Lme));
    }

    private void SetCodeLong(bool value) =>
        _test.Block.Segments[(int)SegmentName.Cs].Attributes = value ? Segment.LongBit : (ushort)0;

    [Test]
    public void Cr4TakesWhatTheGuestHas()
    {
        Assert.That(Control.TrySetCr4(ref _test.Vcpu, _test.Vcpu.Cpuid.Cr4Allowed & ~Cr4.Pcide), Is.True);
        foreach (ulong bad in new[] { 1ul << 13, 1ul << 14, 1ul << 15, 1ul << 19, 1ul << 23, 1ul << 32, Cr4.La57 })
            Assert.That(Control.TrySetCr4(ref _test.Vcpu, bad), Is.False, $"{bad:x}");
        _test.SetCpuid(TestVcpu.Entry(1));
        foreach (ulong bad in new[] { Cr4.Osxsave, Cr4.Smep, Cr4.Smap, Cr4.Umip, Cr4.Fsgsbase, Cr4.Pke, Cr4.Pcide })
            Assert.That(Control.TrySetCr4(ref _test.Vcpu, bad), Is.False, $"{bad:x}");
    }

    /// <summary>Without these bits instructions on XCR0 and PKRU are invalid, and PKRU has no effect.</summary>
    [Test]
    public void WhatTheGuestHasNoUseForStaysTheHosts()
    {
        const ulong Components = 7, Keys = 1 << 9;
        foreach ((ulong cr4, ulong xcr0, EntryFlags flags) in ((ulong, ulong, EntryFlags)[])
            [(0, Components | Keys, EntryFlags.None), (Cr4.Osxsave, Components, EntryFlags.Xcr0),
            (Cr4.Osxsave, Components | Keys, EntryFlags.Xcr0 | EntryFlags.Pkru), (Cr4.Pke, Components, EntryFlags.Pkru),
            (Cr4.De, Components | Keys, EntryFlags.None)])
        {
            _test.Vcpu.Shared.Xcr0 = xcr0;
            Assert.That(Control.TrySetCr4(ref _test.Vcpu, cr4), Is.True);
            Control.UpdateDependents(ref _test.Vcpu);
            Assert.That(_test.Vcpu.Shared.Flags & (EntryFlags.Xcr0 | EntryFlags.Pkru), Is.EqualTo(flags),
                $"{cr4:x} {xcr0:x}");
        }
    }

    [Test]
    public void LongModeKeepsPaeAndPcidNeedsLongMode()
    {
        Assert.That(Control.TrySetCr4(ref _test.Vcpu, Cr4.Pae | Cr4.Pcide), Is.False, "not in long mode");
        _test.Vcpu.Efer = Efer.Lme | Efer.Lma;
        _test.Block.Cr3 = 0x1001;
        Assert.That(Control.TrySetCr4(ref _test.Vcpu, Cr4.Pae | Cr4.Pcide), Is.False, "CR3 has a PCID");
        _test.Block.Cr3 = 0x1000;
        Assert.That(Control.TrySetCr4(ref _test.Vcpu, Cr4.Pae | Cr4.Pcide), Is.True);
        _test.Block.Cr3 = 0x1001;
        Assert.That(Control.TrySetCr4(ref _test.Vcpu, Cr4.Pae | Cr4.Pcide | Cr4.De), Is.True, "already on");
        Assert.That(Control.TrySetCr4(ref _test.Vcpu, 0), Is.False, "PAE off");
    }

    [Test]
    public void Cr3IsCheckedInLongModeOnly()
    {
        Assert.That(Control.TrySetCr3(ref _test.Vcpu, 1ul << 50), Is.True);
        _test.Vcpu.Efer = Efer.Lme | Efer.Lma;
        Assert.That(Control.TrySetCr3(ref _test.Vcpu, 1ul << 50), Is.False);
        Assert.That(Control.TrySetCr3(ref _test.Vcpu, 1ul << 63 | 0x1000), Is.False, "no PCIDs");
        _test.Block.Cr4 = Cr4.Pae | Cr4.Pcide;
        Assert.That(Control.TrySetCr3(ref _test.Vcpu, 1ul << 63 | 0x1005), Is.True);
        Assert.That(_test.Block.Cr3, Is.EqualTo(0x1005));
    }

    [Test]
    public void Cr8HasFourBits()
    {
        Assert.That(Control.TrySetCr8(ref _test.Vcpu, 15), Is.True);
        Assert.That(Control.TrySetCr8(ref _test.Vcpu, 16), Is.False);
        Assert.That(_test.Vcpu.Events.Cr8, Is.EqualTo(15));
    }

    [TestCase(0u, 7ul, 0, true)]
    [TestCase(0u, 7ul, 3, false)]
    [TestCase(1u, 7ul, 0, false)]
    [TestCase(0u, 6ul, 0, false)]
    [TestCase(0u, 0x207ul, 0, false)]
    public void XsetbvChecksPrivilegeIndexAndValue(uint index, ulong value, int cpl, bool valid)
    {
        _test.Block.Cpl = cpl;
        Assert.That(Control.TrySetXcr0(ref _test.Vcpu, index, value), Is.EqualTo(valid));
        Assert.That(_test.Vcpu.Shared.Xcr0, Is.EqualTo(valid ? value : 1));
    }

    [Test]
    public void ResetIsTheStateOfTheManual()
    {
        using TestVcpu second = new(1);
        Assert.Multiple(() =>
        {
            Assert.That(second.Vcpu.Registers.Rip, Is.EqualTo(0xfff0));
            Assert.That(second.Vcpu.Registers.Rflags, Is.EqualTo(2));
            Assert.That(second.Block.Cr0, Is.EqualTo(0x60000010));
            Segment cs = second.Block.Segments[(int)SegmentName.Cs];
            Assert.That((cs.Selector, cs.Base, cs.Limit, cs.Attributes),
                Is.EqualTo(((ushort)0xf000, 0xffff0000ul, 0xffffu, (ushort)0x9b)));
            Assert.That((second.Vcpu.Debug.Dr6, second.Block.Dr7), Is.EqualTo((0xffff0ff0ul, 0x400ul)));
            Assert.That(second.Block.Msrs[Msr.Pat], Is.EqualTo(0x0007040600070406));
            Assert.That(second.Vcpu.Msrs.ApicBase, Is.EqualTo(0xfee00800), "not the boot processor");
            Assert.That(_test.Vcpu.Msrs.ApicBase, Is.EqualTo(0xfee00900));
            Assert.That(second.Vcpu.Shared.Xcr0, Is.EqualTo(1));
        });
    }
}
