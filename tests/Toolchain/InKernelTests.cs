// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>The toolchain's output in a kernel, in one boot of L1: the random functions, every kind of trap.</summary>
[TestFixture]
public sealed class InKernelTests
{
    private L1Result run = null!;

    [OneTimeSetUp]
    public void Boot()
    {
        Ilpatch.RequireMake("tests/Toolchain/Batch");
        Ilpatch.RequireMake("tests/Toolchain/Traps");
        run = L1Machine.Run(new L1Options
        {
            Name = "toolchain",
            ExpectedReports = ["^traps: "],
            Script = $"""
                cd '{Repository.PathOf("tests", "Toolchain")}'
                echo ::batch; insmod Batch/batch.ko && rmmod batch && echo done
                echo ::traps; insmod Traps/traps.ko && rmmod traps && echo done
                """,
        });
    }

    [Test]
    public void RunEndsWell() => Assert.That(run.Succeeded, Is.True, run.Describe());

    [Test]
    public void RandomFunctionsAgreeWithDotNet()
    {
        string reference = Ilpatch.RequireMake("tests/Toolchain/Batch", "reference").Trim().Split('\n')[^1];
        Assert.That(Log(), Has.Member(reference));
    }

    [Test]
    public void EveryTrapComesBackAsAnError()
        => Assert.That(Log().Where(line => line.StartsWith("traps: ", StringComparison.Ordinal)),
            Has.Some.Match("^traps: [0-9]{5} passed, 0 failed$"));

    [Test]
    public void LibraryWritesToTheLog() => Assert.That(Log(), Has.Member("traps: a line of the core's (0x2a)"));

    private IEnumerable<string> Log() => run.KernelLog.Select(KernelLog.WithoutTime);
}
