// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Host;

namespace SharpKvm.Mmu;

/// <summary>What became of a nested page fault.</summary>
internal enum FaultOutcome : byte
{
    /// <summary>The page is mapped: enter the guest again.</summary>
    Mapped,
    /// <summary>
    /// A race against Linux or an ioctl was lost. Enter the guest again, after the usual look at signals and
    /// rescheduling; it comes back.
    /// </summary>
    Retry,
    /// <summary>No memory there.</summary>
    Mmio,
    /// <summary>A write to memory of a read-only slot, to be emulated like MMIO.</summary>
    ReadOnlyWrite,
    /// <summary>The process has no such memory: EFAULT.</summary>
    Error,
    /// <summary>A signal arrived: EINTR.</summary>
    Interrupted,
    /// <summary>No page for a table: ENOMEM.</summary>
    NoMemory,
    /// <summary>Linux has to fetch the page first.</summary>
    NotYet,
}

/// <summary>Makes guest memory present when the guest touches it.</summary>
internal static class NestedFault
{
    /// <summary>
    /// Maps the page at <paramref name="address"/>; all mappings are executable. In the context of the VM's process.
    /// </summary>
    /// <param name="wait">Whether to wait for a page that Linux has to fetch.</param>
    public static FaultOutcome Handle<TFormat>(ref Vm.Vm vm, Gpa address, bool write, bool wait)
        where TFormat : struct, INestedFormat
    {
        KernelRef<SlotTable> table = vm.Memory.CurrentTable;
        ref readonly MemorySlot slot = ref table.Value.Find(address);
        if (!slot.Contains(address))
            return FaultOutcome.Mmio;
        if (write && slot.IsReadOnly)
            return FaultOutcome.ReadOnlyWrite;
        if (!SpareTables.TopUp(ref vm))
            return FaultOutcome.NoMemory;

        ulong sequence = vm.Host.InvalidationSequence();
        Hva hva = slot.ToHva(address.Frame.Address);
        PageLookup lookup = vm.Host.LookUpPage(hva, write, wait, out HostPage page);
        if (lookup == PageLookup.NotYet)
            return FaultOutcome.NotYet;
        if (lookup != PageLookup.Found)
            return lookup == PageLookup.Interrupted ? FaultOutcome.Interrupted : FaultOutcome.Error;

        // While writes are logged, a page becomes writable by a write only.
        bool writable = page.Writable && !slot.IsReadOnly && (write || !slot.LogsDirty);
        MapResult result = MapResult.NeedsTable;
        vm.Host.LockMmu();
        if (!vm.Host.IsInvalidated(sequence, hva) && vm.Memory.IsCurrent(table) && !slot.IsRetired)
        {
            result = NestedTables.Map<TFormat>(ref vm.Memory, address.Frame, page.Frame, writable);
            if (writable && result != MapResult.NeedsTable)
                slot.MarkDirty(address);
        }
        vm.Host.UnlockMmu();

        if (result == MapResult.Replaced)
            vm.Host.FlushTlbs();
        return result == MapResult.NeedsTable ? FaultOutcome.Retry : FaultOutcome.Mapped;
    }
}

/// <summary>Keeps pages at hand for new tables, because none can be allocated under the MMU lock.</summary>
internal static class SpareTables
{
    private const int Batch = 8;

    /// <summary>Sees to it that a mapping finds the pages it may need; another vCPU can still be faster.</summary>
    /// <returns>False when the kernel has no memory.</returns>
    public static bool TopUp(ref Vm.Vm vm)
    {
        if (Volatile.Read(ref vm.Memory.Spare.Count) >= NestedTables.TablesPerMapping)
            return true;
        TablePool fresh = default;
        while (fresh.Count < Batch)
        {
            Hpa page = KernelPages.Allocate();
            if (page.IsNull)
                break;
            fresh.Push(page);
        }
        vm.Host.LockMmu();
        vm.Memory.Spare.Take(ref fresh);
        bool enough = vm.Memory.Spare.Count >= NestedTables.TablesPerMapping;
        vm.Host.UnlockMmu();
        return enough;
    }
}
