// SPDX-License-Identifier: GPL-2.0-only
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
    public Gpa Start;
    /// <summary>Bytes, whole pages; 0 in the empty slot.</summary>
    public ulong Size;
    /// <summary>Where the process has the memory.</summary>
    public Hva Address;
    public uint Id;
    public SlotFlags Flags;
    /// <summary>One bit per page while <see cref="SlotFlags.LogDirty"/> is set, else null.</summary>
    public KernelArray<ulong> DirtyBitmap;

    public readonly bool IsReadOnly => (Flags & SlotFlags.ReadOnly) != 0;
    public readonly bool IsRetired => (Flags & SlotFlags.Retired) != 0;
    public readonly bool LogsDirty => !DirtyBitmap.IsNull;
    public readonly Gpa End => Start + Size;
    public readonly ulong PageCount => Size >> Page.Shift;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly bool Contains(Gpa address) => address.Value - Start.Value < Size;

    /// <summary>Host address of a guest physical address that the slot contains.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly Hva ToHva(Gpa address) => Address + (address.Value - Start.Value);

    /// <summary>The largest mappings that the slot can have: small ones while writes are logged page by page.</summary>
    public readonly int LargestLevel => LogsDirty ? 1 : 3;

    /// <summary>
    /// The level to map a frame at whose page the process has mapped at level <paramref name="host"/>: the mapping lies
    /// within the slot, and guest and process are aligned alike.
    /// </summary>
    public readonly int LevelAt(Gfn frame, int host)
    {
        int level = Math.Min(host, LargestLevel);
        for (; level > 1; level--)
        {
            ulong inside = (NestedTables.PagesOf(level) << Page.Shift) - 1;
            ulong first = frame.Address.Value & ~inside;
            if (((Start.Value ^ Address.Value) & inside) == 0 && first >= Start.Value && first + inside < End.Value)
                break;
        }
        return level;
    }

    /// <summary>Host address of a guest physical address, if the slot contains it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly bool TryToHva(Gpa address, out Hva hva)
    {
        hva = ToHva(address);
        return Contains(address);
    }

    /// <summary>Records a write to a page that the slot contains.</summary>
    /// <returns>Whether writes are logged and this is the page's first since the log was last read.</returns>
    public readonly bool TryMarkDirty(Gpa address)
    {
        if (DirtyBitmap.IsNull)
            return false;
        // Atomic even if the bit seems to be set: it also orders the write before a reset of the bitmap.
        ulong page = (address.Value - Start.Value) >> Page.Shift, bit = 1UL << (int)(page % 64);
        return (Interlocked.Or(ref DirtyBitmap.Span[(int)(page / 64)], bit) & bit) == 0;
    }

    public readonly void MarkAllDirty()
    {
        DirtyBitmap.Span.Fill(ulong.MaxValue);
        if (PageCount % 64 != 0)
            DirtyBitmap.Span[^1] = (1UL << (int)(PageCount % 64)) - 1;
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

    /// <summary>The slot that the last search found.</summary>
    public readonly ref MemorySlot Recent => ref _slots.Span[_recent];

    /// <summary>The slot that contains <paramref name="address"/>, or one that does not.</summary>
    public ref MemorySlot Find(Gpa address)
    {
        ref MemorySlot recent = ref Recent;
        return ref recent.Contains(address) ? ref recent : ref Search(address);
    }

    private ref MemorySlot Search(Gpa address)
    {
        Span<MemorySlot> slots = _slots.Span;
        int low = 0;
        for (int above = slots.Length; above - low > 1;)
        {
            int middle = (low + above) / 2;
            if (slots[middle].Start.Value <= address.Value)
                low = middle;
            else
                above = middle;
        }
        // An access to device memory between two to memory leaves the hint alone.
        if (slots[low].Contains(address))
            _recent = low;
        return ref slots[low];
    }

    /// <summary>The slot with this id, or an empty one.</summary>
    public readonly ref readonly MemorySlot ById(uint id) => ref _slots.Span[IndexOf(id)];

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
