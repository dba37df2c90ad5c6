// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>Follows what Linux does to the process's memory (MMU notifier).</summary>
internal static class Invalidation
{
    /// <summary>
    /// Removes the mappings of all guest pages whose memory lies in [start, end). The MMU lock is held: nothing here
    /// locks, allocates or sleeps.
    /// </summary>
    /// <returns>Whether TLBs must be flushed before Linux goes on.</returns>
    public static bool UnmapHva(ref Vm.Vm vm, Hva start, Hva end)
    {
        if (vm.Memory.Root.IsNull)
            return false;
        bool flush = false;
        foreach (ref readonly MemorySlot slot in vm.Memory.Slots.All)
        {
            ulong from = Math.Max(start.Value, slot.Address.Value);
            ulong to = Math.Min(end.Value, slot.Address.Value + slot.Size);
            if (from >= to)
                continue;
            Gpa first = slot.Start + (from - slot.Address.Value);
            Gpa last = slot.Start + (to - 1 - slot.Address.Value);
            flush |= NestedTables.Unmap(ref vm.Memory, first.Frame, last.Frame + 1);
        }
        return flush;
    }
}
