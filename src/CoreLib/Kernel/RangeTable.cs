// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Runtime.CompilerServices;

namespace Kernel;

/// <summary>An element of a <see cref="RangeTable{T}"/>: a range of numbers, and what its owner has about it.</summary>
internal interface IRange
{
    ulong First { get; }
    /// <summary>How many numbers; 0: the element is none.</summary>
    ulong Size { get; }
}

/// <summary>
/// Ranges in ascending order, of which none overlap, for readers without a lock: a table never changes once others can
/// see it (only its elements may, as their owner sees fit), a change makes a new one. Elements lie in chunks that the
/// two tables share, so that a change copies one or two of them. The first element is an empty range, so that each
/// search ends at an element.
/// </summary>
internal struct RangeTable<T> where T : unmanaged, IRange
{
    /// <summary>Elements of a chunk at most; there is none without elements.</summary>
    public const int ChunkSize = 128;

    private KernelArray<KernelArray<T>> _chunks;
    /// <summary>Where the last search ended; races are harmless, any element of the table is a good hint.</summary>
    private KernelRef<T> _recent;

    /// <summary>A table of the empty range alone. False: no memory.</summary>
    public static bool TryCreate(out KernelRef<RangeTable<T>> table)
    {
        if (!TryAllocate(1, out table))
            return false;
        bool done = KernelArray<T>.TryAllocate(1, out KernelArray<T> chunk);
        table.Value._chunks.Span[0] = chunk;
        table.Value._recent = chunk.RefAt(0);
        if (!done)
            Free(table, default);
        return done;
    }

    private static bool TryAllocate(int chunks, out KernelRef<RangeTable<T>> table)
    {
        table = KernelRef<RangeTable<T>>.Allocate();
        if (table.IsNull)
            return false;
        if (KernelArray<KernelArray<T>>.TryAllocate(chunks, out table.Value._chunks))
            return true;
        KernelHeap.Free(table.Address);
        return false;
    }

    /// <summary>
    /// Makes the table in which <paramref name="removed"/> is missing and <paramref name="added"/> is there; either may
    /// be empty. It shares chunks with this one. False: no memory.
    /// </summary>
    public readonly bool TryChange(in T removed, in T added, out KernelRef<RangeTable<T>> table)
    {
        int left = removed.Size != 0 ? ChunkOf(removed.First) : -1;
        int entered = added.Size != 0 ? ChunkOf(added.First) : -1;
        Span<KernelArray<T>> old = _chunks.Span;
        if (!TryAllocate(old.Length + 1, out table))
            return false;
        Span<KernelArray<T>> chunks = table.Value._chunks.Span;
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

    /// <summary>Copies a chunk without one element and with another: to none, one or two chunks.</summary>
    /// <returns>How many, or -1 without memory; then one may be there to be freed.</returns>
    private static int Merge(Span<T> chunk, T removed, T added, Span<KernelArray<T>> result)
    {
        int kept = chunk.Length - (removed.Size != 0 ? 1 : 0), length = kept + (added.Size != 0 ? 1 : 0);
        int first = length > ChunkSize ? length / 2 : length;
        if (length == 0)
            return 0;
        if (!KernelArray<T>.TryAllocate(length, out result[0])
            || first < length && !KernelArray<T>.TryAllocate(length - first, out result[1]))
            return -1;
        Span<T> all = result[0].Span;
        int gone = removed.Size != 0 ? PlaceOf(chunk, removed.First) : kept;
        chunk[..gone].CopyTo(all);
        chunk[^(kept - gone)..].CopyTo(all[gone..]);
        if (added.Size != 0)
        {
            bool follows = kept != 0 && all[0].First <= added.First;
            int place = follows ? PlaceOf(all[..kept], added.First) + 1 : 0;
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
    /// does not have. What elements refer to stays.
    /// </summary>
    public static void Free(KernelRef<RangeTable<T>> table, in RangeTable<T> other)
    {
        Span<KernelArray<T>> chunks = table.Value._chunks.Span, others = other._chunks.Span;
        // They differ in the few chunks of one change.
        int both = Math.Min(chunks.Length, others.Length), head = 0, tail = 0;
        while (head < both && chunks[head].Address == others[head].Address)
            head++;
        while (tail < both - head && chunks[^(tail + 1)].Address == others[^(tail + 1)].Address)
            tail++;
        others = others[head..^tail];
        foreach (ref readonly KernelArray<T> chunk in chunks[head..^tail])
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

    /// <summary>The chunks that the table has, to be counted.</summary>
    public readonly int ChunkCount => _chunks.Length;

    /// <summary>The empty range in front.</summary>
    public readonly ref T Empty => ref _chunks.Span[0].RefAt(0).Value;

    /// <summary>The range that the last search found, or the empty one.</summary>
    public readonly ref T Recent => ref _recent.Value;

    /// <summary>The range that contains <paramref name="number"/>, or one that does not.</summary>
    public ref T Find(ulong number)
    {
        ref T recent = ref Recent;
        return ref Contains(ref recent, number) ? ref recent : ref Search(number);
    }

    private ref T Search(ulong number)
    {
        KernelArray<T> chunk = _chunks.Span[ChunkOf(number)];
        Span<T> ranges = chunk.Span;
        int place = PlaceOf(ranges, number);
        ref T found = ref ranges[place];
        // A search for what is in no range, between two for one that is, leaves the hint alone.
        if (Contains(ref found, number))
            _recent = chunk.RefAt(place);
        return ref found;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Contains(ref T range, ulong number) => number - range.First < range.Size;

    /// <summary>The last range that begins at or below <paramref name="number"/>, or the first.</summary>
    private static int PlaceOf(Span<T> ranges, ulong number)
    {
        int low = 0;
        for (int above = ranges.Length; above - low > 1;)
        {
            int middle = low + above >>> 1;
            if (ranges[middle].First <= number)
                low = middle;
            else
                above = middle;
        }
        return low;
    }

    /// <summary>The last chunk whose first range begins at or below <paramref name="number"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly int ChunkOf(ulong number)
    {
        Span<KernelArray<T>> chunks = _chunks.Span;
        int low = 0;
        for (int above = chunks.Length; above - low > 1;)
        {
            int middle = low + above >>> 1;
            if (chunks[middle].Span[0].First <= number)
                low = middle;
            else
                above = middle;
        }
        return low;
    }

    /// <summary>All elements in order, the empty one first.</summary>
    public readonly Elements All => new(_chunks.Span, 0, 0);

    /// <summary>The elements in order from the last one that begins at or below <paramref name="number"/>.</summary>
    public readonly Elements From(ulong number)
    {
        int chunk = ChunkOf(number);
        return new(_chunks.Span, chunk, PlaceOf(_chunks.Span[chunk].Span, number));
    }

    /// <summary>For foreach: elements from a place on.</summary>
    public ref struct Elements
    {
        private readonly Span<KernelArray<T>> _chunks;
        private int _chunk, _place;

        internal Elements(Span<KernelArray<T>> chunks, int chunk, int place)
        {
            _chunks = chunks;
            _chunk = chunk;
            _place = place - 1;
        }

        public readonly Elements GetEnumerator() => this;

        public readonly ref T Current
        {
            [MethodImpl(MethodImplOptions.AggressiveInlining)] get => ref _chunks[_chunk].Span[_place];
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)] public bool MoveNext()
        {
            if (++_place < _chunks[_chunk].Length)
                return true;
            _place = 0;
            return ++_chunk < _chunks.Length;
        }
    }
}
