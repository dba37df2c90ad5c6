// SPDX-License-Identifier: GPL-2.0-only
using System.Text.Json;
using SharpKvm.Lab;

namespace SharpKvm.Bench;

/// <summary>One row as <c>kvmbench --json</c> prints it.</summary>
/// <param name="Minimum">Of the samples, in the row's unit.</param>
/// <param name="Missing">What the device lacks that this row measures.</param>
internal sealed record BenchRow(string Name, double? Minimum, double? Median, string? Missing, string? Error,
    IReadOnlyDictionary<string, double>? Counters);

/// <summary>What is measured in one boot of L1.</summary>
internal enum RowSet
{
    /// <summary>All rows that are counts, with nested paging.</summary>
    Counts,

    /// <summary>Rows by the clock, on two CPUs.</summary>
    Clock,

    /// <summary>Rows about shadow tables, on a CPU without nested paging.</summary>
    Shadow,
}

/// <summary>The bench program, run in one boot of L1 whose virtual nanoseconds are instructions.</summary>
internal static class BenchRun
{
    private static readonly JsonSerializerOptions Json = new(JsonSerializerDefaults.Web);

    /// <summary>Puts the shell into a cgroup that counts the kernel memory it is charged for.</summary>
    private const string MemoryGroup =
        "{ mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup; }"
        + " && echo +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir /sys/fs/cgroup/bench"
        + " && echo $$ >/sys/fs/cgroup/bench/cgroup.procs";

    private static string Program => Repository.PathOf("build", "bench", "kvmbench");

    /// <summary>
    /// Loads a module by <paramref name="load"/> and measures its device. In Bochs time counts instructions anyway, and
    /// what needs room is left out.
    /// </summary>
    /// <exception cref="LabException">L1 died or hung, the kernel log has something wrong, or there are no
    /// rows.</exception>
    public static IReadOnlyList<BenchRow> Measure(Lane lane, string name, string load, string device,
        RowSet rows)
    {
        bool slow = lane.BochsModel is not null, clock = rows == RowSet.Clock;
        string set = rows.ToString().ToLowerInvariant();
        string options = (slow ? "--slow " : "") + (rows == RowSet.Counts ? "" : $"--{set} ");
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = rows == RowSet.Counts ? name : $"{name}-{set}",
            Lane = lane,
            Script = $"{(slow ? "true" : MemoryGroup)} && {load} || exit 125\n"
                + $"'{Program}' --device {device} {options}--json >/job/rows.json\n[ $? -le 1 ]\n",
            Files = slow ? [Program, Hypervisor.SharpKvm.Module!] : [],
            Cpus = clock ? 2 : 1,
            CountInstructions = !clock && !slow,
            // An idle CPU would let the counted time jump to the next timer.
            KernelParameters = clock ? "norandmaps" : "idle=poll norandmaps",
            Timeout = TimeSpan.FromMinutes(20),
        });
        result.Require();
        string json = File.ReadAllText(Path.Combine(result.JobFolder, "rows.json"));
        return JsonSerializer.Deserialize<BenchRow[]>(json, Json)
            ?? throw new LabException($"{name}: the bench program printed no rows");
    }
}
