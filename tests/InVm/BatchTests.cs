// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>
/// The toolchain's generated functions as a kernel module: the same calls give the same results in the kernel as in an
/// ordinary .NET process.
/// </summary>
[TestFixture]
public sealed class BatchTests
{
    private static readonly string Folder = Repository.PathOf("tests", "Toolchain", "Batch");

    [Test]
    public void KernelAgreesWithDotNet()
    {
        string module = L1Kernel.Default.ModuleBuilt("batch");
        Assert.That(module, Does.Exist, "the batch is not built: make samples");
        string expected = Tool.Require("make", ["-s", "-C", Folder, "reference"]).Trim();
        Assert.That(expected, Does.Match("^batch: [1-9][0-9]* functions, checksum [0-9a-f]+$"));

        L1Result run = L1Machine.Run(new L1Options
        {
            Name = "batch",
            Script = $"insmod '{module}' && rmmod batch",
        });
        Assert.That(run.Succeeded, Is.True, run.Describe());
        Assert.That(run.KernelLog.Select(KernelLog.WithoutTime), Has.Exactly(1).EqualTo(expected));
    }
}
