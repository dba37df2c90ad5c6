// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>A guest's memory is memory of Linux's: swapped, merged, given back, and what it kills for.</summary>
public abstract class OverCommitFixture(Hypervisor hypervisor)
{
    private GuestSqueezes run = null!;

    [OneTimeSetUp]
    public void Squeeze() => run = GuestSqueezes.Run($"squeezes-{hypervisor.Name}", hypervisor);

    [Test]
    public void RunEndsWellAndItsLogIsClean() => Assert.That(run.Machine.Succeeded, Is.True, run.Machine.Describe());

    [Test]
    public void GuestsLiveAndTheirMemoryIsRight([Values] Squeeze way)
    {
        TestContext.Out.WriteLine(string.Join('\n', run.Messages(way)));
        Assert.That(run.Faults(way), Is.Empty);
    }

    [Test]
    public void WhatGoesToSwapComesBack()
    {
        Assert.That(run.Numbers(Lab.Squeeze.Swapped, "swapped"), Has.One.Items.And.All.GreaterThan(16));
        Assert.That(run.Numbers(Lab.Squeeze.Swapped, "pgmajfault"), Has.One.Items.And.All.GreaterThan(500));
    }

    [Test]
    public void EqualPagesAreMergedAndUnmerged()
    {
        Assert.That(run.Numbers(Lab.Squeeze.Merged, "sharing"), Has.One.Items.And.All.GreaterThan(6000));
        Assert.That(run.Numbers(Lab.Squeeze.Merged, "unmerged"), Is.EqualTo((int[])[0]));
    }

    [Test]
    public void BalloonGivesMemoryBack()
    {
        int[] resident = run.Numbers(Lab.Squeeze.Ballooned, "resident");
        Assert.That(resident, Has.Length.EqualTo(2));
        Assert.That(resident[0] - resident[1], Is.GreaterThan(56));
    }

    [Test]
    public void LinuxKillsTheOneThatIsTooLarge() =>
        // 128 + SIGKILL; the group's count of kills.
        Assert.That(run.Numbers(Lab.Squeeze.Killed, "victim"), Is.EqualTo((int[])[137, 1]));
}

/// <summary>On the project's module.</summary>
[TestFixture, Category(Tier.Full)]
public sealed class OverCommitOnSharpKvm() : OverCommitFixture(Hypervisor.SharpKvm);

/// <summary>On Linux's own KVM.</summary>
[TestFixture, Category(Tier.Full)]
public sealed class OverCommitOnStockKvm() : OverCommitFixture(Hypervisor.Stock);
