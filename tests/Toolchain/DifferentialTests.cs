// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace Toolchain;

/// <summary>Random functions as ordinary .NET and as the toolchain's output in a process: the same results, the same
/// traps, the same memory. (The in-VM tests run the same batch as a kernel module.)</summary>
[TestFixture]
public sealed partial class DifferentialTests
{
    private const string Batch = "tests/Toolchain/Batch";

    [Test]
    public void ProcessAgreesWithDotNet()
    {
        Match compiled = Result().Match(Ilpatch.RequireMake(Batch, "user"));
        Match reference = Result().Match(Ilpatch.RequireMake(Batch, "reference"));
        Assert.That(int.Parse(compiled.Groups[1].Value), Is.GreaterThanOrEqualTo(500));
        Assert.That(compiled.Value, Is.EqualTo(reference.Value),
            "compare build/modules/batch/user -v with Reference -v to find the function");
    }

    [GeneratedRegex(@"^batch: (\d+) functions, checksum [0-9a-f]{16}$", RegexOptions.Multiline)]
    private static partial Regex Result();
}
