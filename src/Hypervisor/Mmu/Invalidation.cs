// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>
/// Follows what Linux does to the process's memory (MMU notifier). The MMU lock is held, exclusively to remove mappings:
/// nothing here locks, allocates or sleeps.
/// </summary>
internal static class Invalidation
{
    private enum Work : byte
    {
        Unmap, Age, Test,
    }

    /// <summary>Removes the mappings of all guest pages whose memory lies in [start, end).</summary>
    /// <returns>Whether TLBs must be flushed before Linux goes on.</returns>
    public static bool UnmapHva(ref Vm.Vm vm, Hva start, Hva end) => Visit(ref vm, start, end, Work.Unmap, 0);

    /// <summary>Whether the guest has used pages in [start, end) since this was asked last. Starts a new turn.</summary>
    public static bool Age<TFormat>(ref Vm.Vm vm, Hva start, Hva end) where TFormat : struct, INestedFormat =>
        Visit(ref vm, start, end, Work.Age, TFormat.Accessed);

    /// <summary>Whether the guest has used the page since <see cref="Age"/>.</summary>
    public static bool IsYoung<TFormat>(ref Vm.Vm vm, Hva address) where TFormat : struct, INestedFormat =>
        Visit(ref vm, address, address + 1, Work.Test, TFormat.Accessed);

    private static bool Visit(ref Vm.Vm vm, Hva start, Hva end, Work work, ulong accessed)
    {
        if (vm.Memory.Root.IsNull)
            return false;
        bool any = false;
        foreach (ref readonly MemorySlot slot in vm.Memory.Slots.All)
        {
            ulong from = Math.Max(start.Value, slot.Address.Value);
            ulong to = Math.Min(end.Value, slot.Address.Value + slot.Size);
            if (from >= to)
                continue;
            Gfn first = (slot.Start + (from - slot.Address.Value)).Frame;
            Gfn last = (slot.Start + (to - 1 - slot.Address.Value)).Frame;
            any |= work switch
            {
                Work.Unmap => NestedTables.Unmap(ref vm.Memory, first, last + 1),
                Work.Age => NestedTables.Take(ref vm.Memory, first, last + 1, accessed),
                _ => NestedTables.Any(ref vm.Memory, first, last + 1, accessed),
            };
        }
        return any;
    }
}
