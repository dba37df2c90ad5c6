// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Svm;
using SharpKvm.Tests.Svm;
using Chip = SharpKvm.Interrupts.Apic<SharpKvm.Svm.SvmVendor>;
using Machine = SharpKvm.Cpu.Msrs<SharpKvm.Svm.SvmVendor>;

namespace SharpKvm.Tests.Paravirt;

/// <summary>Ends of interrupts through a bit in guest memory.</summary>
public class PvEoiTests
{
    private const ulong Place = 0x4004, Enable = 1;
    private const byte First = 0x61, Second = 0x45;

    [Test]
    public void AnInterruptComesWithTheOfferToEndItInMemory()
    {
        using SvmGuest guest = Guest();
        bool offered = false;
        guest.Vcpu.Apic.TryRequest(First, level: false);
        guest.RunThrough(Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) =>
        {
            offered = guest.Read<byte>(Place) == 1;
            guest.Write(Place, [0]);
        }));
        Assert.That((offered, guest.Vcpu.Apic.HighestInService()), Is.EqualTo((true, -1)));
    }

    [Test]
    public void AnOfferThatIsNotTakenEndsWithTheExit()
    {
        using SvmGuest guest = Guest();
        guest.Vcpu.Apic.TryRequest(First, level: false);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That((guest.Read<byte>(Place), guest.Vcpu.Apic.HighestInService()), Is.EqualTo(((byte)0, (int)First)));
    }

    [Test]
    public void TheEndIsKnownBeforeTheExitIsLookedAt()
    {
        using SvmGuest guest = Guest();
        guest.Vcpu.Apic.TryRequest(First, level: false);
        guest.RunThrough(
            Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => guest.Write(Place, [0])),
            Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => guest.Vcpu.Apic.TryRequest(Second, level: false)));
        Assert.That((guest.Entries[0].Inject.Raw, guest.Entries[2].Inject.Raw),
            Is.EqualTo((Injection.Interrupt(First), Injection.Interrupt(Second))));
    }

    [Test]
    public void ThereIsNoOfferWhileAnotherInterruptWaits()
    {
        using SvmGuest guest = Guest();
        guest.Vcpu.Apic.TryRequest(First, level: false);
        guest.Vcpu.Apic.TryRequest(Second, level: false);
        AssertNoOffer(guest);
    }

    [TestCase(true, false)]
    [TestCase(false, true)]
    public void ThereIsNoOfferForAnEndThatTheIoapicMustLearnOf(bool level, bool watched)
    {
        using SvmGuest guest = Guest();
        if (watched)
            guest.Vm.Irqchip.EoiVectors.Add(First);
        guest.Vcpu.Apic.TryRequest(First, level);
        AssertNoOffer(guest);
    }

    [Test]
    public void AnEntryThatFailsTakesTheOfferBack()
    {
        using SvmGuest guest = Guest();
        guest.Vcpu.Apic.TryRequest(First, level: false);
        guest.RunThrough(Turn.NotEntered());
        Assert.That((guest.Read<byte>(Place), guest.Vcpu.Paravirt.EoiOffered, guest.Vcpu.Apic.HighestInService()),
            Is.EqualTo(((byte)0, false, (int)First)));
    }

    [Test]
    public void NothingIsWrittenWhenItIsOff()
    {
        using SvmGuest guest = Guest();
        Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.Eoi, Place, host: false), Is.True);
        guest.Vcpu.Apic.TryRequest(First, level: false);
        AssertNoOffer(guest);
    }

    [Test]
    public void NoAddressDoesHarm([Values(0xd000_0000ul, 0xffff_ffff_ffff_fffcul, 0x1_0000ul)] ulong address)
    {
        using SvmGuest guest = Guest();
        Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.Eoi, address | Enable, host: false), Is.True);
        guest.Vcpu.Apic.TryRequest(First, level: false);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(guest.Vcpu.Apic.HighestInService(), Is.EqualTo(First));
    }

    [Test]
    public void TheReservedBitFaults()
    {
        using SvmGuest guest = Guest();
        Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.Eoi, Place | 2, host: false), Is.False);
    }

    private static void AssertNoOffer(SvmGuest guest)
    {
        byte seen = 0xff;
        guest.RunThrough(Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => seen = guest.Read<byte>(Place)));
        Assert.That((seen, guest.Vcpu.Apic.HighestInService()), Is.EqualTo(((byte)0, (int)First)));
    }

    private static SvmGuest Guest()
    {
        SvmGuest guest = new();
        guest.Vm.Irqchip.Mode = IrqchipMode.Kernel;
        Chip.Reset(ref guest.Vcpu);
        Chip.Write(ref guest.Vcpu, 0xf0, BitConverter.GetBytes(0x1ff));
        guest.Registers.Rflags |= Rflags.If;
        Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.Eoi, Place | Enable, host: false), Is.True);
        return guest;
    }
}
