// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>KVM_SET_USER_MEMORY_REGION: creates, moves, changes and deletes memory slots.</summary>
internal static class MemorySlots
{
    /// <summary>Slots of a VM (KVM_CAP_NR_MEMSLOTS); ids are below it.</summary>
    public const int MaxSlots = 32764;
    /// <summary>Pages of a slot: what the original's 32-bit page counts can hold.</summary>
    public const ulong MaxPages = (1UL << 31) - 1;

    /// <summary>Guest memory handled in one hold of the MMU lock.</summary>
    private const ulong BytesPerLock = 1UL << 30;

    private const uint KnownFlags =
        kvm_userspace_memory_region.KVM_MEM_LOG_DIRTY_PAGES | kvm_userspace_memory_region.KVM_MEM_READONLY;

    /// <summary>
    /// Carries out the ioctl; the caller holds the slots mutex. When it returns, no vCPU sees the old layout any more.
    /// </summary>
    /// <returns>0, -EINVAL, -EEXIST when the range overlaps another slot, or -ENOMEM.</returns>
    public static int SetRegion(ref Vm.Vm vm, in kvm_userspace_memory_region region)
    {
        if (!IsWellFormed(in region))
            return Errno.EINVAL;

        ref readonly MemorySlot old = ref vm.Memory.SlotById(region.slot);
        bool exists = old.Size != 0;
        if (region.memory_size == 0)
            return exists ? Replace(ref vm, region.slot, default) : Errno.EINVAL;

        MemorySlot slot = new()
        {
            Id = region.slot, Flags = (SlotFlags)region.flags, Address = new Hva(region.userspace_addr),
            Start = new Gpa(region.guest_phys_addr), Size = region.memory_size,
        };
        bool movesPages = slot.Address.Value != old.Address.Value || slot.Size != old.Size;
        if (exists && (movesPages || slot.IsReadOnly != old.IsReadOnly))
            return Errno.EINVAL;
        if (exists && slot.Start.Value == old.Start.Value && slot.Flags == old.Flags)
            return Errno.Ok;
        if (Overlaps(ref vm.Memory.Slots, in slot))
            return Errno.EEXIST;
        if ((slot.End.Value - 1) >> Page.Shift > vm.Memory.LastFrame.Value)
            return Errno.EINVAL;
        return Replace(ref vm, region.slot, slot);
    }

    private static bool IsWellFormed(in kvm_userspace_memory_region region) =>
        // Ids above 0xffff name another address space, of which x86 without SMM has none.
        (region.flags & ~KnownFlags) == 0 && region.slot < MaxSlots
        && ((region.memory_size | region.guest_phys_addr | region.userspace_addr) & Page.OffsetMask) == 0
        && UserMemory.IsUserRange(new Hva(region.userspace_addr), region.memory_size)
        && region.guest_phys_addr + region.memory_size >= region.guest_phys_addr
        && region.memory_size >> Page.Shift <= MaxPages;

    /// <summary>Whether another slot reaches into the range of <paramref name="slot"/>.</summary>
    private static bool Overlaps(ref SlotTable slots, in MemorySlot slot)
    {
        foreach (ref readonly MemorySlot other in slots.From(slot.Start.Value))
        {
            if (other.Start.Value >= slot.End.Value)
                return false;
            if (other.Id != slot.Id && other.End.Value > slot.Start.Value && other.Size != 0)
                return true;
        }
        return false;
    }

