// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm.Harness;

[TestFixture]
public sealed class KtapTests
{
    [Test]
    public void AllKindsOfResults()
    {
        IReadOnlyList<KtapCase> cases = Ktap.Parse(
        [
            "KTAP version 1", "1..4", "ok 1 io/out", "# expected 5", "# got 6",
            "not ok 2 io/in # wrong value: 5", "ok 3 - msr/x # SKIP no such CPU", "not ok 4 a/b",
        ]);
        Assert.That(cases.Select(found => (found.Name, found.Outcome, found.Reason)), Is.EqualTo(new[]
        {
            ("io/out", KtapOutcome.Passed, ""),
            ("io/in", KtapOutcome.Failed, "wrong value: 5"),
            ("msr/x", KtapOutcome.Skipped, "no such CPU"),
            ("a/b", KtapOutcome.Failed, ""),
        }));
        Assert.That(cases[1].Diagnostics, Is.EqualTo((string[])["# expected 5", "# got 6"]));
    }

    [TestCase("ok")]
    [TestCase("ok io/out")]
    [TestCase("okay 1 io/out")]
    [TestCase(" ok 1 nested")]
    [TestCase("not ok")]
    [TestCase("Segmentation fault")]
    public void OtherLinesAreNoResults(string line) => Assert.That(Ktap.Parse([line]), Is.Empty);

    [Test]
    public void SkipOfFailureIsFailure() =>
        Assert.That(Ktap.Parse(["not ok 1 a/b # SKIP it"])[0].Outcome, Is.EqualTo(KtapOutcome.Failed));
}
