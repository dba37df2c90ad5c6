// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;

namespace SharpKvm.Lab;

/// <summary>
/// Guests booted one after the other in L1, the hypervisor loaded for each and taken out after it. A guest that brings
/// L1 down costs nobody else a result: L1 boots again for those that are left.
/// </summary>
public sealed class GuestRun
{
    /// <summary>The section behind a guest's is named so: QEMU has ended.</summary>
    public const string EndSuffix = "-end";

    private const string KernelLogMark = "lab: guest ";

    /// <summary>For L1's own start, and each guest's loading and unloading.</summary>
    private static readonly TimeSpan Extra = TimeSpan.FromSeconds(60);

    private readonly Dictionary<GuestBoot, GuestResult> results = [];

    private GuestRun(
        string name, Hypervisor hypervisor, IReadOnlyList<GuestBoot> guests, Action<L1Source, string>? live)
    {
        GuestBoot[] left = [.. guests];
        for (int start = 1; left.Length > 0 && start <= guests.Count; start++)
        {
            L1Result machine = L1Machine.Run(new L1Options
            {
                Name = start == 1 ? name : $"{name}-{start}",
                Lane = hypervisor.Lane,
                Files = [.. FilesFor(hypervisor, left)],
                Timeout = Extra + left.Aggregate(TimeSpan.Zero, (sum, guest) => sum + guest.Limit),
                Script = BuildScript(hypervisor, left),
                Live = live,
            });
            // One that never began will not do so the next time, either, when it is the first.
            GuestBoot[] ended = [.. left.Where((guest, i) => i == 0 || machine.Section(guest.Name) is not null)];
            foreach (GuestBoot guest in ended)
            {
                results.Add(guest, ResultOf(guest, machine));
            }

            left = [.. left.Except(ended)];
        }
    }

    /// <summary>What became of a guest.</summary>
    public GuestResult this[GuestBoot guest] => results[guest];

    /// <summary>Boots guests; each has its own log <c>build/logs/NAME.GUEST.log</c> afterwards.</summary>
    /// <param name="name">Names the logs.</param>
    /// <param name="hypervisor">Runs them.</param>
    /// <param name="guests">Different ones.</param>
    /// <param name="live">Called with each line as it comes.</param>
    public static GuestRun Boot(
        string name, Hypervisor hypervisor, IReadOnlyList<GuestBoot> guests, Action<L1Source, string>? live = null) =>
        new(name, hypervisor, guests, live);

    private static IEnumerable<string> FilesFor(Hypervisor hypervisor, IEnumerable<GuestBoot> guests) =>
        guests.SelectMany(guest => guest.Emulator.Files.Concat(guest.Files(hypervisor))).Distinct()
            .Concat(hypervisor.Module is null ? [] : [hypervisor.Module]);

    private static string BuildScript(Hypervisor hypervisor, IReadOnlyList<GuestBoot> guests)
    {
        string prepare = guests.Any(guest => guest.Devices) ? GuestDevices.Prepare : "true";
        IEnumerable<string> boots = guests.Select(guest =>
            $"guest {guest.Name} {guest.Limit.TotalSeconds:0} \"{hypervisor.LoadFor(guest.Emulator)}\" "
            + $"\"{hypervisor.Unload}\" {guest.Command(hypervisor)}");
        return string.Join('\n', [Initramfs.Script("l1-guests.sh"), $"{prepare} || exit 125", .. boots]);
    }

    private static GuestResult ResultOf(GuestBoot guest, L1Result machine)
    {
        IReadOnlyList<string> console = machine.Section(guest.Name) ?? [];
        IReadOnlyList<string> end = machine.Section(guest.Name + EndSuffix) ?? [];
        string saved = Path.Combine(machine.JobFolder, GuestDevices.KernelLogFile(guest.Name));
        IReadOnlyList<string> kernelLog = File.Exists(saved) ? File.ReadAllLines(saved) : [];
        IEnumerable<string> hostLog = machine.KernelLog
            .SkipWhile(line => KernelLog.WithoutTime(line) != KernelLogMark + guest.Name).Skip(1)
            .TakeWhile(line => !KernelLog.WithoutTime(line).StartsWith(KernelLogMark, StringComparison.Ordinal));
        string log = Path.ChangeExtension(machine.LogPath, $"{guest.Name}.log");
        File.WriteAllLines(log, [.. console, "", "QEMU:", .. end, "", "The guest's kernel log:", .. kernelLog]);
        return new GuestResult
        {
            Machine = machine,
            Console = console,
            KernelLog = kernelLog,
            Status = (int?)NumberIn(end, "status "),
            Duration = TimeSpan.FromMilliseconds(NumberIn(end, "milliseconds ") ?? 0),
            Messages = end,
            Reports = KernelLog.Scan(hostLog),
            LogPath = log,
        };
    }

    private static long? NumberIn(IEnumerable<string> lines, string before) =>
        lines.FirstOrDefault(line => line.StartsWith(before, StringComparison.Ordinal)) is string found
            ? long.Parse(found[before.Length..], CultureInfo.InvariantCulture)
            : null;
}
