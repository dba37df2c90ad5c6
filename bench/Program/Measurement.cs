// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Bench;

/// <summary>One row of the table: a name and how to measure it.</summary>
/// <param name="Patience">Seconds after which the guest is interrupted.</param>
/// <param name="NeedsRoom">More memory or time than a small, slow machine has (<c>--slow</c>).</param>
sealed record Row(string Name, Func<Measurement> Measure, int Patience = 2, bool NeedsRoom = false);

/// <summary>Time stamp counter ticks per round trip. Where the machine counts instructions, a tick is an instruction.
/// </summary>
/// <param name="Minimum">Of the samples: the one that no timer interrupt fell into.</param>
/// <param name="RoundTrips">In each sample.</param>
/// <param name="Counters">What the module counted, per round trip; empty when it counts nothing.</param>
readonly record struct Measurement(
    double Minimum, double Median, int Samples, int RoundTrips, IReadOnlyDictionary<string, double> Counters)
{
    /// <summary>Takes samples. <paramref name="sample"/> makes <paramref name="roundTrips"/> of them and returns the
    /// ticks they took; its first call is a rehearsal.</summary>
    public static Measurement Take(int samples, int roundTrips, Func<ulong> sample)
    {
        sample();
        Dictionary<string, ulong> before = ReadCounters();
        double[] ticks = new double[samples];
        for (int i = 0; i < samples; i++)
            ticks[i] = (double)sample() / roundTrips;
        Dictionary<string, ulong> after = ReadCounters();
        Array.Sort(ticks);
        double total = (double)samples * roundTrips;
        return new(ticks[0], ticks[samples / 2], samples, roundTrips,
            after.ToDictionary(pair => pair.Key, pair => (pair.Value - before.GetValueOrDefault(pair.Key)) / total));
    }

    /// <summary>A row that is no count of instructions: one value, in the row's own unit.</summary>
    public static Measurement Once(double value) => new(value, value, 1, 1, new Dictionary<string, double>());

    /// <summary>What the module counts of its world switches: lines of a name and a number.</summary>
    static Dictionary<string, ulong> ReadCounters()
    {
        const string Path = "/sys/kernel/debug/sharpkvm/counters";
        if (!File.Exists(Path))
            return [];
        return File.ReadAllLines(Path).Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Where(words => words.Length == 2).ToDictionary(words => words[0], words => ulong.Parse(words[1]));
    }
}
