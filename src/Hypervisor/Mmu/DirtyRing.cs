// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>
/// The pages that a vCPU has written (KVM_CAP_DIRTY_LOG_RING), in memory shared with user space, which may write
/// anything there at any time. Each slot's bitmap tells which pages are in a ring, so that none is there twice.
/// <para>Anyone may push; entries are taken back under the slots mutex.</para>
/// </summary>
internal struct DirtyRing
{
    private const int MaxEntries = 65536;
    public const uint MaxBytes = MaxEntries * 16;
    /// <summary>Entries kept for what is written between two looks at the ring.</summary>
    private const int Reserved = 64;

    private KernelArray<kvm_dirty_gfn> _entries;
    /// <summary>How many entries were ever pushed, and taken back.</summary>
    private uint _pushed, _taken;

    /// <summary>Whether the vCPU must not run the guest before entries were taken back.</summary>
    public readonly bool IsSoftFull => _entries.Length != 0 && Used >= (uint)(_entries.Length - Reserved);

    private readonly uint Used => Volatile.Read(in _pushed) - Volatile.Read(in _taken);

    /// <summary>KVM_ENABLE_CAP with the size of a ring in bytes.</summary>
    /// <returns>0, -EINVAL for a size that cannot be, when rings exist or vCPUs do; -E2BIG.</returns>
    public static int Enable(ref Vm.Vm vm, ulong bytes)
    {
        if (bytes < Page.Size || !System.Numerics.BitOperations.IsPow2(bytes))
            return Errno.EINVAL;
        if (bytes > MaxBytes)
            return Errno.E2BIG;
        if (vm.Memory.RingEntries != 0 || vm.Vcpus.Count != 0)
            return Errno.EINVAL;
        vm.Memory.RingEntries = (int)bytes / Unsafe.SizeOf<kvm_dirty_gfn>();
        return Errno.Ok;
    }

    /// <summary>The ring of a new vCPU, if the VM has rings: 0 or -ENOMEM.</summary>
    public static int Create(ref Vcpu vcpu)
    {
        int entries = vcpu.Vm.Memory.RingEntries;
        if (entries != 0)
            vcpu.DirtyRing._entries = vcpu.Shared.Host.AllocateRing(entries);
        return vcpu.DirtyRing._entries.Length == entries ? Errno.Ok : Errno.ENOMEM;
    }

    /// <summary>Adds a page of a slot; false when there is no room.</summary>
    public bool TryPush(uint slot, ulong page)
    {
        uint index;
        do
        {
            index = Volatile.Read(in _pushed);
            if (index - Volatile.Read(in _taken) >= (uint)_entries.Length)
                return false;
        }
        while (Interlocked.CompareExchange(ref _pushed, index + 1, index) != index);
        ref kvm_dirty_gfn entry = ref At(index);
        entry.slot = slot;
        entry.offset = page;
        Volatile.Write(ref entry.flags, kvm_dirty_gfn.KVM_DIRTY_GFN_F_DIRTY);
        return true;
    }

    /// <summary>KVM_RESET_DIRTY_RINGS: takes back what user space has seen and logs the next write to it.</summary>
    /// <returns>How many entries, or -EINVAL without rings.</returns>
    public static int ResetAll(ref Vm.Vm vm)
    {
        if (vm.Memory.RingEntries == 0)
            return Errno.EINVAL;
        int count = 0;
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
            count += vcpu.Value.DirtyRing.TakeBack(ref vm);
        if (count != 0)
            vm.Host.FlushTlbs();
        return count;
    }

    private int TakeBack(ref Vm.Vm vm)
    {
        // Not more than the ring holds: a guest may be pushing on, and user space resetting what it has not seen.
        int count = 0;
        for (; count < _entries.Length && Used != 0; count++)
        {
            ref kvm_dirty_gfn entry = ref At(_taken);
            if ((Volatile.Read(ref entry.flags) & kvm_dirty_gfn.KVM_DIRTY_GFN_F_RESET) == 0)
                break;
            ref readonly MemorySlot slot = ref vm.Memory.SlotById(Volatile.Read(ref entry.slot));
            ulong page = Volatile.Read(ref entry.offset), bit = 1UL << (int)(page % 64);
            Volatile.Write(ref entry.flags, 0);
            Volatile.Write(ref _taken, _taken + 1);
            // The slot may have changed since, and user space may have invented both numbers.
            if (slot.LogsDirty && page < slot.PageCount)
                DirtyLog.Collect(ref vm, in slot, (int)(page / 64), new Span<ulong>(ref bit));
        }
        return count;
    }

    private readonly ref kvm_dirty_gfn At(uint index) => ref _entries.Span[(int)(index % (uint)_entries.Length)];
}
