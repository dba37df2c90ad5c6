// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Abi;
using SharpKvm.Host;

namespace SharpKvm.Interrupts;

/// <summary>A global system interrupt: the number of a route, proved to be below the limit of the ABI.</summary>
internal readonly struct Gsi
{
    /// <summary>KVM_CAP_IRQ_ROUTING.</summary>
    public const uint Limit = 4096;

    public readonly ushort Value;

    private Gsi(uint value) => Value = (ushort)value;

    public static bool TryCreate(uint value, out Gsi gsi)
    {
        gsi = new Gsi(value % Limit);
        return value < Limit;
    }
}

/// <summary>Where a GSI leads: an MSI, or pins of the PIC, the IOAPIC or both.</summary>
internal struct Route
{
    /// <summary>Lines of either PIC, 0 to 15, and a pin of the IOAPIC, each plus 1; 0 for none.</summary>
    public byte MasterLine, SlaveLine, IoApicPin;
    public bool IsMsi;
    public uint Data;
    public ulong Address;
}

/// <summary>The routes of a VM by GSI (KVM_SET_GSI_ROUTING). Replaced as a whole under the irqchip lock.</summary>
internal struct RouteTable
{
    private const int PicLines = 16;

    [InlineArray(PicLines)]
    private struct PicGsis
    {
        private ushort _first;
    }

    [InlineArray(kvm_ioapic_state.KVM_IOAPIC_NUM_PINS)]
    private struct IoApicGsis
    {
        private ushort _first;
    }

    private KernelArray<Route> _routes;
    /// <summary>The way back: the GSI that leads to a line or pin.</summary>
    private PicGsis _picGsis;
    private IoApicGsis _ioApicGsis;

    public readonly int Count => _routes.Length;

    public readonly void Free() => _routes.Free();

    public readonly Route Find(Gsi gsi) => gsi.Value < _routes.Length ? _routes.Span[gsi.Value] : default;

    /// <summary>The GSIs of the PIC lines or IOAPIC pins in <paramref name="mask"/>, taken out one by one.</summary>
    public readonly bool TryTakeGsi(ref uint mask, bool ioApic, out Gsi gsi)
    {
        int pin = System.Numerics.BitOperations.TrailingZeroCount(mask);
        bool found = mask != 0;
        mask &= mask - 1;
        uint value = !found ? 0u : ioApic ? _ioApicGsis[pin] : _picGsis[pin];
        return Gsi.TryCreate(value, out gsi) && found;
    }

    /// <summary>The routes after KVM_CREATE_IRQCHIP: GSI n to pin n, and to line n of the PIC below 16.</summary>
    public static bool TryCreateDefault(out RouteTable table)
    {
        table = default;
        if (!KernelArray<Route>.TryAllocate(kvm_ioapic_state.KVM_IOAPIC_NUM_PINS, out table._routes))
            return false;
        for (int gsi = 0; gsi < table.Count; gsi++)
        {
            byte number = (byte)(gsi + 1);
            table._ioApicGsis[gsi] = (ushort)gsi;
            if (gsi < PicLines)
                table._picGsis[gsi] = (ushort)gsi;
            table._routes.Span[gsi] = new Route
            {
                MasterLine = gsi < PicLines / 2 ? number : (byte)0, IoApicPin = number,
                SlaveLine = gsi is >= PicLines / 2 and < PicLines ? number : (byte)0,
            };
        }
        return true;
    }

    /// <summary>
    /// Takes entries from KVM_SET_GSI_ROUTING's argument. EINVAL for a GSI, chip, pin or MSI that cannot be, or a
    /// GSI that leads to two MSIs or twice to one chip.
    /// </summary>
    public static int Read(Hva entries, uint count, bool pins, bool wide, out RouteTable table)
    {
        table = default;
        int needed = 0;
        for (uint i = 0; i < count; i++)
        {
            if (!TryReadEntry(entries, i, out kvm_irq_routing_entry entry))
                return Errno.EFAULT;
            if (!Gsi.TryCreate(entry.gsi, out Gsi gsi))
                return Errno.EINVAL;
            needed = Math.Max(needed, gsi.Value + 1);
        }
        if (needed != 0 && !KernelArray<Route>.TryAllocate(needed, out table._routes))
            return Errno.ENOMEM;
        int error = Errno.Ok;
        for (uint i = 0; i < count && error == Errno.Ok; i++)
        {
            // User space may have changed an entry since: what was allocated is the bound now.
            if (!TryReadEntry(entries, i, out kvm_irq_routing_entry entry))
                error = Errno.EFAULT;
            else if (entry.gsi >= (uint)needed || !table.TryAdd(in entry, pins, wide))
                error = Errno.EINVAL;
        }
        if (error != Errno.Ok)
            table.Free();
        return error;
    }

    private static bool TryReadEntry(Hva entries, uint index, out kvm_irq_routing_entry entry) =>
        UserMemory.TryRead(entries + index * (ulong)Unsafe.SizeOf<kvm_irq_routing_entry>(), out entry);

    private bool TryAdd(in kvm_irq_routing_entry entry, bool pins, bool wide)
    {
        ref Route route = ref _routes.Span[(int)entry.gsi];
        if (entry.flags != 0 || route.IsMsi)
            return false;
        if (entry.type == kvm_irq_routing_entry.KVM_IRQ_ROUTING_MSI)
        {
            ulong address = (ulong)entry.u.msi.address_hi << 32 | entry.u.msi.address_lo;
            bool hasPins = (route.MasterLine | route.SlaveLine | route.IoApicPin) != 0;
            if (hasPins || wide && (entry.u.msi.address_hi & 0xff) != 0)
                return false;
            route = new Route { IsMsi = true, Address = address, Data = entry.u.msi.data };
            return true;
        }
        return pins && entry.type == kvm_irq_routing_entry.KVM_IRQ_ROUTING_IRQCHIP
            && TryAddPin(ref route, entry.u.irqchip.irqchip, entry.u.irqchip.pin, (ushort)entry.gsi);
    }

    private bool TryAddPin(ref Route route, uint chip, uint pin, ushort gsi)
    {
        int limit = chip == kvm_irqchip.KVM_IRQCHIP_IOAPIC ? kvm_ioapic_state.KVM_IOAPIC_NUM_PINS : PicLines / 2;
        return pin < limit && chip switch
        {
            kvm_irqchip.KVM_IRQCHIP_PIC_MASTER => TryAdd(ref route.MasterLine, pin, ref _picGsis[(int)pin], gsi),
            kvm_irqchip.KVM_IRQCHIP_PIC_SLAVE =>
                TryAdd(ref route.SlaveLine, pin + PicLines / 2, ref _picGsis[(int)pin + PicLines / 2], gsi),
            kvm_irqchip.KVM_IRQCHIP_IOAPIC => TryAdd(ref route.IoApicPin, pin, ref _ioApicGsis[(int)pin], gsi),
            _ => false,
        };
    }

    private static bool TryAdd(ref byte place, uint line, ref ushort back, ushort gsi)
    {
        bool isFree = place == 0;
        place = (byte)(line + 1);
        back = gsi;
        return isFree;
    }
}
