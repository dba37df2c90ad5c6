// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>What becomes of guests' memory in L1 while they are under load (<c>l1-squeezes.sh</c>).</summary>
public enum Squeeze
{
    /// <summary>There is less than they use: it goes to swap and comes back.</summary>
    Swapped,

    /// <summary>Equal pages of two guests are merged (KSM), and unmerged.</summary>
    Merged,

    /// <summary>The guest's balloon gives some back, and takes it again.</summary>
    Ballooned,

    /// <summary>One guest's QEMU is killed for want of it; the other's is not.</summary>
    Killed,
}

/// <summary>Guests under memory load that are squeezed, in one L1.</summary>
public sealed class GuestSqueezes
{
    /// <summary>What the kernel says when it kills for want of memory.</summary>
    private static readonly string[] Expected = ["^Call Trace:", "^Memory cgroup out of memory: Killed process"];

    private GuestSqueezes(L1Result machine) => Machine = machine;

    /// <summary>The L1 run.</summary>
    public L1Result Machine { get; }

    /// <summary>Squeezes guests, one way after the other.</summary>
    public static GuestSqueezes Run(string name, Hypervisor hypervisor)
    {
        IEnumerable<string> episodes = Enum.GetValues<Squeeze>().Select(way =>
        {
            (string word, GuestBoot guest) = (Word(way), GuestFor(way));
            return $"cpus={guest.Cpus} memory={guest.MemoryMib} episode {word} "
                + $"\"{hypervisor.LoadFor(guest.Emulator)}\" \"{hypervisor.Unload}\" "
            + $"{word} /job/{word} {guest.Command(hypervisor)}";
        });
        return new GuestSqueezes(L1Machine.Run(new L1Options
        {
            Name = name,
            Timeout = TimeSpan.FromMinutes(20),
            ExpectedReports = Expected,
            Script = string.Join('\n',
                [Initramfs.Script("l1-moves.sh"), Initramfs.Script("l1-squeezes.sh"), "groups", .. episodes]),
        }));
    }

    /// <summary>What the job said of one way.</summary>
    public IReadOnlyList<string> Messages(Squeeze way) => Machine.Section(Word(way)) ?? [];

    /// <summary>The numbers behind a word in what the job said; none when it did not say it.</summary>
    public int[] Numbers(Squeeze way, string word) =>
        [.. (Messages(way).FirstOrDefault(line => line.StartsWith($"{word} ", StringComparison.Ordinal)) ?? "")
            .Split(' ').Where(text => int.TryParse(text, out _)).Select(int.Parse)];

    /// <summary>Everything wrong with the guests that must have lived.</summary>
    public IReadOnlyList<string> Faults(Squeeze way)
    {
        string[] consoles = Directory.GetFiles(Machine.JobFolder, $"{Word(way)}*.console");
        return
        [
            .. Messages(way).Contains("went on") ? (string[])[] : ["not all of it was done"],
            .. Messages(way).Contains("unloaded") ? (string[])[] : ["the hypervisor did not go out"],
            .. consoles.Length == (way == Squeeze.Merged ? 2 : 1) ? (string[])[] : ["a guest is missing"],
            .. consoles.SelectMany(console => GuestLoad.Faults(File.ReadAllText(console), GuestFor(way))),
        ];
    }

    /// <summary>Two guests are as much as L1 has CPUs for when they have one each.</summary>
    private static GuestBoot GuestFor(Squeeze way) =>
        new() { Cpus = way == Squeeze.Merged ? 1 : 2, MemoryMib = 256, LoadBlocks = 32 };

    private static string Word(Squeeze way) => $"{way}".ToLowerInvariant();
}
