// SPDX-License-Identifier: GPL-2.0-only
using Spectre.Console;
using SharpKvm.Bench;
using SharpKvm.Lab;

const string Usage =
    """
    usage: bench [--vmx] [--stock-only | --ours-only] [--no-boots]
    Measures the same program, and boots of Linux, on stock kvm-amd and on kmod/sharpkvm.ko in throw-away machines; with
    --vmx the program alone on kvm-intel and kmod/sharpkvm.ko in Bochs. Writes build/bench/svm.json and svm.md, or
    vmx.json and vmx.md. Exit code: 0 measured, 1 failed, 2 bad command line.
    """;

bool stockOnly = args.Contains("--stock-only"), oursOnly = args.Contains("--ours-only");
Lane lane = args.Contains("--vmx") ? Lane.VmxEpt : Lane.SvmNpt;
bool isVmx = lane == Lane.VmxEpt, boots = !isVmx && !args.Contains("--no-boots");
string file = isVmx ? "vmx" : "svm";
if (args.Except(["--vmx", "--stock-only", "--ours-only", "--no-boots"]).Any() || stockOnly && oursOnly)
{
    Console.Error.WriteLine(Usage);
    return 2;
}

try
{
    IReadOnlyList<BenchRow> stock = [], ours = [];
    if (!oursOnly)
    {
        AnsiConsole.MarkupLine($"Measuring stock {lane.StockModule} …");
        stock = [.. Rows("bench-stock", $"modprobe {lane.StockModule}", "/dev/kvm"), .. Boots(Hypervisor.Stock)];
    }
    if (!stockOnly)
    {
        AnsiConsole.MarkupLine("Measuring SharpKVM …");
        string load = $"insmod '{Hypervisor.SharpKvm.Module}'";
        ours = [.. Rows("bench-sharpkvm", load, "/dev/sharpkvm"), .. Boots(Hypervisor.SharpKvm)];
    }

    IReadOnlyList<Comparison> rows = Report.Join(ours, stock);
    Report.Print(rows, lane.StockModule);
    string folder = Repository.PathOf("build", "bench");
    Directory.CreateDirectory(folder);
    File.WriteAllText(Path.Combine(folder, $"{file}.json"), Report.ToJson(rows));
    File.WriteAllText(Path.Combine(folder, $"{file}.md"), Report.ToMarkdown(rows, lane.StockModule));
    foreach (BenchRow failed in stock.Concat(ours).Where(row => row.Error is not null))
        AnsiConsole.MarkupLineInterpolated($"[red]{failed.Name}[/]: {failed.Error}");
    return stock.Concat(ours).Any(row => row.Error is not null) ? 1 : 0;
}
catch (LabException error)
{
    AnsiConsole.MarkupLineInterpolated($"[red]{error.Message}[/]");
    return 1;
}

IEnumerable<BenchRow> Rows(string name, string load, string device) => ((bool[])(isVmx ? [false] : [false, true]))
    .SelectMany(clock => BenchRun.Measure(lane, $"{name}-{file}", load, device, clock));

IReadOnlyList<BenchRow> Boots(Hypervisor hypervisor) => boots ? BootRows.Measure(hypervisor) : [];
