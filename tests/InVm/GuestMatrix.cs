// SPDX-License-Identifier: GPL-2.0-only
using System.Collections.Concurrent;

namespace SharpKvm.InVm;

/// <summary>The guests that are booted, and what became of them: each once, however many cases ask.</summary>
internal static class GuestMatrix
{
    private static readonly ConcurrentDictionary<(Hypervisor, string), Lazy<GuestRun>> Runs = new();

    /// <summary>
    /// Each board with each kind of interrupt controllers and with 1, 2 and 4 CPUs. The two QEMUs take turns, so that
    /// each board with each kind meets both, and so does each number of CPUs with each kind. Without controllers in the
    /// kernel it is QEMU 7.2 with one CPU: with more it hangs on any KVM, and QEMU 10.0 refuses ("KVM does not support
    /// userspace APIC").
    /// </summary>
    public static IReadOnlyList<GuestBoot> All { get; } =
    [
        .. from chip in Enum.GetValues<IrqChip>()
           from board in Enum.GetValues<GuestBoard>()
           from cpus in chip == IrqChip.Off ? (int[])[1] : [1, 2, 4]
           let backports = chip != IrqChip.Off && (board == GuestBoard.Pc ^ cpus == 2 ^ true)
           select new GuestBoot
           {
               Board = board,
               IrqChip = chip,
               Cpus = cpus,
               Qemu = backports ? GuestQemu.Backports : GuestQemu.Installed,
               Devices = true,
           },
    ];

    /// <summary>Those of <c>make test</c>.</summary>
    public static IReadOnlyList<GuestBoot> Short { get; } =
    [
        .. All.Where(guest => guest.Name is "q35-on-2-installed" or "pc-split-2-backports" or "q35-off-1-installed"),
    ];

    /// <summary>What became of a guest; boots it, with others that share its L1, when nobody has asked yet.</summary>
    public static GuestResult On(Hypervisor hypervisor, GuestBoot guest) =>
        Runs.GetOrAdd((hypervisor, BatchOf(guest)), key => new Lazy<GuestRun>(() => Boot(key.Item1, key.Item2)))
            .Value[guest];

    private static GuestRun Boot(Hypervisor hypervisor, string batch) =>
        GuestRun.Boot(
            $"guests-{hypervisor.Name}-{batch}", hypervisor, [.. All.Where(guest => BatchOf(guest) == batch)]);

    private static string BatchOf(GuestBoot guest) =>
        Short.Contains(guest) ? "short" : $"{guest.Board}-{guest.IrqChip}".ToLowerInvariant();
}
