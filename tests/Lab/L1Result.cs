// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>How an L1 run came to its end.</summary>
public enum L1End
{
    /// <summary>The job ended and L1 powered itself off.</summary>
    Completed,

    /// <summary>L1 was gone before the job ended: panic, triple fault, or an emulator that did not start.</summary>
    Died,

    /// <summary>The time was up; L1 was killed.</summary>
    TimedOut,
}

/// <summary>What an L1 run left behind.</summary>
public sealed record L1Result
{
    /// <summary>A job divides its output by lines that begin so.</summary>
    public const string SectionMark = "::";

    /// <summary>How it ended.</summary>
    public required L1End End { get; init; }

    /// <summary>The job's exit status; null when it did not come that far.</summary>
    public required int? ExitStatus { get; init; }

    /// <summary>What the job printed, standard output and errors in order.</summary>
    public required IReadOnlyList<string> Output { get; init; }

    /// <summary>L1's kernel log: all of it, or as much as its console showed when it died.</summary>
    public required IReadOnlyList<string> KernelLog { get; init; }

    /// <summary>What is wrong in the kernel log and was not announced.</summary>
    public required IReadOnlyList<KernelReport> Reports { get; init; }

    /// <summary>Everything that came, in order: <c>build/logs/NAME.log</c>.</summary>
    public required string LogPath { get; init; }

    /// <summary>The folder that was <c>/job</c> in L1.</summary>
    public required string JobFolder { get; init; }

    /// <summary>From the emulator's start to its end.</summary>
    public required TimeSpan Duration { get; init; }

    /// <summary>
    /// What the job printed behind its line <c>::NAME</c>, up to the next such line; null when there is no such line.
    /// </summary>
    public IReadOnlyList<string>? Section(string name)
    {
        int start = Output.TakeWhile(line => line != SectionMark + name).Count() + 1;
        return start > Output.Count
            ? null
            : [.. Output.Skip(start).TakeWhile(line => !line.StartsWith(SectionMark, StringComparison.Ordinal))];
    }

    /// <summary>True when the job ended with 0, L1 powered off, and its kernel log is clean.</summary>
    public bool Succeeded => End == L1End.Completed && ExitStatus == 0 && Reports.Count == 0;

    /// <summary>One paragraph for people: what went wrong, with the end of the log.</summary>
    public string Describe()
    {
        string what = (End, ExitStatus) switch
        {
            (L1End.TimedOut, _) => $"L1 was killed after {Duration.TotalSeconds:0} s",
            (L1End.Died, _) => "L1 was gone before the job ended",
            (_, 0) => "the job ended well",
            _ => $"the job ended with {ExitStatus}",
        };
        IEnumerable<string> reports = Reports.Select(report => $"kernel log: {report.Title}");
        IEnumerable<string> tail = File.ReadLines(LogPath).TakeLast(40).Select(line => $"    {line}");
        return string.Join('\n', [$"{what} (log: {LogPath})", .. reports, .. tail]);
    }

    /// <summary>Throws <see cref="LabException"/> with <see cref="Describe"/> unless all went well.</summary>
    public L1Result Require() => Succeeded ? this : throw new LabException(Describe());
}
