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
            ulong slotEnd = slot.Address.Value + (slot.PageCount << Page.Shift);
            ulong from = Math.Max(start.Value, slot.Address.Value);
            ulong to = Math.Min(end.Value, slotEnd);
            if (from >= to)
                continue;
            ulong firstPage = (from - slot.Address.Value) >> Page.Shift;
            ulong endPage = (to - slot.Address.Value + Page.OffsetMask) >> Page.Shift;
            flush |= NestedTables.Unmap(ref vm.Memory, slot.First + firstPage, slot.First + endPage);
        }
        return flush;
    }
}
