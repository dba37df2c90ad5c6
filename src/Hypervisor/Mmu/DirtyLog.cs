// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// Which pages were written since user space asked last: by a bitmap for each slot (KVM_GET_DIRTY_LOG,
/// KVM_CLEAR_DIRTY_LOG) or by a ring for each vCPU (<see cref="DirtyRing"/>). Callers of ioctls hold the slots mutex.
/// </summary>
internal static class DirtyLog
{
    /// <summary>KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE and KVM_DIRTY_LOG_INITIALLY_SET.</summary>
    public const ulong ManualProtect = 1 << 0, InitiallySet = 1 << 1;

    /// <summary>Words of a bitmap handled in one hold of the MMU lock: 4,096 pages.</summary>
    private const int WordsPerLock = 64;

    /// <summary>KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0, or -EINVAL for what cannot be chosen.</summary>
    public static int Choose(ref Vm.Vm vm, ulong options)
    {
        if ((options & ~(ManualProtect | InitiallySet)) != 0 || options == InitiallySet)
            return Errno.EINVAL;
        vm.Memory.ClearsLogByHand = (options & ManualProtect) != 0;
        vm.Memory.LogBeginsFull = (options & InitiallySet) != 0;
        return Errno.Ok;
    }

    /// <summary>
    /// Copies the slot's bitmap to user space and, unless that is done by hand, starts a new one. On failure no bit is
    /// lost.
    /// </summary>
    /// <returns>
    /// 0, -ENXIO with rings, -EINVAL for a bad slot id, -ENOENT when the slot does not log, -EFAULT, -ENOMEM.
    /// </returns>
    public static int Get(ref Vm.Vm vm, in kvm_dirty_log log)
    {
        int error = Find(ref vm, log.slot, out MemorySlot slot);
        if (error != Errno.Ok)
            return error;
        var target = new Hva(log.dirty_bitmap);
        if (vm.Memory.ClearsLogByHand)
            return UserMemory.Write(target, MemoryMarshal.AsBytes(slot.DirtyBitmap.Span)) ? Errno.Ok : Errno.EFAULT;
        if (!slot.TryAllocateBitmap(out KernelArray<ulong> snapshot))
            return Errno.ENOMEM;

        snapshot.Span.Fill(ulong.MaxValue);
        if (Collect(ref vm, in slot, 0, snapshot.Span))
            vm.Host.FlushTlbs();
        bool copied = UserMemory.Write(target, MemoryMarshal.AsBytes(snapshot.Span));
        for (int word = 0; !copied && word < snapshot.Length; word++)
            Interlocked.Or(ref slot.DirtyBitmap.Span[word], snapshot.Span[word]);
        snapshot.Free();
        return copied ? Errno.Ok : Errno.EFAULT;
    }

    /// <summary>Takes pages out of the log that user space names: their next write is logged again.</summary>
    /// <returns>
    /// 0, -ENXIO with rings, -EINVAL for a bad slot id or range, -ENOENT when the slot does not log, -EFAULT, -ENOMEM.
    /// </returns>
    public static int Clear(ref Vm.Vm vm, in kvm_clear_dirty_log request)
    {
        int error = Find(ref vm, request.slot, out MemorySlot slot);
        if (error != Errno.Ok)
            return error;
        ulong first = request.first_page, count = request.num_pages;
        if (first % 64 != 0 || first > slot.PageCount || count > slot.PageCount - first
            || (count % 64 != 0 && first + count != slot.PageCount))
            return Errno.EINVAL;
        if (!KernelArray<ulong>.TryAllocate((int)((count + 63) / 64), out KernelArray<ulong> chosen))
            return Errno.ENOMEM;
        bool read = UserMemory.Read(new Hva(request.dirty_bitmap), MemoryMarshal.AsBytes(chosen.Span));
        if (read && Collect(ref vm, in slot, (int)(first / 64), chosen.Span))
            vm.Host.FlushTlbs();
        chosen.Free();
        return read ? Errno.Ok : Errno.EFAULT;
    }

    /// <summary>Records a write by the guest, whose vCPU's thread this is.</summary>
    public static void Mark(ref Vcpu vcpu, in MemorySlot slot, Gpa address)
    {
        if (slot.TryMarkDirty(address) && vcpu.Vm.Memory.RingEntries != 0 && !Push(ref vcpu, in slot, address))
            PushAnywhere(ref vcpu.Vm, in slot, address);
    }

    /// <summary>Records a write by the kernel itself.</summary>
    public static void Mark(ref Vm.Vm vm, in MemorySlot slot, Gpa address)
    {
        if (slot.TryMarkDirty(address) && vm.Memory.RingEntries != 0)
            PushAnywhere(ref vm, in slot, address);
    }

    /// <summary>
    /// Which vCPU's ring names a page does not matter to user space, which reads all. There is room: each vCPU's keeps
    /// entries back, and the kernel's own writes go to few pages.
    /// </summary>
    private static void PushAnywhere(ref Vm.Vm vm, in MemorySlot slot, Gpa address)
    {
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
        {
            if (Push(ref vcpu.Value, in slot, address))
                return;
        }
    }

    private static bool Push(ref Vcpu vcpu, in MemorySlot slot, Gpa address)
    {
        if (!vcpu.DirtyRing.TryPush(slot.Id, (address.Value - slot.Start.Value) >> Page.Shift))
            return false;
        if (vcpu.DirtyRing.IsSoftFull)
            vcpu.Shared.Request(VcpuRequests.RingFull);
        return true;
    }

    private static int Find(ref Vm.Vm vm, uint id, out MemorySlot slot)
    {
        slot = default;
        if (vm.Memory.RingEntries != 0)
            return Errno.ENXIO;
        if (id >= MemorySlots.MaxSlots)
            return Errno.EINVAL;
        slot = vm.Memory.SlotById(id);
        return slot.LogsDirty ? Errno.Ok : Errno.ENOENT;
    }

    /// <summary>
    /// Takes those bits out of the log that are set in <paramref name="chosen"/>, which begins at a word of the bitmap,
    /// and write-protects their pages. What was not in the log is cleared in <paramref name="chosen"/>.
    /// </summary>
    /// <returns>Whether TLBs must be flushed.</returns>
    public static bool Collect(ref Vm.Vm vm, in MemorySlot slot, int firstWord, Span<ulong> chosen)
    {
        bool flush = false;
        Span<ulong> bitmap = slot.DirtyBitmap.Span.Slice(firstWord, chosen.Length);
        for (int start = 0; start < bitmap.Length; start += WordsPerLock)
        {
            int end = Math.Min(bitmap.Length, start + WordsPerLock);
            vm.Host.LockMmu();
            for (int word = start; word < end; word++)
            {
                ulong bits = Volatile.Read(ref bitmap[word]) & chosen[word];
                chosen[word] = bits;
                if (bits == 0)
                    continue;
                Interlocked.And(ref bitmap[word], ~bits);
                // From the first written page to the last; those between that are clean are protected already.
                Gfn frame = slot.Start.Frame + (ulong)(firstWord + word) * 64;
                flush |= NestedTables.WriteProtect(ref vm.Memory, frame + (ulong)BitOperations.TrailingZeroCount(bits),
                    frame + (ulong)(64 - BitOperations.LeadingZeroCount(bits)));
            }
            vm.Host.UnlockMmu();
        }
        return flush;
    }
}
