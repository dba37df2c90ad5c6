// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Text;
using SharpKvm.Lab.Conformance;
using Spectre.Console;

namespace SharpKvm.Tool;

/// <summary>What a comparison says about the module.</summary>
internal enum Verdict
{
    /// <summary>The program passes.</summary>
    Passed,

    /// <summary>It passes on stock KVM and not on the module.</summary>
    Failed,

    /// <summary>It passes nowhere, or needs what the module lacks on purpose.</summary>
    Skipped,
}

/// <summary>One row of the comparison.</summary>
/// <param name="Ours">On the module.</param>
/// <param name="Stock">On stock kvm-amd; null when that was not asked for.</param>
internal sealed record Comparison(KvmSelftestResult Ours, KvmSelftestResult? Stock)
{
    public Verdict Verdict => Ours.End == KvmSelftestEnd.Passed ? Verdict.Passed
        : Ours.Test.Lacks is not null || Stock is not (null or { End: KvmSelftestEnd.Passed }) ? Verdict.Skipped
        : Verdict.Failed;

    /// <summary>Why it does not pass: on the module, or where it does there, on stock KVM.</summary>
    public string Remark => Ours.End == KvmSelftestEnd.Passed
        ? Stock is null or { End: KvmSelftestEnd.Passed } ? "" : $"stock: {Stock.Reason}"
        : Ours.Test.Lacks is string lacks ? $"SharpKVM lacks {lacks}" : Ours.Reason;
}

/// <summary>Writes the comparison for people.</summary>
internal static class ConformanceReport
{
    public static void Print(IReadOnlyList<Comparison> rows)
    {
        var table = new Table().Border(TableBorder.Rounded).Title("Linux's KVM selftests");
        foreach (string column in (string[])["test", "SharpKVM", "stock kvm-amd", "remark"])
        {
            table.AddColumn(column);
        }

        foreach (Comparison row in rows)
        {
            string colour = row.Verdict switch
            {
                Verdict.Passed => "green",
                Verdict.Failed => "red",
                _ => "yellow",
            };
            table.AddRow(Markup.Escape(row.Ours.Test.Command), $"[{colour}]{Show(row.Ours)}[/]", Show(row.Stock),
                Markup.Escape(row.Remark));
        }

        AnsiConsole.Write(table);
        foreach (Comparison row in rows.Where(row => row.Verdict == Verdict.Failed))
        {
            AnsiConsole.MarkupLineInterpolated($"[red]{row.Ours.Test.Command}[/]: {row.Ours.Reason}");
            foreach (string line in row.Ours.Output)
            {
                Console.WriteLine($"    {line}");
            }
        }

        Console.WriteLine("Not run:");
        foreach ((string why, string[] programs) in KvmSelftestList.LeftOut)
        {
            Console.WriteLine($"  {why}: {string.Join(", ", programs.Select(ShowProgram))}");
        }

        int skipped = Count(Verdict.Skipped);
        Console.WriteLine($"{Count(Verdict.Passed)} passed, {Count(Verdict.Failed)} failed"
            + (skipped == 0 ? "" : $", {skipped} skipped"));

        int Count(Verdict verdict) => rows.Count(row => row.Verdict == verdict);
    }

    public static string ToMarkdown(IEnumerable<Comparison> rows)
    {
        var text = new StringBuilder();
        text.AppendLine("# Linux's KVM selftests, AMD SVM with nested paging").AppendLine();
        text.AppendLine("| test | SharpKVM | stock kvm-amd | remark |").AppendLine("|---|---|---|---|");
        foreach (Comparison row in rows)
        {
            text.AppendLine($"| {row.Ours.Test.Command} | {Show(row.Ours)} | {Show(row.Stock)} | {row.Remark} |");
        }

        return text.ToString();
    }

    /// <summary>A beginning of names ends in an underline.</summary>
    private static string ShowProgram(string program) => program.EndsWith('_') ? $"{program}*" : program;

    private static string Show(KvmSelftestResult? result) => result?.End switch
    {
        null => "-",
        KvmSelftestEnd.Passed => Time("passed", result),
        KvmSelftestEnd.Skipped => "skipped",
        KvmSelftestEnd.TimedOut => Time("hangs", result),
        _ => Time("failed", result),
    };

    private static string Time(string word, KvmSelftestResult result) =>
        string.Create(CultureInfo.InvariantCulture, $"{word}, {result.Duration.TotalSeconds:0} s");
}
