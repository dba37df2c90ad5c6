// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>What became of an attempt to map a page.</summary>
internal enum MapResult : byte
{
    Mapped,
    /// <summary>A table is missing and there is no spare page.</summary>
    NeedsTable,
    /// <summary>Mapped, in the place of another page: TLBs must be flushed.</summary>
    Replaced,
}

/// <summary>
/// Nested page tables: four levels of 512 entries. All methods but <see cref="Destroy"/> need the MMU lock.
/// <para>Common to NPT (APM vol. 2, 15.25) and EPT (SDM vol. 3, 29.3.2): an entry that is not 0 is present, bit 1
/// allows writes, bits 12-51 are the address.</para>
/// </summary>
internal static class NestedTables
{
    public const ulong Writable = 1 << 1;
    public const int AddressBits = Page.Shift + Levels * IndexBits;

    private const int Levels = 4;
    private const int IndexBits = 9;
    private const ulong IndexMask = KernelPages.EntriesPerTable - 1;
    private const ulong AddressMask = 0x000f_ffff_ffff_f000;

    /// <summary>Spare pages that one <see cref="Map"/> can use up.</summary>
    public const int TablesPerMapping = Levels - 1;

    /// <summary>
    /// Maps a page. A present mapping of the same page only gains rights. Missing tables come from the spare pages.
    /// </summary>
    public static MapResult Map<TFormat>(ref VmMemory memory, Gfn gfn, Pfn frame, bool writable)
        where TFormat : struct, INestedFormat
    {
        Hpa table = memory.Root;
        for (int level = Levels; level > 1; level--)
        {
            ref ulong entry = ref KernelPages.Entries(table)[IndexOf(gfn.Value, level)];
            if (entry == 0)
            {
                if (!memory.Spare.TryPop(out Hpa page))
                    return MapResult.NeedsTable;
                memory.Statistics.TablePages++;
                Volatile.Write(ref entry, TFormat.Table(page));
            }
            table = Target(entry);
        }

        ref ulong leaf = ref KernelPages.Entries(table)[IndexOf(gfn.Value, 1)];
        ulong old = leaf;
        bool same = old != 0 && Target(old).Value == frame.Address.Value;
        if (old == 0)
            memory.Statistics.MappedPages++;
        if (!same || (writable && (old & Writable) == 0))
            Volatile.Write(ref leaf, TFormat.Leaf(frame, writable));
        return old == 0 || same ? MapResult.Mapped : MapResult.Replaced;
    }

    /// <summary>Removes the mappings of [first, end); tables stay.</summary>
    /// <returns>Whether there were any, so that TLBs must be flushed.</returns>
    public static bool Unmap(ref VmMemory memory, Gfn first, Gfn end) =>
        !memory.Root.IsNull && Sweep(ref memory, memory.Root, Levels, first.Value, end.Value, keep: 0, prunes: false);

    /// <summary>Makes the mappings of [first, end) read-only.</summary>
    /// <returns>Whether any was writable, so that TLBs must be flushed.</returns>
    public static bool WriteProtect(ref VmMemory memory, Gfn first, Gfn end) =>
        Sweep(ref memory, memory.Root, Levels, first.Value, end.Value, keep: ~Writable, prunes: false);

    /// <summary>
    /// Removes the mappings of [first, end) and the tables that are empty then. The tables go to
    /// <see cref="VmMemory.Retired"/>, to be freed when TLBs have been flushed.
    /// </summary>
    public static void Remove(ref VmMemory memory, Gfn first, Gfn end) =>
        Sweep(ref memory, memory.Root, Levels, first.Value, end.Value, keep: 0, prunes: true);

    /// <summary>Frees all tables. No CPU uses them any more.</summary>
    public static void Destroy(ref VmMemory memory)
    {
        Remove(ref memory, default, new Gfn(1UL << (AddressBits - Page.Shift)));
        memory.Retired.Push(memory.Root);
        memory.Retired.Free();
    }

    /// <summary>
    /// Masks the leaf entries of [first, end) with <paramref name="keep"/>; takes out tables that are empty then if it
    /// <paramref name="prunes"/>. Recursion ends at level 1.
    /// </summary>
    /// <returns>Whether a leaf entry has changed.</returns>
    private static bool Sweep(
        ref VmMemory memory, Hpa table, int level, ulong first, ulong end, ulong keep, bool prunes)
    {
        bool changed = false;
        Span<ulong> entries = KernelPages.Entries(table);
        for (ulong next; first < end; first = next)
        {
            next = Math.Min(end, NextEntry(first, level));
            ref ulong entry = ref entries[IndexOf(first, level)];
            ulong old = entry;
            if (old == 0)
                continue;
            if (level > 1)
            {
                changed |= Sweep(ref memory, Target(old), level - 1, first, next, keep, prunes);
                if (!prunes || KernelPages.Entries(Target(old)).ContainsAnyExcept(0ul))
                    continue;
                Volatile.Write(ref entry, 0);
                memory.Statistics.TablePages--;
                memory.Retired.Push(Target(old));
            }
            else if ((old & keep) != old)
            {
                Volatile.Write(ref entry, old & keep);
                changed = true;
                if (keep == 0)
                    memory.Statistics.MappedPages--;
            }
        }
        return changed;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Hpa Target(ulong entry) => new(entry & AddressMask);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static int IndexOf(ulong gfn, int level) => (int)((gfn >> (IndexBits * (level - 1))) & IndexMask);

    /// <summary>The first frame that another entry of this level covers.</summary>
    private static ulong NextEntry(ulong gfn, int level)
    {
        int shift = IndexBits * (level - 1);
        return ((gfn >> shift) + 1) << shift;
    }
}
