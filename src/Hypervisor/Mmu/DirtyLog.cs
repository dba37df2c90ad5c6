// SPDX-License-Identifier: GPL-2.0-only
using System.Numerics;
using SharpKvm.Abi;
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>KVM_GET_DIRTY_LOG: which pages were written since the last call.</summary>
internal static class DirtyLog
{
    /// <summary>Words of a bitmap handled in one hold of the MMU lock: 4,096 pages.</summary>
    private const int WordsPerLock = 64;

    /// <summary>
    /// Copies the slot's bitmap to user space and starts a new one; the caller holds the slots mutex. On failure no bit
    /// is lost.
    /// </summary>
    /// <returns>0, -EINVAL for a bad slot id, -ENOENT when the slot does not log, -EFAULT or -ENOMEM.</returns>
    public static int Get(ref Vm.Vm vm, in kvm_dirty_log log)
    {
        if (log.slot >= MemorySlots.MaxSlots)
            return Errno.EINVAL;
        ref SlotTable table = ref vm.Memory.Slots;
        ref readonly MemorySlot slot = ref table.All[table.IndexOf(log.slot)];
        if (!slot.LogsDirty)
            return Errno.ENOENT;
        if (!slot.TryAllocateBitmap(out KernelArray<ulong> snapshot))
            return Errno.ENOMEM;

        if (Collect(ref vm, in slot, snapshot.Span))
            vm.Host.FlushTlbs();
        bool copied = UserMemory.Write(new Hva(log.dirty_bitmap), MemoryMarshal.AsBytes(snapshot.Span));
        if (!copied)
            Restore(in slot, snapshot.Span);
        snapshot.Free();
        return copied ? Errno.Ok : Errno.EFAULT;
    }

    /// <summary>Moves the bits to <paramref name="snapshot"/> and write-protects their pages.</summary>
    /// <returns>Whether TLBs must be flushed.</returns>
    private static bool Collect(ref Vm.Vm vm, in MemorySlot slot, Span<ulong> snapshot)
    {
        bool flush = false;
        Span<ulong> bitmap = slot.DirtyBitmap.Span;
        for (int start = 0; start < bitmap.Length; start += WordsPerLock)
        {
            int end = Math.Min(bitmap.Length, start + WordsPerLock);
            vm.Host.LockMmu();
            for (int word = start; word < end; word++)
            {
                if (Volatile.Read(ref bitmap[word]) == 0)
                    continue;
                ulong bits = snapshot[word] = Interlocked.Exchange(ref bitmap[word], 0);
                // From the first written page to the last; those between that are clean are protected already.
                Gfn frame = slot.Start.Frame + (ulong)word * 64;
                flush |= NestedTables.WriteProtect(ref vm.Memory,
                    frame + (ulong)BitOperations.TrailingZeroCount(bits),
                    frame + (ulong)(64 - BitOperations.LeadingZeroCount(bits)));
            }
            vm.Host.UnlockMmu();
        }
        return flush;
    }

    private static void Restore(in MemorySlot slot, ReadOnlySpan<ulong> snapshot)
    {
        Span<ulong> bitmap = slot.DirtyBitmap.Span;
        for (int word = 0; word < snapshot.Length; word++)
            Interlocked.Or(ref bitmap[word], snapshot[word]);
    }
}
