// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>Debian's unmodified QEMU boots Debian's unmodified kernel to user space, as <c>make run</c> does.</summary>
[TestFixture]
public sealed class GuestBootTests
{
    [Test]
    public void LinuxBootsOnSharpKvm() => Boot("guest-sharpkvm", Repository.PathOf("kmod", "sharpkvm.ko"));

    [Test, Category(Tier.Full)]
    public void LinuxBootsOnStockKvm() => Boot("guest-stock", module: null);

    private static void Boot(string name, string? module)
    {
        L1Result result = L1Machine.Run(new GuestBoot { Name = name, Module = module }.ToOptions());
        IReadOnlyList<string> console = GuestBoot.GuestConsole(result);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(GuestBoot.GuestUname(result), Does.StartWith("Linux guest "), result.Describe());
            Assert.That(result.Succeeded, Is.True, result.Describe());
            Assert.That(KernelLog.Scan(console).Select(report => report.Title), Is.Empty, "the guest's own kernel log");
        }
    }
}
