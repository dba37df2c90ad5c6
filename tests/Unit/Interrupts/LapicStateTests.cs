// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Interrupts;
using Timers = SharpKvm.Interrupts.ApicTimer<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Interrupts;

/// <summary>KVM_GET_LAPIC and KVM_SET_LAPIC.</summary>
[TestFixture]
internal sealed class LapicStateTests
{
    private const uint Periodic = 1 << 17, Deadline = 1 << 18;

    [Test]
    public void AStateInFlightMoves()
    {
        using ApicVm from = new(1);
        from.Write(1, ApicRegister.Ldr, 0x02000000);
        from.Write(1, ApicRegister.Tpr, 0x10);
        from.Write(1, ApicRegister.LvtTimer, Periodic | 0xec);
        from.Write(1, ApicRegister.Divide, 3);
        from.Write(1, ApicRegister.InitialCount, 1_000_000);
        from.Write(1, ApicRegister.Lint1, 0x400);
        from.Send(1, 0x55, level: true);
        from.Take(1);
        from.Send(1, 0x65);
        from.Send(1, 0x35);
        from.Advance(4_000_000);

        kvm_lapic_state state = from.Get(1);
        Assert.That(Register(state, ApicRegister.CurrentCount), Is.EqualTo(750_000));
        using ApicVm to = new(1);
        Assert.That(to.Set(1, state), Is.Zero);
        Assert.That(to.TakeRequests(1), Is.EqualTo(VcpuRequests.Event));
        Assert.That(Bytes(to.Get(1)), Is.EqualTo(Bytes(state)));
        Assert.That(to.TimeLeft(1), Is.EqualTo(12_000_000));
        Assert.That(to.Tmr(1, 0x55), Is.True);
        foreach (int vector in (int[])[0x65, -1])
            Assert.That(to.Take(1), Is.EqualTo(vector));
        to.Write(1, ApicRegister.Eoi, 0);
        to.Write(1, ApicRegister.Eoi, 0);
        Assert.That(to.Take(1), Is.EqualTo(0x35));
        to.Advance(12_000_000);
        Assert.That(to.Take(1), Is.EqualTo(0xec));
        Assert.That(to.TimeLeft(1), Is.EqualTo(16_000_000));
    }

