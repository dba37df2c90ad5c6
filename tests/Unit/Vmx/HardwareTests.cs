// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>Loading on a host CPU (SDM vol. 3, 24.7, 32.5 and appendix A), and what all guests share there.</summary>
public class HardwareTests
{
    private const uint FeatureControl = 0x3a, Basic = 0x480, Secondary = 0x48b, EptVpid = 0x48c, TruePin = 0x48d,
        TruePrimary = 0x48e, TrueExit = 0x48f, TrueEntry = 0x490;
    private const uint Revision = 0x2b;

    [Test]
    public void TheControlsAreThoseThatTheCoreNeedsAndTheCpuWants()
    {
        using SimulatedHost host = VmxGuest.VmxHost();
        AssertAccepted();
        AssertControls(pin: 0xbf, primary: 0xb5b86dfa, secondary: 0x213fb, exit: 0x2befff, entry: 0xd1ff);
        Assert.That((VmxHardware.Cr0Fixed, VmxHardware.Cr4Fixed), Is.EqualTo((0x20ul, 0x2000ul)));
        Assert.That(AddressSpaces.Count, Is.EqualTo(1u << 16));
        Assert.That(Ept.HasAccessedDirty);
    }

    /// <summary>25.6.1, 25.6.2, 25.7.1, 25.8.1: bits that the capability's upper half must have.</summary>
    [TestCase(TruePin, new[] { 0, 3, 5 })]
    [TestCase(TruePrimary, new[] { 3, 7, 10, 11, 19, 20, 23, 24, 28, 29, 31 })]
    [TestCase(Secondary, new[] { 1 })]
    [TestCase(TrueExit, new[] { 2, 9, 19, 21 })]
    [TestCase(TrueEntry, new[] { 2, 14, 15 })]
    public void ACpuWithoutAControlThatIsNeededIsRefused(uint msr, int[] bits)
    {
        for (int bit = 0; bit < 32; bit++)
        {
            using SimulatedHost host = VmxGuest.VmxHost();
            // What must be 1 can't be missing.
            host.Cpu.Msrs[msr] &= ~(1ul << (32 + bit) | 1ul << bit);
            if (bits.Contains(bit))
            {
                AssertRefused(host, Errno.ENODEV);
                Assert.That(host.Log[0], Does.EndWith($"{(ulong)msr << 32 | 1ul << bit:x}"));
            }
            else
            {
                AssertAccepted();
            }
        }
    }

