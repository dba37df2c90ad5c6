// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Paravirt;
using SharpKvm.Svm;
using SharpKvm.Tests.Svm;
using SharpKvm.Vm;
using Faults = SharpKvm.Paravirt.AsyncFaults<SharpKvm.Svm.SvmVendor>;
using Machine = SharpKvm.Cpu.Msrs<SharpKvm.Svm.SvmVendor>;

namespace SharpKvm.Tests.Paravirt;

/// <summary>Pages that Linux must fetch while the guest does something else.</summary>
public class AsyncFaultTests
{
    private const ulong Record = 0x4040, FirstPage = 0x8000, Enabled = 1, AllRings = 2, ByInterrupt = 8;
    private const byte Ready = 0xec;
    private static readonly ulong s_notPresent = Injection.Exception(Vector.PageFault.Value, 0);

    [Test]
    public void TheGuestHearsOfAMissingPageAndGoesOn([Values] bool write)
    {
        using SvmGuest guest = Guest();
        guest.RunThrough(Missing(guest, 0, write));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(s_notPresent));
        Assert.That(Fetches(guest), Is.EqualTo(new[] { (Backing(0), write, 0) }));
        Assert.That((Reason(guest), Token(guest)), Is.EqualTo((1u, 0u)));
        Assert.That(guest.Entries[1].Cr2, Is.Not.Zero);
    }

    [Test]
    public void OnePageAfterTheOtherIsReportedByInterrupt()
    {
        using SvmGuest guest = Guest();
        ulong[] tokens = Miss(guest, 3);
        Assert.That(tokens.Distinct().Count(), Is.EqualTo(3));
        Arrive(guest, 2, 1);
        RunMasked(guest);
        Assert.That((ulong)Token(guest), Is.EqualTo(tokens[1]));
        Assert.That(TakeInterrupt(guest), Is.EqualTo(Ready));

        Arrive(guest, 0);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That(TakeInterrupt(guest), Is.EqualTo(-1), "nothing is acknowledged");
        Acknowledge(guest);
        Assert.That(((ulong)Token(guest), TakeInterrupt(guest)), Is.EqualTo((tokens[0], (int)Ready)));
        Acknowledge(guest);
        Assert.That(((ulong)Token(guest), TakeInterrupt(guest)), Is.EqualTo((tokens[2], (int)Ready)));
        Acknowledge(guest);
        Assert.That((Token(guest), TakeInterrupt(guest)), Is.EqualTo((0u, -1)));
    }

    [Test]
    public void AWordThatTheGuestHasNotReadIsNotWrittenOver()
    {
        using SvmGuest guest = Guest();
        ulong[] tokens = Miss(guest, 1);
        guest.Write(Record + 4, [7]);
        Arrive(guest, 0);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That((Token(guest), TakeInterrupt(guest)), Is.EqualTo((7u, -1)));
        Acknowledge(guest);
        Assert.That(((ulong)Token(guest), TakeInterrupt(guest)), Is.EqualTo((tokens[0], (int)Ready)));
    }

    [TestCase(Enabled | ByInterrupt, 3, true, ExpectedResult = true)]
    [TestCase(Enabled | ByInterrupt, 0, true, ExpectedResult = false)]
    [TestCase(Enabled | ByInterrupt | AllRings, 0, true, ExpectedResult = true)]
    [TestCase(Enabled | ByInterrupt | AllRings, 3, false, ExpectedResult = false)]
    [TestCase(Enabled | AllRings, 3, true, ExpectedResult = false)]
    [TestCase(ByInterrupt | AllRings, 3, true, ExpectedResult = false)]
    public bool WhenTheGuestIsTold(ulong control, int cpl, bool interruptible)
    {
        using SvmGuest guest = Guest(control);
        SvmVendor.SetCpl(ref guest.Vcpu, cpl);
        guest.Registers.Rflags = interruptible ? Rflags.If | 2 : 2;
        guest.RunThrough(Missing(guest, 0));
        Assert.That(guest.Host.Process.Waits, Is.EqualTo(Fetches(guest).Length == 0 ? 1 : 0));
        return Fetches(guest).Length == 1;
    }

    [Test]
    public void AFaultWithinADeliveryIsWaitedFor()
    {
        using SvmGuest guest = Guest();
        guest.RunThrough(Missing(guest, 0).During(Injection.Interrupt(0x40)));
        Assert.That((Fetches(guest).Length, guest.Host.Process.Waits), Is.EqualTo((0, 1)));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(0x40)));
    }

    [Test]
    public void APageThatTheGuestWaitsForAlreadyIsWaitedFor()
    {
        using SvmGuest guest = Guest();
        guest.RunThrough(Missing(guest, 0), Read(guest), Missing(guest, 0));
        Assert.That((Fetches(guest).Length, guest.Host.Process.Waits), Is.EqualTo((1, 1)));
    }

    [Test]
    public void AReasonThatIsNotReadStandsForTheLastPage()
    {
        using SvmGuest guest = Guest();
        guest.RunThrough(Missing(guest, 0), Missing(guest, 1));
        Assert.That((Fetches(guest).Length, guest.Host.Process.Waits), Is.EqualTo((1, 1)));
    }

    [Test]
    public void WhereTheRecordOrMemoryIsMissingPagesAreWaitedFor([Values] bool memory)
    {
        using SvmGuest guest = Guest(memory ? Enabled | AllRings | ByInterrupt : SvmGuest.Device | 0xb);
        guest.Host.Thread.CanFetch = !memory;
        guest.RunThrough(Missing(guest, 0));
        Assert.That((Fetches(guest).Length, guest.Host.Process.Waits), Is.EqualTo((0, 1)));
    }

    [Test]
    public void ThereIsAnEndToWhatIsFetchedAtOnce()
    {
        using SvmGuest guest = Guest();
        Miss(guest, AsyncFaultState.Limit, page: _ => 0);
        guest.RunThrough(Read(guest), Missing(guest, 0));
        Assert.That((Fetches(guest).Length, guest.Host.Process.Waits), Is.EqualTo((AsyncFaultState.Limit, 1)));
    }

    [Test]
    public void SwitchingOffForgetsWhatIsUnderWay([Values] bool init)
    {
        using SvmGuest guest = Guest();
        Miss(guest, 1);
        if (init)
            Reset<SvmVendor>.Init(ref guest.Vcpu);
        else
            Set(guest, KvmMsr.AsyncFault, 0);
        Set(guest, KvmMsr.AsyncFault, Record | Enabled | AllRings | ByInterrupt);
        Arrive(guest, 0);
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
        Assert.That((Token(guest), TakeInterrupt(guest)), Is.EqualTo((0u, -1)));
    }

    [Test]
    public void AGuestFromElsewhereHasAllItsTasksWoken()
    {
        using SvmGuest guest = Guest();
        Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.AsyncFault, Record | Enabled | ByInterrupt, host: true));
        RunMasked(guest);
        Assert.That((Token(guest), TakeInterrupt(guest)), Is.EqualTo((uint.MaxValue, (int)Ready)));
        Acknowledge(guest);
        Assert.That((Token(guest), TakeInterrupt(guest)), Is.EqualTo((0u, -1)));
    }

    [Test]
    public void ReservedBitsFault()
    {
        using SvmGuest guest = Guest();
        foreach (ulong bit in (ulong[])[0x10, 0x20])
            Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.AsyncFault, Record | bit, host: false), Is.False);
        Assert.That(Machine.TrySet(ref guest.Vcpu, KvmMsr.AsyncFaultVector, 0x100, host: false), Is.False);
    }

    [Test]
    public void NoTokenLooksLikeNoneOrAll([Values(0u, 1u, 0xfffu)] uint id)
    {
        AsyncFaultState state = default;
        HashSet<uint> tokens = [];
        for (int i = 0; i < 1 << 20; i++)
            tokens.Add(state.NextToken(id));
        Assert.That(tokens, Does.Not.Contain(0u).And.Not.Contain(uint.MaxValue));
        Assert.That(tokens.Select(token => token & 0xfff).Distinct(), Is.EqualTo(new[] { id }));
    }

    private static SvmGuest Guest(ulong control = Enabled | AllRings | ByInterrupt)
    {
        SvmGuest guest = new(mode: IrqchipMode.Kernel);
        guest.Registers.Rflags |= Rflags.If;
        Set(guest, KvmMsr.AsyncFaultVector, Ready);
        Set(guest, KvmMsr.AsyncFault, control > 0xf ? control : Record | control);
        return guest;
    }

    private static void Set(SvmGuest guest, uint msr, ulong value) =>
        Assert.That(Machine.TrySet(ref guest.Vcpu, msr, value, host: false), Is.True);

    /// <summary>The guest touches a page of its memory that is on a disk.</summary>
    private static Turn Missing(SvmGuest guest, int page, bool write = false)
    {
        guest.Host.Process.Away.Add(Backing(page).Value);
        return Turn.NestedFault(FirstPage + ((ulong)page << Page.Shift), write);
    }

    private static Hva Backing(int page) =>
        new(Mmu.TestMemory.UserAddress(0, (FirstPage >> Page.Shift) + (ulong)page));

    /// <summary>The guest's handler of #PF takes notice.</summary>
    private static Turn Read(SvmGuest guest) =>
        Turn.Exit(ExitCode.Intr).Doing((ref _, ref _) => guest.Write(Record, [0, 0, 0, 0]));

    /// <summary>Has so many pages missing; the guest is told of all. Their tokens.</summary>
    private static ulong[] Miss(SvmGuest guest, int count, Func<int, int>? page = null)
    {
        ulong[] tokens = new ulong[count];
        for (int i = 0; i < count; i++)
        {
            int number = i;
            guest.RunThrough(Missing(guest, page == null ? i : 0), Read(guest).Doing((ref vmcb, ref _) =>
            {
                tokens[number] = vmcb.Cr2;
                guest.Write(Record, [0, 0, 0, 0]);
            }));
            // The same page once more, as if it were another.
            if (page != null)
                guest.Vcpu.Paravirt.Faults[i].Frame = new Gfn(~0ul);
        }
        return tokens;
    }

    private static void Arrive(SvmGuest guest, params int[] numbers)
    {
        foreach (int number in numbers)
            AsyncFaultState.Arrive(ref guest.Vcpu, number);
    }

    private static void Acknowledge(SvmGuest guest)
    {
        guest.Write(Record + 4, [0, 0, 0, 0]);
        Set(guest, KvmMsr.AsyncFaultAck, 1);
        RunMasked(guest);
    }

    /// <summary>A turn in which the guest takes no interrupts.</summary>
    private static void RunMasked(SvmGuest guest)
    {
        guest.Registers.Rflags &= ~Rflags.If;
        guest.RunThrough(Turn.Exit(ExitCode.Intr));
    }

    private static int TakeInterrupt(SvmGuest guest)
    {
        int vector = guest.Vcpu.Apic.HighestRequest();
        if (vector >= 0)
        {
            guest.Vcpu.Apic.Accept((byte)vector);
            Apic<SvmVendor>.Eoi(ref guest.Vcpu);
        }
        return vector;
    }

    private static uint Reason(SvmGuest guest) => guest.Read<uint>(Record);
    private static uint Token(SvmGuest guest) => guest.Read<uint>(Record + 4);
    private static (Hva, bool, int)[] Fetches(SvmGuest guest) => [.. guest.Host.Thread.Fetches];
}
