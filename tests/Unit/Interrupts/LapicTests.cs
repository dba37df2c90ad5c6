// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using Lapics = SharpKvm.Interrupts.Apic<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Interrupts;

/// <summary>Registers and priorities of one local APIC.</summary>
[TestFixture]
internal sealed class LapicTests
{
    private const uint SendIllegalVector = 1 << 5, ReceiveIllegalVector = 1 << 6;

    [Test]
    public void TheStateAfterReset()
    {
        using ApicVm vm = new(0, 3);
        foreach (uint id in vm.Ids)
            Lapics.Reset(ref vm[id]);
        Assert.Multiple(() =>
        {
            Assert.That(vm.Read(3, ApicRegister.Id), Is.EqualTo(3u << 24));
            Assert.That(vm.Read(3, ApicRegister.Version), Is.EqualTo(0x50014));
            Assert.That(vm.Read(3, ApicRegister.Svr), Is.EqualTo(0xff));
            Assert.That(vm.Read(3, ApicRegister.Dfr), Is.EqualTo(0xffffffff));
            for (int register = ApicRegister.LvtTimer; register <= ApicRegister.LvtError; register++)
                Assert.That(vm.Read(3, register), Is.EqualTo(ApicVm.Masked), $"LVT {register:x}");
            foreach (int register in (int[])[ApicRegister.Tpr, ApicRegister.Ppr, ApicRegister.Ldr, ApicRegister.Isr,
                ApicRegister.Irr + 7, ApicRegister.Esr, ApicRegister.Icr, ApicRegister.InitialCount,
                ApicRegister.CurrentCount, ApicRegister.Divide])
                Assert.That(vm.Read(3, register), Is.Zero, $"register {register:x}");
            Assert.That(vm.Read(0, ApicRegister.Lint0), Is.EqualTo(0x700), "the boot CPU listens to the PIC");
        });
    }

    [Test]
    public void TheHighestVectorComesFirst()
    {
        using ApicVm vm = new(0);
        foreach (byte vector in (byte[])[0x31, 0xff, 0x80, 0x10, 0x5f])
            Assert.That(vm.Send(0, vector), Is.EqualTo(1));
        foreach (byte vector in (byte[])[0xff, 0x80, 0x5f, 0x31, 0x10])
        {
            Assert.That(vm.Take(0), Is.EqualTo(vector));
            Assert.That(vm.Irr(0, vector), Is.False);
            Assert.That(vm.Isr(0, vector), Is.True);
            Assert.That(vm.Take(0), Is.EqualTo(-1), "the others have lower priority");
            vm.Write(0, ApicRegister.Eoi, 0);
        }
        Assert.That(vm.Take(0), Is.EqualTo(-1));
    }

    [Test]
    public void InterruptsNestByClassAndEndFromTheTop()
    {
        using ApicVm vm = new(0);
        vm.Send(0, 0x41);
        Assert.That(vm.Take(0), Is.EqualTo(0x41));
        vm.Send(0, 0x4f);
        Assert.That(vm.Take(0), Is.EqualTo(-1), "the same class does not interrupt itself");
        vm.Send(0, 0x50);
        Assert.That(vm.Take(0), Is.EqualTo(0x50));
        Assert.That(vm.Read(0, ApicRegister.Ppr), Is.EqualTo(0x50));

        vm.Write(0, ApicRegister.Eoi, 0x41);
        Assert.That((vm.Isr(0, 0x50), vm.Isr(0, 0x41)), Is.EqualTo((false, true)), "EOI's value counts for nothing");
        Assert.That(vm.Read(0, ApicRegister.Ppr), Is.EqualTo(0x40));
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        vm.Write(0, ApicRegister.Eoi, 0);
        Assert.That(vm.Read(0, ApicRegister.Ppr), Is.Zero);
        Assert.That(vm.Take(0), Is.EqualTo(0x4f));
        vm.Write(0, ApicRegister.Eoi, 0);
        vm.Write(0, ApicRegister.Eoi, 0);
        Assert.That(vm.Read(0, ApicRegister.Isr + 2), Is.Zero, "an EOI too many");
    }

