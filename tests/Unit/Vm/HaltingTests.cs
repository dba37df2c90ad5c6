// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Svm;
using SharpKvm.Tests.Svm;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>HLT, how long it polls, INIT and start-up messages, and KVM_GET/SET_MP_STATE.</summary>
[TestFixture]
internal sealed class HaltingTests
{
    private const byte Vector = 0x61;
    private const ulong PollLimit = 200_000;

    private int _halts;

    [SetUp]
    public void SetUp() => _halts = 0;

    private SvmGuest Guest(IrqchipMode mode, bool interruptible = true, uint id = 0)
    {
        SvmGuest guest = new(id: id, mode: mode);
        guest.Registers.Rflags |= interruptible ? Rflags.If : 0;
        WhenHalted(guest, () => { });
        return guest;
    }

    /// <summary>What happens in the first halt; in the second a signal comes.</summary>
    private void WhenHalted(SvmGuest guest, Action happens) => guest.Host.Thread.Halt = _ =>
    {
        if (_halts++ == 0)
        {
            happens();
            return HaltEnd.Woken;
        }
        guest.Host.Thread.SignalPending = true;
        return HaltEnd.Interrupted;
    };

    private static Turn Hlt => Turn.Instruction(ExitCode.Hlt, 1);

    private static MpState State(SvmGuest guest) => guest.Get<MpState>(KVM_GET_MP_STATE);

    [TestCase(IrqchipMode.Kernel)]
    [TestCase(IrqchipMode.Split)]
    public void AnInterruptEndsAHalt(IrqchipMode mode)
    {
        using SvmGuest guest = Guest(mode);
        WhenHalted(guest, () => guest.Vcpu.Apic.TryRequest(Vector, level: false));
        guest.RunThrough(Hlt);
        Assert.That(_halts, Is.EqualTo(1));
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
        Assert.That(guest.Entries[1].Rip, Is.EqualTo(SvmGuest.Code + 1));
        Assert.That(State(guest), Is.EqualTo(MpState.Runnable));
    }

