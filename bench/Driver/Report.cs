// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Text;
using System.Text.Json;
using Spectre.Console;

namespace SharpKvm.Bench;

/// <summary>One row of the comparison; a side that was not measured is null.</summary>
internal sealed record Comparison(string Name, double? Ours, double? Stock,
    IReadOnlyDictionary<string, double> Counters)
{
    /// <summary>Rows in which L1 waits for grace periods: they count waiting, so they have no goal.</summary>
    private static readonly string[] WithoutGoal = ["vm_create_destroy", "npt_fault_populated", "npt_fault_fresh"];

    public double? Ratio => Ours / Stock;

    /// <summary>The goal of an exit row: at most this part of stock's count.</summary>
    public const double Goal = 0.7;

    public bool HasGoal => !WithoutGoal.Contains(Name);

    public string CountersText => string.Join(", ",
        Counters.Select(pair => string.Create(CultureInfo.InvariantCulture, $"{pair.Key} {pair.Value:0.##}")));
}

/// <summary>Writes the comparison for people and for machines.</summary>
internal static class Report
{
    private const string Unit = "instructions";

    public static IReadOnlyList<Comparison> Join(IReadOnlyList<BenchRow> ours, IReadOnlyList<BenchRow> stock)
    {
        var oursByName = ours.ToDictionary(row => row.Name);
        var stockByName = stock.ToDictionary(row => row.Name);
        return
        [
            .. stock.Concat(ours).Select(row => row.Name).Distinct().Select(name => new Comparison(name,
                oursByName.GetValueOrDefault(name)?.Minimum, stockByName.GetValueOrDefault(name)?.Minimum,
                oursByName.GetValueOrDefault(name)?.Counters ?? new Dictionary<string, double>())),
        ];
    }

    public static void Print(IEnumerable<Comparison> rows)
    {
        var table = new Table().Border(TableBorder.Rounded).Title("Instructions per round trip");
        table.AddColumn("row");
        foreach (string column in (string[])["SharpKVM", "stock kvm-amd", "ratio"])
            table.AddColumn(new TableColumn(column).RightAligned());
        table.AddColumn("per round trip");
        foreach (Comparison row in rows)
        {
            string colour = !row.HasGoal || row.Ratio is null ? "default"
                : row.Ratio <= Comparison.Goal ? "green" : "yellow";
            table.AddRow(row.Name, Show(row.Ours), Show(row.Stock), $"[{colour}]{ShowRatio(row)}[/]", row.CountersText);
        }
        AnsiConsole.Write(table);
    }

    public static string ToMarkdown(IEnumerable<Comparison> rows)
    {
        var text = new StringBuilder();
        text.AppendLine("# Instructions per round trip, AMD SVM with nested paging").AppendLine();
        text.AppendLine("Counted by QEMU's `-icount shift=0` on one CPU; the smallest of the samples. The goal of an"
            + $" exit row is {Comparison.Goal.ToString(CultureInfo.InvariantCulture)} of stock.").AppendLine();
        text.AppendLine("| row | SharpKVM | stock kvm-amd | ratio | per round trip |");
        text.AppendLine("|---|--:|--:|--:|---|");
        foreach (Comparison row in rows)
        {
            text.AppendLine($"| {row.Name} | {Show(row.Ours)} | {Show(row.Stock)} | {ShowRatio(row)} |"
                + $" {row.CountersText} |");
        }
        return text.ToString();
    }

    public static string ToJson(IEnumerable<Comparison> rows)
    {
        using var stream = new MemoryStream();
        using (var json = new Utf8JsonWriter(stream, new() { Indented = true }))
        {
            json.WriteStartArray();
            foreach (Comparison row in rows)
            {
                json.WriteStartObject();
                json.WriteString("name", row.Name);
                WriteNumber("ours", row.Ours, 1);
                WriteNumber("stock", row.Stock, 1);
                WriteNumber("ratio", row.Ratio, 3);
                json.WriteString("unit", Unit);
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

    private static string Show(double? value) => value?.ToString("N0", CultureInfo.InvariantCulture) ?? "-";

    private static string ShowRatio(Comparison row) => row.Ratio?.ToString("0.00", CultureInfo.InvariantCulture) ?? "-";
}
