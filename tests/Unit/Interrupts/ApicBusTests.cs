// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Interrupts;

namespace SharpKvm.Tests.Interrupts;

/// <summary>Who gets a message, and what it does to them.</summary>
[TestFixture]
internal sealed class ApicBusTests
{
    private const byte Vector = 0x55;
    private const uint Logical = 1 << 11, Self = 1 << 18, All = 2 << 18, Others = 3 << 18, LowestPriority = 1 << 8;
    private const uint Nmi = 4 << 8, Init = 5 << 8, StartUp = 6 << 8, Assert_ = 1 << 14, LevelTriggered = 1 << 15;

    [Test]
    public void APhysicalDestinationIsAnId()
    {
        using ApicVm vm = new(0, 1, 2, 7);
        Assert.That(vm.Send(2, Vector), Is.EqualTo(1));
        Assert.That(vm.TakeKicks(), Is.EqualTo((uint[])[2]));
        Assert.That(vm.TakeRequests(2), Is.EqualTo(VcpuRequests.Event));
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[2]));
        Ipi(vm, 1, Vector, 7);
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[7]));
    }

    [TestCase(3u), TestCase(6u), TestCase(8u), TestCase(254u), TestCase(1023u), TestCase(1024u), TestCase(0xfffffffeu)]
    public void NobodyIsThere(uint destination)
    {
        using ApicVm vm = new(0, 1, 2, 7);
        Assert.That(vm.Send(destination, Vector), Is.Zero);
        Assert.That(vm.Send(destination, Vector, wide: true), Is.Zero);
        Assert.That(vm.Send(destination, 0, DeliveryMode.StartUp, wide: true), Is.Zero);
        vm.EnterX2apic(0);
        vm.WriteMsr(0, ApicRegister.Icr, (ulong)destination << 32 | Vector);
        Assert.That(vm.Receivers(Vector), Is.Empty);
        Assert.That(vm.TakeKicks(), Is.Empty);
    }

    /// <summary>Every 32-bit destination of x2APIC's ICR is harmless, those of ids that are not there too.</summary>
    [Test]
    public void OddDestinationsReachExactlyWhomTheyName()
    {
        uint[] ids = [0, 1, 15, 16, 17, 200, 1023];
        using ApicVm vm = new(ids);
        vm.EnterX2apic(ids);
        foreach (uint cluster in (uint[])[0, 1, 2, 12, 62, 63, 64, 0x7fff, 0xfffe, 0xffff])
        {
            foreach (uint bits in (uint[])[0, 1, 2, 3, 0x100, 0x8000, 0x8001, 0xaaaa, 0xfffe, 0xffff])
            {
                uint destination = cluster << 16 | bits;
                if (destination == uint.MaxValue)
                    continue;
                uint[] expected = [.. ids.Where(id => id / 16 == cluster && (bits >> (int)(id % 16) & 1) != 0)];
                vm.WriteMsr(0, ApicRegister.Icr, (ulong)destination << 32 | Logical | Vector);
                Assert.That(vm.Receivers(Vector), Is.EqualTo(expected), $"destination {destination:x}");
            }
        }
    }

    [TestCase(0x01u, new uint[] { 0 }), TestCase(0x0au, new uint[] { 1, 3 }), TestCase(0x40u, new uint[0])]
    [TestCase(0x80u, new uint[] { 5 }), TestCase(0x00u, new uint[0]), TestCase(0xffu, new uint[] { 0, 1, 2, 3, 5 })]
    public void FlatLogicalDestinationsAreBits(uint destination, uint[] expected)
    {
        using ApicVm vm = new(0, 1, 2, 3, 5);
        foreach ((uint id, uint logical) in ((uint, uint)[])[(0, 1), (1, 2), (2, 4), (3, 8), (5, 0x80)])
            vm.Write(id, ApicRegister.Ldr, logical << 24);
        Assert.That(vm.Send(destination, Vector, logical: true), Is.EqualTo(expected.Length));
        Assert.That(vm.Receivers(Vector), Is.EqualTo(expected));
        Ipi(vm, 0, Logical | Vector, destination);
        Assert.That(vm.Receivers(Vector), Is.EqualTo(expected));
    }

    [TestCase(0x11u, new uint[] { 0 }), TestCase(0x12u, new uint[] { 1 }), TestCase(0x13u, new uint[] { 0, 1 })]
    [TestCase(0x21u, new uint[] { 2 }), TestCase(0x31u, new uint[0]), TestCase(0x10u, new uint[0])]
    [TestCase(0x18u, new uint[0]), TestCase(0xffu, new uint[] { 0, 1, 2, 3 })]
    public void ClusterLogicalDestinationsAreAClusterAndBits(uint destination, uint[] expected)
    {
        using ApicVm vm = new(0, 1, 2, 3);
        foreach ((uint id, uint logical) in ((uint, uint)[])[(0, 0x11), (1, 0x12), (2, 0x21), (3, 0)])
        {
            vm.Write(id, ApicRegister.Dfr, 0);
            vm.Write(id, ApicRegister.Ldr, logical << 24);
        }
        vm.Send(destination, Vector, logical: true);
        Assert.That(vm.Receivers(Vector), Is.EqualTo(expected));
    }

    [Test]
    public void OtherModelsMatchNothing()
    {
        using ApicVm vm = new(0);
        vm.Write(0, ApicRegister.Dfr, 0x50000000);
        vm.Write(0, ApicRegister.Ldr, 0x11000000);
        Assert.That(vm.Send(0x11, Vector, logical: true), Is.Zero);
    }

    [Test]
    public void X2apicLogicalIdsFollowFromTheId()
    {
        using ApicVm vm = new(0, 5, 0x2f, 0x3ff);
        vm.EnterX2apic(0, 5, 0x2f, 0x3ff);
        Assert.That(vm.ReadMsr(0x2f, ApicRegister.Ldr), Is.EqualTo(0x28000));
        Assert.That(vm.ReadMsr(0x3ff, ApicRegister.Ldr), Is.EqualTo(0x3f8000));
        Assert.That(vm.Send(0x00028000, Vector, logical: true, wide: true), Is.EqualTo(1));
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0x2f]));
        Assert.That(vm.Send(0x21, Vector, logical: true), Is.EqualTo(2), "eight bits are those of cluster 0");
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0, 5]));
    }

    [Test]
    public void ABroadcastReachesAll([Values] bool wide)
    {
        using ApicVm vm = new(0, 1, 300);
        uint all = wide ? uint.MaxValue : 0xff;
        vm.EnterX2apic(1, 300);
        Assert.That(vm.Send(all, Vector, wide: wide), Is.EqualTo(3));
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0, 1, 300]));
        Assert.That(vm.Send(all, Vector, wide: wide, logical: true), Is.EqualTo(3));
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0, 1, 300]));
    }

    /// <summary>KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.</summary>
    [Test]
    public void WithoutTheQuirk255IsAnIdForX2apicCpus()
    {
        using ApicVm vm = new(0, 1, 7, 8, 255);
        vm.EnterX2apic(1, 7, 8, 255);
        vm.Vm.Irqchip.NoBroadcastQuirk = true;
        vm.Send(0xff, Vector);
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0, 255]), "0 is in xAPIC mode");
        vm.Send(0xff, Vector, logical: true);
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0, 1, 7]));
        vm.Send(uint.MaxValue, Vector, wide: true);
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[0, 1, 7, 8, 255]));
    }

    [Test]
    public void AnX2apicIpiTo255IsForThatIdOnly()
    {
        using ApicVm vm = new(0, 1, 255);
        vm.EnterX2apic(0, 1, 255);
        vm.WriteMsr(0, ApicRegister.Icr, 0xffUL << 32 | Vector);
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[255]));
    }

    [TestCase(Self, new uint[] { 1 }), TestCase(All, new uint[] { 0, 1, 2 }), TestCase(Others, new uint[] { 0, 2 })]
    public void ShorthandsNeedNoDestination(uint shorthand, uint[] expected)
    {
        using ApicVm vm = new(0, 1, 2);
        Ipi(vm, 1, shorthand | Vector, 0x77);
        Assert.That(vm.TakeKicks(), Is.EqualTo(expected.Where(id => id != 1)), "the sender needs no kick");
        foreach (uint id in expected)
            Assert.That(vm.TakeRequests(id), Is.EqualTo(VcpuRequests.Event));
        Assert.That(vm.Receivers(Vector), Is.EqualTo(expected));
    }

    [Test]
    public void SelfIpi()
    {
        using ApicVm vm = new(0, 1);
        vm.EnterX2apic(1);
        vm.WriteMsr(1, ApicRegister.SelfIpi, Vector);
        Assert.That(vm.TakeKicks(), Is.Empty);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.Event));
        Assert.That(vm.Take(1), Is.EqualTo(Vector));
        Ipi(vm, 0, Vector, 0);
        Assert.That(vm.TakeKicks(), Is.Empty);
        Assert.That(vm.Take(0), Is.EqualTo(Vector));
    }

    [Test]
    public void TheLowestPriorityGoesRound([Values] bool logical)
    {
        using ApicVm vm = new(0, 1, 2, 3, 9);
        vm.Write(2, ApicRegister.Svr, 0xff);
        foreach (uint id in vm.Ids)
            vm.Write(id, ApicRegister.Ldr, id < 4 ? 1u << (int)id << 24 : 0x80000000);
        List<uint> order = [];
        for (int i = 0; i < 8; i++)
        {
            uint destination = logical ? 0x0fu : 0xff;
            Assert.That(vm.Send(destination, Vector, DeliveryMode.LowestPriority, logical), Is.EqualTo(1));
            order.Add(vm.Receivers(Vector).Single());
        }
        Assert.That(order, Is.EqualTo(logical
            ? (uint[])[1, 3, 0, 1, 3, 0, 1, 3] : [1, 3, 9, 0, 1, 3, 9, 0]), "2 is disabled");
        Ipi(vm, 0, Logical | LowestPriority | Vector, 0x02);
        Assert.That(vm.Receivers(Vector), Is.EqualTo((uint[])[1]));
        Assert.That(vm.Send(2, Vector, DeliveryMode.LowestPriority), Is.Zero);
    }

    [Test]
    public void ADisabledApicTakesNothing()
    {
        using ApicVm vm = new(0, 1);
        Assert.That(vm.TrySetMode(1, ApicMode.Disabled), Is.True);
        foreach (DeliveryMode mode in Enum.GetValues<DeliveryMode>())
        {
            Assert.That(vm.Send(1, Vector, mode), Is.Zero, $"{mode}");
            Ipi(vm, 0, (uint)mode << 8 | All | Vector, 0);
            Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.None), $"{mode}");
        }
        Assert.That(vm.Take(1), Is.EqualTo(-1));
        Assert.That(vm.TakeKicks(), Is.Empty);
    }

    [Test]
    public void NmiInitAndStartUpAreRequests()
    {
        using ApicVm vm = new(0, 1);
        Ipi(vm, 0, Nmi, 1);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.Nmi));
        Ipi(vm, 0, Init | Assert_ | LevelTriggered, 1);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.Init));
        Ipi(vm, 0, Init | LevelTriggered, 1);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.None), "de-assertion");
        Ipi(vm, 0, StartUp | 0x9a, 1);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.StartUp));
        Assert.That(vm[1].Apic.StartUpVector, Is.EqualTo(0x9a));
        Assert.That(vm.TakeKicks(), Is.EqualTo((uint[])[1, 1, 1]));

        Ipi(vm, 0, StartUp | 0x9a, 1);
        Ipi(vm, 0, Init | Assert_, 1);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.Init), "forgets what came before");
        Ipi(vm, 0, Init | Assert_, 1);
        Ipi(vm, 0, StartUp | 0x9b, 1);
        Assert.That(vm.TakeRequests(1), Is.EqualTo(VcpuRequests.Init | VcpuRequests.StartUp));
    }

    [Test]
    public void ExtIntComesFromChipsOnly()
    {
        using ApicVm vm = new(0);
        Assert.That(vm.Send(0, 0, DeliveryMode.ExtInt), Is.EqualTo(1));
        Assert.That(vm.TakeRequests(0), Is.EqualTo(VcpuRequests.Event));
        foreach (uint mode in (uint[])[2, 3, 7])
        {
            Ipi(vm, 0, mode << 8 | Self | Vector, 0);
            Assert.That(vm.TakeRequests(0), Is.EqualTo(VcpuRequests.None), $"mode {mode}");
        }
        Assert.That(vm.Take(0), Is.EqualTo(-1));
    }

    [Test]
    public void IpisAreEdgeTriggered()
    {
        using ApicVm vm = new(0, 1);
        Ipi(vm, 0, LevelTriggered | Vector, 1);
        Assert.That(vm.Irr(1, Vector), Is.True);
        Assert.That(vm.Tmr(1, Vector), Is.False);
    }

    [Test]
    public void TheUpperHalfOfIcrSendsNothing()
    {
        using ApicVm vm = new(0, 1);
        vm.Write(0, ApicRegister.Icr, Vector);
        vm.Receivers(Vector);
        vm.Write(0, ApicRegister.IcrHigh, 1u << 24);
        Assert.That(vm.Receivers(Vector), Is.Empty);
    }

    [TestCase(0xfee01000u, 0x4031u, "1 Fixed 31")]
    [TestCase(0xfee0500cu, 0xc131u, "5 logical LowestPriority 31 level")]
    [TestCase(0xfee05008u, 0x0031u, "5 LowestPriority 31")]
    [TestCase(0xfee05008u, 0x0431u, "5 Nmi 31")]
    [TestCase(0xfeeff004u, 0x8700u, "ff logical ExtInt 0 level")]
    [TestCase(0xfee00010u, 0x0031u, null)]
    public void AnMsiIsAMessage(uint address, uint data, string? expected)
    {
        foreach (bool wide in (bool[])[false, true])
        {
            bool decoded = ApicBus.TryDecodeMsi(address, data, wide, out InterruptMessage message);
            Assert.That(decoded ? Describe(message) : null, Is.EqualTo(expected));
        }
    }

    [Test]
    public void WideMsisHaveTheRestOfTheDestinationAbove()
    {
        const ulong Address = 0x00012300_fee45000;
        Assert.That(ApicBus.TryDecodeMsi(Address, Vector, wide: true, out InterruptMessage message), Is.True);
        Assert.That((message.Destination, message.Wide), Is.EqualTo((0x12345u, true)));
        Assert.That(ApicBus.TryDecodeMsi(Address, Vector, wide: false, out message), Is.True);
        Assert.That((message.Destination, message.Wide), Is.EqualTo((0x45u, false)));
        Assert.That(ApicBus.TryDecodeMsi(0x1_fee45000, Vector, wide: true, out _), Is.False);
        Assert.That(ApicBus.TryDecodeMsi(0x1_fee45000, Vector, wide: false, out _), Is.True);
        Assert.That(ApicBus.TryDecodeMsi(0xffffff00_feeff000, Vector, wide: true, out message), Is.True);
        Assert.That((message.Destination, message.Wide), Is.EqualTo((uint.MaxValue, true)));
    }

    /// <summary>A broadcast from the chips' lock: no lock, no allocation, no sleep.</summary>
    [Test]
    public void DeliveryIsAllowedAnywhere()
    {
        using ApicVm vm = new(0, 1);
        vm.Vm.Host.LockIrq();
        vm.Vm.Host.LockMmu();
        int allocations = vm.Host.Allocations;
        foreach (DeliveryMode mode in Enum.GetValues<DeliveryMode>())
            vm.Send(0xff, Vector, mode);
        Assert.That(vm.Host.Allocations, Is.EqualTo(allocations));
        vm.Vm.Host.UnlockMmu();
        vm.Vm.Host.UnlockIrq();
    }

    private static string Describe(InterruptMessage message) =>
        $"{message.Destination:x}{(message.Logical ? " logical" : "")} {message.Mode} {message.Vector.Value:x}"
        + (message.Level ? " level" : "") + (message.Wide ? " wide" : "");

    private static void Ipi(ApicVm vm, uint sender, uint icr, uint destination)
    {
        vm.Write(sender, ApicRegister.IcrHigh, destination << 24);
        vm.Write(sender, ApicRegister.Icr, icr);
    }
}
