// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>
/// One end of a network of two L1 machines, which nothing else is on: a pair of Unix sockets that carry its packets.
/// </summary>
/// <param name="Own">The socket of this end, made by its machine; a path short enough for one.</param>
/// <param name="Other">The socket of the other end.</param>
public sealed record L1Wire(string Own, string Other)
{
    /// <summary>The two ends of a new network.</summary>
    public static (L1Wire First, L1Wire Second) Pair()
    {
        string path = Path.Combine(Path.GetTempPath(), $"lab-{Guid.NewGuid():N}");
        return (new L1Wire($"{path}-1", $"{path}-2"), new L1Wire($"{path}-2", $"{path}-1"));
    }

    /// <summary>The card, for QEMU's command line.</summary>
    internal string[] QemuArguments =>
    [
        "-netdev", $"dgram,id=wire,local.type=unix,local.path={Own},remote.type=unix,remote.path={Other}",
        "-device", $"virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:12:35:0{Own[^1]}",
    ];
}
