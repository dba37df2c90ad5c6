// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>Counts for people; changed atomically or under the exclusive MMU lock, read at any time.</summary>
internal struct MemoryStatistics
{
    /// <summary>Guest pages that are mapped now.</summary>
    public ulong MappedPages;
    /// <summary>Pages that hold nested tables now, the root included.</summary>
    public ulong TablePages;
}

/// <summary>
/// A VM's memory: its slots and the nested tables that map them.
/// <para>Slots are replaced as a whole table, under the VM's slots mutex. Who reads them is in an SRCU section of the
/// shim, or holds the MMU lock: a new table is published under that lock.</para>
/// </summary>
internal struct VmMemory
{
    private nint _slots;
    private uint _generation;
    /// <summary>By id: where the slot begins, bit 0 set; 0 when there is none. Guarded by the slots mutex.</summary>
    private KernelArray<ulong> _starts;
    /// <summary>Highest guest frame that memory may have.</summary>
    public Gfn LastFrame;
    /// <summary>Top table of the nested tables: nCR3 or the address in the EPT pointer.</summary>
    public Hpa Root;
    public MemoryStatistics Statistics;
    public ApicAccess ApicAccess;
    /// <summary>For CPUs without nested paging.</summary>
    public ShadowTables Shadow;
    /// <summary>KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: the log is read and cleared by two calls.</summary>
    public bool ClearsLogByHand;
    /// <summary>A log begins with every page in it, and nothing protected.</summary>
    public bool LogBeginsFull;
    /// <summary>Entries of each vCPU's dirty ring; 0: written pages are in bitmaps.</summary>
    public int RingEntries;

    /// <summary>
    /// What is taken from a mapping to learn of the next write to it. A ring may have no room for hardware's log.
    /// </summary>
    public readonly ulong LogBit => Ept.LogsWrites && RingEntries == 0 ? NestedTables.Written : NestedTables.Writable;

    [UnscopedRef] public ref SlotTable Slots => ref CurrentTable.Value;

    /// <summary>Whether <paramref name="table"/> is still the current one.</summary>
    public bool IsCurrent(KernelRef<SlotTable> table) => Volatile.Read(ref _slots) == table.Address;

    /// <summary>Another after each change of the slots.</summary>
    public readonly uint Generation => Volatile.Read(in _generation);

    public KernelRef<SlotTable> CurrentTable => new(Volatile.Read(ref _slots));

    /// <summary>
    /// Prepares an empty memory. <paramref name="physicalBits"/> is the width of physical addresses (MAXPHYADDR).
    /// </summary>
    /// <returns>0, or -ENOMEM; <see cref="Destroy"/> gives back what there is in either case.</returns>
    public static int Init(ref Vm.Vm vm, int physicalBits)
    {
        int frameBits = Math.Min(physicalBits, NestedTables.AddressBits) - Page.Shift;
        vm.Memory.LastFrame = new Gfn((1UL << frameBits) - 1);
        if (!SlotTable.TryCreate(out KernelRef<SlotTable> table))
            return Errno.ENOMEM;

        // The root comes last: it is what tells the MMU notifier that there is something to look at.
        vm.Memory.Publish(table);
        vm.Memory.Statistics.TablePages = 1;
        vm.Memory.Root = KernelPages.Allocate();
        return vm.Memory.Root.IsNull ? Errno.ENOMEM : Errno.Ok;
    }

    /// <summary>
    /// Gives everything back. No vCPU runs any more; the MMU notifier may still come and finds nothing.
    /// </summary>
    public static void Destroy(ref Vm.Vm vm)
    {
        vm.Host.LockMmu();
        VmMemory memory = vm.Memory;
        vm.Memory = default;
        vm.Host.UnlockMmu();

        memory.Shadow.Free();
        KernelPages.Free(memory.ApicAccess.Page);
        if (!memory.Root.IsNull)
            NestedTables.Destroy(ref memory);
        if (memory._slots == 0)
            return;
        foreach (ref readonly MemorySlot slot in memory.Slots.All)
            slot.DirtyBitmap.Free();
        memory._starts.Free();
        SlotTable.Free(memory.CurrentTable, default);
    }

    /// <summary>Makes <paramref name="table"/> the current one, under the MMU lock.</summary>
    public void Publish(KernelRef<SlotTable> table)
    {
        Volatile.Write(ref _slots, table.Address);
        _generation++;
    }

    /// <summary>The slot with this id; one of no size when there is none.</summary>
    [UnscopedRef] public ref MemorySlot SlotById(uint id)
    {
        ulong start = id < (uint)_starts.Length ? _starts.Span[(int)id] : 0;
        return ref start != 0 ? ref Slots.Find(new Gpa(start & ~1UL)) : ref Slots.Empty;
    }

    /// <summary>Makes room for a slot with this id.</summary>
    public bool TryReserve(uint id)
    {
        if (id < (uint)_starts.Length)
            return true;
        int length = (int)System.Numerics.BitOperations.RoundUpToPowerOf2(Math.Max(id + 1, 16));
        if (!KernelArray<ulong>.TryAllocate(length, out KernelArray<ulong> larger))
            return false;
        _starts.Span.CopyTo(larger.Span);
        _starts.Free();
        _starts = larger;
        return true;
    }

    /// <summary>Notes where the slot with this id is now, in a place that was reserved.</summary>
    public void Note(uint id, in MemorySlot slot) => _starts.Span[(int)id] = slot.Size != 0 ? slot.Start.Value | 1 : 0;
}
