// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>What a guest left behind.</summary>
public sealed partial record GuestResult
{
    /// <summary>The L1 run that it was part of.</summary>
    public required L1Result Machine { get; init; }

    /// <summary>Its console, as QEMU printed it.</summary>
    public required IReadOnlyList<string> Console { get; init; }

    /// <summary>Its kernel log at its end; empty when it has no devices or did not come so far.</summary>
    public required IReadOnlyList<string> KernelLog { get; init; }

    /// <summary>QEMU's exit status; null when L1 was gone before.</summary>
    public required int? Status { get; init; }

    /// <summary>QEMU's time from start to end.</summary>
    public required TimeSpan Duration { get; init; }

    /// <summary>What came after its console: QEMU's messages and how the hypervisor unloaded.</summary>
    public required IReadOnlyList<string> Messages { get; init; }

    /// <summary>What is wrong in L1's kernel log while it ran.</summary>
    public required IReadOnlyList<KernelReport> Reports { get; init; }

    /// <summary>Console, messages and kernel log in one file.</summary>
    public required string LogPath { get; init; }

    /// <summary>True when the hypervisor went out after it.</summary>
    public bool Unloaded => Messages.Contains("unloaded");

    /// <summary>What <c>uname -a</c> said in the guest; null when the guest did not come to its end.</summary>
    public string? Uname => Console.Any(line => line.Contains(GuestBoot.LastWord, StringComparison.Ordinal))
        ? Console.LastOrDefault(line => line.StartsWith("Linux ", StringComparison.Ordinal))
        : null;

    /// <summary>What the guest said behind <c>question: </c>; null when it did not.</summary>
    public string? Answer(string question) => Console
        .FirstOrDefault(line => line.StartsWith($"{question}: ", StringComparison.Ordinal))?[(question.Length + 2)..];

    /// <summary>One paragraph for people: how it ended, and the end of what it and QEMU said.</summary>
    public string Describe()
    {
        string what = (Status, Uname) switch
        {
            (null, _) => $"the guest was cut short: {Machine.Describe()}",
            (0, not null) => "the guest came to its end",
            (0, null) => "QEMU ended well, the guest did not",
            _ => $"QEMU ended with {Status} after {Duration.TotalSeconds:0} s",
        };
        return string.Join('\n', [$"{what} (log: {LogPath})", .. Console.Concat(Messages).TakeLast(40)]);
    }

    /// <summary>
    /// Lines of the guest's kernel log that speak of trouble with clocks, interrupts or CPUs, less those known to be
    /// harmless and those that a reference has, too: lines are the same when they differ in numbers only.
    /// </summary>
    public IReadOnlyList<string> Suspects(GuestResult? reference = null)
    {
        HashSet<string> known = [.. (reference?.KernelLog ?? []).Select(WithoutNumbers)];
        return
        [
            .. KernelLog.Select(Lab.KernelLog.WithoutTime)
                .Where(line => Suspect().IsMatch(line) && !Harmless().IsMatch(line))
                .Where(line => !known.Contains(WithoutNumbers(line))),
        ];
    }

    private static string WithoutNumbers(string line) => Number().Replace(Lab.KernelLog.WithoutTime(line), "#");

    [GeneratedRegex(@"\b(unstable|spurious|lost|stuck)\b", RegexOptions.IgnoreCase)]
    private static partial Regex Suspect();

    /// <summary>Linux trusts no TSC of several AMD CPUs that is not invariant, and a guest's is not.</summary>
    [GeneratedRegex("^tsc: Marking TSC unstable due to TSCs unsynchronized$")]
    private static partial Regex Harmless();

    [GeneratedRegex("0x[0-9a-f]+|[0-9]+")]
    private static partial Regex Number();
}
