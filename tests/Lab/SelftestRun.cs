// SPDX-License-Identifier: GPL-2.0-only
using System.Collections.Concurrent;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>What the selftests are run on.</summary>
/// <param name="Name">Names the log.</param>
/// <param name="Module">The module to load; the machine's stock hypervisor when null.</param>
/// <param name="Device">The device that the module makes.</param>
/// <param name="Machine">The kind of machine.</param>
public sealed record SelftestLane(string Name, string? Module, string Device, Lane Machine)
{
    /// <summary>The project's module on a kind of machine.</summary>
    public static SelftestLane SharpKvmOn(Lane machine) => new(
        machine.LogName("selftests"), L1Kernel.Default.ModuleBuilt("sharpkvm"), "/dev/sharpkvm", machine);

    /// <summary>Linux's own on a kind of machine: the reference that the selftests must pass on, too.</summary>
    public static SelftestLane StockOn(Lane machine) =>
        new(machine.LogName("selftests-stock"), Module: null, "/dev/kvm", machine);

    /// <summary>CPUs of L1.</summary>
    public int Cpus { get; init; } = 2;

    /// <summary>The only groups to run; all when null.</summary>
    public IReadOnlyCollection<string>? Groups { get; init; }

    /// <summary>Cases that cannot pass there, whatever the hypervisor.</summary>
    public IReadOnlyCollection<string> Except { get; init; } = [];

    /// <summary>The names of all cases that are run, as the program lists them; empty without it.</summary>
    public IReadOnlyList<string> Cases =>
        [.. SelftestRun.List()
            .Where(name => Groups is null || Groups.Contains(SelftestRun.GroupOf(name))).Except(Except)];
}

/// <summary>
/// All selftests in one boot of L1, each group as a process of its own with a limit of its own. A group that brings L1
/// down costs the rest of that group only: L1 boots again for the groups that are left.
/// </summary>
public sealed class SelftestRun
{
    private const int MaximumBoots = 4;

    /// <summary>A group that takes longer hangs, on Debian's kernel.</summary>
    private const int GroupSeconds = 150;

    /// <summary>A case that takes longer hangs, on Debian's kernel: the program ends it and goes on.</summary>
    private const int CaseSeconds = 60;

    private const string KernelGroupMark = "lab: group ";
    private const string TrappingGroup = "containment";
    private const string ContainedTrap = "^sharpkvm: trap: ";

    /// <summary>Has allocations of the kernel fail, which only a debug kernel lets it do.</summary>
    private const string FailingGroup = "faults";

    /// <summary>What Linux itself says when one of its allocations fails.</summary>
    private static readonly string[] FailedAllocations = ["vmalloc error: ", "alloc_cpumask_var: failed"];

    private const string UnloadedSection = "unloaded";

    private static readonly ConcurrentDictionary<SelftestLane, Lazy<SelftestRun>> Runs = new();

    private readonly List<L1Result> boots = [];
    private readonly Dictionary<string, KtapCase> cases;

    private SelftestRun(SelftestLane lane)
    {
        string[] left = [.. lane.Cases.Select(GroupOf).Distinct()];
        for (int boot = 1; left.Length > 0 && boot <= MaximumBoots; boot++)
        {
            L1Result result = L1Machine.Run(new L1Options
            {
                Name = boot == 1 ? lane.Name : $"{lane.Name}-{boot}",
                Lane = lane.Machine,
                Files = [Program, .. lane.Module is null ? (string[])[] : [lane.Module]],
                Cpus = lane.Cpus,
                Timeout = TimeSpan.FromMinutes(10),
                Script = BuildScript(lane, left),
            });
            boots.Add(result);
            left = [.. left.Where(group => result.Section(group) is null)];
        }

        cases = boots.SelectMany(result => Ktap.Parse(result.Output))
            .ToLookup(found => found.Name).ToDictionary(found => found.Key, found => found.Last());
    }