    [Test]
    public void TheTaskPriorityHoldsBack()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.Tpr, 0xffffff57);
        Assert.That(vm.Read(0, ApicRegister.Tpr), Is.EqualTo(0x57));
        Assert.That(vm.Read(0, ApicRegister.Ppr), Is.EqualTo(0x57));
        Assert.That(vm[0].Events.Cr8, Is.EqualTo(5));
        vm.Send(0, 0x5f);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm[0].Apic.HighestRequest(), Is.EqualTo(0x5f));
        Lapics.SetTpr(ref vm[0], 0x40);
        Assert.That(vm[0].Apic.Tpr, Is.EqualTo(0x40));
        Assert.That(vm.Take(0), Is.EqualTo(0x5f));
        Assert.That(vm.Read(0, ApicRegister.Ppr), Is.EqualTo(0x50));
        Lapics.SetTpr(ref vm[0], 0x53);
        Assert.That(vm.Read(0, ApicRegister.Ppr), Is.EqualTo(0x53));
    }

    [Test]
    public void AVectorThatWaitsAlreadyIsOneInterrupt()
    {
        using ApicVm vm = new(0);
        Assert.That(vm.Send(0, 0x60), Is.EqualTo(1));
        Assert.That(vm.TakeRequests(0), Is.EqualTo(VcpuRequests.Event));
        Assert.That(vm.TakeKicks(), Is.EqualTo((uint[])[0]));
        Assert.That(vm.Send(0, 0x60), Is.EqualTo(1), "it has it");
        Assert.That(vm.TakeRequests(0), Is.EqualTo(VcpuRequests.None));
        Assert.That(vm.TakeKicks(), Is.Empty);

        Assert.That(vm.Take(0), Is.EqualTo(0x60));
        Assert.That(vm.Send(0, 0x60), Is.EqualTo(1), "one may wait while one is in service");
        vm.Write(0, ApicRegister.Eoi, 0);
        Assert.That(vm.Take(0), Is.EqualTo(0x60));
    }

    [Test]
    public void TheTriggerModeIsThatOfTheLastMessage()
    {
        using ApicVm vm = new(0);
        vm.Send(0, 0x60, level: true);
        Assert.That(vm.Tmr(0, 0x60), Is.True);
        vm.Send(0, 0x60);
        Assert.That(vm.Tmr(0, 0x60), Is.False);
    }

    [Test]
    public void TheChipsLearnOfTheEndOfLevelInterruptsAndOfThoseTheyAskFor()
    {
        using ApicVm vm = new(0);
        vm.Send(0, 0x60, level: true);
        vm.Vm.Irqchip.EoiVectors.Add(0x70);
        Assert.That(Lapics.IsEndTold(ref vm[0], 0x60), Is.True);
        Assert.That(Lapics.IsEndTold(ref vm[0], 0x61), Is.False);
        Assert.That(Lapics.IsEndTold(ref vm[0], 0x70), Is.True);
    }

    [Test]
    public void EndsCanBeKeptFromTheChipsOnlyWhenTheyAreInUserSpace([Values] bool split)
    {
        using ApicVm vm = new();
        vm.Vm.Irqchip.Mode = split ? IrqchipMode.Split : IrqchipMode.Kernel;
        vm.Add(0);
        Assert.That(vm.Read(0, ApicRegister.Version), Is.EqualTo(split ? 0x1050014 : 0x50014));
        vm.Write(0, ApicRegister.Svr, 0x1000 | ApicVm.SvrEnabled);
        Assert.That(vm.Read(0, ApicRegister.Svr), Is.EqualTo(ApicVm.SvrEnabled | (split ? 0x1000 : 0)));
        vm.Send(0, 0x60, level: true);
        Assert.That(Lapics.IsEndTold(ref vm[0], 0x60), Is.Not.EqualTo(split));
    }

    [Test]
    public void DisabledBySoftwareItTakesNothingAndKeepsItsTableMasked()
    {
        using ApicVm vm = new(0);
        vm.Send(0, 0x60);
        vm.Write(0, ApicRegister.Lint1, 0x400);
        vm.Write(0, ApicRegister.Svr, 0xff);
        Assert.That(vm.Read(0, ApicRegister.Lint1), Is.EqualTo(ApicVm.Masked | 0x400));
        vm.Write(0, ApicRegister.Lint1, 0x400);
        vm.Write(0, ApicRegister.LvtTimer, 0x20030);
        Assert.That(vm.Read(0, ApicRegister.Lint1), Is.EqualTo(ApicVm.Masked | 0x400));
        Assert.That(vm.Read(0, ApicRegister.LvtTimer), Is.EqualTo(ApicVm.Masked | 0x20030));

        Assert.That(vm.Send(0, 0x61), Is.Zero);
        Assert.That(vm.Irr(0, 0x61), Is.False);
        Assert.That(vm.Send(0, 0, DeliveryMode.Nmi), Is.EqualTo(1), "NMI, INIT and start-up come through");
        Assert.That(vm.Take(0), Is.EqualTo(0x60), "what came before is still there");

        vm.Write(0, ApicRegister.Svr, ApicVm.SvrEnabled);
        Assert.That(vm.Read(0, ApicRegister.Lint1), Is.EqualTo(ApicVm.Masked | 0x400), "unmasking is software's task");
    }

    [Test]
    public void RegistersKeepTheBitsTheyHave()
    {
        using ApicVm vm = new(0);
        (int Register, uint Kept)[] expected =
        [
            (ApicRegister.Id, 0), (ApicRegister.Version, 0x50014), (ApicRegister.Ppr, 0xff),
            (ApicRegister.Tpr, 0xff), (ApicRegister.Ldr, 0xff000000), (ApicRegister.Dfr, 0xffffffff),
            (ApicRegister.Svr, 0x3ff), (ApicRegister.Isr, 0), (ApicRegister.Tmr + 3, 0), (ApicRegister.Irr + 7, 0),
            (ApicRegister.Esr, 0), (ApicRegister.IcrHigh, 0xff000000), (ApicRegister.LvtTimer, 0x700ff),
            (ApicRegister.LvtThermal, 0x107ff), (ApicRegister.LvtPerformance, 0x107ff), (ApicRegister.Lint0, 0x1a7ff),
            (ApicRegister.Lint1, 0x1a7ff), (ApicRegister.LvtError, 0x100ff), (ApicRegister.Divide, 0xb),
            (0x00, 0), (0x09, 0), (ApicRegister.Eoi, 0), (0x0c, 0), (0x2f, 0), (0x3a, 0), (ApicRegister.SelfIpi, 0),
            (ApicRegister.InitialCount, 0),
        ];
        foreach ((int register, uint kept) in expected)
            vm.Write(0, register, ~0u);
        Assert.Multiple(() =>
        {
            foreach ((int register, uint kept) in expected)
                Assert.That(vm.Read(0, register), Is.EqualTo(kept), $"register {register:x}");
        });
        vm.Write(0, ApicRegister.Dfr, 0);
        Assert.That(vm.Read(0, ApicRegister.Dfr), Is.EqualTo(0x0fffffff));
        vm.Write(0, ApicRegister.LvtTimer, ApicVm.Masked);
        vm.Write(0, ApicRegister.InitialCount, ~0u);
        Assert.That(vm.Read(0, ApicRegister.InitialCount), Is.EqualTo(~0u));
        vm.Write(0, ApicRegister.Icr, 0x00003bff);
        Assert.That(vm.Read(0, ApicRegister.Icr), Is.EqualTo(0x00002bff), "never busy");
    }

    [Test]
    public void OnlyWholeRegistersAreWrittenAndAnyPartIsRead()
    {
        using ApicVm vm = new(0);
        ref var vcpu = ref vm[0];
        vm.Write(0, ApicRegister.Tpr, 0x35);
        foreach (uint offset in (uint[])[0x81, 0x84, 0x8c, 0x7f, 0x480, 0xff0])
            Lapics.Write(ref vcpu, offset, [0x11, 0, 0, 0]);
        Lapics.Write(ref vcpu, 0x80, [0x11]);
        Lapics.Write(ref vcpu, 0x80, [0x11, 0]);
        Lapics.Write(ref vcpu, 0x80, [0x11, 0, 0, 0, 0, 0, 0, 0]);
        Assert.That(vm.Read(0, ApicRegister.Tpr), Is.EqualTo(0x35));

        vm.Write(0, ApicRegister.Dfr, 0);
        for (uint offset = 0; offset < 0x1000; offset++)
        {
            for (int length = 1; length <= 8; length++)
            {
                byte[] data = new byte[length];
                Array.Fill(data, (byte)0xee);
                Lapics.Read(ref vcpu, offset, data);
                for (int i = 0; i < length; i++)
                {
                    uint at = offset + (uint)i;
                    if (at / 16 != offset / 16 || at % 16 > 3 || offset >= 0x400)
                        Assert.That(data[i], Is.Zero);
                    else if (at / 16 == ApicRegister.Dfr)
                        Assert.That(data[i], Is.EqualTo(at % 16 == 3 ? 0x0f : 0xff));
                }
            }
        }
    }

    [Test]
    public void ErrorsShowAfterAWriteToTheStatusRegister()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.Icr, 0x4000f);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.Zero);
        vm.Write(0, ApicRegister.Esr, 0);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.EqualTo(SendIllegalVector));
        Assert.That(vm.Send(0, 0x0f), Is.Zero);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.EqualTo(SendIllegalVector));
        vm.Write(0, ApicRegister.Esr, ~0u);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.EqualTo(ReceiveIllegalVector));
        vm.Write(0, ApicRegister.Esr, 0);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.Zero);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        Assert.That(vm.Read(0, ApicRegister.Irr), Is.Zero);
    }

    [Test]
    public void TheFirstErrorInterrupts()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.LvtError, 0xe3);
        vm.Send(0, 3);
        Assert.That(vm.Take(0), Is.EqualTo(0xe3));
        vm.Write(0, ApicRegister.Eoi, 0);
        vm.Write(0, ApicRegister.Icr, 0x40003);
        Assert.That(vm.Take(0), Is.EqualTo(-1));
        vm.Write(0, ApicRegister.Esr, 0);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.EqualTo(SendIllegalVector | ReceiveIllegalVector));
        vm.Write(0, ApicRegister.Icr, 0x40003);
        Assert.That(vm.Take(0), Is.EqualTo(0xe3));
    }

    [Test]
    public void AnErrorInterruptWithAnIllegalVectorIsTheLast()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.LvtError, 5);
        vm.Send(0, 3);
        vm.Write(0, ApicRegister.Esr, 0);
        Assert.That(vm.Read(0, ApicRegister.Esr), Is.EqualTo(ReceiveIllegalVector));
        Assert.That(vm.Take(0), Is.EqualTo(-1));
    }

    [TestCase(0x10000u, VcpuRequests.None, TestName = "Masked")]
    [TestCase(0x10400u, VcpuRequests.None, TestName = "Masked NMI")]
    [TestCase(0x00400u, VcpuRequests.Nmi, TestName = "NMI")]
    [TestCase(0x00090u, VcpuRequests.Event, TestName = "Fixed")]
    [TestCase(0x00700u, VcpuRequests.Event, TestName = "ExtINT")]
    [TestCase(0x00200u, VcpuRequests.None, TestName = "SMI")]
    public void AnEntryOfTheVectorTable(uint entry, VcpuRequests expected)
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.Lint1, entry);
        ApicBus.SendLocal(ref vm[0], ApicRegister.Lint1);
        Assert.That(vm.TakeRequests(0), Is.EqualTo(expected));
        Assert.That(vm.TakeKicks(), Has.Length.EqualTo(expected == VcpuRequests.None ? 0 : 1));
        Assert.That(vm.Take(0), Is.EqualTo(entry == 0x90 ? 0x90 : -1));
    }

    [Test]
    public void ThePicReachesTheBootCpuThroughLint0()
    {
        using ApicVm vm = new(0, 1);
        Assert.That(ApicBus.AcceptsPic(ref vm[1]), Is.False);
        foreach ((uint entry, bool accepted) in ((uint, bool)[])[(0x700, true), (0x2720, true), (0x10700, false),
            (0x400, false), (0x31, false)])
        {
            vm.Write(0, ApicRegister.Lint0, entry);
            Assert.That(ApicBus.AcceptsPic(ref vm[0]), Is.EqualTo(accepted), $"LINT0 {entry:x}");
        }
        foreach (uint id in vm.Ids)
            Assert.That(vm.TrySetMode(id, ApicMode.Disabled), Is.True);
        Assert.That(ApicBus.AcceptsPic(ref vm[0]), Is.True);
        Assert.That(ApicBus.AcceptsPic(ref vm[1]), Is.False);
    }
}