    [Test]
    public void WhatIsDueIsPostedFirst()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.LvtTimer, 0xec);
        vm.Write(0, ApicRegister.InitialCount, 1000);
        vm.Pass(vm.Host.Cpu.Nanoseconds + 10_000);
        Assert.That(Register(vm.Get(0), ApicRegister.Irr + 7), Is.EqualTo(0x1000));
    }

    /// <summary>QEMU's APIC state has no current count: better an interrupt too many than none.</summary>
    [Test]
    public void ATimerWithoutACurrentCountInterruptsAtOnceOrInAPeriod([Values] bool periodic)
    {
        using ApicVm vm = new(0);
        kvm_lapic_state state = vm.Get(0);
        Put(ref state, ApicRegister.LvtTimer, periodic ? Periodic | 0xec : 0xec);
        Put(ref state, ApicRegister.Divide, 0xb);
        Put(ref state, ApicRegister.InitialCount, 1_000_000);
        Assert.That(vm.Set(0, state), Is.Zero);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(periodic ? 1_000_000 : 0));
        Put(ref state, ApicRegister.CurrentCount, 2_000_000);
        Assert.That(vm.Set(0, state), Is.Zero);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(1_000_000), "no more than the initial one");
        Put(ref state, ApicRegister.InitialCount, 0);
        Assert.That(vm.Set(0, state), Is.Zero);
        Assert.That(vm.TimeLeft(0), Is.Null);
    }

    [Test]
    public void ADeadlineStaysUnlessTheModeChanges()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.LvtTimer, Deadline | 0xec);
        ulong deadline = vm.Host.Cpu.Tsc + 2_000_000;
        Timers.SetDeadline(ref vm[0], deadline);
        kvm_lapic_state state = vm.Get(0);
        Put(ref state, ApicRegister.InitialCount, 5);
        Assert.That(vm.Set(0, state), Is.Zero);
        Assert.That(vm.TimeLeft(0), Is.EqualTo(1_000_000));
        Assert.That(vm.Read(0, ApicRegister.CurrentCount), Is.Zero, "nothing counts");
        Put(ref state, ApicRegister.LvtTimer, 0xec);
        Put(ref state, ApicRegister.InitialCount, 0);
        Assert.That(vm.Set(0, state), Is.Zero);
        Assert.That(vm.TimeLeft(0), Is.Null);
        Assert.That(vm[0].Apic.Timer.Deadline, Is.Zero);
    }

    [Test]
    public void ADisabledApicKeepsWhatUserSpaceHasSet()
    {
        using ApicVm vm = new(0);
        Assert.That(vm.Send(0, 0x80, DeliveryMode.Fixed), Is.EqualTo(1));
        kvm_lapic_state state = vm.Get(0);
        Assert.That(vm.TrySetMode(0, ApicMode.Disabled), Is.True);
        Assert.That(vm.Set(0, state), Is.Zero);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm.TrySetMode(0, ApicMode.Xapic), Is.True);
        Assert.That(vm.Take(0), Is.EqualTo(0x80));
    }

    [Test]
    public void TheIdHasTheFormatThatUserSpaceAskedFor([Values] bool wide, [Values] bool x2apic)
    {
        using ApicVm vm = new(5);
        vm.Vm.Irqchip.Wide = wide;
        if (x2apic)
            vm.EnterX2apic(5);
        kvm_lapic_state state = vm.Get(5);
        Assert.That(Register(state, ApicRegister.Id), Is.EqualTo(wide && x2apic ? 5u : 5u << 24));
        Assert.That(vm.Set(5, state), Is.Zero);
        Put(ref state, ApicRegister.Id, 6);
        Put(ref state, ApicRegister.Tpr, 0x30);
        Assert.That(vm.Set(5, state), Is.EqualTo(wide && x2apic ? Errno.EINVAL : Errno.Ok));
        Assert.That(vm.Read(5, ApicRegister.Id), Is.EqualTo(x2apic ? 5u : 5u << 24));
        Assert.That(vm.Read(5, ApicRegister.Tpr), Is.EqualTo(wide && x2apic ? 0 : 0x30));
    }

    [Test]
    public void InX2apicModeIcrIsSplitAndTheLogicalIdIsFixed()
    {
        using ApicVm vm = new(0x21);
        vm.EnterX2apic(0x21);
        vm.WriteMsr(0x21, ApicRegister.Icr, 0x12345678_000000f0);
        kvm_lapic_state state = vm.Get(0x21);
        Assert.That(Register(state, ApicRegister.IcrHigh), Is.EqualTo(0x12345678));
        Put(ref state, ApicRegister.Ldr, 0x55555555);
        Assert.That(vm.Set(0x21, state), Is.Zero);
        Assert.That(vm.ReadMsr(0x21, ApicRegister.Ldr), Is.EqualTo(0x20002));
        Assert.That(vm.ReadMsr(0x21, ApicRegister.Icr), Is.EqualTo(0x12345678_000000f0));
    }

    [Test]
    public void RegistersKeepTheBitsTheyHave()
    {
        using ApicVm vm = new(1);
        kvm_lapic_state state = default;
        ((Span<byte>)state.regs).Fill(0xff);
        Assert.That(vm.Set(1, state), Is.Zero);
        (int Register, uint Expected)[] expected =
        [
            (ApicRegister.Id, 1 << 24), (ApicRegister.Version, 0x50014), (ApicRegister.Tpr, 0xff),
            (ApicRegister.Ppr, 0xff), (ApicRegister.Ldr, 0xff000000), (ApicRegister.Svr, 0x3ff),
            (ApicRegister.Isr, 0xffff0000), (ApicRegister.Isr + 1, ~0u), (ApicRegister.Tmr, 0xffff0000),
            (ApicRegister.Tmr + 7, ~0u), (ApicRegister.Irr, ~0u), (ApicRegister.Irr + 7, ~0u),
            (ApicRegister.Esr, 0xff), (ApicRegister.Icr, 0xffffefff), (ApicRegister.IcrHigh, 0xff000000),
            (ApicRegister.LvtTimer, 0x700ff), (ApicRegister.Lint0, 0x1a7ff), (ApicRegister.LvtError, 0x100ff),
            (ApicRegister.InitialCount, ~0u), (ApicRegister.Divide, 0xb), (ApicRegister.CurrentCount, 0),
            (0, 0), (ApicRegister.Eoi, 0), (0x2f, 0), (ApicRegister.SelfIpi, 0), (9, 0),
        ];
        Assert.Multiple(() =>
        {
            foreach ((int register, uint value) in expected)
                Assert.That(vm.Read(1, register), Is.EqualTo(value), $"register {register:x}");
        });
    }

    /// <summary>Whatever user space puts into the page, nothing that the guest then does traps the core.</summary>
    [Test]
    public void NoContentsTrapTheCore()
    {
        Gen<(byte[] Page, bool X2, bool Wide, (int Register, uint Value)[] Writes)> cases = Gen.Select(
            Gen.OneOf(Gen.Byte.Array[1024], Gen.OneOfConst<byte>(0, 0xff, 1, 0x80).Array[1024]), Gen.Bool, Gen.Bool,
            Gen.Select(Gen.Int[0, 63], Gen.UInt).Array[0, 20]);
        for (uint seed = 0; seed < 400; seed++)
        {
            var (page, x2, wide, writes) = cases.Generate(new PCG(1, seed), null, out _);
            using ApicVm vm = new(0, 1);
            vm.Vm.Irqchip.Wide = wide;
            if (x2)
                vm.EnterX2apic(1);
            kvm_lapic_state state = default;
            page.CopyTo((Span<byte>)state.regs);
            if (wide && x2)
                Put(ref state, ApicRegister.Id, 1);
            Assert.That(vm.Set(1, state), Is.Zero, $"seed {seed}");
            Assert.That(vm[1].Apic.HighestRequest() is -1 or >= 16);
            foreach ((int register, uint value) in writes)
            {
                if (x2)
                    vm.TryWriteMsr(1, register, value);
                else
                    vm.Write(1, register, value);
                vm.Read(1, register);
                vm.Advance(100_000);
                vm.Take(1);
            }
            // A timer that has expired interrupts once more.
            Assert.That(vm.Set(1, vm.Get(1)), Is.Zero);
            kvm_lapic_state kept = vm.Get(1);
            Assert.That(vm.Set(1, kept), Is.Zero);
            Assert.That(Bytes(vm.Get(1)), Is.EqualTo(Bytes(kept)), $"seed {seed}");
        }
    }

    private static byte[] Bytes(in kvm_lapic_state state) => ((ReadOnlySpan<byte>)state.regs).ToArray();

    private static uint Register(in kvm_lapic_state state, int register) =>
        BitConverter.ToUInt32(((ReadOnlySpan<byte>)state.regs)[(16 * register)..]);

    private static void Put(ref kvm_lapic_state state, int register, uint value) =>
        BitConverter.TryWriteBytes(((Span<byte>)state.regs)[(16 * register)..], value);
}
