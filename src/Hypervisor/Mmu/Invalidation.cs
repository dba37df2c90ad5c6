// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// Follows what Linux does to the process's memory (MMU notifier). The MMU lock is held, exclusively to remove
/// mappings: nothing here locks, allocates or sleeps.
/// </summary>
internal static class Invalidation
{
    /// <summary>
    /// Removes the mappings of all guest pages whose memory lies in [start, end), from TLBs, too. A table that maps
    /// nothing any more goes back to Linux at once, because this may be Linux taking memory back.
    /// </summary>
    public static void UnmapHva(ref Vm.Vm vm, Hva start, Hva end) =>
        Visit(ref vm, start, end, Sweeping.Remove, NestedTables.AllBits);

    /// <summary>
    /// Whether the guest has used pages in [start, end) since this was last asked. Starts a new turn.
    /// </summary>
    public static bool Age<TFormat>(ref Vm.Vm vm, Hva start, Hva end) where TFormat : struct, INestedFormat
    {
        bool young = Visit(ref vm, start, end, Sweeping.Take, TFormat.Accessed);
        // The right to write may not live on in TLBs alone: the dirty log looks for it in the tables.
        if (young && (TFormat.Accessed & NestedTables.Writable) != 0)
            vm.Host.FlushTlbs();
        return young;
    }

    /// <summary>Whether the guest has used the page since <see cref="Age"/>.</summary>
    public static bool IsYoung<TFormat>(ref Vm.Vm vm, Hva address) where TFormat : struct, INestedFormat =>
        Visit(ref vm, address, address + 1, Sweeping.Look, TFormat.Accessed);

    private static bool Visit(ref Vm.Vm vm, Hva start, Hva end, Sweeping work, ulong bits)
    {
        if (vm.Memory.Root.IsNull)
            return false;
        TablePool retired = default;
        bool any = false;
        foreach (ref readonly MemorySlot slot in vm.Memory.Slots.All)
        {
            ulong from = Math.Max(start.Value, slot.Address.Value);
            ulong to = Math.Min(end.Value, slot.Address.Value + slot.Size);
            if (from >= to)
                continue;
            Gfn first = (slot.Start + (from - slot.Address.Value)).Frame;
            Gfn last = (slot.Start + (to - 1 - slot.Address.Value)).Frame;
            any |= NestedTables.Sweep(ref vm.Memory, first, last + 1, work, bits, ref retired);
        }
        if (any && work == Sweeping.Remove)
            vm.Host.FlushTlbs();
        retired.Free();
        return any;
    }
}
