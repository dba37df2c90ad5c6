// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.InVm.Harness;

/// <summary>What a guest's log tells: trouble is found, and what a reference has, too, is left out.</summary>
[TestFixture]
public sealed class GuestResultTests
{
    private const string Skew =
        "clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable because it is skewed";

    [TestCase(Skew)]
    [TestCase("spurious 8259A interrupt: IRQ7.")]
    [TestCase("hrtimer: interrupt took 12345 ns, ticks lost")]
    [TestCase("CPU 1 is now stuck")]
    [TestCase("Marking TSC unstable due to check_tsc_sync_source failed")]
    public void TroubleIsFound(string line) =>
        Assert.That(Result($"[    1.0] {line}").Suspects(), Is.EqualTo((string[])[line]));

    [TestCase("tsc: Marking TSC unstable due to TSCs unsynchronized")]
    [TestCase("clocksource: Switched to clocksource kvm-clock")]
    [TestCase("almost there")]
    public void HarmlessLineIsNot(string line) => Assert.That(Result($"[    1.0] {line}").Suspects(), Is.Empty);

    [Test]
    public void LineOfTheReferenceIsLeftOut()
    {
        GuestResult reference = Result("[    1.0] spurious interrupt 0x1f on CPU1", "[    1.2] quiet");
        Assert.That(Result("[    7.5] spurious interrupt 0x2e on CPU0").Suspects(reference), Is.Empty);
        Assert.That(Result("[    7.5] spurious interrupt on CPU0").Suspects(reference), Has.One.Items);
        Assert.That(Result("[    7.5] lost interrupt 0x2e on CPU0").Suspects(reference), Has.One.Items);
    }

    [Test]
    public void UnameCountsWhenTheGuestCameToItsEnd()
    {
        const string uname = "Linux guest 6.1.0";
        Assert.That((Result() with { Console = [uname] }).Uname, Is.Null);
        Assert.That((Result() with { Console = [uname, GuestBoot.LastWord] }).Uname, Is.EqualTo(uname));
    }

    [Test]
    public void AnswerIsWhatStandsBehindTheQuestion()
    {
        GuestResult result = Result() with { Console = ["the disk: a", "disk: b", "disk: c"] };
        Assert.That(result.Answer("disk"), Is.EqualTo("b"));
        Assert.That(result.Answer("tape"), Is.Null);
    }

    private static GuestResult Result(params string[] kernelLog) => new()
    {
        Machine = null!,
        Console = [],
        KernelLog = kernelLog,
        Status = 0,
        Duration = TimeSpan.Zero,
        Messages = [],
        Reports = [],
        LogPath = "",
    };
}
