// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Cpu;
using SharpKvm.Vm;
using Calls = SharpKvm.Vm.Hypercalls<SharpKvm.Tests.Cpu.FakeVendor>;
using Halts = SharpKvm.Vm.Halting<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Paravirt;

/// <summary>KVM_HC_KICK_CPU, KVM_HC_SEND_IPI, KVM_HC_SCHED_YIELD, and polling that the guest forgoes.</summary>
public class HypercallTests
{
    private const ulong Kick = 5, SendIpi = 10, Yield = 11;
    private const byte Vector = 0x55;

    [Test]
    public void AKickEndsAHalt()
    {
        using ParavirtVm vm = new(2);
        Assert.That(Halts.Halt(ref vm[1]), Is.EqualTo(VcpuAction.Resume));
        Assert.That(vm[1].MpState, Is.EqualTo(MpState.Halted));
        Assert.That(Call(vm, Kick, 0, 1), Is.Zero);
        Assert.That(vm.Vm.TakeKicks(), Is.EqualTo(new uint[] { 1 }));
        vm.Handle();
        Assert.That(vm[1].MpState, Is.EqualTo(MpState.Runnable));
    }

    [Test]
    public void AKickBeforeTheHaltIsNotLostAndCountsOnce()
    {
        using ParavirtVm vm = new(2);
        vm[1].MpState = MpState.Runnable;
        Call(vm, Kick, 0, 1);
        vm.Handle();
        Halts.Halt(ref vm[1]);
        Assert.That(vm[1].MpState, Is.EqualTo(MpState.Runnable));
        Halts.Halt(ref vm[1]);
        Assert.That(vm[1].MpState, Is.EqualTo(MpState.Halted));
    }

    [Test]
    public void AKickStartsNoVcpuThatWaitsToBeStarted()
    {
        using ParavirtVm vm = new(2);
        vm[1].MpState = MpState.Uninitialized;
        Call(vm, Kick, 0, 1);
        vm.Handle();
        Assert.That(vm[1].MpState, Is.EqualTo(MpState.Uninitialized));
    }

    [TestCase(0b1ul, 0ul, 0ul, new uint[] { 0 })]
    [TestCase(0b110ul, 0ul, 0ul, new uint[] { 1, 2 })]
    [TestCase(0b11ul, 0ul, 2ul, new uint[] { 2 })]
    [TestCase(~0ul, ~0ul, 0ul, new uint[] { 0, 1, 2, 130 })]
    [TestCase(0ul, 1ul << 63, 3ul, new uint[] { 130 })]
    [TestCase(0ul, 0ul, 0ul, new uint[] { })]
    [TestCase(~0ul, ~0ul, 0xffff_fff0ul, new uint[] { })]
    public void AnIpiReachesWhomTheBitmapNames(ulong low, ulong high, ulong first, uint[] expected)
    {
        using ParavirtVm vm = new(3);
        vm.Vm.Add(130);
        if (high == ~0ul && first == 0)
            vm.Vm.Add(127);
        FakeVendor.SetCpl(ref vm[0], 0);
        EnterLongMode(vm);
        uint[] all = high == ~0ul && first == 0 ? [0, 1, 2, 127] : expected;
        Assert.That(Call(vm, SendIpi, low, high, first, Vector), Is.EqualTo(all.Length));
        Assert.That(vm.Vm.Receivers(Vector), Is.EqualTo(all));
    }

    [Test]
    public void A32BitGuestHasTwiceThirtyTwoBits()
    {
        using ParavirtVm vm = new();
        vm.Vm.Add(32);
        vm.Vm.Add(63);
        vm.Vm.Add(64);
        Assert.That(Call(vm, SendIpi, ~0ul, ~0ul, 0, Vector), Is.EqualTo(3));
        Assert.That(vm.Vm.Receivers(Vector), Is.EqualTo(new uint[] { 0, 32, 63 }));
    }

    [Test]
    public void AnIpiThatWaitsAlreadyIsCountedAgain()
    {
        using ParavirtVm vm = new(2);
        Assert.That((Call(vm, SendIpi, 2, 0, 0, Vector), Call(vm, SendIpi, 2, 0, 0, Vector)), Is.EqualTo((1, 1)));
    }

