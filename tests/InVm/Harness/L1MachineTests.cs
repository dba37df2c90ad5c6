// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm.Harness;

/// <summary>L1 itself: what a job says comes back, and whatever happens, the run ends and says so.</summary>
[TestFixture]
public sealed class L1MachineTests
{
    [Test]
    public void JobRunsOnHostFilesWithSvm()
    {
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = "harness-job",
            Script = """
                grep -qw svm /proc/cpuinfo && echo svm
                uname -r
                echo to stderr >&2
                echo file > /job/result
                echo thrown away > "$LAB_ROOT/build/harness-leaves-no-trace"
                ls "$LAB_ROOT/Kernel.sln"
                exit 3
                """,
        });
        Assert.That(result.End, Is.EqualTo(L1End.Completed), result.Describe());
        Assert.That(result.ExitStatus, Is.EqualTo(3));
        Assert.That(result.Succeeded, Is.False);
        Assert.That(result.Output, Is.EqualTo((string[])
        [
            "svm", L1Kernel.Default.Version, "to stderr", Repository.PathOf("Kernel.sln"),
        ]));
        Assert.That(File.ReadAllText(Path.Combine(result.JobFolder, "result")), Is.EqualTo("file\n"));
        Assert.That(File.Exists(Repository.PathOf("build", "harness-leaves-no-trace")), Is.False);
        Assert.That(result.KernelLog, Has.Some.Contains("Linux version"));
        Assert.That(result.Reports, Is.Empty);
    }

    [Test]
    public void PanicEndsTheRunAndIsReported()
    {
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = "harness-panic",
            Script = "echo before; echo c > /proc/sysrq-trigger; sleep 60",
        });
        Assert.That(result.End, Is.EqualTo(L1End.Died), result.Describe());
        Assert.That(result.Output, Has.Some.EqualTo("before"));
        Assert.That(result.Reports.Select(report => report.Title), Has.Some.Contains("Kernel panic"));
        Assert.That(result.Describe(), Does.Contain("sysrq triggered crash"));
    }

    [Test]
    public void HangEndsAtTheLimitWithBacktraces()
    {
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = "harness-hang",
            Script = "echo begin; sleep 1000",
            Timeout = TimeSpan.FromSeconds(40),
        });
        Assert.That(result.End, Is.EqualTo(L1End.TimedOut), result.Describe());
        Assert.That(result.Output, Has.Some.EqualTo("begin"));
        Assert.That(File.ReadAllText(result.LogPath), Does.Contain("Show backtrace of all active CPUs"));
        Assert.That(result.Reports, Is.Empty, "the backtraces that the lab asked for are no report");
    }
}
