// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>What became of an attempt to map a page.</summary>
internal enum MapResult : byte
{
    Mapped,
    /// <summary>A table is missing and the caller has no spare page.</summary>
    NeedsTable,
    /// <summary>Smaller mappings, or another page, are in the way: <see cref="NestedTables.Remove"/> first.</summary>
    Occupied,
}

/// <summary>What is done to bits of mappings.</summary>
internal enum Sweeping : byte
{
    /// <summary>Nothing.</summary>
    Look,
    /// <summary>They are taken away.</summary>
    Take,
    /// <summary>So are the mappings, and with them the tables that are empty then.</summary>
    Remove,
}

/// <summary>
/// Nested page tables: four levels of 512 entries. A level-1 entry maps 4 KiB, one of level 2 or 3 a table or 2 MiB
/// or 1 GiB.
/// <para>Common to NPT (APM vol. 2, 15.25) and EPT (SDM vol. 3, 29.3.2): an entry that is not 0 maps, bit 0 allows
/// reads, bit 1 writes, bit 7 tells a large page from a table, bits 12-51 are the address, bit 52 is ignored.</para>
/// <para>With the MMU lock shared an entry changes by compare-exchange and only so that no translation that a TLB may
/// hold becomes wrong: it is filled, gains rights, is aged, or a large page becomes a table of the same mappings.
/// Everything else needs the lock exclusively.</para>
/// </summary>
internal static class NestedTables
{
    public const ulong Readable = 1 << 0, Writable = 1 << 1, Large = 1 << 7;
    /// <summary>
    /// EPT's dirty flag: when hardware sets it, it logs the write, if it can (<see cref="Ept.LogsWrites"/>). NPT
    /// ignores the bit.
    /// </summary>
    public const ulong Written = 1 << 9;
    /// <summary>
    /// Software's bit: the process may write to the page, so the guest may when nothing else speaks against it.
    /// </summary>
    public const ulong HostWritable = 1UL << 52;
    public const ulong AllBits = ulong.MaxValue;
    public const int AddressBits = Page.Shift + Levels * IndexBits;

    private const int Levels = 4, IndexBits = 9;
    private const ulong IndexMask = KernelPages.EntriesPerTable - 1;
    /// <summary>Spare pages that one <see cref="Map"/> can use up.</summary>
    public const int TablesPerMapping = Levels - 1;

    /// <summary>How many 4 KiB pages an entry of this level covers.</summary>
    public static ulong PagesOf(int level) => 1UL << (IndexBits * (level - 1));

    /// <summary>
    /// Writes <paramref name="leaf"/> into the entry of level <paramref name="target"/> for a frame. A present mapping
    /// of the same page only gains rights; a larger one on the way is split. Missing tables come from
    /// <paramref name="spare"/>. The MMU lock may be shared.
    /// </summary>
    public static MapResult Map<TFormat>(ref VmMemory memory, ref TablePool spare, Gfn gfn, int target, ulong leaf)
        where TFormat : struct, INestedFormat
    {
        Hpa table = memory.Root;
        int level = Levels;
        // Another vCPU may have made the page writable, and its writes may be logged.
        if ((leaf & Writable) == 0)
            leaf &= ~Written;
        while (true)
        {
            ref ulong entry = ref KernelPages.Entries(table)[IndexOf(gfn.Value, level)];
            ulong old = Volatile.Read(ref entry);
            ulong next;
            if (level == target)
            {
                if (old != 0 && (!IsLeaf(old, level) || Target(old).Value != Target(leaf).Value))
                    return MapResult.Occupied;
                next = old | leaf;
                if (next != old && Interlocked.CompareExchange(ref entry, next, old) != old)
                    continue;
                if (old == 0)
                    Interlocked.Add(ref memory.Statistics.MappedPages, PagesOf(level));
                return MapResult.Mapped;
            }
            if (old != 0 && !IsLeaf(old, level))
            {
                table = Target(old);
                level--;
                continue;
            }
            if (!spare.TryPop(out Hpa page))
                return MapResult.NeedsTable;
            if (old != 0)
                Divide(old, level, KernelPages.Entries(page));
            if (Interlocked.CompareExchange(ref entry, TFormat.Table(page), old) == old)
            {
                Interlocked.Increment(ref memory.Statistics.TablePages);
                continue;
            }
            KernelPages.Entries(page).Clear();
            spare.Push(page);
        }
    }

    /// <summary>Fills the entries below a large page so that together they map the same with the same rights.</summary>
    private static void Divide(ulong large, int level, Span<ulong> entries)
    {
        ulong part = level == 2 ? large & ~Large : large;
        for (int i = 0; i < entries.Length; i++)
            entries[i] = part + ((ulong)i * PagesOf(level - 1) << Page.Shift);
    }

    /// <summary>
    /// Adds the right to write to a mapped page, if the process has it. The MMU lock may be shared: as long as the
    /// mapping is there, Linux has not called the notifier for it.
    /// </summary>
    /// <param name="memory">The VM's memory.</param>
    /// <param name="gfn">The frame.</param>
    /// <param name="largest">Mappings of a higher level stay as they are.</param>
    /// <returns>Whether the page may be written to now.</returns>
    public static bool TryAllowWrite(ref VmMemory memory, Gfn gfn, int largest)
    {
        // One that was aged may have no rights at all.
        const ulong Needed = HostWritable | Readable;
        ref ulong entry = ref Find(ref memory, gfn, out int level, out ulong old);
        return (old & Writable) != 0 || (old & Needed) == Needed && level <= largest
            && Interlocked.CompareExchange(ref entry, old | Writable, old) == old;
    }

