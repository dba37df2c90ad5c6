// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>What the CPU does for a guest's APIC: CR8 (SDM vol. 3, 30.3) and the preemption timer (26.5.1).</summary>
public class ApicTests
{
    private const uint TprShadow = 1 << 21, Cr8Exits = 3 << 19, Timer = 1 << 6;
    private const uint Misc = 0x485, Secondary = 0x48b, TruePin = 0x48d, TruePrimary = 0x48e;

    [Test]
    public void Cr8IsInThePageOfAGuestWithAnApic()
    {
        using VmxGuest guest = new(mode: IrqchipMode.Kernel);
        Assert.That(guest.Vmcs[VmcsField.PrimaryControls] & (TprShadow | Cr8Exits), Is.EqualTo(TprShadow));
        ControlRegisters<VmxVendor>.TrySetCr8(ref guest.Vcpu, 5);
        byte before = 0;
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt).Doing((vmcs, ref _) =>
        {
            Span<byte> page = KernelPages.Bytes(new Hpa(vmcs[VmcsField.VirtualApic]));
            (before, page[0x80]) = (page[0x80], 0x90);
        }));
        Assert.That((before, guest.Vcpu.Events.Cr8, guest.Vcpu.Apic.Tpr), Is.EqualTo(((byte)0x50, (byte)9, (byte)0x90)));
    }

    [Test]
    public void Cr8ExitsWhereThereIsNoPage([Values] bool apic)
    {
        using VmxGuest guest = apic
            ? new(cpu => cpu.Msrs[TruePrimary] &= ~((ulong)TprShadow << 32), mode: IrqchipMode.Kernel) : new();
        Assert.That(guest.Vmcs[VmcsField.PrimaryControls] & (TprShadow | Cr8Exits), Is.EqualTo(Cr8Exits));
    }

    /// <summary>An entry takes no threshold above the priority (27.2.1.1), and needs none below an open interrupt.</summary>
    [TestCase(0, 0x51, 0ul)]
    [TestCase(4, 0x51, 0ul)]
    [TestCase(5, 0x51, 5ul)]
    [TestCase(9, 0x51, 5ul)]
    [TestCase(9, 0, 0ul)]
    public void APriorityThatHoldsAnInterruptBackExitsBelowIt(int priority, int vector, ulong threshold)
    {
        using VmxGuest guest = new(DeliversNothing, mode: IrqchipMode.Kernel);
        ControlRegisters<VmxVendor>.TrySetCr8(ref guest.Vcpu, (ulong)priority);
        if (vector != 0)
            guest.Vcpu.Apic.TryRequest((byte)vector, level: false);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        Assert.That(guest.Entries[0][VmcsField.TprThreshold], Is.EqualTo(threshold));
    }

    [Test]
    public void AnInterruptIsInjectedWhenThePriorityFallsBelowIt()
    {
        using VmxGuest guest = new(DeliversNothing, mode: IrqchipMode.Kernel);
        guest.Registers.Rflags |= Rflags.If;
        ControlRegisters<VmxVendor>.TrySetCr8(ref guest.Vcpu, 9);
        guest.Vcpu.Apic.TryRequest(0x51, level: false);
        guest.RunThrough(Turn.Exit(ExitReason.TprBelowThreshold).Doing((vmcs, ref _) =>
            KernelPages.Bytes(new Hpa(vmcs[VmcsField.VirtualApic]))[0x80] = 0x40));
        Assert.That(guest.Entries.Select(entry => entry.Injected),
            Is.EqualTo(new[] { Injection.None, Injection.Interrupt(0x51) }));
        Assert.That(guest.Entries[1][VmcsField.TprThreshold], Is.Zero);
    }

    /// <summary>The counter runs at 2 GHz, the timer at 1/32 of it.</summary>
    [Test]
    public void ADeadlineEndsTheTurnAndSparesTheHostsTimer()
    {
        using VmxGuest guest = Armed(periodic: false);
        Assert.That(guest.Vmcs[VmcsField.PinControls] & Timer, Is.EqualTo(Timer));
        Assert.That(HostTimer(guest), Is.Zero);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt).Doing((_, ref _) => guest.Host.Cpu.Tsc += 1_000_000));
        Assert.That(guest.Entries[0][VmcsField.PreemptionTimer], Is.EqualTo(2_000_001 / 32 + 1));
        Assert.That(guest.Entries[1][VmcsField.PreemptionTimer], Is.EqualTo(1_000_001 / 32 + 1));
        guest.Host.Cpu.Tsc += 2_000_000;
        guest.Host.Cpu.Nanoseconds += 1_000_000;
        guest.RunThrough(Turn.Exit(ExitReason.PreemptionTimer));
        Assert.That(guest.Entries[^2][VmcsField.PreemptionTimer], Is.Zero);
        Assert.That(guest.Vcpu.Apic.HighestRequest(), Is.EqualTo(0x40));
        Assert.That(guest.Entries[^1][VmcsField.PinControls] & Timer, Is.Zero, "it has expired");
    }

    [Test]
    public void APeriodicTimerIsArmedAgain()
    {
        using VmxGuest guest = Armed(periodic: true);
        guest.Host.Cpu.Tsc += 2_000_000;
        guest.Host.Cpu.Nanoseconds += 1_000_000;
        guest.RunThrough(Turn.Exit(ExitReason.PreemptionTimer));
        Assert.That(guest.Entries[^1][VmcsField.PreemptionTimer], Is.EqualTo(2_000_001 / 32 + 1));
    }

    [Test]
    public void AnExitBeforeTheTargetWaitsOn()
    {
        using VmxGuest guest = Armed(periodic: false);
        guest.RunThrough(Turn.Exit(ExitReason.PreemptionTimer));
        Assert.That(guest.Vcpu.Apic.HighestRequest(), Is.EqualTo(-1));
        Assert.That(guest.Entries[^1][VmcsField.PreemptionTimer], Is.EqualTo(2_000_001 / 32 + 1));
    }

    /// <summary>The timer counts only while the guest runs.</summary>
    [Test]
    public void AHaltWaitsByTheHostsTimer()
    {
        using VmxGuest guest = Armed(periodic: false);
        ulong target = guest.Vcpu.Apic.Timer.Target;
        guest.Host.Thread.Halt = _ =>
        {
            guest.Host.Thread.SignalPending = true;
            return HaltEnd.Interrupted;
        };
        guest.Run(Turn.Instruction(ExitReason.Hlt, 1));
        Assert.That(HostTimer(guest), Is.EqualTo(target));
        Assert.That(guest.Vmcs[VmcsField.PinControls] & Timer, Is.Zero);
        ApicTimer<VmxVendor>.SetInitialCount(ref guest.Vcpu, 500_000);
        Assert.That((HostTimer(guest), guest.Vmcs[VmcsField.PinControls] & Timer), Is.EqualTo((0ul, (ulong)Timer)));
        ApicTimer<VmxVendor>.SetInitialCount(ref guest.Vcpu, 0);
        Assert.That((HostTimer(guest), guest.Vmcs[VmcsField.PinControls] & Timer), Is.EqualTo((0ul, 0ul)));
    }

    [TestCase(TruePin, 38)]
    [TestCase(0x48cu, 21)] // no flags in EPT: an old CPU, whose timer may be wrong
    [TestCase(0u, 0)]
    public void WithoutATimerOrCounterToTrustTheHostsTimerIsArmed(uint msr, int bit)
    {
        using VmxGuest guest = Armed(periodic: false, cpu =>
        {
            cpu.TscIsStable = msr != 0;
            cpu.Msrs[msr] = cpu.Msrs.GetValueOrDefault(msr) & ~(1ul << bit);
        });
        Assert.That(HostTimer(guest), Is.EqualTo(guest.Vcpu.Apic.Timer.Target).And.Not.Zero);
        Assert.That(guest.Vmcs[VmcsField.PinControls] & Timer, Is.Zero);
    }

    /// <summary>Software delivers the APIC's interrupts.</summary>
    private static void DeliversNothing(SimulatedCpu cpu) => cpu.Msrs[Secondary] &= ~(1ul << 41);

    /// <summary>A guest whose APIC's timer expires after a millisecond, with vector 40H.</summary>
    private static VmxGuest Armed(bool periodic, Action<SimulatedCpu>? change = null)
    {
        VmxGuest guest = new(cpu =>
        {
            cpu.Msrs[Misc] = 5;
            change?.Invoke(cpu);
        }, mode: IrqchipMode.Kernel);
        ApicTimer<VmxVendor>.SetMode(ref guest.Vcpu, 0x40u | (periodic ? LapicTimer.Periodic : 0));
        ApicTimer<VmxVendor>.SetDivide(ref guest.Vcpu, 0xb);
        ApicTimer<VmxVendor>.SetInitialCount(ref guest.Vcpu, 1_000_000);
        return guest;
    }

    private static ulong HostTimer(VmxGuest guest) => guest.Host.Thread.Timers.Values.SingleOrDefault();
}
