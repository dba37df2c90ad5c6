// SPDX-License-Identifier: GPL-2.0-only
using System.Text.Json;
using SharpKvm.Lab;

namespace SharpKvm.Bench;

/// <summary>One row as <c>kvmbench --json</c> prints it.</summary>
internal sealed record BenchRow(
    string Name, double? Minimum, double? Median, string? Error, IReadOnlyDictionary<string, double>? Counters);

/// <summary>The bench program, run in one boot of L1 whose virtual nanoseconds are instructions.</summary>
internal static class BenchRun
{
    private static readonly JsonSerializerOptions Json = new(JsonSerializerDefaults.Web);

    private static string Program => Repository.PathOf("build", "bench", "kvmbench");

    /// <summary>Loads a module by <paramref name="load"/> and measures all rows on its device.</summary>
    /// <param name="reload">Loads it once more so that it counts what it does, which costs a little itself: only the
    /// counters of that second round are taken.</param>
    /// <exception cref="LabException">L1 died or hung, the kernel log has something wrong, or there are no rows.</exception>
    public static IReadOnlyList<BenchRow> Measure(string name, string load, string device, string? reload = null)
    {
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = name,
            Script = Round(load, device, "rows.json") + (reload is null ? "" : Round(reload, device, "counters.json")),
            Cpus = 1,
            CountInstructions = true,
            // An idle CPU would let the counted time jump to the next timer.
            KernelParameters = "idle=poll norandmaps",
            Timeout = TimeSpan.FromMinutes(10),
        });
        result.Require();
        BenchRow[] rows = Read("rows.json");
        if (reload is null)
            return rows;
        var counted = Read("counters.json").ToDictionary(row => row.Name, row => row.Counters);
        return [.. rows.Select(row => row with { Counters = counted.GetValueOrDefault(row.Name) })];

        BenchRow[] Read(string file) =>
            JsonSerializer.Deserialize<BenchRow[]>(File.ReadAllText(Path.Combine(result.JobFolder, file)), Json)
            ?? throw new LabException($"{name}: the bench program printed no rows");
    }

    private static string Round(string load, string device, string file) =>
        $"{load} || exit 125\n'{Program}' --device {device} --json >/job/{file}\n[ $? -le 1 ] || exit 1\n";
}