    /// <summary>
    /// The page behind a frame. The MMU lock is held exclusively for as long as the answer is to be true.
    /// </summary>
    /// <param name="memory">The VM's memory.</param>
    /// <param name="gfn">The frame.</param>
    /// <param name="page">The page.</param>
    /// <param name="writable">Whether it may be written to.</param>
    /// <param name="level">The level of the mapping.</param>
    public static bool TryFind(ref VmMemory memory, Gfn gfn, out Pfn page, out bool writable, out int level)
    {
        Find(ref memory, gfn, out level, out ulong entry);
        writable = (entry & Writable) != 0;
        page = new Pfn(Target(entry).Frame.Value | gfn.Value & (PagesOf(level) - 1));
        return entry != 0 && gfn.Value <= memory.LastFrame.Value;
    }

    /// <summary>Where the walk for a frame ends: at a mapping, or at 0.</summary>
    private static ref ulong Find(ref VmMemory memory, Gfn gfn, out int level, out ulong entry)
    {
        Hpa table = memory.Root;
        for (level = Levels; ; level--)
        {
            ref ulong place = ref KernelPages.Entries(table)[IndexOf(gfn.Value, level)];
            entry = Volatile.Read(ref place);
            if (entry == 0 || IsLeaf(entry, level))
                return ref place;
            table = Target(entry);
        }
    }

    /// <summary>Makes the next write to each page of [first, end) known, by a fault or by hardware's log.</summary>
    /// <returns>Whether any had been written to, so that TLBs must be flushed.</returns>
    public static bool WriteProtect(ref VmMemory memory, Gfn first, Gfn end)
    {
        TablePool none = default;
        return Sweep(ref memory, first, end, Sweeping.Take, memory.LogBit, ref none);
    }

    /// <summary>
    /// Removes the mappings of [first, end) and the tables that are empty then. The tables go to
    /// <paramref name="retired"/>, to be freed when TLBs have been flushed.
    /// </summary>
    /// <returns>Whether anything was removed, so that TLBs must be flushed.</returns>
    public static bool Remove(ref VmMemory memory, Gfn first, Gfn end, ref TablePool retired) =>
        Sweep(ref memory, first, end, Sweeping.Remove, AllBits, ref retired);

    /// <summary>Frees all tables. No CPU uses them any more.</summary>
    public static void Destroy(ref VmMemory memory)
    {
        TablePool retired = default;
        Remove(ref memory, default, new Gfn(1UL << (AddressBits - Page.Shift)), ref retired);
        retired.Push(memory.Root);
        retired.Free();
    }

    /// <summary>
    /// Looks at <paramref name="bits"/> of the mappings that reach into [first, end), and does the work. Tables that
    /// are taken out go to <paramref name="retired"/>.
    /// </summary>
    /// <returns>Whether any mapping had one of the bits.</returns>
    public static bool Sweep(
        ref VmMemory memory, Gfn first, Gfn end, Sweeping work, ulong bits, ref TablePool retired) =>
        Sweep(ref memory, ref retired, memory.Root, Levels, first.Value, end.Value, work, bits);

    /// <summary>Recursion ends at level 1.</summary>
    private static bool Sweep(ref VmMemory memory, ref TablePool retired, Hpa table, int level, ulong first, ulong end,
        Sweeping work, ulong bits)
    {
        bool found = false;
        Span<ulong> entries = KernelPages.Entries(table);
        ulong inside = PagesOf(level) - 1;
        for (ulong next; first < end; first = next)
        {
            next = Math.Min(end, (first | inside) + 1);
            ref ulong entry = ref entries[IndexOf(first, level)];
            ulong old = Volatile.Read(ref entry);
            if (old == 0)
                continue;
            if (!IsLeaf(old, level))
            {
                found |= Sweep(ref memory, ref retired, Target(old), level - 1, first, next, work, bits);
                if (work != Sweeping.Remove || KernelPages.Entries(Target(old)).ContainsAnyExcept(0ul))
                    continue;
                Volatile.Write(ref entry, 0);
                memory.Statistics.TablePages--;
                retired.Push(Target(old));
                found = true;
                continue;
            }
            // Of a large page one write would be logged, and the others not.
            ulong chosen = bits == Written && level > 1 ? Writable : bits;
            bool any = (old & chosen) != 0;
            if (memory.Shadow.IsActive)
                any |= memory.Shadow.Sweep(first & ~inside, (first | inside) + 1, work, chosen);
            found |= any;
            if (!any || work == Sweeping.Look)
                continue;
            // Hardware may set accessed at any time, and others who age or map hold the lock, too.
            Interlocked.And(ref entry, ~chosen);
            if (work == Sweeping.Remove)
                memory.Statistics.MappedPages -= PagesOf(level);
        }
        return found;
    }

    private static bool IsLeaf(ulong entry, int level) => level == 1 || (entry & Large) != 0;

    [MethodImpl(AggressiveInlining)] private static Hpa Target(ulong entry) => new(entry & GuestEntry.AddressMask);

    [MethodImpl(AggressiveInlining)]
    private static int IndexOf(ulong gfn, int level) => (int)((gfn >> (IndexBits * (level - 1))) & IndexMask);
}