    /// <summary>What extended page tables must have; the parameter ept=0 takes them away, too.</summary>
    [TestCase(6)]
    [TestCase(14)]
    [TestCase(16)]
    [TestCase(20)]
    [TestCase(25)]
    [TestCase(null)]
    public void ACpuWhoseEptLacksSomethingHasShadowTables(int? bit)
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu =>
        {
            if (bit is { } lacking)
                cpu.Msrs[EptVpid] &= ~(1ul << lacking);
            cpu.NestedPaging = bit != null;
        });
        AssertAccepted();
        Assert.That((VmxHardware.HasEpt, VmxHardware.IsUnrestricted), Is.EqualTo((false, false)));
        // CR3 and INVLPG exit, PAT and EFER are the host's; RDTSCP, WBINVD and INVPCID are all that is secondary.
        Assert.That((uint)VmxHardware.Primary, Is.EqualTo(0xb5b9effa));
        Assert.That((uint)VmxHardware.Secondary, Is.EqualTo(0x1048));
        Assert.That((uint)VmxHardware.Exit, Is.EqualTo(0x36fff));
        Assert.That((uint)VmxHardware.Entry, Is.EqualTo(0x11ff));
        Assert.That(VmxHardware.Cr0Fixed, Is.EqualTo(Cr0.Pg | Cr0.Ne | Cr0.Pe));
        Assert.That((AddressSpaces.Count, VmxHardware.TimerShift), Is.EqualTo((0u, -1)));
        Assert.That((Ept.HasAccessedDirty, Ept.LogsWrites), Is.EqualTo((false, false)));
    }

    [Test]
    public void WhatMustBe1Is()
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu =>
        {
            cpu.Msrs[TruePin] |= 1 << 7;
            cpu.Msrs[Secondary] |= 1 << 14;
        });
        AssertAccepted();
        Assert.That((uint)VmxHardware.Pin, Is.EqualTo(0xbf));
        Assert.That((uint)VmxHardware.Secondary, Is.EqualTo(0x253fb));
    }

    [Test]
    public void WhatIsOnlyWantedMayBeMissing()
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu =>
        {
            cpu.Msrs[Secondary] = 0x82ul << 32;
            cpu.Msrs[TruePin] &= ~(1ul << 38);
            cpu.Msrs[TruePrimary] &= ~(1ul << 53);
            cpu.Msrs[EptVpid] &= ~(1ul << 21 | 1 << 17);
        });
        AssertAccepted();
        Assert.That(Ept.LargestFor(fetch: false), Is.EqualTo(2), "no pages of 1 GiB");
        Assert.That(VmxHardware.Secondary, Is.EqualTo(SecondaryControls.Ept | SecondaryControls.UnrestrictedGuest));
        Assert.That(AddressSpaces.Count, Is.Zero);
        Assert.That(Ept.HasAccessedDirty, Is.False);
        Assert.That((VmxHardware.Primary & PrimaryControls.TprShadow, VmxHardware.TimerShift),
            Is.EqualTo((default(PrimaryControls), -1)));
    }

    /// <summary>Without bit 55 of VMX_BASIC: every MOV to and from CR3 exits.</summary>
    [Test]
    public void AnOldCpuHasOnlyTheFirstCapabilities()
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu =>
        {
            cpu.Msrs[Basic] &= ~(1ul << 55);
            for (uint msr = TruePin; msr <= TrueEntry; msr++)
                cpu.Msrs.Remove(msr);
        });
        AssertAccepted();
        Assert.That((uint)VmxHardware.Primary, Is.EqualTo(0xb5b9edfa));
        Assert.That((uint)VmxHardware.Exit, Is.EqualTo(0x2befff));
        Assert.That((uint)VmxHardware.Entry, Is.EqualTo(0xd1ff));
    }

    /// <summary>It has VMX, but no extended page tables, no VPID, and no loads of PAT and EFER.</summary>
    [Test]
    public void APenrynHasShadowTables()
    {
        using SimulatedHost host = VmxGuest.VmxHost(VmxGuest.Penryn);
        AssertAccepted();
        AssertControls(pin: 0x3f, primary: 0xb5b9effa, secondary: 0x40, exit: 0x36fff, entry: 0x11ff);
    }

    [TestCase(9)]
    [TestCase(15)]
    [TestCase(16)]
    public void ShadowTablesNeedControls(int bit)
    {
        using SimulatedHost host = VmxGuest.VmxHost(VmxGuest.Penryn);
        host.Cpu.Msrs[TruePrimary] &= ~(1ul << (32 + bit) | 1ul << bit);
        AssertRefused(host, Errno.ENODEV);
    }

    [TestCase(null)]
    [TestCase(1)]
    [TestCase(3)]
    public void VmxThatFirmwareDisabledIsRefused(int? control)
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu => cpu.Msrs.Remove(FeatureControl));
        if (control is { } value)
            host.Cpu.Msrs[FeatureControl] = (ulong)value;
        AssertRefused(host, Errno.ENODEV);
    }

    [Test]
    public void VmxThatAnotherHypervisorUsesIsRefused()
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu => cpu.Cr4 = SimulatedCpu.Vmxe);
        AssertRefused(host, Errno.EBUSY);
    }

    [Test]
    public void LoadingWithoutMemoryLeaksNothing()
    {
        using SimulatedHost host = VmxGuest.VmxHost();
        host.FailingAllocation = 0;
        Assert.That(VmxHardware.Probe(), Is.EqualTo(Errno.ENOMEM));
        host.AssertNothingInUse();
    }

    [TestCase(0u, 5u)]
    [TestCase(2u, 7u)]
    [TestCase(5u, 5u)]
    public void EnablingLocksWhatFirmwareLeftOpen(uint before, uint after)
    {
        using SimulatedHost host = VmxGuest.VmxHost(cpu => cpu.Msrs[FeatureControl] = before);
        AssertAccepted();
        Hpa region = KernelPages.Allocate();
        Assert.That(VmxHardware.Enable(region), Is.EqualTo(Errno.Ok));
        Assert.That(host.Cpu.Msrs[FeatureControl], Is.EqualTo(after));
        Assert.That(host.Cpu.VmxRevision, Is.EqualTo(Revision));
    }

    [Test]
    public void EnablingThatFailsSaysWhy()
    {
        using SimulatedHost host = VmxGuest.VmxHost();
        Hpa region = KernelPages.Allocate();
        host.Cpu.RefusesVmx = true;
        Assert.That(VmxHardware.Enable(region), Is.EqualTo(Errno.EIO));
        host.Cpu.RefusesVmx = false;
        Assert.That(VmxHardware.Enable(region), Is.EqualTo(Errno.Ok));
        Assert.That(VmxHardware.Enable(region), Is.EqualTo(Errno.EBUSY));
        HostCpu.LeaveVmx();
        host.Cpu.Msrs.Remove(FeatureControl);
        Assert.That(VmxHardware.Enable(region), Is.EqualTo(Errno.EIO));
    }

    /// <summary>And KERNEL_GS_BASE in long mode only: else it is the host's.</summary>
    [Test]
    public void TheGuestAccessesOnlyTheMsrsThatAreItsOwn([Values] bool isLong)
    {
        using VmxGuest guest = new();
        if (isLong)
            guest.EnterLongMode();
        guest.RunThrough();
        byte[] bitmap = KernelPages.Bytes(new Hpa(guest.Vmcs[VmcsField.MsrBitmap])).ToArray();
        uint[] passed = [0x174, 0x175, 0x176, 0xc0000100, 0xc0000101];
        if (isLong)
            passed = [.. passed, 0xc0000102];
        // 25.6.9: reads of low and high MSRs, then writes.
        IEnumerable<uint> Clear(int half) => Enumerable.Range(0, 0x4000)
            .Where(bit => (bitmap[half + bit / 8] >> bit % 8 & 1) == 0)
            .Select(bit => bit < 0x2000 ? (uint)bit : 0xc0000000 + (uint)bit - 0x2000);
        Assert.That(Clear(0), Is.EqualTo(passed));
        Assert.That(Clear(0x800), Is.EqualTo(passed));
    }

    [Test]
    public void AControlBlockHasTheControlsAndTheVmsTables()
    {
        using VmxGuest guest = new();
        VmxVendor.ApplyCpuid(ref guest.Vcpu);
        VmcsImage vmcs = guest.Vmcs;
        ulong tables = guest.Vm.Memory.Root.Value | 0x5e;
        Assert.That((vmcs[VmcsField.EptPointer], guest.Vcpu.Vmx.EptPointer), Is.EqualTo((tables, tables)));
        Assert.That(vmcs[VmcsField.MsrBitmap], Is.EqualTo(VmxHardware.MsrBitmaps[0].Value));
        Assert.That(vmcs[VmcsField.PinControls], Is.EqualTo(0x3f));
        Assert.That(vmcs[VmcsField.PrimaryControls], Is.EqualTo(0xb5986dfa));
        Assert.That(vmcs[VmcsField.SecondaryControls], Is.EqualTo(0x210ea));
        Assert.That(vmcs[VmcsField.ExitControls], Is.EqualTo(0x2befff));
        Assert.That(vmcs[VmcsField.EntryControls], Is.EqualTo(0xd1ff));
        Assert.That(vmcs[VmcsField.ExceptionBitmap], Is.EqualTo(1 << 1 | 1 << 6 | 1 << 17 | 1 << 18));
        Assert.That(guest.Vcpu.Shared.ControlBlock, Is.EqualTo(guest.Vcpu.Vmx.VmcsPage.Value));
        Assert.That(BitConverter.ToUInt32(KernelPages.Bytes(guest.Vcpu.Vmx.VmcsPage)), Is.EqualTo(Revision));
        Assert.That(guest.Host.Cpu.LoadedVmcs, Is.EqualTo((nint)1));
    }

    /// <summary>RDTSCP, RDPID and INVPCID raise #UD then (25.6.2).</summary>
    [Test]
    public void InstructionsThatTheGuestsCpuidHasNotAreOff()
    {
        using VmxGuest guest = new();
        // One leaf, the first, without anything in it.
        guest.PutArgument([1, .. new byte[7 + Unsafe.SizeOf<kvm_cpuid_entry2>()]]);
        Assert.That(guest.Ioctl(Ioctl.KVM_SET_CPUID2, TestVcpu.Argument), Is.Zero);
        VmxVendor.ApplyCpuid(ref guest.Vcpu);
        Assert.That(guest.Vmcs[VmcsField.SecondaryControls], Is.EqualTo(0x200e2));
    }

    [Test]
    public void VcpusHaveIdentifiersOfTheirOwn()
    {
        using VmxGuest guest = new();
        Assert.That(guest.Vcpu.Vmx.Asid.IsOwn);
        AssertVpid(guest, guest.Vcpu.Vmx.Asid.Value);
    }

    /// <summary>Then entries and exits flush by themselves (29.3.3.1).</summary>
    [TestCase(32)]
    [TestCase(41)]
    public void WithoutInvvpidThereAreNoIdentifiers(int bit)
    {
        using VmxGuest guest = new(cpu => cpu.Msrs[EptVpid] &= ~(1ul << bit));
        AssertVpid(guest, 0);
    }

    [Test]
    public void AVcpuWithoutAnIdentifierOfItsOwnHasNone()
    {
        List<Asid> taken = [];
        using SimulatedHost host = VmxGuest.VmxHost();
        AssertAccepted();
        for (Asid asid = AddressSpaces.Allocate(); asid.IsOwn; asid = AddressSpaces.Allocate())
            taken.Add(asid);
        using (VmxGuest guest = new())
            AssertVpid(guest, 0);
        taken.ForEach(AddressSpaces.Free);
    }

    [Test]
    public void AnEndedVcpuLeavesNothing()
    {
        using VmxGuest guest = new();
        int pages = guest.Host.PagesInUse;
        Vcpu second = new() { VmRef = guest.Vcpu.VmRef, Id = 1 };
        second.Shared.Host = new HostVcpu(2);
        Assert.That(VmxVendor.CreateVcpu(ref second), Is.EqualTo(Errno.Ok));
        uint vpid = second.Vmx.Asid.Value;
        VmxVendor.DestroyVcpu(ref second);
        Assert.That((guest.Host.PagesInUse, guest.Host.Cpu.LoadedVmcs), Is.EqualTo((pages, (nint)0)));
        Assert.That(second.Shared.ControlBlock, Is.Zero);
        Asid next = AddressSpaces.Allocate();
        Assert.That(next.Value, Is.EqualTo(vpid).And.Not.EqualTo(guest.Vcpu.Vmx.Asid.Value));
        AddressSpaces.Free(next);
    }

    [Test]
    public void AVcpuThatCannotBeMadeLeaksNothing()
    {
        using VmxGuest guest = new();
        int pages = guest.Host.PagesInUse;
        guest.Host.FailingAllocation = guest.Host.Allocations;
        Vcpu second = new() { VmRef = guest.Vcpu.VmRef, Id = 1 };
        Assert.That(VmxVendor.CreateVcpu(ref second), Is.EqualTo(Errno.ENOMEM));
        VmxVendor.DestroyVcpu(ref second);
        Assert.That((guest.Host.PagesInUse, guest.Host.Cpu.LoadedVmcs), Is.EqualTo((pages, (nint)1)));
    }

    private static void AssertVpid(VmxGuest guest, uint vpid)
    {
        VmxVendor.ApplyCpuid(ref guest.Vcpu);
        Assert.That((guest.Vcpu.Vmx.Vpid, guest.Vmcs[VmcsField.Vpid]), Is.EqualTo(((ulong)vpid, (ulong)vpid)));
        Assert.That(((SecondaryControls)guest.Vmcs[VmcsField.SecondaryControls] & SecondaryControls.Vpid) != 0,
            Is.EqualTo(vpid != 0));
    }

    private static void AssertControls(uint pin, uint primary, uint secondary, uint exit, uint entry)
    {
        Assert.That((uint)VmxHardware.Pin, Is.EqualTo(pin));
        Assert.That((uint)VmxHardware.Primary, Is.EqualTo(primary));
        Assert.That((uint)VmxHardware.Secondary, Is.EqualTo(secondary));
        Assert.That((uint)VmxHardware.Exit, Is.EqualTo(exit));
        Assert.That((uint)VmxHardware.Entry, Is.EqualTo(entry));
    }

    private static void AssertAccepted()
    {
        Assert.That(VmxHardware.Probe(), Is.EqualTo(Errno.Ok));
        VmxHardware.Release();
        SimulatedHost.Current.AssertNothingInUse();
        Assert.That(SimulatedHost.Current.Log, Is.Empty);
    }

    /// <summary>Refused with one line for the administrator, and nothing left behind.</summary>
    private static void AssertRefused(SimulatedHost host, int error)
    {
        Assert.That(VmxHardware.Probe(), Is.EqualTo(error));
        Assert.That(host.Log, Has.Count.EqualTo(1));
        host.AssertNothingInUse();
    }
}
