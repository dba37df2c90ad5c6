// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>
/// What a guest under memory load says on its console (<c>l2-load.sh</c>): each CPU's worker fills memory, changes a
/// part of it in rounds, and sums up all of it in each.
/// </summary>
public static partial class GuestLoad
{
    /// <summary>What a worker fills memory with, so many times.</summary>
    public const int BlockBytes = Copies * Lines * LineBytes;

    /// <summary>Lines that whoever loads a guest puts between what it said: what is between never happened.</summary>
    private const string Saved = "\n-- saved\n", Loaded = "\n-- loaded\n";

    private const int Copies = 6, Lines = 20001, LineBytes = 8;

    /// <summary>What is wrong with a guest that must have lived; nothing when all is well.</summary>
    /// <param name="console">All that it said, wherever it ran.</param>
    /// <param name="guest">Its shape.</param>
    public static IEnumerable<string> Faults(string console, GuestBoot guest)
    {
        string text = WithoutForgotten(console.Replace("\r", ""));
        Round[] rounds = [.. RoundLine().Matches(text).Select(Round.From)];
        IEnumerable<string> complaints = KernelLog.Scan(text.Split('\n')).Select(report => report.Title);
        return [.. complaints, .. Enumerable.Range(0, guest.Cpus).SelectMany(
            cpu => Faults(cpu, [.. rounds.Where(round => round.Cpu == cpu)], FixedSum(cpu, guest.LoadBlocks)))];
    }

    private static IEnumerable<string> Faults(int cpu, Round[] rounds, string sum)
    {
        if (rounds.Length == 0)
        {
            yield return $"CPU {cpu} says nothing";
        }

        for (int i = 0; i < rounds.Length; i++)
        {
            Round round = rounds[i], before = i > 0 ? rounds[i - 1] : round with { Number = 0 };
            if (round.Number != before.Number + 1)
            {
                yield return $"after {before} came {round}";
            }

            if (!round.ChangingIsRight || round.FixedSum != sum)
            {
                yield return $"memory is wrong (fixed should be {sum}): {round}";
            }

            if (round.Up < before.Up || round.Date < before.Date)
            {
                yield return $"the clock went back from {before} to {round}";
            }
        }
    }

    /// <summary>MD5 of what a CPU's worker wrote at its start.</summary>
    private static string FixedSum(int cpu, int blocks)
    {
        int first = (cpu + 1) * 1_000_000;
        var text = new StringBuilder();
        for (int line = first; line < first + Lines; line++)
        {
            text.Append(CultureInfo.InvariantCulture, $"{line}\n");
        }

        byte[] bytes = Encoding.ASCII.GetBytes(text.ToString());
        using var sum = IncrementalHash.CreateHash(HashAlgorithmName.MD5);
        for (int i = 0; i < Copies * blocks; i++)
        {
            sum.AppendData(bytes);
        }

        return Convert.ToHexStringLower(sum.GetHashAndReset());
    }

    private static string WithoutForgotten(string console)
    {
        int start = console.IndexOf(Saved, StringComparison.Ordinal);
        int end = console.IndexOf(Loaded, StringComparison.Ordinal);
        return start < 0 || end < start ? console : console[..start] + console[(end + Loaded.Length)..];
    }

    [GeneratedRegex(@"cpu (\d+) round (\d+): changing (\w+), fixed (\w+), up ([\d.]+), date (\d+)\n")]
    private static partial Regex RoundLine();

    private sealed record Round(
        int Cpu, int Number, bool ChangingIsRight, string FixedSum, double Up, long Date)
    {
        public static Round From(Match match) => new(
            int.Parse(match.Groups[1].ValueSpan, CultureInfo.InvariantCulture),
            int.Parse(match.Groups[2].ValueSpan, CultureInfo.InvariantCulture),
            match.Groups[3].ValueSpan is "right",
            match.Groups[4].Value,
            double.Parse(match.Groups[5].ValueSpan, CultureInfo.InvariantCulture),
            long.Parse(match.Groups[6].ValueSpan, CultureInfo.InvariantCulture));
    }
}
