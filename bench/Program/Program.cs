// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.IO.Enumeration;
using System.Text;
using SharpKvm.Bench;
using SharpKvm.Selftests;

string filter = "*";
bool json = false, clock = false, shadow = false, slow = false;
for (int i = 0; i < args.Length; i++)
{
    switch (args[i])
    {
        case "--json":
            json = true;
            break;
        case "--slow":
            slow = true;
            break;
        case "--clock":
            clock = true;
            break;
        case "--shadow":
            shadow = true;
            break;
        case "--device" when i + 1 < args.Length:
            TestEnvironment.Device = args[++i];
            break;
        case "--filter" when i + 1 < args.Length:
            filter = args[++i];
            break;
        default:
            Console.Error.WriteLine(
                "usage: kvmbench [--device PATH] [--filter GLOB] [--clock | --shadow] [--slow] [--json]");
            return 2;
    }
}

Scheduling.TakeTurns();
ThreadSignals.IgnoreByHandler(ThreadSignals.Kick);
int thread = ThreadSignals.CurrentThread;
bool good = true;
var objects = new List<string>();
IEnumerable<Row> rows = (clock ? Rows.ByClock : shadow ? Rows.OfShadowTables : Rows.All)
    .Where(row => !slow || !row.NeedsRoom);
// A slow machine is an emulated one whose seconds are short.
int patience = slow ? 10 : 1;
foreach (Row row in rows.Where(row => FileSystemName.MatchesSimpleExpression(filter, row.Name)))
{
    Measurement? measured = null;
    string kind = "error", reason = "";
    try
    {
        // A guest that waits for ever for an interrupt must not take the other rows with it.
        using var limit = new Timer(_ => ThreadSignals.Send(thread, ThreadSignals.Kick), null,
            TimeSpan.FromSeconds(row.Patience * patience), TimeSpan.FromMilliseconds(5));
        measured = row.Measure();
    }
    catch (TestSkipped missing)
    {
        (kind, reason) = ("missing", missing.Message);
    }
    catch (Exception failure) when (failure is KvmException or TestFailure or TimeoutException)
    {
        reason = failure.Message;
        good = false;
    }
    if (json)
        objects.Add(ToJson(row, measured, kind, reason));
    else if (measured is { } result)
    {
        Console.WriteLine($"{row.Name,-22}{result.Minimum,10:0.0} min {result.Median,10:0.0} median"
            + $"  {Show(result.Counters)}");
    }
    else
        Console.WriteLine($"{row.Name,-22}{kind}: {reason}");
}
if (json)
    Console.WriteLine($"[\n  {string.Join(",\n  ", objects)}\n]");
return good ? 0 : 1;

static string Show(IReadOnlyDictionary<string, double> counters) =>
    string.Join(" ", counters.Select(pair => $"{pair.Key} {pair.Value:0.00}"));

static string ToJson(Row row, Measurement? measured, string kind, string reason)
{
    var text = new StringBuilder($"{{ \"name\": \"{row.Name}\"");
    if (measured is { } result)
    {
        text.Append(CultureInfo.InvariantCulture,
            $", \"minimum\": {result.Minimum:0.0}, \"median\": {result.Median:0.0}");
        text.Append(CultureInfo.InvariantCulture,
            $", \"samples\": {result.Samples}, \"roundTrips\": {result.RoundTrips}");
        text.Append(", \"counters\": { ");
        text.AppendJoin(", ", result.Counters.Select(pair =>
            string.Create(CultureInfo.InvariantCulture, $"\"{pair.Key}\": {pair.Value:0.000}")));
        text.Append(" }");
    }
    else
        text.Append($", \"{kind}\": \"{reason.Replace("\\", "").Replace('"', '\'')}\"");
    return text.Append(" }").ToString();
}
