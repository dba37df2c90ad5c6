// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab.Conformance;

/// <summary>How a program ended.</summary>
public enum KvmSelftestEnd
{
    /// <summary>With 0, and the kernel log is clean.</summary>
    Passed,

    /// <summary>It lacks something that it needs.</summary>
    Skipped,

    /// <summary>With an error, a complaint in the kernel log, or a hypervisor that did not unload.</summary>
    Failed,

    /// <summary>Its time was up.</summary>
    TimedOut,
}

/// <summary>What a program left behind.</summary>
/// <param name="Test">The program.</param>
/// <param name="End">How it ended.</param>
/// <param name="Reason">One line that says why it did not pass; empty when it did.</param>
/// <param name="Duration">From its start to its end; zero when L1 was gone before.</param>
/// <param name="Output">The end of what it printed.</param>
public sealed record KvmSelftestResult(
    KvmSelftest Test, KvmSelftestEnd End, string Reason, TimeSpan Duration, IReadOnlyList<string> Output)
{
    /// <summary>A program says so itself that it is skipped (tools/testing/selftests/kselftest.h).</summary>
    private const int SkipStatus = 4;

    /// <summary>The end of the line that a program prints when it skips a part, or all without saying so.</summary>
    private const string SkippedPart = ", skipping test";

    /// <summary>timeout(1) says so that the time was up: by SIGTERM, or by SIGKILL later.</summary>
    private const int TimeoutStatus = 124, KilledStatus = 137;

    /// <summary>Reads one program's part of an L1 run.</summary>
    /// <param name="test">The program.</param>
    /// <param name="machine">The run.</param>
    /// <param name="reports">What the kernel complained about meanwhile.</param>
    internal static KvmSelftestResult From(
        KvmSelftest test, L1Result machine, IReadOnlyList<KernelReport> reports)
    {
        IReadOnlyList<string> lines = machine.Section(test.Command) ?? [];
        string[] output = [.. lines.Where(line => !line.StartsWith(KvmSelftestRun.Mark, StringComparison.Ordinal))];
        TimeSpan duration = TimeSpan.FromMilliseconds(Number("milliseconds") ?? 0);
        (KvmSelftestEnd end, string reason) = Number("status") switch
        {
            null => (KvmSelftestEnd.Failed, machine.Describe().Split('\n')[0]),
            TimeoutStatus or KilledStatus => (KvmSelftestEnd.TimedOut, $"not done after {test.Seconds} s"),
            SkipStatus => (KvmSelftestEnd.Skipped, Complaint("SKIP") is { Length: > 0 } why ? why : Complaint("")),
            _ when reports.Count > 0 => (KvmSelftestEnd.Failed, $"kernel log: {reports[0].Title}"),
            0 when Number("unload") != 0 => (KvmSelftestEnd.Failed, "the hypervisor does not unload"),
            0 when Complaint(SkippedPart) is { Length: > 0 } skipped => (KvmSelftestEnd.Skipped, skipped),
            0 => (KvmSelftestEnd.Passed, ""),
            long status => (KvmSelftestEnd.Failed, $"ended with {status}: {Complaint("")}"),
        };
        return new(test, end, reason, duration, output);

        long? Number(string name) => lines
            .Where(line => line.StartsWith($"{KvmSelftestRun.Mark}{name} ", StringComparison.Ordinal))
            .Select(line => (long?)long.Parse(line.Split(' ')[^1])).LastOrDefault();

        // A failed assertion is a heading, the place, threads and stack, and then the words of whoever wrote it.
        string Complaint(string word) => (output.LastOrDefault(line => line.Contains(word) && line.Trim().Length > 0)
            ?? "").Trim();
    }
}