    [Test]
    public void AnInterruptThatIsKeptAwayDoesNot()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, interruptible: false);
        WhenHalted(guest, () => guest.Vcpu.Apic.TryRequest(Vector, level: false));
        guest.RunThrough(Hlt);
        Assert.That(_halts, Is.EqualTo(2));
        Assert.That(State(guest), Is.EqualTo(MpState.Halted));
        Assert.That(guest.Entries, Has.Count.EqualTo(1));
    }

    [Test]
    public void AnNmiEndsAHaltWhateverTheFlag()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, interruptible: false);
        WhenHalted(guest, () => guest.Vcpu.Shared.Request(VcpuRequests.Nmi));
        guest.RunThrough(Hlt);
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Nmi));
    }

    [Test]
    public void WithAnInterruptWaitingThereIsNoHalt()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        guest.RunThrough(Hlt.Doing((ref _, ref _) => guest.Vcpu.Apic.TryRequest(Vector, level: false)));
        Assert.That(_halts, Is.Zero);
        Assert.That(guest.Entries[1].Inject.Raw, Is.EqualTo(Injection.Interrupt(Vector)));
    }

    [Test]
    public void WithoutControllersInTheKernelHaltIsUserSpacesBusiness()
    {
        using SvmGuest guest = Guest(IrqchipMode.None);
        guest.RunTo(Exit.KVM_EXIT_HLT, Hlt);
        Assert.That(_halts, Is.Zero);
        Assert.That(State(guest), Is.EqualTo(MpState.Runnable));
    }

    [Test]
    public void AHaltOutlastsASignalAndEndsWithUserSpacesInterrupt()
    {
        using SvmGuest guest = Guest(IrqchipMode.Split);
        guest.RunThrough(Hlt);
        Assert.That(State(guest), Is.EqualTo(MpState.Halted));
        Assert.That(guest.Entries, Has.Count.EqualTo(1));
        guest.Interrupt(0x31);
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Inject.Raw, Is.EqualTo(Injection.Interrupt(0x31)));
    }

    private static ulong Wait(SvmGuest guest, HaltEnd end, ulong nanoseconds)
    {
        guest.Vcpu.MpState = MpState.Halted;
        guest.Host.Thread.Halt = _ =>
        {
            guest.Host.Cpu.Nanoseconds += nanoseconds;
            return end;
        };
        Halting<SvmVendor>.Wait(ref guest.Vcpu);
        return guest.Host.Thread.LastPoll;
    }

    [Test]
    public void PollingGrowsWithShortWaitsAndEndsWithALongOne()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        guest.Host.Cpu.HaltPoll = PollLimit;
        foreach (ulong poll in (ulong[])[0, 10_000, 20_000, 40_000, 80_000, 160_000, 200_000, 200_000])
            Assert.That(Wait(guest, HaltEnd.Woken, PollLimit), Is.EqualTo(poll));
        Assert.That(Wait(guest, HaltEnd.Woken, PollLimit + 1), Is.EqualTo(PollLimit));
        Assert.That(Wait(guest, HaltEnd.Woken, 5000), Is.Zero);
        for (int i = 0; i < 3; i++)
            Assert.That(Wait(guest, HaltEnd.Polled, 5000), Is.EqualTo(10_000), "long enough");
        guest.Host.Cpu.HaltPoll = 3000;
        Wait(guest, HaltEnd.Polled, 1000);
        Assert.That(Wait(guest, HaltEnd.Polled, 1000), Is.EqualTo(3000));
    }

    /// <summary>At least what another thread's turn leaves behind, if not a signal.</summary>
    [Test]
    public void WhoHasSleptSeesToItsThreadsWorkFirst()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        foreach ((HaltEnd end, VcpuAction next) in ((HaltEnd, VcpuAction)[])[(HaltEnd.Polled, VcpuAction.Resume),
            (HaltEnd.Woken, VcpuAction.Retry), (HaltEnd.Interrupted, VcpuAction.Retry)])
        {
            guest.Vcpu.MpState = MpState.Halted;
            guest.Host.Thread.Halt = _ => end;
            Assert.That(Halting<SvmVendor>.Wait(ref guest.Vcpu), Is.EqualTo(next), $"{end}");
        }
    }

    [Test]
    public void AGuestThatPollsItselfIsNotPolledFor()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        guest.Host.Cpu.HaltPoll = PollLimit;
        Wait(guest, HaltEnd.Woken, 1000);
        guest.Vcpu.Paravirt.PollControl = 0;
        Assert.That(Wait(guest, HaltEnd.Woken, 1000), Is.Zero);
        guest.Vcpu.Paravirt.PollControl = 1;
        Assert.That(Wait(guest, HaltEnd.Woken, 1000), Is.EqualTo(10_000));
    }

    [TestCase(IrqchipMode.None)]
    [TestCase(IrqchipMode.Split)]
    [TestCase(IrqchipMode.Kernel)]
    public void StatesThatUserSpaceCanSet(IrqchipMode mode)
    {
        using SvmGuest guest = Guest(mode);
        bool hasApic = mode != IrqchipMode.None;
        foreach (MpState state in (MpState[])
            [MpState.Halted, MpState.Uninitialized, MpState.InitReceived, MpState.Runnable])
        {
            long result = guest.Set(KVM_SET_MP_STATE, state);
            bool allowed = hasApic || state == MpState.Runnable;
            Assert.That(result, Is.EqualTo(allowed ? Errno.Ok : Errno.EINVAL), $"{state}");
            Assert.That(State(guest), Is.EqualTo(allowed ? state : MpState.Runnable));
        }
        foreach (uint bad in (uint[])[5, 8, uint.MaxValue])
            Assert.That(guest.Set(KVM_SET_MP_STATE, bad), Is.EqualTo(Errno.EINVAL));
        Assert.That(guest.Ioctl(KVM_SET_MP_STATE, 1), Is.EqualTo(Errno.EFAULT));
        Assert.That(guest.Ioctl(KVM_GET_MP_STATE, 1), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void UserSpaceCanStartAProcessor()
    {
        using SvmGuest guest = Guest(IrqchipMode.Split, id: 1);
        Assert.That(State(guest), Is.EqualTo(MpState.Uninitialized));
        guest.Vcpu.Apic.StartUpVector = 0x9f;
        Assert.That(guest.Set(KVM_SET_MP_STATE, MpState.SipiReceived), Is.Zero);
        Assert.That(State(guest), Is.EqualTo(MpState.Runnable));
        AssertStarted(guest, 0x9f);
    }

    [TestCase(false)]
    [TestCase(true)]
    public void AProcessorStartsWithInitAndAStartUpMessage(bool together)
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, id: 1);
        guest.Host.Thread.Halt = _ =>
        {
            guest.Vcpu.Apic.StartUpVector = 0x12;
            bool first = _halts++ == 0;
            guest.Vcpu.Shared.Request(together ? VcpuRequests.Init | VcpuRequests.StartUp
                : first ? VcpuRequests.Init : VcpuRequests.StartUp);
            return HaltEnd.Woken;
        };
        guest.RunThrough();
        Assert.That(_halts, Is.EqualTo(together ? 1 : 2));
        AssertStarted(guest, 0x12);
        Assert.That(guest.Entries[0].Rip, Is.Zero);
        Assert.That(guest.Entries[0].Cr0 & Cr0.Pe, Is.Zero);
    }

    [Test]
    public void AStartUpMessageWithoutInitIsIgnored()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel, id: 1);
        WhenHalted(guest, () => guest.Vcpu.Shared.Request(VcpuRequests.StartUp));
        guest.RunThrough();
        Assert.That(State(guest), Is.EqualTo(MpState.Uninitialized));
        Assert.That(guest.Entries, Is.Empty);
    }

    [Test]
    public void InitLetsTheBootProcessorStartOver()
    {
        using SvmGuest guest = Guest(IrqchipMode.Kernel);
        guest.Vcpu.Shared.Request(VcpuRequests.Init);
        guest.RunThrough();
        Assert.That(guest.Entries[0].Rip, Is.EqualTo(0xfff0));
        Assert.That(SvmVendor.GetSegment(ref guest.Vcpu, SegmentName.Cs).Base, Is.EqualTo(0xffff_0000));
        Assert.That(State(guest), Is.EqualTo(MpState.Runnable));
    }

    private static void AssertStarted(SvmGuest guest, byte vector)
    {
        Segment code = SvmVendor.GetSegment(ref guest.Vcpu, SegmentName.Cs);
        Assert.That((code.Base, (int)code.Selector), Is.EqualTo(((ulong)vector << 12, vector << 8)));
        Assert.That(guest.Registers.Rip, Is.Zero);
    }
}
