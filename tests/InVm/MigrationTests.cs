// SPDX-License-Identifier: GPL-2.0-only
using System.Collections.Concurrent;

namespace SharpKvm.InVm;

/// <summary>
/// A Linux guest whose CPUs fill, change and check memory is saved and loaded, or moves from one QEMU to another: its
/// memory is the same, to the byte, and it goes on as if nothing had been.
/// </summary>
[TestFixture]
public sealed class MigrationTests
{
    private static readonly ConcurrentDictionary<(Hypervisor, string), Lazy<IReadOnlyList<GuestMoveResult>>> Runs =
        new();

    private static readonly GuestMove[] All =
    [
        Of(MoveWay.Snapshot, IrqChip.On, cpus: 2, GuestQemu.Installed),
        Of(MoveWay.File, IrqChip.Split, cpus: 2, GuestQemu.Backports),
        Of(MoveWay.Live, IrqChip.On, cpus: 1, GuestQemu.Backports),
        Of(MoveWay.Live, IrqChip.On, cpus: 2, GuestQemu.Installed),
        Of(MoveWay.Live, IrqChip.Split, cpus: 1, GuestQemu.Installed),
        Of(MoveWay.Live, IrqChip.Split, cpus: 2, GuestQemu.Backports),
        Of(MoveWay.Live, IrqChip.Off, cpus: 1, GuestQemu.Installed),
        Of(MoveWay.Postcopy, IrqChip.On, cpus: 2, GuestQemu.Installed),
        Of(MoveWay.Postcopy, IrqChip.Split, cpus: 2, GuestQemu.Backports),
        Of(MoveWay.Abroad, IrqChip.On, cpus: 2, GuestQemu.Installed),
    ];

    private static IEnumerable<TestCaseData> Cases =>
        All.Select(move => new TestCaseData(move).SetArgDisplayNames(move.Name));

    [TestCaseSource(nameof(Cases)), Category(Tier.Full)]
    public void GuestMoves(GuestMove move) => Check(Hypervisor.SharpKvm, move);

    [TestCaseSource(nameof(Cases)), Category(Tier.Full)]
    public void GuestMovesOnStockKvm(GuestMove move) => Check(Hypervisor.Stock, move);

    private static void Check(Hypervisor hypervisor, GuestMove move)
    {
        GuestMoveResult result = Runs
            .GetOrAdd((hypervisor, BatchOf(move)), key => new(() => Run(key.Item1, key.Item2)))
            .Value.First(result => result.Move == move);
        TestContext.Out.WriteLine(string.Join('\n', result.Messages));
        using (Assert.EnterMultipleScope())
        {
            Assert.That(result.Faults, Is.Empty, result.Describe());
            foreach (L1Result machine in result.Machines)
            {
                Assert.That(machine.Succeeded, Is.True, machine.Describe());
            }
        }
    }

    private static IReadOnlyList<GuestMoveResult> Run(Hypervisor hypervisor, string batch)
    {
        string name = $"moves-{hypervisor.Name}-{batch}";
        GuestMove[] moves = [.. All.Where(move => BatchOf(move) == batch)];
        return moves[0].Way == MoveWay.Abroad
            ? [.. moves.Select(move => GuestMoveResult.RunAbroad(name, hypervisor, move))]
            : GuestMoveResult.Run(name, hypervisor, moves);
    }

    private static string BatchOf(GuestMove move) => $"{move.Way}".ToLowerInvariant();

    private static GuestMove Of(MoveWay way, IrqChip chip, int cpus, GuestQemu qemu) => new(way, new GuestBoot
    {
        IrqChip = chip,
        Cpus = cpus,
        Qemu = qemu,
        MemoryMib = 192,
        LoadBlocks = 24 / cpus,
    });
}
