// SPDX-License-Identifier: GPL-2.0-only
using Spectre.Console;
using SharpKvm.Bench;
using SharpKvm.Lab;

const string Usage =
    """
    usage: bench [--vmx] [--shadow] [--stock-only | --ours-only] [--no-boots]
    Measures the same program, and boots of Linux, on stock kvm-amd and on kmod/sharpkvm.ko in throw-away machines; with
    --vmx the program alone on kvm-intel and kmod/sharpkvm.ko in Bochs; with --shadow only the rows about shadow tables.
    Writes build/bench/svm.json and svm.md; vmx, svm-shadow or vmx-shadow with these options.
    Exit code: 0 measured, 1 failed, 2 bad command line.
    """;

bool stockOnly = args.Contains("--stock-only"), oursOnly = args.Contains("--ours-only");
bool isVmx = args.Contains("--vmx"), shadowOnly = args.Contains("--shadow");
bool boots = !isVmx && !shadowOnly && !args.Contains("--no-boots");
(Lane lane, Lane shadowLane) = isVmx ? (Lane.VmxEpt, Lane.VmxShadow) : (Lane.SvmNpt, Lane.SvmShadow);
RowSet[] sets = shadowOnly ? [RowSet.Shadow] : isVmx ? [RowSet.Counts, RowSet.Shadow] : Enum.GetValues<RowSet>();
string vendor = isVmx ? "vmx" : "svm", file = shadowOnly ? $"{vendor}-shadow" : vendor;
if (args.Except(["--vmx", "--shadow", "--stock-only", "--ours-only", "--no-boots"]).Any() || stockOnly && oursOnly)
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

IEnumerable<BenchRow> Rows(string name, string load, string device) => sets.SelectMany(set =>
    BenchRun.Measure(set == RowSet.Shadow ? shadowLane : lane, $"{name}-{vendor}", load, device, set));

IReadOnlyList<BenchRow> Boots(Hypervisor hypervisor) => boots ? BootRows.Measure(hypervisor) : [];
