// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>How a guest under load gets from one QEMU to another in the same L1 (<c>l1-moves.sh</c>).</summary>
public enum MoveWay
{
    /// <summary><c>savevm</c>, and after it has gone on, <c>loadvm</c> in the same QEMU.</summary>
    Snapshot,

    /// <summary>Stopped and written to a file, which another QEMU loads.</summary>
    File,

    /// <summary>While it runs, over TCP.</summary>
    Live,

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
/// <param name="Machine">The L1 run that it was part of.</param>
public sealed partial record GuestMoveResult(GuestMove Move, L1Result Machine)
{
    /// <summary>What the job said of it.</summary>
    public IReadOnlyList<string> Messages => Machine.Section(Move.Name) ?? [];

    /// <summary>What the guest said, wherever it ran.</summary>
    public string Console
    {
        get
        {
            string path = Path.Combine(Machine.JobFolder, $"{Move.Name}.console");
            return File.Exists(path) ? File.ReadAllText(path) : "";
        }
    }

    /// <summary>
    /// Everything wrong: it or QEMU did not go on, its memory differs, its clock went back, something was lost or came
    /// twice.
    /// </summary>
    public IReadOnlyList<string> Faults =>
    [
        .. Messages.Contains("went on") ? (string[])[] : ["the guest did not go on"],
        .. Messages.Contains("unloaded") ? (string[])[] : ["the hypervisor did not go out"],
        .. Move.Way == MoveWay.Postcopy || (Sum("before") is string sum && sum == Sum("after"))
            ? (string[])[] : [$"its memory was {Sum("before")}, and is {Sum("after")}"],
        .. GuestLoad.Faults(Console, Move.Guest),
    ];

    /// <summary>How long no CPU of it ran, in ms, as QEMU says; null when it says nothing.</summary>
    public int? Downtime => Messages.Select(line => DowntimeLine().Match(line)).FirstOrDefault(match => match.Success)
        is Match found ? int.Parse(found.Groups[1].ValueSpan) : null;

    /// <summary>Moves guests, one after the other, in one L1.</summary>
    /// <param name="name">Names the log.</param>
    /// <param name="hypervisor">Runs them.</param>
    /// <param name="moves">Different ones.</param>
    public static IReadOnlyList<GuestMoveResult> Run(
        string name, Hypervisor hypervisor, IReadOnlyList<GuestMove> moves)
    {
        IEnumerable<string> episodes = moves.Select(move =>
            $"cpus={move.Guest.Cpus} memory={move.Guest.MemoryMib} episode {move.Name} "
            + $"\"{hypervisor.LoadFor(move.Guest.Emulator)}\" \"{hypervisor.Unload}\" "
            + $"{move.Way.ToString().ToLowerInvariant()} /job/{move.Name}.console {move.Guest.Command(hypervisor)}");
        L1Result machine = L1Machine.Run(new L1Options
        {
            Name = name,
            Timeout = TimeSpan.FromSeconds(60) + moves.Count * TimeSpan.FromMinutes(5),
            Script = string.Join('\n', [Initramfs.Script("l1-moves.sh"), .. episodes]),
        });
        return [.. moves.Select(move => new GuestMoveResult(move, machine))];
    }

    /// <summary>For people: what the job said, and the end of what the guest said.</summary>
    public string Describe() =>
        string.Join('\n', [$"{Move.Name} (log: {Machine.LogPath})", .. Messages, .. Console.Split('\n').TakeLast(20)]);

    private string? Sum(string when) => Messages
        .FirstOrDefault(line => line.StartsWith($"{when} ", StringComparison.Ordinal))?.Split(' ')[1];

    [GeneratedRegex(@"downtime: (\d+) ")]
    private static partial Regex DowntimeLine();
}
