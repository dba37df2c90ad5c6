// SPDX-License-Identifier: GPL-2.0-only
using Spectre.Console;
using SharpKvm.Bench;
using SharpKvm.Lab;

const string Usage =
    """
    usage: bench [--stock-only | --ours-only] [--no-boots]
    Measures the same program, and boots of Linux, on stock kvm-amd and on kmod/sharpkvm.ko in throw-away machines.
    Writes build/bench/svm.json and build/bench/svm.md. Exit code: 0 measured, 1 failed, 2 bad command line.
    """;

bool stockOnly = args.Contains("--stock-only"), oursOnly = args.Contains("--ours-only");
bool boots = !args.Contains("--no-boots");
if (args.Except(["--stock-only", "--ours-only", "--no-boots"]).Any() || stockOnly && oursOnly)
{
    Console.Error.WriteLine(Usage);
    return 2;
}

try
{
    IReadOnlyList<BenchRow> stock = [], ours = [];
    if (!oursOnly)
    {
        AnsiConsole.MarkupLine("Measuring stock kvm-amd …");
        stock = [.. Rows("bench-stock", "modprobe kvm-amd", "/dev/kvm"), .. Boots(Hypervisor.Stock)];
    }
    if (!stockOnly)
    {
        AnsiConsole.MarkupLine("Measuring SharpKVM …");
        string load = $"insmod '{Hypervisor.SharpKvm.Module}'";
        ours = [.. Rows("bench-sharpkvm", load, "/dev/sharpkvm"), .. Boots(Hypervisor.SharpKvm)];
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

static IEnumerable<BenchRow> Rows(string name, string load, string device) =>
    ((bool[])[false, true]).SelectMany(clock => BenchRun.Measure(name, load, device, clock));

IReadOnlyList<BenchRow> Boots(Hypervisor hypervisor) => boots ? BootRows.Measure(hypervisor) : [];
