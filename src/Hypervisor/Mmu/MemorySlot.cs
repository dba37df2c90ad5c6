// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>Properties of a memory slot: the flags of the UAPI, and one of our own.</summary>
[Flags]
internal enum SlotFlags : uint
{
    None = 0,
    LogDirty = 1 << 0,
    ReadOnly = 1 << 1,
    /// <summary>Being moved or deleted: known to the MMU notifier, but nothing of it is mapped any more.</summary>
    Retired = 1 << 16,
}

/// <summary>A range of guest physical memory and the range of the process's memory behind it.</summary>
internal struct MemorySlot
{
    public Gfn First;
    public ulong PageCount;
    public Hva Address;
    public uint Id;
    public SlotFlags Flags;
    /// <summary>One bit per page while <see cref="SlotFlags.LogDirty"/> is set, else null. Bits are set atomically.</summary>
    public KernelArray<ulong> DirtyBitmap;

    public readonly bool IsReadOnly => (Flags & SlotFlags.ReadOnly) != 0;
    public readonly bool IsRetired => (Flags & SlotFlags.Retired) != 0;
    public readonly bool LogsDirty => !DirtyBitmap.IsNull;
    public readonly Gfn End => First + PageCount;

    public readonly bool Contains(Gfn gfn) => gfn.Value - First.Value < PageCount;

    /// <summary>Host address of a guest physical address that the slot contains.</summary>
    public readonly Hva ToHva(Gpa address) => Address + (address.Value - First.Address.Value);

    /// <summary>Records a write to a page that the slot contains; costs one test while nothing is logged.</summary>
    public readonly void MarkDirty(Gfn gfn)
    {
        if (DirtyBitmap.IsNull)
            return;
        // Atomic even if the bit seems to be set: it also orders the write before a reset of the bitmap.
        ulong page = gfn.Value - First.Value;
        Interlocked.Or(ref DirtyBitmap.Span[(int)(page / 64)], 1UL << (int)(page % 64));
    }

    /// <summary>A bitmap of one bit per page of the slot.</summary>
    public readonly bool TryAllocateBitmap(out KernelArray<ulong> bitmap) =>
        KernelArray<ulong>.TryAllocate((int)((PageCount + 63) / 64), out bitmap);
}

/// <summary>
/// The memory slots of a VM in ascending guest order. Never changed once published, except that a slot may become
/// <see cref="SlotFlags.Retired"/>. Element 0 is an empty slot, so that each search ends at a slot.
/// </summary>
internal struct SlotTable
{
    private KernelArray<MemorySlot> _slots;
    /// <summary>Where the last search ended; races are harmless, any index within the table is a good hint.</summary>
    private int _recent;

    /// <summary>A table of <paramref name="count"/> empty slots besides element 0.</summary>
    public static bool TryAllocate(int count, out KernelRef<SlotTable> table)
    {
        table = new KernelRef<SlotTable>(KernelHeap.Allocate((nuint)Unsafe.SizeOf<SlotTable>()));
        if (table.IsNull)
            return false;
        if (KernelArray<MemorySlot>.TryAllocate(count + 1, out table.Value._slots))
            return true;
        KernelHeap.Free(table.Address);
        table = default;
        return false;
    }

    /// <summary>Frees the table, not the bitmaps of its slots.</summary>
    public static void Free(KernelRef<SlotTable> table)
    {
        table.Value._slots.Free();
        KernelHeap.Free(table.Address);
    }

    /// <summary>The slots, the empty element 0 included.</summary>
    public readonly Span<MemorySlot> All => _slots.Span;

    /// <summary>The slot that contains <paramref name="gfn"/>, or one that does not.</summary>
    public ref MemorySlot Find(Gfn gfn)
    {
        Span<MemorySlot> slots = _slots.Span;
        ref MemorySlot recent = ref slots[_recent];
        if (recent.Contains(gfn))
            return ref recent;

        int low = 0;
        for (int above = slots.Length; above - low > 1;)
        {
            int middle = (low + above) / 2;
            if (slots[middle].First.Value <= gfn.Value)
                low = middle;
            else
                above = middle;
        }
        _recent = low;
        return ref slots[low];
    }

    /// <summary>Position of the slot with this id; 0 when there is none.</summary>
    public readonly int IndexOf(uint id)
    {
        Span<MemorySlot> slots = _slots.Span;
        for (int i = 1; i < slots.Length; i++)
        {
            if (slots[i].Id == id)
                return i;
        }
        return 0;
    }
}
