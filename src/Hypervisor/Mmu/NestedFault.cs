// SPDX-License-Identifier: GPL-2.0-only
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
    /// <summary>Shadow paging: the guest's tables do not allow the access, it gets the #PF.</summary>
    GuestFault,
    /// <summary>
    /// Shadow paging: a write to be emulated, to a table of a higher level, or one that CR0.WP lets pass.
    /// </summary>
    Emulate,
}

/// <summary>Makes guest memory present when the guest touches it.</summary>
internal static class NestedFault
{
    /// <summary>
    /// Maps the page at <paramref name="address"/>. In the context of the VM's process.
    /// </summary>
    /// <param name="vcpu">The vCPU whose thread this is.</param>
    /// <param name="address">The guest physical address.</param>
    /// <param name="write">The access was a write.</param>
    /// <param name="present">Hardware found a mapping that did not allow the access.</param>
    /// <param name="wait">Whether to wait for a page that Linux has to fetch.</param>
    /// <param name="largest">The highest level of a mapping.</param>
    public static FaultOutcome Handle<TFormat>(ref Vcpu vcpu, Gpa address, bool write, bool present, bool wait,
        int largest = 3) where TFormat : struct, INestedFormat
    {
        ref Vm.Vm vm = ref vcpu.Vm;
        KernelRef<SlotTable> table = vm.Memory.CurrentTable;
        ref readonly MemorySlot slot = ref table.Value.Find(address);
        if (!slot.Contains(address))
            return FaultOutcome.Mmio;
        if (write && slot.IsReadOnly)
            return FaultOutcome.ReadOnlyWrite;
        if (write && present && TryAllowWrite(ref vcpu, table, in slot, address))
            return FaultOutcome.Mapped;
        if (!vcpu.SpareTables.TopUp(NestedTables.TablesPerMapping))
            return FaultOutcome.NoMemory;

        ulong sequence = vm.Host.InvalidationSequence();
        Hva hva = slot.ToHva(address.Frame.Address);
        if (!vm.Host.FindPage(hva, write, out HostPage page))
        {
            PageLookup lookup = vm.Host.FaultPage(hva, write, wait);
            if (lookup != PageLookup.Found)
                return lookup switch
                {
                    PageLookup.NotYet => FaultOutcome.NotYet,
                    PageLookup.Interrupted => FaultOutcome.Interrupted,
                    _ => FaultOutcome.Error,
                };
            sequence = vm.Host.InvalidationSequence();
            // One who does not wait gets no page marked as dirty that is there, as after a huge page was split.
            if (!vm.Host.FindPage(hva, write, out page))
                return wait ? FaultOutcome.Retry
                    : Handle<TFormat>(ref vcpu, address, write, present, wait: true, largest);
        }

        int level = slot.LevelAt(address.Frame, Math.Min(page.Level, largest));
        Attempt<TFormat> attempt = new(table, address, hva, level, page, write, sequence);
        vm.Host.LockMmuShared();
        MapResult result = attempt.Map(ref vcpu, in slot);
        // A fault on shadow tables costs more, and fills several entries.
        ulong group = vm.Memory.Shadow.IsActive && level == 1 && result == MapResult.Mapped ? WalkPath.Group : 0ul;
        for (ulong i = 1; i < group; i++)
        {
            Gpa near = new(address.Frame.Address.Value ^ i << Page.Shift);
            if (slot.TryToHva(near, out hva) && vm.Host.FindPage(hva, write: false, out page))
                new Attempt<TFormat>(table, near, hva, level, page, write: false, sequence).Map(ref vcpu, in slot);
        }
        vm.Host.UnlockMmuShared();
        if (result == MapResult.Occupied)
            result = Replace(ref vcpu, in slot, in attempt);
        return result == MapResult.Mapped ? FaultOutcome.Mapped : FaultOutcome.Retry;
    }

    /// <summary>
    /// The fast way of a write to a page that was only write-protected, by the dirty log: the host's page is not looked
    /// up again.
    /// </summary>
    private static bool TryAllowWrite(ref Vcpu vcpu, KernelRef<SlotTable> table, in MemorySlot slot, Gpa address)
    {
        ref Vm.Vm vm = ref vcpu.Vm;
        vm.Host.LockMmuShared();
        bool done = vm.Memory.IsCurrent(table) && !slot.IsRetired
            && NestedTables.TryAllowWrite(ref vm.Memory, address.Frame, slot.LargestLevel);
        if (done)
            DirtyLog.Mark(ref vcpu, in slot, address);
        vm.Host.UnlockMmuShared();
        return done;
    }

    /// <summary>
    /// Puts the mapping in the place of smaller ones, or of another page's. What goes is flushed before the lock is
    /// given back, because the notifier takes it that what it does not find is in no TLB.
    /// </summary>
    private static MapResult Replace<TFormat>(ref Vcpu vcpu, in MemorySlot slot, in Attempt<TFormat> attempt)
        where TFormat : struct, INestedFormat
    {
        ref Vm.Vm vm = ref vcpu.Vm;
        TablePool retired = default;
        vm.Host.LockMmu();
        if (NestedTables.Remove(ref vm.Memory, attempt.First, attempt.First + attempt.Pages, ref retired))
            vm.Host.FlushTlbs();
        MapResult result = attempt.Map(ref vcpu, in slot);
        vm.Host.UnlockMmu();
        retired.Free();
        return result;
    }

    /// <summary>A mapping that a fault wants, and what it rests on.</summary>
    private readonly struct Attempt<TFormat>(
        KernelRef<SlotTable> table, Gpa address, Hva hva, int level, HostPage page, bool write, ulong sequence)
        where TFormat : struct, INestedFormat
    {
        /// <summary>How many 4 KiB pages it maps.</summary>
        public ulong Pages => NestedTables.PagesOf(level);
        public Gfn First => new(address.Frame.Value & ~(Pages - 1));
        private Hva Start => new(hva.Value & ~((Pages << Page.Shift) - 1));

        /// <summary>
        /// Maps if nothing has changed since the page was looked up; otherwise the answer is as if a table were
        /// missing.
        /// </summary>
        public MapResult Map(ref Vcpu vcpu, in MemorySlot slot)
        {
            ref Vm.Vm vm = ref vcpu.Vm;
            if (vm.Host.IsInvalidated(sequence, Start, Pages << Page.Shift) || !vm.Memory.IsCurrent(table)
                || slot.IsRetired)
                return MapResult.NeedsTable;
            ulong leaf = TFormat.Leaf(new Pfn(page.Frame.Value & ~(Pages - 1)), level);
            // While writes are logged, a page becomes writable by a write only.
            if (page.Writable && !slot.IsReadOnly)
                leaf |= NestedTables.HostWritable | (write || !slot.LogsDirty ? NestedTables.Writable : 0);
            MapResult result = NestedTables.Map<TFormat>(
                ref vm.Memory, ref vcpu.SpareTables, address.Frame, level, leaf);
            if (result == MapResult.Mapped && (leaf & NestedTables.Writable) != 0)
                DirtyLog.Mark(ref vcpu, in slot, address);
            return result;
        }
    }
}
