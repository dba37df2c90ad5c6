// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Tests.Cpu;

namespace SharpKvm.Tests.Svm;

/// <summary>
/// MSR accesses that user space filters and serves (KVM_X86_SET_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR), and the quirks
/// that it can disable.
/// </summary>
public class MsrAccessTests
{
    private const uint Invalid = 1, Unknown = 2, Filtered = 4, NoSuchMsr = 0xdeadbeef;
    private const ulong Next = SvmGuest.Code + 2, Bitmap = TestVcpu.Argument + 0x400;

    [TestCase(NoSuchMsr, Unknown)]
    [TestCase(Msr.MtrrCap, Invalid)]
    public void WhatFailsGoesToUserSpaceIfThatAskedForItsKind(uint index, uint reason)
    {
        using SvmGuest guest = new();
        guest.Vm.Cpu.UserMsrReasons = 7 ^ reason;
        guest.Registers[Gpr.Rcx] = index;
        guest.RunThrough(Write());
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Exception(13, 0)));

        guest.Vm.Cpu.UserMsrReasons = reason;
        guest.Registers.Rip = SvmGuest.Code;
        guest.RunTo(Exit.KVM_EXIT_X86_WRMSR, Write());
        kvm_run.Msr access = guest.RunPage.msr;
        Assert.That((access.reason, access.index, access.data, access.error), Is.EqualTo((reason, index, 0x12u, 0)));
    }

    [Test]
    public void UserSpaceAnswersARead()
    {
        using SvmGuest guest = new();
        guest.Vm.Cpu.UserMsrReasons = Unknown;
        guest.Registers[Gpr.Rcx] = NoSuchMsr;
        guest.RunTo(Exit.KVM_EXIT_X86_RDMSR, Read());
        Assert.That(guest.Registers.Rip, Is.EqualTo(SvmGuest.Code));
        guest.RunPage.msr.data = 0x11112222_33334444;
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Rax), Is.EqualTo((Next, 0x33334444ul)));
        Assert.That(guest.Registers[Gpr.Rdx], Is.EqualTo(0x11112222));
    }

    [Test]
    public void UserSpaceRefusesAnAccess([Values] bool write)
    {
        using SvmGuest guest = new();
        guest.Vm.Cpu.UserMsrReasons = Unknown;
        guest.Registers[Gpr.Rcx] = NoSuchMsr;
        guest.RunTo(write ? Exit.KVM_EXIT_X86_WRMSR : Exit.KVM_EXIT_X86_RDMSR, write ? Write() : Read());
        guest.RunPage.msr.error = 1;
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Exception(13, 0)));
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(SvmGuest.Code));
    }

    [Test]
    public void AFilterGuardsItsRangeAndItsKind()
    {
        using SvmGuest guest = new();
        // Bits: 0x174 may be read, 0x175 may not.
        Assert.That(Set(guest, 0, Range(kvm_msr_filter_range.KVM_MSR_FILTER_READ, 0x174, 2, 0b01)), Is.Zero);
        ref MsrFilter filter = ref guest.Vm.MsrFilter;
        Assert.That((filter.Allows(0x174, false), filter.Allows(0x175, false)), Is.EqualTo((true, false)));
        Assert.That((filter.Allows(0x175, true), filter.Allows(0x176, false)), Is.EqualTo((true, true)));
        Assert.That(Set(guest, 1, Range(3, 0x174, 1, 1)), Is.Zero);
        Assert.That((filter.Allows(0x174, true), filter.Allows(0x175, true)), Is.EqualTo((true, false)));
        Assert.That(filter.Allows(Msr.X2apic, true), Is.True, "never filtered");
    }

    [Test]
    public void AFilteredMsrIsInterceptedAndTold()
    {
        using SvmGuest guest = new();
        guest.Vm.Cpu.UserMsrReasons = Filtered;
        Assert.That(Set(guest, 0, Range(3, Msr.FsBase, 1, 0)), Is.Zero);
        SvmVendor.UpdateMsrFilter(ref guest.Vcpu);
        Assert.That(guest.Vmcb.MsrpmBase, Is.EqualTo(SvmHardware.Iopm.Value));
        guest.Registers[Gpr.Rcx] = Msr.FsBase;
        guest.RunTo(Exit.KVM_EXIT_X86_RDMSR, Read());
        Assert.That(guest.RunPage.msr.reason, Is.EqualTo(Filtered));
        Assert.That(Set(guest, 0), Is.Zero);
        SvmVendor.UpdateMsrFilter(ref guest.Vcpu);
        Assert.That(guest.Vmcb.MsrpmBase, Is.EqualTo(SvmHardware.Msrpm.Value));
    }

    [Test]
    public void WrongFiltersChangeNothing()
    {
        using SvmGuest guest = new();
        Assert.That(Set(guest, 0, Range(3, 0x174, 1, 0)), Is.Zero);
        Assert.That(Set(guest, 2, Range(3, 0x175, 1, 0)), Is.EqualTo(Errno.EINVAL));
        Assert.That(Set(guest, 1), Is.EqualTo(Errno.EINVAL), "nothing but a refusal of all");
        Assert.That(Set(guest, 0, Range(4, 0x175, 1, 0)), Is.EqualTo(Errno.EINVAL));
        Assert.That(Set(guest, 0, Range(0, 0x175, 1, 0)), Is.EqualTo(Errno.EINVAL));
        Assert.That(Set(guest, 0, Range(3, 0, 0x600 * 8 + 1, 0)), Is.EqualTo(Errno.EINVAL));
        Assert.That(Set(guest, 0, Range(3, 0x175, 1, 0) with { bitmap = 8 }), Is.EqualTo(Errno.EFAULT));
        ref MsrFilter filter = ref guest.Vm.MsrFilter;
        Assert.That((filter.Allows(0x174, false), filter.Allows(0x175, false)), Is.EqualTo((false, true)));
    }

    [Test]
    public void VmcallBecomesVmmcall()
    {
        using SvmGuest guest = new();
        guest.Write(SvmGuest.Code, [0x0f, 0x01, 0xc1]);
        guest.RunThrough(Turn.Exit(ExitCode.InvalidOpcode));
        Assert.That(guest.Read<uint>(SvmGuest.Code) & 0xffffff, Is.EqualTo(0xd9010f));
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(SvmGuest.Code));
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.None));
    }

    [Test]
    public void VmcallInReadOnlyMemoryIsCarriedOut()
    {
        using SvmGuest guest = new();
        guest.AddRom([0x0f, 0x01, 0xc1]);
        guest.Registers.Rip = SvmGuest.Rom;
        guest.Registers[Gpr.Rax] = 1;
        guest.RunThrough(Turn.Exit(ExitCode.InvalidOpcode).Doing((ref vmcb, ref _) => vmcb.Rax = 1));
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Rax), Is.EqualTo((SvmGuest.Rom + 3, 0ul)));
    }

    [TestCase(0xc1, true)]
    [TestCase(0xff, false)]
    public void OtherUndefinedInstructionsAreTheGuests(byte last, bool disabled)
    {
        using SvmGuest guest = new();
        guest.Vm.Cpu.DisabledQuirks = disabled ? Quirks.FixHypercall : 0;
        guest.Write(SvmGuest.Code, [0x0f, 0x01, last]);
        guest.RunThrough(Turn.Exit(ExitCode.InvalidOpcode));
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Exception(6)));
        Assert.That(guest.Read<uint>(SvmGuest.Code) >> 16 & 0xff, Is.EqualTo(last));
    }

    [Test]
    public void MwaitIsUndefinedWhereItsQuirkIsDisabledAndCpuidLacksIt([Values] bool quirk, [Values] bool present)
    {
        using SvmGuest guest = new();
        guest.Vm.Cpu.DisabledQuirks = Quirks.MiscEnableNoMwait | (quirk ? 0 : Quirks.MwaitNeverFaults);
        ulong misc = present ? 1ul << 18 : 0;
        Assert.That(Msrs<SvmVendor>.TryWrite(ref guest.Vcpu, Msr.MiscEnable, misc, host: true), Is.True);
        guest.RunThrough(Turn.Instruction(ExitCode.Mwait, 3));
        bool faults = !quirk && !present;
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(faults ? Injection.Exception(6) : Injection.None));
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(SvmGuest.Code + (faults ? 0ul : 3)));
    }

    private static Turn Read() => Turn.Instruction(ExitCode.Msr, 2);

    private static Turn Write() => Turn.Instruction(ExitCode.Msr, 2, info1: 1)
        .Doing((ref vmcb, ref registers) => (vmcb.Rax, registers[Gpr.Rdx]) = (0x12, 0));

    /// <summary>A range whose bitmap begins with this byte.</summary>
    private static kvm_msr_filter_range Range(uint flags, uint first, uint count, byte bits)
    {
        Assert.That(UserMemory.TryWrite(new Hva(Bitmap), bits), Is.True);
        return new() { flags = flags, @base = first, nmsrs = count, bitmap = Bitmap };
    }

    private static int Set(SvmGuest guest, uint flags, kvm_msr_filter_range range = default)
    {
        kvm_msr_filter filter = new() { flags = flags };
        filter.ranges[0] = range;
        return MsrFilter.Set(ref guest.Vm, in filter);
    }
}