    /// <summary>The selftest program, as the build publishes it.</summary>
    public static string Program => Repository.PathOf("build", "selftests", "selftests");

    /// <summary>The L1 runs: one when all is well.</summary>
    public IReadOnlyList<L1Result> Boots => boots;

    /// <summary>True when the module went out again after the last group.</summary>
    public bool Unloaded => boots.All(result => result.Section(UnloadedSection) is not null);

    /// <summary>The run on a lane: made at the first call, the same one afterwards.</summary>
    public static SelftestRun On(SelftestLane lane) =>
        Runs.GetOrAdd(lane, key => new Lazy<SelftestRun>(() => new SelftestRun(key))).Value;

    /// <summary>The names of all cases that L1's kernel allows, as the program lists them; empty without it.</summary>
    public static IReadOnlyList<string> List() => !File.Exists(Program) ? []
        : [.. Tool.Require(Program, ["--list"]).Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Where(name => GroupOf(name) != FailingGroup || L1Kernel.Default.IsDebug)];

    /// <summary>
    /// What is wrong in the kernel log, each report behind the name of the group that was running. Groups that trap on
    /// purpose may leave the line that a contained trap leaves, and nothing else.
    /// </summary>
    public IReadOnlyList<(string Group, KernelReport Report)> Reports()
    {
        var found = new List<(string Group, KernelReport Report)>();
        var section = new List<string>();
        string group = "before the first group";
        foreach (string line in boots.SelectMany(result => result.KernelLog))
        {
            if (KernelLog.WithoutTime(line) is var text && text.StartsWith(KernelGroupMark, StringComparison.Ordinal))
            {
                Scan();
                group = text[KernelGroupMark.Length..];
            }

            section.Add(line);
        }

        Scan();
        return found;

        void Scan()
        {
            string[] expected = group switch
            {
                TrappingGroup => [ContainedTrap],
                FailingGroup => FailedAllocations,
                _ => [],
            };
            found.AddRange(KernelLog.Scan(section, expected).Select(report => (group, report)));
            section.Clear();
        }
    }

    /// <summary>The result of one case; a case without a result line has failed, and what was seen is why.</summary>
    public KtapCase this[string name] => cases.GetValueOrDefault(name) ?? Missing(name);

    internal static string GroupOf(string name) => name.Split('/')[0];

    private static string BuildScript(SelftestLane lane, IEnumerable<string> groups)
    {
        var script = new StringBuilder();
        string stock = lane.Machine.StockModule;
        string unload = lane.Module is null ? stock : Path.GetFileNameWithoutExtension(lane.Module);
        script.Append(lane.Module is null ? $"modprobe {stock}" : $"insmod '{lane.Module}'").Append(" || exit 125\n");
        foreach (string group in groups)
        {
            script.Append($"echo ::{group}\n");
            script.Append($"echo '{KernelGroupMark}{group}' >/dev/kmsg\n");
            script.Append($"timeout -k 5 $(({GroupSeconds} * LAB_TIME_FACTOR)) '{Program}' --device {lane.Device} ");
            script.Append($"--timeout $(({CaseSeconds} * LAB_TIME_FACTOR)) --filter '{group}/*' 2>&1\n");
            script.Append("status=$?; [ $status -le 1 ] || echo \"# the program ended with $status\"\n");
        }

        script.Append($"echo '{KernelGroupMark}none: all have run' >/dev/kmsg\n");
        script.Append($"echo ::unload\ncheck_leaks; rmmod {unload} && echo ::{UnloadedSection}\n");
        return script.ToString();
    }

    private KtapCase Missing(string name)
    {
        IReadOnlyList<string>? seen = boots.Select(result => result.Section(GroupOf(name)))
            .FirstOrDefault(section => section is not null);
        string why = seen is null
            ? $"its group never began: {boots.LastOrDefault()?.Describe()}"
            : $"no result line; the group's output ended with:\n{string.Join('\n', seen.TakeLast(15))}";
        return new KtapCase(name, KtapOutcome.Failed, why, []);
    }
}
