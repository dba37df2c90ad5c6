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

    /// <summary>
    /// Removes the mappings of all guest pages whose memory lies in [start, end), from TLBs, too. A table that maps
    /// nothing any more goes back to Linux at once, because this may be Linux taking memory back.
    /// </summary>
    public static void UnmapHva(ref Vm.Vm vm, Hva start, Hva end)
    {
        TablePool retired = default;
        if (Visit(ref vm, start, end, Work.Unmap, 0, ref retired))
            vm.Host.FlushTlbs();
        retired.Free();
    }

    /// <summary>
    /// Whether the guest has used pages in [start, end) since this was last asked. Starts a new turn.
    /// </summary>
    public static bool Age<TFormat>(ref Vm.Vm vm, Hva start, Hva end) where TFormat : struct, INestedFormat =>
        Visit<TFormat>(ref vm, start, end, Work.Age);

    /// <summary>Whether the guest has used the page since <see cref="Age"/>.</summary>
    public static bool IsYoung<TFormat>(ref Vm.Vm vm, Hva address) where TFormat : struct, INestedFormat =>
        Visit<TFormat>(ref vm, address, address + 1, Work.Test);

    private static bool Visit<TFormat>(ref Vm.Vm vm, Hva start, Hva end, Work work)
        where TFormat : struct, INestedFormat
    {
        TablePool none = default;
        return Visit(ref vm, start, end, work, TFormat.Accessed, ref none);
    }

    private static bool Visit(ref Vm.Vm vm, Hva start, Hva end, Work work, ulong accessed, ref TablePool retired)
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
                    any |= Visit(ref vm, in slot, new Hva(from), new Hva(to), work, accessed, ref retired);
            }
        }
        return any;
    }

    private static bool Visit(ref Vm.Vm vm, in MemorySlot slot, Hva from, Hva to, Work work, ulong accessed,
        ref TablePool retired)
    {
        Gfn first = (slot.Start + (from.Value - slot.Address.Value)).Frame;
        Gfn end = (slot.Start + (to.Value - 1 - slot.Address.Value)).Frame + 1;
        return work switch
        {
            Work.Unmap => NestedTables.Remove(ref vm.Memory, first, end, ref retired),
            Work.Age => NestedTables.Take(ref vm.Memory, first, end, accessed),
            _ => NestedTables.Any(ref vm.Memory, first, end, accessed),
        };
    }
}
