// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm;

/// <summary>Every case of the selftest program is a case here; one L1 boot per fixture runs them all.</summary>
public abstract class SelftestFixture(SelftestLane lane)
{
    /// <summary>The program's own list.</summary>
    protected static IEnumerable<TestCaseData> Cases =>
        SelftestRun.List().Select(name => new TestCaseData(name).SetArgDisplayNames(name));

    private SelftestRun Run => SelftestRun.On(lane);

    [Test, Order(0)]
    public void ProgramIsBuiltAndLists() =>
        Assert.That(SelftestRun.List(), Is.Not.Empty, $"{SelftestRun.Program} is missing or lists nothing");

    [TestCaseSource(nameof(Cases))]
    public void Case(string name)
    {
        KtapCase result = Run[name];
        foreach (string line in result.Diagnostics)
        {
            TestContext.Out.WriteLine(line);
        }

        switch (result.Outcome)
        {
            case KtapOutcome.Failed:
                Assert.Fail(string.Join('\n', [result.Reason, .. result.Diagnostics]));
                break;
            case KtapOutcome.Skipped:
                Assert.Ignore(result.Reason);
                break;
        }
    }

    [Test]
    public void KernelLogIsClean() =>
        Assert.That(
            Run.Reports().Select(found => $"in {found.Group}: {string.Join('\n', found.Report.Lines)}"), Is.Empty);

    [Test]
    public void MachineCompletesInOneBootAndModuleUnloads()
    {
        Assert.That(Run.Boots.Select(boot => boot.End), Is.EqualTo((L1End[])[L1End.Completed]),
            string.Join('\n', Run.Boots.Select(boot => boot.Describe())));
        Assert.That(Run.Unloaded, Is.True, Run.Boots[0].Describe());
    }
}

/// <summary>On the project's module.</summary>
[TestFixture]
public sealed class SelftestsOnSharpKvm() : SelftestFixture(SelftestLane.SharpKvmOn(Lane.SvmNpt));

/// <summary>On Linux's own KVM: what fails here is wrong in the selftest, not in the module.</summary>
[TestFixture, Category(Tier.Full)]
public sealed class SelftestsOnStockKvm() : SelftestFixture(SelftestLane.StockOn(Lane.SvmNpt));
