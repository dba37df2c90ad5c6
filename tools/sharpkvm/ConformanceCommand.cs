// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using System.Diagnostics;
using SharpKvm.Lab;
using SharpKvm.Lab.Conformance;
using Spectre.Console;

namespace SharpKvm.Tool;

/// <summary><c>sharpkvm conformance</c>: Linux's KVM selftests on stock kvm-amd and on the module.</summary>
internal static class ConformanceCommand
{
    private static readonly Option<string> Filter = new("--filter")
    {
        Description = "only those whose name contains this",
        DefaultValueFactory = _ => "",
    };

    private static readonly Option<bool> OursOnly = new("--ours-only")
    {
        Description = "without stock kvm-amd: what does not pass has failed",
    };

    public static Command Create()
    {
        var command = new Command("conformance", "Run Linux's KVM selftests on stock kvm-amd and on the module.")
        {
            Filter, OursOnly,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult arguments)
    {
        string filter = arguments.GetRequiredValue(Filter);
        KvmSelftest[] tests = [.. KvmSelftestList.All.Where(test => test.Command.Contains(filter))];
        Console.WriteLine("Building Linux's KVM selftests, unless the cache has them …");
        if (KvmSelftestList.Unknown(KvmSelftestBuild.Programs).ToArray() is { Length: > 0 } unknown)
        {
            throw new LabException($"neither run nor left out: {string.Join(", ", unknown)}");
        }

        IReadOnlyList<KvmSelftestResult>? stock =
            arguments.GetRequiredValue(OursOnly) ? null : RunOn(Hypervisor.Stock, Hypervisor.Stock.Title, tests);
        IReadOnlyList<KvmSelftestResult> ours = RunOn(Hypervisor.SharpKvm, "SharpKVM", tests);
        Comparison[] rows = [.. ours.Select((result, i) => new Comparison(result, stock?[i]))];
        ConformanceReport.Print(rows);
        string folder = Repository.Folder("conformance");
        File.WriteAllText(Path.Combine(folder, "svm.md"), ConformanceReport.ToMarkdown(rows));
        return rows.Any(row => row.Verdict == Verdict.Failed) || !rows.Any(row => row.Verdict == Verdict.Passed)
            ? 1 : 0;
    }

    private static IReadOnlyList<KvmSelftestResult> RunOn(
        Hypervisor hypervisor, string name, IReadOnlyList<KvmSelftest> tests)
    {
        AnsiConsole.MarkupLineInterpolated($"[bold]{name}[/], {tests.Count} runs:");
        var clock = Stopwatch.StartNew();
        return KvmSelftestRun.On(hypervisor, tests, test =>
            AnsiConsole.MarkupLineInterpolated($"[grey]{clock.Elapsed.TotalSeconds,6:0} s[/]  {test}"));
    }
}
