// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Text;
using System.Text.Json;
using Spectre.Console;

namespace SharpKvm.Bench;

/// <summary>One row of the comparison; a side that was not measured is null.</summary>
/// <param name="Missing">Which side lacks what this row measures; empty when none does.</param>
internal sealed record Comparison(string Name, double? Ours, double? Stock, string Missing,
    IReadOnlyDictionary<string, double> Counters)
{
    public double? Ratio => Ours / Stock;

    public string Unit => Name.EndsWith(BootRows.Time, StringComparison.Ordinal) ? "seconds"
        : Name.EndsWith("_bytes", StringComparison.Ordinal) ? "bytes" : "instructions";

    /// <summary>At most this part of stock's; null for rows that count waiting or scheduling, too, and for times.
    /// </summary>
    public double? Goal => Name switch
    {
        "npt_fault_populated" or "npt_fault_fresh" or "vm_create_destroy" => null,
        "hlt_self_ipi" or "irqfd_pingpong" or "msi_pingpong" or "ipi_two_vcpus" or "timer_tick" => null,
        "apic_read" or "apic_write" or "x2apic_read" or "x2apic_write" or "eoi" => 0.6,
        "ioeventfd_pio" or "ioeventfd_mmio" => 0.6,
        "boot_linux_1" or "map_1g_kernel_bytes" => 1,
        _ when Name.StartsWith("slot_", StringComparison.Ordinal) => 1,
        _ when Name.StartsWith("shadow_", StringComparison.Ordinal) => 1,
        _ => Unit == "seconds" ? null : 0.7,
    };

    /// <summary>What was counted per round trip, or why nothing was.</summary>
    public string Remark => Missing.Length > 0 ? Missing : string.Join(", ",
        Counters.Select(pair => string.Create(CultureInfo.InvariantCulture, $"{pair.Key} {pair.Value:0.##}")));
}

/// <summary>Writes the comparison for people and for machines.</summary>
internal static class Report
{
    public static IReadOnlyList<Comparison> Join(IReadOnlyList<BenchRow> ours, IReadOnlyList<BenchRow> stock)
    {
        var oursByName = ours.ToDictionary(row => row.Name);
        var stockByName = stock.ToDictionary(row => row.Name);
        return
        [
            .. stock.Concat(ours).Select(row => row.Name).Distinct().Select(name =>
                Join(name, oursByName.GetValueOrDefault(name), stockByName.GetValueOrDefault(name))),
        ];
    }

    private static Comparison Join(string name, BenchRow? ours, BenchRow? stock)
    {
        string missing = ours?.Missing is { } here ? $"missing on SharpKVM: {here}"
            : stock?.Missing is { } there ? $"missing on stock: {there}" : "";
        return new(name, ours?.Minimum, stock?.Minimum, missing, ours?.Counters ?? new Dictionary<string, double>());
    }

    public static void Print(IEnumerable<Comparison> rows, string stock)
    {
        var table = new Table().Border(TableBorder.Rounded).Title("Instructions per round trip");
        table.AddColumn("row");
        foreach (string column in (string[])["SharpKVM", $"stock {stock}", "ratio", "goal"])
            table.AddColumn(new TableColumn(column).RightAligned());
        table.AddColumn("per round trip");
        foreach (Comparison row in rows)
        {
            string colour = row.Goal is null || row.Ratio is null ? "default"
                : row.Ratio <= row.Goal ? "green" : "yellow";
            table.AddRow(row.Name, Show(row, row.Ours), Show(row, row.Stock), $"[{colour}]{ShowPart(row.Ratio)}[/]",
                ShowPart(row.Goal), Markup.Escape(row.Remark));
        }
        AnsiConsole.Write(table);
    }

    public static string ToMarkdown(IEnumerable<Comparison> rows, string stock)
    {
        var text = new StringBuilder();
        text.AppendLine($"# Instructions per round trip, beside {stock}").AppendLine();
        text.AppendLine("Counted by the emulator on one CPU; the smallest of the samples. A row's goal is"
            + " the part of stock's count that it may take.").AppendLine();
        text.AppendLine($"| row | SharpKVM | stock {stock} | ratio | goal | per round trip |");
        text.AppendLine("|---|--:|--:|--:|--:|---|");
        foreach (Comparison row in rows)
        {
            text.AppendLine($"| {row.Name} | {Show(row, row.Ours)} | {Show(row, row.Stock)} | {ShowPart(row.Ratio)} |"
                + $" {ShowPart(row.Goal)} | {row.Remark} |");
        }
        return text.ToString();
    }

    /// <summary>The rows that no side is missing.</summary>
    public static string ToJson(IEnumerable<Comparison> rows)
    {
        using var stream = new MemoryStream();
        using (var json = new Utf8JsonWriter(stream, new() { Indented = true }))
        {
            json.WriteStartArray();
            foreach (Comparison row in rows.Where(row => row.Missing.Length == 0))
            {
                json.WriteStartObject();
                json.WriteString("name", row.Name);
                WriteNumber("ours", row.Ours, 1);
                WriteNumber("stock", row.Stock, 1);
                WriteNumber("ratio", row.Ratio, 3);
                json.WriteString("unit", row.Unit);
                if (row.Counters.Count > 0)
                {
                    json.WriteStartObject("counters");
                    foreach ((string name, double value) in row.Counters)
                        json.WriteNumber(name, Math.Round(value, 3));
                    json.WriteEndObject();
                }
                json.WriteEndObject();
            }
            json.WriteEndArray();

            void WriteNumber(string name, double? value, int digits)
            {
                if (value is { } number)
                    json.WriteNumber(name, Math.Round(number, digits));
                else
                    json.WriteNull(name);
            }
        }
        return Encoding.UTF8.GetString(stream.ToArray()) + "\n";
    }

    private static string Show(Comparison row, double? value) =>
        value?.ToString(row.Unit == "seconds" ? "0.0 s" : "N0", CultureInfo.InvariantCulture) ?? "-";

    private static string ShowPart(double? part) => part?.ToString("0.00", CultureInfo.InvariantCulture) ?? "-";
}