    [Test]
    public void AnIpiMayBeAnNmiButHasNoShorthand()
    {
        using ParavirtVm vm = new(2);
        Assert.That(Call(vm, SendIpi, 2, 0, 0, 4 << 8), Is.EqualTo(1));
        Assert.That(vm.Vm.TakeRequests(1) & VcpuRequests.Nmi, Is.EqualTo(VcpuRequests.Nmi));
        Assert.That(Call(vm, SendIpi, 2, 0, 0, 3 << 18 | Vector), Is.EqualTo(-22));
    }

    [Test]
    public void WithoutLocalApicsThereAreNoIpis()
    {
        using ParavirtVm vm = new();
        vm.Vm.Vm.Irqchip.Mode = IrqchipMode.None;
        Assert.That(Call(vm, SendIpi, 1, 0, 0, Vector), Is.EqualTo(-95));
    }

    [Test]
    public void TheCpuIsGivenToTheVcpuThatIsNamed()
    {
        using ParavirtVm vm = new(2);
        Assert.That((Call(vm, Yield, 1), Call(vm, Yield, 77), Call(vm, Yield, uint.MaxValue)), Is.EqualTo((0, 0, 0)));
        Assert.That(vm.Host.Thread.Yields, Is.EqualTo(new nint[] { 2 }));
    }

    [TestCase(Kick)]
    [TestCase(SendIpi)]
    [TestCase(Yield)]
    public void ApplicationsMayNotCall(ulong number)
    {
        using ParavirtVm vm = new(2);
        FakeVendor.SetCpl(ref vm[0], 3);
        Assert.That(Call(vm, number, 1, 1, 0, Vector), Is.EqualTo(-1));
        Assert.That((vm.Vm.TakeKicks(), vm.Host.Thread.Yields), Is.EqualTo((Array.Empty<uint>(), new List<nint>())));
    }

    [Test]
    public void TheGuestSwitchesPollingOnAndOff()
    {
        using ParavirtVm vm = new();
        Assert.That(vm.Get(0, KvmMsr.PollControl), Is.EqualTo(1));
        Assert.That((vm.Set(0, KvmMsr.PollControl, 2), vm.Set(0, KvmMsr.PollControl, 3)), Is.EqualTo((false, false)));
        vm.Write(0, KvmMsr.PollControl, 0);
        vm[0].HaltPoll = 50_000;
        Halts.Halt(ref vm[0]);
        Halts.Wait(ref vm[0]);
        Assert.That(vm.Host.Thread.LastPoll, Is.Zero);
        vm.Write(0, KvmMsr.PollControl, 1);
        Halts.Wait(ref vm[0]);
        Assert.That(vm.Host.Thread.LastPoll, Is.EqualTo(50_000));
    }

    /// <summary>An IPI by hypercall to an APIC in user space would be lost.</summary>
    [TestCase((int)IrqchipMode.None, 0x0100322bu)]
    [TestCase((int)IrqchipMode.Split, 0x01007afbu)]
    [TestCase((int)IrqchipMode.Kernel, 0x01007afbu)]
    public void WhatNeedsALocalApicInTheKernelIsHiddenWithoutOne(int mode, uint features)
    {
        using TestVcpu test = new();
        test.SetSupportedCpuid();
        test.Machine.Vm.Irqchip.Mode = (IrqchipMode)mode;
        test.Vcpu.Registers[Gpr.Rax] = 0x40000001;
        CpuidTable.Execute(ref test.Vcpu);
        Assert.That(test.Vcpu.Registers[Gpr.Rax], Is.EqualTo(features));
    }

    private static void EnterLongMode(ParavirtVm vm)
    {
        FakeVendor.SetEfer(ref vm[0], Efer.Lma | Efer.Lme);
        FakeVendor.SetSegment(ref vm[0], SegmentName.Cs, new() { Attributes = 0xa9b });
    }

    private static long Call(ParavirtVm vm, ulong number, ulong a0, ulong a1 = 0, ulong a2 = 0, ulong a3 = 0)
    {
        ref GuestRegisters registers = ref vm[0].Registers;
        registers[Gpr.Rax] = number;
        (registers[Gpr.Rbx], registers[Gpr.Rcx], registers[Gpr.Rdx], registers[Gpr.Rsi]) = (a0, a1, a2, a3);
        Calls.Execute(ref vm[0]);
        return (int)registers[Gpr.Rax];
    }
}
