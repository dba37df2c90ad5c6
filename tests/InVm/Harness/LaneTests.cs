// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm.Harness;

/// <summary>The lanes with VMX: L1 in another emulator does what it does in QEMU.</summary>
[TestFixture]
public sealed class LaneTests
{
    [Test]
    public void UnknownNameIsRefusedWithThoseThatThereAre() => Assert.That(
        () => Lane.Named("svm"), Throws.InstanceOf<LabException>().With.Message.Contains("vmx-ept"));

    [TestCase("vmx-ept", "Y"), TestCase("vmx-shadow", "N"), Category(Tier.Full)]
    public void JobRunsWithVmxOnTheFilesThatItBrings(string name, string hasEpt)
    {
        string file = Path.Combine(Repository.Folder("lab"), $"lane-{Environment.ProcessId}");
        File.WriteAllText(file, "brought along\n");
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = $"harness-{name}",
            Lane = Lane.Named(name),
            Files = [file],
            Script = $"""
                modprobe kvm-intel
                cat /sys/module/kvm_intel/parameters/ept
                cat '{file}'
                uname -r
                echo file > /job/result
                exit 3
                """,
        });
        File.Delete(file);
        Assert.That(result.End, Is.EqualTo(L1End.Completed), result.Describe());
        Assert.That(result.ExitStatus, Is.EqualTo(3));
        Assert.That(result.Output, Is.EqualTo((string[])[hasEpt, "brought along", L1Kernel.Default.Version]));
        Assert.That(File.ReadAllText(Path.Combine(result.JobFolder, "result")), Is.EqualTo("file\n"));
        Assert.That(result.KernelLog, Has.Some.Contains("Linux version"));
        Assert.That(result.Reports, Is.Empty);
    }

    [Test, Category(Tier.Full)]
    public void PanicEndsTheRunAndIsReported()
    {
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = "harness-vmx-panic",
            Lane = Lane.VmxEpt,
            Script = "echo before; echo c > /proc/sysrq-trigger; sleep 60",
        });
        Assert.That(result.End, Is.EqualTo(L1End.Died), result.Describe());
        Assert.That(result.Output, Has.Some.EqualTo("before"));
        Assert.That(result.Reports.Select(report => report.Title), Has.Some.Contains("Kernel panic"));
    }

    [Test, Category(Tier.Full)]
    public void HangEndsAtTheLimitWithTheProcessorsState()
    {
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = "harness-vmx-hang",
            Lane = Lane.VmxEpt,
            Script = "echo begin; while :; do :; done",
            Timeout = TimeSpan.FromSeconds(2),
        });
        Assert.That(result.End, Is.EqualTo(L1End.TimedOut), result.Describe());
        Assert.That(result.Output, Has.Some.EqualTo("begin"));
        Assert.That(File.ReadAllText(result.LogPath), Does.Contain("RIP="));
    }
}
