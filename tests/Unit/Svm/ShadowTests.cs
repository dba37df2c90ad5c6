// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Svm;
using SharpKvm.Vm;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Svm;

/// <summary>A guest without nested paging: what hardware runs with, and what its page faults become.</summary>
[TestFixture]
internal sealed class ShadowTests
{
    private const ulong Window = 0x9_0000_0000, Data = 0x6000;
    private const uint InterceptReads = 1 << 0 | 1 << 3 | 1 << 4;

    [Test]
    public void HardwareHasPagingOnAndTheGuestDoesNotSeeIt()
    {
        using SvmGuest guest = new(shadow: true);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Vmcb entered = guest.Entries[^1];
        Assert.Multiple(() =>
        {
            Assert.That(entered.NestedControl, Is.Zero);
            Assert.That(entered.Cr0 & (Cr0.Pg | Cr0.Wp | Cr0.Pe), Is.EqualTo(Cr0.Pg | Cr0.Wp | Cr0.Pe));
            Assert.That(entered.Cr4 & Cr4.Pae, Is.Not.Zero);
            Assert.That(entered.Efer & (Efer.Lme | Efer.Lma), Is.Zero);
            Assert.That(entered.InterceptCr & InterceptReads, Is.EqualTo(InterceptReads));
            Assert.That(entered.InterceptExceptions >> 14 & 1, Is.EqualTo(1));
            Assert.That(SvmVendor.GetCr0(ref guest.Vcpu), Is.EqualTo(Cr0.Pe | Cr0.Et));
            Assert.That(SvmVendor.GetCr3(ref guest.Vcpu), Is.Zero);
        });
    }

    [Test]
    public void AFaultOfTheGuestsOwnTablesIsTheGuests()
    {
        using SvmGuest guest = new(shadow: true);
        guest.EnterLongMode();
        guest.RunThrough(Turn.Exit(ExitCode.PageFault, 2, Window));
        Vmcb entered = guest.Entries[^1];
        Assert.That(entered.Inject.Raw, Is.EqualTo(0x2_8000_0b0eUL), "#PF, error code 2");
        Assert.That(entered.Cr2, Is.EqualTo(Window));
    }

    [Test]
    public void AFaultOfTheShadowIsFilledAndADeviceEmulated()
    {
        using SvmGuest guest = new(shadow: true);
        guest.EnterLongMode();
        guest.RunThrough(Turn.Exit(ExitCode.PageFault, 2, Data));
        Assert.That(guest.Entries[^1].Inject.Valid, Is.False);
        Assert.That(ShadowOf(guest, Data) & 3, Is.EqualTo(3), "a mapping that may be written to");

        guest.Assemble(code => code.mov(__dword_ptr[SvmGuest.Device], eax));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.Exit(ExitCode.PageFault, 2, SvmGuest.Device));
        Assert.That(guest.RunPage.mmio.phys_addr, Is.EqualTo(SvmGuest.Device));
    }

    /// <summary>Until the guest flushes, or slots change, and for accesses of the same kind.</summary>
    [TestCase("")]
    [TestCase("kind")]
    [TestCase("key")]
    [TestCase("flush")]
    [TestCase("page")]
    [TestCase("slots")]
    public void ADeviceThatWasFoundNeedsNoWalk(string change)
    {
        const ulong Entry = 0xd400;
        using SvmGuest guest = new(shadow: true);
        guest.EnterLongMode();
        guest.Assemble(code =>
        {
            code.mov(__dword_ptr[SvmGuest.Device + 4], eax);
            code.mov(__dword_ptr[SvmGuest.Device + 8], eax);
        });
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.Exit(ExitCode.PageFault, 2, SvmGuest.Device + 4));
        Assert.That(guest.Read<ulong>(Entry) >> 21, Is.EqualTo(SvmGuest.Device >> 21));
        guest.Write(Entry, new byte[8]);
        if (change == "flush")
            SvmVendor.SetCr3(ref guest.Vcpu, SvmVendor.GetCr3(ref guest.Vcpu));
        if (change == "page")
            new GuestMachine<SvmVendor>(ref guest.Vcpu).InvalidatePage(new Gva(SvmGuest.Device));
        if (change == "slots")
            guest.AddRom([]);
        if (change == "key")
            guest.Vcpu.Shared.Pkru = 1;
        Turn again = Turn.Exit(ExitCode.PageFault, change == "kind" ? 0u : 2, SvmGuest.Device + 8);
        if (change == "")
        {
            guest.RunTo(Exit.KVM_EXIT_MMIO, again);
            Assert.That(guest.RunPage.mmio.phys_addr, Is.EqualTo(SvmGuest.Device + 8));
            return;
        }
        guest.RunThrough(again);
        Assert.That((guest.Entries[^1].Inject.Vector, guest.Entries[^1].Cr2),
            Is.EqualTo((14, SvmGuest.Device + 8)), "the guest's #PF");
    }

    [Test]
    public void InvlpgFlushes()
    {
        using SvmGuest guest = new(shadow: true);
        guest.EnterLongMode();
        guest.RunThrough(Turn.Exit(ExitCode.PageFault, 2, Data));
        guest.Assemble(code => code.invlpg(__byte_ptr[Data]));
        guest.RunThrough(Turn.Exit(ExitCode.Invlpg));
        Assert.That(guest.Registers.Rip, Is.GreaterThan(SvmGuest.Code));
        Assert.That(guest.Entries[^1].TlbControl, Is.Not.EqualTo(TlbControl.Nothing));
    }

    [Test]
    public void AWriteToATableIsEmulatedAndItsMappingsGo()
    {
        using SvmGuest guest = new(shadow: true);
        guest.EnterLongMode();
        ulong cr3 = SvmVendor.GetCr3(ref guest.Vcpu);
        guest.RunThrough(Turn.Exit(ExitCode.PageFault, 2, Data));
        // The entry of the top table, which maps all of this.
        ulong old = guest.Read<ulong>(cr3);
        guest.Assemble(code => code.mov(__qword_ptr[cr3], rax));
        guest.RunThrough(
            Turn.Exit(ExitCode.PageFault, 3, cr3).Doing((ref vmcb, ref _) => vmcb.Rax = old & ~1UL));
        Assert.That(guest.Read<ulong>(cr3), Is.EqualTo(old & ~1UL));
        Assert.That(ShadowOf(guest, Data), Is.Zero);
    }

    /// <summary>The entry of the last level by which hardware finds an address; 0: it does not.</summary>
    private static ulong ShadowOf(SvmGuest guest, ulong linear)
    {
        ulong table = guest.Entries[^1].Cr3, entry = 0;
        for (int shift = 39; shift >= 12; shift -= 9)
        {
            entry = KernelPages.Entries(new Hpa(table))[(int)(linear >> shift) & 511];
            if ((entry & 1) == 0)
                return 0;
            table = entry & 0x000f_ffff_ffff_f000;
        }
        return entry;
    }
}
