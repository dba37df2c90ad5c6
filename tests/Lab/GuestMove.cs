// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>How a guest under load gets from one QEMU to another (<c>l1-moves.sh</c>).</summary>
public enum MoveWay
{
    /// <summary><c>savevm</c>, and after it has gone on, <c>loadvm</c> in the same QEMU.</summary>
    Snapshot,

    /// <summary>Stopped and written to a file, which another QEMU loads.</summary>
    File,

    /// <summary>While it runs, over TCP.</summary>
    Live,

    /// <summary>While it runs, over a network, to a QEMU in another L1.</summary>
    Abroad,

    /// <summary>Over TCP; it runs on before its memory has come (userfaultfd).</summary>
    Postcopy,
}

/// <summary>A guest under memory load, and how it moves.</summary>
/// <param name="Way">How.</param>
/// <param name="Guest">Which; <see cref="GuestBoot.LoadBlocks"/> is set.</param>
public sealed record GuestMove(MoveWay Way, GuestBoot Guest)
{
    /// <summary>Like <c>live-pc-split-2-backports</c>.</summary>
    public string Name => $"{Way}-{Guest.Name}".ToLowerInvariant();
}

/// <summary>What became of a guest that moved.</summary>
/// <param name="Move">How it moved.</param>
/// <param name="Machines">The L1 run that it was part of; the other one's, too, when it went there.</param>
public sealed partial record GuestMoveResult(GuestMove Move, params IReadOnlyList<L1Result> Machines)
{
    /// <summary>What the jobs said of it.</summary>
    public IReadOnlyList<string> Messages => [.. Machines.SelectMany(machine => machine.Section(Move.Name) ?? [])];

    /// <summary>What the guest said, wherever it ran.</summary>
    public string Console => string.Concat(Machines
        .Select(machine => Path.Combine(machine.JobFolder, $"{Move.Name}.console"))
        .Where(File.Exists).Select(File.ReadAllText));

    /// <summary>
    /// Everything wrong: it or QEMU did not go on, its memory differs, its clock went back, something was lost or came
    /// twice.
    /// </summary>
    public IReadOnlyList<string> Faults =>
    [
        .. Messages.Count(line => line == "went on") == Machines.Count ? (string[])[] : ["the guest did not go on"],
        .. Messages.Count(line => line == "unloaded") == Machines.Count
            ? (string[])[] : ["the hypervisor did not go out"],
        .. Move.Way == MoveWay.Postcopy || MemoryIsTheSame ? (string[])[] : ["its memory is not the same"],
        .. GuestLoad.Faults(Console, Move.Guest),
    ];

    /// <summary>How long no CPU of it ran, in ms, as QEMU says; null when it says nothing.</summary>
    public int? Downtime => Messages.Select(line => DowntimeLine().Match(line)).FirstOrDefault(match => match.Success)
        is Match found ? int.Parse(found.Groups[1].ValueSpan) : null;

    /// <summary>
    /// True when the memory was the same, to the byte, before it went on; less the wall clock (12 bytes, pvclock),
    /// which a hypervisor writes when the register with its address is written.
    /// </summary>
    private bool MemoryIsTheSame => Messages.Select(line => DifferenceLine().Match(line))
        .FirstOrDefault(match => match.Success) is Match found
        && Convert.ToInt64(found.Groups[3].Value, 16) - Convert.ToInt64(found.Groups[2].Value, 16) < 12;

    /// <summary>Moves guests, one after the other, in one L1.</summary>
    /// <param name="name">Names the log.</param>
    /// <param name="hypervisor">Runs them.</param>
    /// <param name="moves">Different ones.</param>
    public static IReadOnlyList<GuestMoveResult> Run(
        string name, Hypervisor hypervisor, IReadOnlyList<GuestMove> moves)
    {
        L1Result machine = Run(name, moves, [.. moves.Select(move => Episode(hypervisor, move, $"{move.Way}"))]);
        return [.. moves.Select(move => new GuestMoveResult(move, machine))];
    }

    /// <summary>Moves a guest to another L1, which runs at the same time.</summary>
    /// <param name="name">Names the logs.</param>
    /// <param name="hypervisor">Runs it, here and there.</param>
    /// <param name="move">What moves.</param>
    public static GuestMoveResult RunAbroad(string name, Hypervisor hypervisor, GuestMove move)
    {
        (L1Wire source, L1Wire target) = L1Wire.Pair();
        Task<L1Result> other = Task.Run(() =>
            Run($"{name}-target", [move], ["wire 10.2.0.2", Episode(hypervisor, move, "land")], target));
        L1Result one = Run($"{name}-source", [move], ["wire 10.2.0.1", Episode(hypervisor, move, "depart")], source);
        return new GuestMoveResult(move, one, other.Result);
    }

    /// <summary>For people: what the job said, and the end of what the guest said.</summary>
    public string Describe() =>
        string.Join(
            '\n', [$"{Move.Name} (log: {Machines[0].LogPath})", .. Messages, .. Console.Split('\n').TakeLast(20)]);

    [GeneratedRegex(@"^differs (\d+) 0x(\w+) 0x(\w+)$")]
    private static partial Regex DifferenceLine();

    private static L1Result Run(string name, IReadOnlyList<GuestMove> moves, string[] commands, L1Wire? wire = null) =>
        L1Machine.Run(new L1Options
        {
            Name = name,
            Timeout = TimeSpan.FromSeconds(60) + moves.Count * TimeSpan.FromMinutes(5),
            Script = string.Join('\n', [Initramfs.Script("l1-moves.sh"), .. commands]),
            Wire = wire,
        });

    private static string Episode(Hypervisor hypervisor, GuestMove move, string command) =>
        $"cpus={move.Guest.Cpus} memory={move.Guest.MemoryMib} episode {move.Name} "
        + $"\"{hypervisor.LoadFor(move.Guest.Emulator)}\" \"{hypervisor.Unload}\" "
        + $"{command.ToLowerInvariant()} /job/{move.Name}.console {move.Guest.Command(hypervisor)}";

    [GeneratedRegex(@"downtime: (\d+) ")]
    private static partial Regex DowntimeLine();
}
