// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>Properties of a memory slot: the flags of the UAPI, and one of our own.</summary>
[Flags] internal enum SlotFlags : uint
{
    None = 0, LogDirty = 1 << 0, ReadOnly = 1 << 1,
    /// <summary>Being moved or deleted: known to the MMU notifier, but nothing of it is mapped any more.</summary>
    Retired = 1 << 16,
}

/// <summary>A range of guest physical memory and the range of the process's memory behind it.</summary>
internal struct MemorySlot : IRange
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
    readonly ulong IRange.First => Start.Value;
    readonly ulong IRange.Size => Size;

    [MethodImpl(AggressiveInlining)] public readonly bool Contains(Gpa address) => address.Value - Start.Value < Size;

    /// <summary>Host address of a guest physical address that the slot contains.</summary>
    [MethodImpl(AggressiveInlining)] public readonly Hva ToHva(Gpa address) => Address + (address.Value - Start.Value);

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
    [MethodImpl(AggressiveInlining)] public readonly bool TryToHva(Gpa address, out Hva hva)
    {
        hva = ToHva(address);
        return Contains(address);
    }

    /// <summary>Records a write to a page that the slot contains.</summary>
    /// <returns>Whether writes are logged and this is the page's first since the log was last read.</returns>
    // Atomic even if the bit seems to be set: it also orders the write before a reset of the bitmap.
    public readonly bool TryMarkDirty(Gpa address) =>
        LogsDirty && AtomicBits.TryAdd(DirtyBitmap.Span, (int)((address.Value - Start.Value) >> Page.Shift));

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

internal static class SlotSearch
{
    /// <summary>The slot that contains <paramref name="address"/>, or one that does not.</summary>
    [MethodImpl(AggressiveInlining)]
    public static ref MemorySlot Find(this ref SlotTable slots, Gpa address) => ref slots.Find(address.Value);
}
