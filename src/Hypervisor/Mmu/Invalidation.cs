// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>
/// Follows what Linux does to the process's memory (MMU notifier). The MMU lock is held, exclusively to remove
/// mappings: nothing here locks, allocates or sleeps.
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

    /// <summary>Whether the guest has used pages in [start, end) since this was last asked. Starts a new turn.</summary>
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
        foreach (KernelArray<MemorySlot> chunk in vm.Memory.Slots.Chunks)
        {
            foreach (ref readonly MemorySlot slot in chunk.Span)
            {
                ulong from = Math.Max(start.Value, slot.Address.Value);
                ulong to = Math.Min(end.Value, slot.Address.Value + slot.Size);
                if (from < to)
                    any |= Visit(ref vm, in slot, new Hva(from), new Hva(to), work, accessed);
            }
        }
        return any;
    }

    private static bool Visit(ref Vm.Vm vm, in MemorySlot slot, Hva from, Hva to, Work work, ulong accessed)
    {
        Gfn first = (slot.Start + (from.Value - slot.Address.Value)).Frame;
        Gfn end = (slot.Start + (to.Value - 1 - slot.Address.Value)).Frame + 1;
        return work switch
        {
            Work.Unmap => NestedTables.Unmap(ref vm.Memory, first, end),
            Work.Age => NestedTables.Take(ref vm.Memory, first, end, accessed),
            _ => NestedTables.Any(ref vm.Memory, first, end, accessed),
        };
    }
}
