// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>A minute of everything that can happen to guest memory; the selftests have five seconds of it.</summary>
[TestFixture, Category(Tier.Full)]
public sealed class MemoryStressTests
{
    [Test]
    public void GuestsKeepTheirMemoryForAMinute()
    {
        string module = Repository.PathOf("kmod", "sharpkvm.ko");
        Assert.That(module, Does.Exist, "the module is not built: make");
        L1Result run = L1Machine.Run(new L1Options
        {
            Name = "memory-stress",
            Timeout = TimeSpan.FromMinutes(5),
            Script = $"""
                insmod '{module}' || exit 125
                '{SelftestRun.Program}' --device /dev/sharpkvm --run-one helper/memory_stress || exit 1
                rmmod sharpkvm
                """,
        });
        run.Require();
    }
}
