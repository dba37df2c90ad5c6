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
/// The memory slots of a VM in ascending guest order, in chunks, so that a change copies one or two of them. Never
/// changed once published, except that a slot may become <see cref="SlotFlags.Retired"/>. The first is an empty slot,
/// so that each search ends at a slot.
/// </summary>
internal struct SlotTable
{
    /// <summary>Slots of a chunk at most; there is none without slots.</summary>
    private const int ChunkSize = 128;

    private KernelArray<KernelArray<MemorySlot>> _chunks;
    /// <summary>Where the last search ended; races are harmless, any slot of the table is a good hint.</summary>
    private KernelRef<MemorySlot> _recent;

    /// <summary>A table of the empty slot alone.</summary>
    public static bool TryCreate(out KernelRef<SlotTable> table)
    {
        if (!TryAllocate(1, out table))
            return false;
        bool done = KernelArray<MemorySlot>.TryAllocate(1, out KernelArray<MemorySlot> chunk);
        table.Value._chunks.Span[0] = chunk;
        table.Value._recent = chunk.RefAt(0);
        if (!done)
            Free(table, default);
        return done;
    }

    private static bool TryAllocate(int chunks, out KernelRef<SlotTable> table)
    {
        table = KernelRef<SlotTable>.Allocate();
        if (table.IsNull)
            return false;
        if (KernelArray<KernelArray<MemorySlot>>.TryAllocate(chunks, out table.Value._chunks))
            return true;
        KernelHeap.Free(table.Address);
        return false;
    }

    /// <summary>
    /// Makes the table in which <paramref name="removed"/> is missing and <paramref name="added"/> is there; either may
    /// be empty. It shares chunks with this one.
    /// </summary>
    public readonly bool TryChange(in MemorySlot removed, in MemorySlot added, out KernelRef<SlotTable> table)
    {
        int left = removed.Size != 0 ? ChunkOf(removed.Start) : -1;
        int entered = added.Size != 0 ? ChunkOf(added.Start) : -1;
        ReadOnlySpan<KernelArray<MemorySlot>> old = _chunks.Span;
        if (!TryAllocate(old.Length + 1, out table))
            return false;
        Span<KernelArray<MemorySlot>> chunks = table.Value._chunks.Span;
        int count = 0, made = 0;
        for (int done = 0, next; done < old.Length && made >= 0; done = next + 1)
        {
            next = Math.Min(left >= done ? left : old.Length, entered >= done ? entered : old.Length);
            old[done..next].CopyTo(chunks[count..]);
            count += next - done;
            if (next == old.Length)
                break;
            made = Merge(
                old[next].Span, next == left ? removed : default, next == entered ? added : default, chunks[count..]);
            count += Math.Max(0, made);
        }
        if (made < 0)
        {
            Free(table, in this);
            return false;
        }
        table.Value._chunks = table.Value._chunks.First(count);
        table.Value._recent = chunks[0].RefAt(0);
        return true;
    }

    /// <summary>Copies a chunk without one slot and with another: to none, one or two chunks.</summary>
    /// <returns>How many, or -1 without memory; then one may be there to be freed.</returns>
    private static int Merge(
        ReadOnlySpan<MemorySlot> chunk, MemorySlot removed, MemorySlot added, Span<KernelArray<MemorySlot>> result)
    {
        int kept = chunk.Length - (removed.Size != 0 ? 1 : 0), length = kept + (added.Size != 0 ? 1 : 0);
        int first = length > ChunkSize ? length / 2 : length;
        if (length == 0)
            return 0;
        if (!KernelArray<MemorySlot>.TryAllocate(length, out result[0])
            || first < length && !KernelArray<MemorySlot>.TryAllocate(length - first, out result[1]))
            return -1;
        Span<MemorySlot> all = result[0].Span;
        int gone = removed.Size != 0 ? PlaceOf(chunk, removed.Start) : kept;
        chunk[..gone].CopyTo(all);
        chunk[^(kept - gone)..].CopyTo(all[gone..]);
        if (added.Size != 0)
        {
            bool follows = kept != 0 && all[0].Start.Value <= added.Start.Value;
            int place = follows ? PlaceOf(all[..kept], added.Start) + 1 : 0;
            all[place..kept].CopyTo(all[(place + 1)..]);
            all[place] = added;
        }
        if (first == length)
            return 1;
        all[first..].CopyTo(result[1].Span);
        result[0] = result[0].First(first);
        return 2;
    }

