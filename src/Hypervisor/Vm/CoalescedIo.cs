// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// Writes that wait in a shared page until user space has another reason to look (KVM_CAP_COALESCED_MMIO and _PIO).
/// Guarded by the irqchip lock.
/// </summary>
internal struct CoalescedIo
{
    private const int Limit = 100;

    [InlineArray(Limit)] private struct Zones { private kvm_coalesced_mmio_zone _first; }

    /// <summary>The page as the ABI has it; user space may change any of it at any time.</summary>
    private KernelRef<kvm_coalesced_mmio_ring> _ring;
    private KernelArray<kvm_coalesced_mmio> _writes;
    private Zones _zones;
    private int _count;

    public static CoalescedIo Over(nint page) => new()
    {
        _ring = new(page), _writes = KernelArray<kvm_coalesced_mmio>.At(
            page + Unsafe.SizeOf<kvm_coalesced_mmio_ring>(), (int)kvm_coalesced_mmio_ring.Length),
    };

    /// <summary>A zone that comes this moment may as well come a moment later.</summary>
    public readonly bool IsEmpty => _count == 0;

    /// <summary>
    /// KVM_REGISTER_COALESCED_MMIO, and KVM_UNREGISTER for the zones that lie within, of which there may be none.
    /// EINVAL for a kind that is none, ENOSPC when there are too many.
    /// </summary>
    public static int Change(ref Vm vm, in kvm_coalesced_mmio_zone zone, bool add)
    {
        if (zone.pio > 1)
            return Errno.EINVAL;
        vm.Host.LockIrq();
        ref CoalescedIo self = ref vm.Coalesced;
        bool full = add && self._count == Limit;
        for (int i = self._count - 1; i >= 0 && !add; i--)
        {
            if (Contains(in zone, self._zones[i].pio, self._zones[i].addr, self._zones[i].size))
                self._zones[i] = self._zones[--self._count];
        }
        if (add && !full)
            self._zones[self._count++] = zone;
        vm.Host.UnlockIrq();
        return full ? Errno.ENOSPC : Errno.Ok;
    }

    /// <summary>Whether a write was put into the ring; false also when that is full.</summary>
    public static bool TryAdd(ref Vm vm, bool port, ulong address, uint length, ulong data)
    {
        if (vm.Coalesced.IsEmpty)
            return false;
        bool added = false;
        uint pio = port ? 1u : 0;
        vm.Host.LockIrq();
        ref CoalescedIo self = ref vm.Coalesced;
        for (int i = 0; i < self._count && !added; i++)
            added = Contains(in self._zones[i], pio, address, length) && self.TryPut(pio, address, length, data);
        vm.Host.UnlockIrq();
        return added;
    }

    private static bool Contains(in kvm_coalesced_mmio_zone zone, uint pio, ulong start, ulong size) =>
        zone.pio == pio && start >= zone.addr && size <= zone.size && start - zone.addr <= zone.size - size;

    private readonly bool TryPut(uint pio, ulong address, uint length, ulong data)
    {
        ref kvm_coalesced_mmio_ring ring = ref _ring.Value;
        // Read once; the remainders keep what user space may have written there within the page.
        uint last = Volatile.Read(ref ring.last) % kvm_coalesced_mmio_ring.Length;
        uint next = (last + 1) % kvm_coalesced_mmio_ring.Length;
        if (next == Volatile.Read(ref ring.first) % kvm_coalesced_mmio_ring.Length)
            return false;
        _writes.Span[(int)last] = new() { phys_addr = address, len = length, pio = pio, data = data };
        Volatile.Write(ref ring.last, next);
        return true;
    }
}
