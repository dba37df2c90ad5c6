// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;

namespace SharpKvm.Tests.Svm;

/// <summary>Loading on a host CPU, and what all guests share there.</summary>
public class HardwareTests
{
    private const uint Extended = 0x80000001, SvmLeaf = 0x8000000a, HsavePa = 0xc0010117;
    private const ulong SavePage = 0x1234_5000;

    [Test]
    public void ACpuWithoutSvmIsRefused()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        Clear(host, Extended, ecx: 1 << 2);
        AssertRefused(host, Errno.ENODEV);
    }

    [Test]
    public void SvmThatFirmwareDisabledIsRefused()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        host.Cpu.Msrs[Msr.VmCr] = 1 << 4;
        AssertRefused(host, Errno.ENODEV);
    }

    [TestCase(true, true, ExpectedResult = true)]
    [TestCase(true, false, ExpectedResult = false)]
    [TestCase(false, true, ExpectedResult = false)]
    public bool NestedPagingIsUsedWhereItIsAndNobodySaysNo(bool has, bool wanted)
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        host.Cpu.NestedPaging = wanted;
        if (!has)
            Clear(host, SvmLeaf, edx: 1);
        Assert.That(SvmHardware.Probe(), Is.EqualTo(Errno.Ok));
        SvmHardware.Release();
        return SvmHardware.HasNestedPaging;
    }

    [Test]
    public void SvmThatAnotherHypervisorUsesIsRefused()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        host.Cpu.Msrs[Msr.Efer] |= Efer.Svme;
        AssertRefused(host, Errno.EBUSY);
    }

    [TestCase(0)]
    [TestCase(1)]
    public void LoadingWithoutMemoryLeaksNothing(int failing)
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        host.FailingAllocation = failing;
        Assert.That(SvmHardware.Probe(), Is.EqualTo(Errno.ENOMEM));
        host.AssertNothingInUse();
    }

    [Test]
    public void UnloadingGivesTheBitmapsBack()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        Assert.That(SvmHardware.Probe(), Is.EqualTo(Errno.Ok));
        SvmHardware.Release();
        host.AssertNothingInUse();
    }

    [Test]
    public void EnablingSetsSvmeAndTheSavePage()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        ulong before = host.Cpu.Msrs[Msr.Efer];
        Assert.That(SvmHardware.Enable(new Hpa(SavePage)), Is.EqualTo(Errno.Ok));
        Assert.That(host.Cpu.Msrs[Msr.Efer], Is.EqualTo(before | Efer.Svme));
        Assert.That(host.Cpu.Msrs[HsavePa], Is.EqualTo(SavePage));
    }

    [Test]
    public void EnablingTwiceIsRefused()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        SvmHardware.Enable(new Hpa(SavePage));
        Assert.That(SvmHardware.Enable(new Hpa(SavePage)), Is.EqualTo(Errno.EBUSY));
    }

    [Test]
    public void DisablingLeavesTheCpuAsItWas()
    {
        using SimulatedHost host = SvmGuest.SvmHost();
        ulong before = host.Cpu.Msrs[Msr.Efer];
        SvmHardware.Enable(new Hpa(SavePage));
        SvmHardware.Disable();
        Assert.That((host.Cpu.Msrs[Msr.Efer], host.Cpu.Msrs[HsavePa]), Is.EqualTo((before, 0ul)));
    }

    [Test]
    public void TheGuestAccessesOnlyTheMsrsThatAreSwitchedWithIt()
    {
        uint[] passed =
        [
            0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102,
        ];
        using SvmGuest guest = new();
        List<uint> found = [];
        foreach ((uint first, ulong offset) in ((uint, ulong)[])[(0, 0), (0xc0000000, 0x800), (0xc0010000, 0x1000)])
        {
            for (uint msr = 0; msr < 0x2000; msr++)
            {
                ulong address = SvmHardware.Msrpm.Value + offset + msr / 4;
                byte bits = KernelPages.Bytes(new Hpa(address & ~Page.OffsetMask))[(int)(address & Page.OffsetMask)];
                int access = bits >> (int)(msr % 4 * 2) & 3;
                if (access != 3)
                    found.Add(first + msr);
                Assert.That(access, Is.AnyOf(0, 3));
            }
        }
        Assert.That(found, Is.EqualTo(passed));
    }

    [Test]
    public void EveryPortIsIntercepted()
    {
        using SvmGuest guest = new();
        for (ulong page = 0; page < 3; page++)
        {
            byte[] ports = KernelPages.Bytes(new Hpa(SvmHardware.Iopm.Value + page * Page.Size)).ToArray();
            Assert.That(ports, Is.All.EqualTo(0xff));
        }
    }

    [Test]
    public void AControlBlockRefersToTheSharedBitmapsAndTheVmsTables()
    {
        using SvmGuest guest = new();
        Vmcb vmcb = guest.Vmcb;
        Assert.That((vmcb.IopmBase, vmcb.MsrpmBase, vmcb.NestedCr3, vmcb.NestedControl), Is.EqualTo(
            (SvmHardware.Iopm.Value, SvmHardware.Msrpm.Value, guest.Vm.Memory.Root.Value, 1ul)));
        Assert.That(guest.Vcpu.Shared.ControlBlock, Is.EqualTo(guest.Vcpu.Svm.VmcbPage.Value));
    }

    [Test]
    public void VcpusHaveIdentifiersOfTheirOwn()
    {
        using SvmGuest guest = new();
        Vcpu second = Another(guest);
        Assert.That(second.Svm.Asid.Value, Is.Not.EqualTo(guest.Vcpu.Svm.Asid.Value));
        Assert.That(second.Svm.Asid.IsOwn);
        SvmVendor.DestroyVcpu(ref second);
    }

    [Test]
    public void AnIdentifierIsUsedAgain()
    {
        using SvmGuest guest = new();
        Vcpu second = Another(guest);
        uint asid = second.Svm.Asid.Value;
        SvmVendor.DestroyVcpu(ref second);
        second = Another(guest);
        Assert.That(second.Svm.Asid.Value, Is.EqualTo(asid).And.GreaterThan(Asid.Shared));
        SvmVendor.DestroyVcpu(ref second);
    }

    [Test]
    public void AVcpuWithoutAnIdentifierOfItsOwnFlushesAtEveryEntry()
    {
        List<Asid> taken = [];
        using SvmGuest guest = new();
        AddressSpaces.Free(guest.Vcpu.Svm.Asid);
        for (Asid asid = AddressSpaces.Allocate(); asid.IsOwn; asid = AddressSpaces.Allocate())
            taken.Add(asid);
        guest.Vcpu.Svm.Asid = AddressSpaces.Allocate();
        guest.RunThrough(Turn.Exit(ExitCode.Intr), Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Vcpu.Svm.Asid.Value, Is.EqualTo(Asid.Shared));
        Assert.That(guest.Entries.Select(entry => entry.TlbControl), Is.All.EqualTo(SvmVendor.FlushKind));
        Assert.That(taken, Has.Count.EqualTo(4096 - 2));
        taken.ForEach(AddressSpaces.Free);
    }

    [Test]
    public void AVcpuWithAnIdentifierFlushesOnceForItsNewState()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Entries.Select(entry => entry.TlbControl),
            Is.EqualTo(new[] { TlbControl.FlushAsid, TlbControl.Nothing }));
    }

    [Test]
    public void ARefusedEntryKeepsTheFlush()
    {
        using SvmGuest guest = new();
        guest.RunThrough(Turn.NotEntered());
        Assert.That(guest.Entries[1].TlbControl, Is.EqualTo(TlbControl.FlushAsid));
    }

    [TestCase(0)]
    [TestCase(1)]
    [TestCase(2)]
    public void AVcpuThatCannotBeMadeLeaksNothing(int failing)
    {
        using SvmGuest guest = new();
        (int pages, int blocks) = (guest.Host.PagesInUse, guest.Host.BlocksInUse);
        guest.Host.FailingAllocation = guest.Host.Allocations + failing;
        Vcpu second = new() { VmRef = guest.Vcpu.VmRef, Id = 1 };
        int result = SvmVendor.CreateVcpu(ref second);
        if (result == Errno.Ok)
            Reset<SvmVendor>.PowerOn(ref second);
        Assert.That(result, Is.AnyOf(Errno.Ok, Errno.ENOMEM));
        second.Cpuid.Free();
        SvmVendor.DestroyVcpu(ref second);
        Assert.That((guest.Host.PagesInUse, guest.Host.BlocksInUse), Is.EqualTo((pages, blocks)));
    }

    private static Vcpu Another(SvmGuest guest)
    {
        Vcpu vcpu = new() { VmRef = guest.Vcpu.VmRef, Id = 1 };
        Assert.That(SvmVendor.CreateVcpu(ref vcpu), Is.EqualTo(Errno.Ok));
        return vcpu;
    }

    private static void Clear(SimulatedHost host, uint leaf, uint ecx = 0, uint edx = 0)
    {
        CpuidLeaf value = host.Cpu.Cpuid[(leaf, 0)];
        host.Cpu.Cpuid[(leaf, 0)] = value with { Ecx = value.Ecx & ~ecx, Edx = value.Edx & ~edx };
    }

    /// <summary>Refused with one line for the administrator, and nothing left behind.</summary>
    private static void AssertRefused(SimulatedHost host, int error)
    {
        Assert.That(SvmHardware.Probe(), Is.EqualTo(error));
        Assert.That(host.Log, Has.Count.EqualTo(1));
        host.AssertNothingInUse();
    }
}
