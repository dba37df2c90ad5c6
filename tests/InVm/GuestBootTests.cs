// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>
/// Debian's unmodified QEMU boots Debian's unmodified kernel to user space, which uses its disk, networks and random
/// numbers, and powers off.
/// </summary>
[TestFixture]
public sealed class GuestBootTests
{
    private static IEnumerable<TestCaseData> Short => GuestMatrix.Short.Select(ToCase);

    private static IEnumerable<TestCaseData> All => GuestMatrix.All.Select(ToCase);

    [TestCaseSource(nameof(Short))]
    public void LinuxBoots(GuestBoot guest)
    {
        GuestResult result = GuestMatrix.On(Hypervisor.SharpKvm, guest);
        // Only a guest with something to explain is worth a boot of the reference. On a debug kernel each has: CPUs are
        // slow enough there for complaints about clocks, whatever the hypervisor.
        GuestResult? reference = result.Suspects().Count == 0 ? null
            : L1Kernel.Default.IsDebug ? result
            : GuestMatrix.On(Hypervisor.Stock, guest);
        Check(guest, result, reference);
    }

    [Test]
    public void LinuxBootsOnShadowTables()
    {
        // Each page that the guest touches first is an exit more.
        GuestBoot guest = GuestMatrix.Short.First(guest => guest.Cpus == 2) with { Limit = TimeSpan.FromMinutes(8) };
        GuestResult result =
            GuestRun.Boot("guest-on-shadow-tables", Hypervisor.SharpKvmWithShadowTables, [guest])[guest];
        Check(guest, result, reference: result);
    }

    [TestCaseSource(nameof(All)), Category(Tier.Full)]
    public void LinuxBootsLikeOnStockKvm(GuestBoot guest) =>
        Check(guest, GuestMatrix.On(Hypervisor.SharpKvm, guest), GuestMatrix.On(Hypervisor.Stock, guest));

    [TestCaseSource(nameof(All)), Category(Tier.Full)]
    public void LinuxBootsOnStockKvm(GuestBoot guest)
    {
        GuestResult stock = GuestMatrix.On(Hypervisor.Stock, guest);
        Check(guest, stock, reference: stock);
    }

    /// <summary>On an emulated processor of Intel's, which has one CPU and takes longer.</summary>
    [TestCase("vmx-ept"), TestCase("vmx-shadow"), Category(Tier.Vmx), Category(Tier.Full)]
    public void LinuxBootsOnVmx(string lane)
    {
        if (Lane.Named(lane).Missing is { } why)
        {
            Assert.Ignore(why);
        }

        var guest = new GuestBoot { Cpus = 1, MemoryMib = 192 };
        var hypervisor = Hypervisor.SharpKvmOn(Lane.Named(lane));
        GuestResult result = GuestRun.Boot($"guest-{hypervisor.Name}", hypervisor, [guest])[guest];
        TestContext.Out.WriteLine($"{result.Duration.TotalSeconds:0.0} s");
        using (Assert.EnterMultipleScope())
        {
            CheckEnd(guest, result);
        }
    }

    private static TestCaseData ToCase(GuestBoot guest) => new TestCaseData(guest).SetArgDisplayNames(guest.Name);

    private static void Check(GuestBoot guest, GuestResult result, GuestResult? reference = null)
    {
        TestContext.Out.WriteLine($"{result.Duration.TotalSeconds:0.0} s");
        using (Assert.EnterMultipleScope())
        {
            CheckEnd(guest, result);
            CheckDevices(result);
            CheckKernelLog(result, reference);
        }
    }

    private static void CheckEnd(GuestBoot guest, GuestResult result)
    {
        Assert.That(result.Uname, Does.StartWith("Linux guest "), result.Describe());
        Assert.That(result.Status, Is.Zero, result.Describe());
        Assert.That(result.Unloaded, Is.True, result.Describe());
        Assert.That(result.Console, Has.Some.EndsWith("reboot: Power down"));
        Assert.That(result.Answer("CPUs that see a hypervisor"), Is.EqualTo($"{guest.Cpus}"));
        Assert.That(Titles(KernelLog.Scan(result.Console)), Is.Empty, "on the guest's console");
        Assert.That(Titles(result.Reports), Is.Empty, "in L1's kernel log");
    }

    private static void CheckDevices(GuestResult result)
    {
        Assert.That(result.Answer("disk"), Does.StartWith(GuestDevices.DiskSum));
        foreach (string network in (string[])["user", "vhost"])
        {
            Assert.That(result.Answer($"{network} received"), Does.StartWith(GuestDevices.PayloadSum));
            Assert.That(result.Answer($"{network} sent"), Does.StartWith(GuestDevices.PayloadSum));
        }

        Assert.That(result.Messages, Has.None.Contains("vhost"), "QEMU does the kernel's part of the network");
        Assert.That(result.Answer("random source"), Does.StartWith("virtio_rng"));
        Assert.That(result.Answer("random"), Does.Match("^[0-9a-f]{128}$").And.Not.Match("^(..)\\1*$"));
    }

    private static void CheckKernelLog(GuestResult result, GuestResult? reference)
    {
        Assert.That(result.KernelLog, Has.Some.Contains("Linux version").And.Some.Contains("Run /init"));
        Assert.That(Titles(KernelLog.Scan(result.KernelLog)), Is.Empty, "in the guest's kernel log");
        Assert.That(result.Suspects(reference), Is.Empty);
    }

    private static IEnumerable<string> Titles(IEnumerable<KernelReport> reports) =>
        reports.Select(report => report.Title);
}
