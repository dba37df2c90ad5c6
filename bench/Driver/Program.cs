// SPDX-License-Identifier: GPL-2.0-only
using Spectre.Console;
using SharpKvm.Bench;
using SharpKvm.Lab;

const string Usage =
    """
    usage: bench [--stock-only | --ours-only]
    Boots a throw-away machine twice and measures the same program on stock kvm-amd and on kmod/sharpkvm.ko.
    Writes build/bench/svm.json and build/bench/svm.md. Exit code: 0 measured, 1 failed, 2 bad command line.
    """;

bool stockOnly = args is ["--stock-only"], oursOnly = args is ["--ours-only"];
if (args.Length > 0 && !stockOnly && !oursOnly)
{
    Console.Error.WriteLine(Usage);
    return 2;
}

try
{
    IReadOnlyList<BenchRow> stock = [], ours = [];
    if (!oursOnly)
    {
        AnsiConsole.MarkupLine("Measuring stock kvm-amd (about a minute) …");
        stock = BenchRun.Measure("bench-stock", "modprobe kvm-amd", "/dev/kvm");
    }
    if (!stockOnly)
    {
        AnsiConsole.MarkupLine("Measuring SharpKVM (about a minute) …");
        string module = Repository.PathOf("kmod", "sharpkvm.ko");
        ours = BenchRun.Measure("bench-sharpkvm", $"insmod '{module}'", "/dev/sharpkvm");
    }

    IReadOnlyList<Comparison> rows = Report.Join(ours, stock);
    Report.Print(rows);
    string folder = Repository.PathOf("build", "bench");
    Directory.CreateDirectory(folder);
    File.WriteAllText(Path.Combine(folder, "svm.json"), Report.ToJson(rows));
    File.WriteAllText(Path.Combine(folder, "svm.md"), Report.ToMarkdown(rows));
    foreach (BenchRow failed in stock.Concat(ours).Where(row => row.Error is not null))
        AnsiConsole.MarkupLineInterpolated($"[red]{failed.Name}[/]: {failed.Error}");
    return stock.Concat(ours).Any(row => row.Error is not null) ? 1 : 0;
}
catch (LabException error)
{
    AnsiConsole.MarkupLineInterpolated($"[red]{error.Message}[/]");
    return 1;
}
