// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab.Conformance;

/// <summary>
/// Selftests run one after the other in L1, the hypervisor loaded for each and taken out after it. One that brings L1
/// down costs no other its result: L1 boots again for those that are left.
/// </summary>
public static class KvmSelftestRun
{
    /// <summary>Lines of the job's own among a program's output begin so.</summary>
    internal const string Mark = "lab: ";

    private const string KernelLogMark = "lab: selftest ";

    /// <summary>For L1's own start and end.</summary>
    private static readonly TimeSpan Extra = TimeSpan.FromSeconds(90);

    /// <summary>For each program's loading and unloading of the hypervisor.</summary>
    private static readonly TimeSpan ExtraEach = TimeSpan.FromSeconds(10);

    /// <summary>Runs programs; each result in the order of <paramref name="tests"/>.</summary>
    /// <param name="hypervisor">What <c>/dev/kvm</c> is.</param>
    /// <param name="tests">Different ones.</param>
    /// <param name="ended">Called when a program has ended, with its exit status and name.</param>
    public static IReadOnlyList<KvmSelftestResult> On(
        Hypervisor hypervisor, IReadOnlyList<KvmSelftest> tests, Action<string> ended)
    {
        var results = new List<KvmSelftestResult>();
        for (int boot = 1; results.Count < tests.Count; boot++)
        {
            KvmSelftest[] left = [.. tests.Skip(results.Count)];
            L1Result machine = L1Machine.Run(new L1Options
            {
                Name = $"conformance-{hypervisor.Name}{(boot == 1 ? "" : $"-{boot}")}",
                Timeout = Extra + left.Aggregate(
                    TimeSpan.Zero, (sum, test) => sum + ExtraEach + TimeSpan.FromSeconds(test.Seconds)),
                MemoryMib = 4096,
                Script = BuildScript(hypervisor, left),
                Live = (source, line) =>
                {
                    if (source == L1Source.Job && line.StartsWith($"{Mark}ended ", StringComparison.Ordinal))
                    {
                        ended(line[$"{Mark}ended ".Length..]);
                    }
                },
            });
            // The first never begins where L1 does not come up, and will not do so the next time, either.
            results.AddRange(left.TakeWhile((test, i) => i == 0 || machine.Section(test.Command) is not null)
                .Select(test => KvmSelftestResult.From(test, machine, Reports(test, machine))));
        }

        return results;
    }

    private static string BuildScript(Hypervisor hypervisor, IEnumerable<KvmSelftest> tests) => string.Join('\n',
    [
        $"mark='{Mark}' kernel_log_mark='{KernelLogMark}' load=\"{hypervisor.LoadAsKvm}\" "
            + $"unload=\"{hypervisor.Unload}\"",
        $"cd '{KvmSelftestBuild.Folder}' || exit 125",
        Initramfs.Script("l1-selftests.sh"),
        .. tests.Select(test => $"selftest {test.Seconds} {test.Command}"),
    ]);

    private static IReadOnlyList<KernelReport> Reports(KvmSelftest test, L1Result machine) => KernelLog.Scan(
        machine.KernelLog.SkipWhile(line => KernelLog.WithoutTime(line) != KernelLogMark + test.Command).Skip(1)
            .TakeWhile(line => !KernelLog.WithoutTime(line).StartsWith(KernelLogMark, StringComparison.Ordinal)));
}