    /// <summary>
    /// Puts <paramref name="slot"/> in the place of the one with this id, if there is one; no pages: deletes.
    /// Everything that can fail comes before the first change.
    /// </summary>
    private static int Replace(ref Vm.Vm vm, uint id, MemorySlot slot)
    {
        KernelRef<SlotTable> current = vm.Memory.CurrentTable;
        ref MemorySlot old = ref vm.Memory.SlotById(id);
        bool exists = old.Size != 0;
        if (!vm.Memory.TryReserve(id))
            return Errno.ENOMEM;
        bool starts = (slot.Flags & SlotFlags.LogDirty) != 0 && !old.LogsDirty;
        bool stops = (slot.Flags & SlotFlags.LogDirty) == 0 && old.LogsDirty;
        if (starts && !slot.TryAllocateBitmap(out slot.DirtyBitmap))
            return Errno.ENOMEM;
        bool full = vm.Memory.LogBeginsFull && vm.Memory.RingEntries == 0;
        if (starts && full)
            slot.MarkAllDirty();
        if (!starts && !stops)
            slot.DirtyBitmap = old.DirtyBitmap;
        if (!current.Value.TryChange(in old, in slot, out KernelRef<SlotTable> next))
        {
            if (starts)
                slot.DirtyBitmap.Free();
            return Errno.ENOMEM;
        }

        bool stays = slot.Size != 0 && slot.Start.Value == old.Start.Value;
        if (exists && !stays)
            TakeAway(ref vm, ref old, Sweeping.Remove);

        if (slot.Contains(ApicAccess.Address))
            ApicAccess.End(ref vm);
        vm.Host.LockMmu();
        vm.Memory.Publish(next);
        vm.Host.UnlockMmu();
        if (exists && !stays)
            ShadowTables.Forget(ref vm, old.Start.Frame, old.End.Frame);
        vm.Memory.Note(id, in slot);
        if (starts && exists && stays && !full)
            TakeAway(ref vm, ref slot, Sweeping.Take);
        if (stops && stays)
            Enlarge(ref vm, in slot);
        vm.Host.SynchronizeSlots();
        if (stops)
            old.DirtyBitmap.Free();
        SlotTable.Free(current, in next.Value);
        return Errno.Ok;
    }

    /// <summary>
    /// Ends a slot's use by the guest (<see cref="Sweeping.Remove"/>), or starts the logging of writes to it: from here
    /// on each first write to a page is known. The mark of the end comes first: a fault under way cannot map the
    /// slot's pages again; the slot stays in the table until nothing is mapped, so that the MMU notifier misses none.
    /// What was removed is flushed under the lock, because the notifier takes it that what it does not find is in no
    /// TLB.
    /// </summary>
    private static void TakeAway(ref Vm.Vm vm, ref MemorySlot slot, Sweeping work)
    {
        TablePool retired = default;
        bool ends = work == Sweeping.Remove;
        ulong bits = ends ? NestedTables.AllBits : vm.Memory.LogBit;
        for (ulong done = 0; done < slot.Size; done += BytesPerLock)
        {
            Gfn first = (slot.Start + done).Frame, end = (slot.Start + Math.Min(slot.Size, done + BytesPerLock)).Frame;
            vm.Host.LockMmu();
            slot.Flags |= ends ? SlotFlags.Retired : SlotFlags.None;
            if (NestedTables.Sweep(ref vm.Memory, first, end, work, bits, ref retired))
                vm.Host.FlushTlbs();
            vm.Host.UnlockMmu();
        }
        retired.Free();
    }

    /// <summary>
    /// The logging of writes has ended: removes small mappings where the process has large pages, so that the next
    /// access maps those.
    /// </summary>
    private static void Enlarge(ref Vm.Vm vm, in MemorySlot slot)
    {
        ulong size = NestedTables.PagesOf(2);
        TablePool retired = default;
        for (ulong done = 0; done < slot.PageCount; done += NestedTables.PagesOf(3))
        {
            bool flush = false;
            vm.Host.LockMmu();
            for (ulong page = done; page < Math.Min(slot.PageCount, done + NestedTables.PagesOf(3)); page += size)
            {
                Gfn inside = slot.Start.Frame + page, first = new(inside.Value & ~(size - 1));
                if (slot.LevelAt(inside, 2) == 2
                    && vm.Host.FindPage(slot.ToHva(first.Address), write: false, out HostPage host) && host.Level > 1)
                    flush |= NestedTables.Remove(ref vm.Memory, first, first + size, ref retired);
            }
            if (flush)
                vm.Host.FlushTlbs();
            vm.Host.UnlockMmu();
        }
        retired.Free();
    }
}