    /// <summary>
    /// Frees the table and those of its chunks that <paramref name="other"/>, from which it came or which came from it,
    /// does not have. The bitmaps of slots stay.
    /// </summary>
    public static void Free(KernelRef<SlotTable> table, in SlotTable other)
    {
        ReadOnlySpan<KernelArray<MemorySlot>> chunks = table.Value._chunks.Span, others = other._chunks.Span;
        // They differ in the few chunks of one change.
        int both = Math.Min(chunks.Length, others.Length), head = 0, tail = 0;
        while (head < both && chunks[head].Address == others[head].Address)
            head++;
        while (tail < both - head && chunks[^(tail + 1)].Address == others[^(tail + 1)].Address)
            tail++;
        others = others[head..^tail];
        foreach (ref readonly KernelArray<MemorySlot> chunk in chunks[head..^tail])
        {
            int next = 0;
            while (next < others.Length && others[next].Address != chunk.Address)
                next++;
            if (next < others.Length)
                others = others[(next + 1)..];
            else
                chunk.Free();
        }
        table.Value._chunks.Free();
        KernelHeap.Free(table.Address);
    }

    /// <summary>All slots, the empty one included.</summary>
    public readonly ReadOnlySpan<KernelArray<MemorySlot>> Chunks => _chunks.Span;

    /// <summary>The slot that the last search found.</summary>
    public readonly ref MemorySlot Recent => ref _recent.Value;

    /// <summary>The slot that contains <paramref name="address"/>, or one that does not.</summary>
    public ref MemorySlot Find(Gpa address)
    {
        ref MemorySlot recent = ref Recent;
        return ref recent.Contains(address) ? ref recent : ref Search(address);
    }

    private ref MemorySlot Search(Gpa address)
    {
        KernelArray<MemorySlot> chunk = _chunks.Span[ChunkOf(address)];
        int place = PlaceOf(chunk.Span, address);
        // An access to device memory between two to memory leaves the hint alone.
        if (chunk.Span[place].Contains(address))
            _recent = chunk.RefAt(place);
        return ref chunk.Span[place];
    }

    /// <summary>The last slot that begins at or below <paramref name="address"/>, or the first.</summary>
    private static int PlaceOf(ReadOnlySpan<MemorySlot> slots, Gpa address)
    {
        int low = 0;
        for (int above = slots.Length; above - low > 1;)
        {
            int middle = (low + above) / 2;
            if (slots[middle].Start.Value <= address.Value)
                low = middle;
            else
                above = middle;
        }
        return low;
    }

    /// <summary>The last chunk whose first slot begins at or below <paramref name="address"/>.</summary>
    private readonly int ChunkOf(Gpa address)
    {
        Span<KernelArray<MemorySlot>> chunks = _chunks.Span;
        int low = 0;
        for (int above = chunks.Length; above - low > 1;)
        {
            int middle = (low + above) / 2;
            if (chunks[middle].Span[0].Start.Value <= address.Value)
                low = middle;
            else
                above = middle;
        }
        return low;
    }

    /// <summary>Whether another slot reaches into <paramref name="slot"/>'s range.</summary>
    public readonly bool HasOverlap(in MemorySlot slot)
    {
        for (int i = ChunkOf(slot.Start); i < _chunks.Length; i++)
        {
            foreach (ref readonly MemorySlot other in _chunks.Span[i].Span)
            {
                if (other.Start.Value >= slot.End.Value)
                    return false;
                if (other.Size != 0 && other.Id != slot.Id && other.End.Value > slot.Start.Value)
                    return true;
            }
        }
        return false;
    }
}
