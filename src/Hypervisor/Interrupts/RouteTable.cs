// SPDX-License-Identifier: GPL-2.0-only
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

/// <summary>Where a GSI leads: an MSI, or lines of the shared chips.</summary>
internal struct Route
{
    /// <summary>A bit for each line, as <see cref="RouteTable"/> numbers them.</summary>
    public ulong Lines;
    public bool IsMsi;
    public uint Data;
    public ulong Address;
}

/// <summary>Something of each line, as <see cref="RouteTable"/> numbers them.</summary>
[InlineArray(RouteTable.Lines)] internal struct PerLine<T> { private T _first; }

/// <summary>
/// The routes of a VM by GSI (KVM_SET_GSI_ROUTING). Replaced as a whole under the irqchip lock. The inputs of the
/// shared chips are lines of one numbering: 0 to 15 the two PICs', behind them the IOAPIC's pins.
/// </summary>
internal struct RouteTable
{
    public const int PicLines = 16, Lines = PicLines + IoApic.Pins;
    public const ulong AllPicLines = (1ul << PicLines) - 1;
    private const int LinesPerPic = PicLines / 2;

    private KernelArray<Route> _routes;
    /// <summary>The way back: the GSI that leads to a line.</summary>
    private PerLine<Gsi> _gsis;

    /// <summary>The first routes; not more than there are.</summary>
    public readonly ReadOnlySpan<Route> First(int count) => _routes.Span[..Math.Min(count, _routes.Length)];

    public readonly void Free() => _routes.Free();

    public readonly Route Find(Gsi gsi) => gsi.Value < _routes.Length ? _routes.Span[gsi.Value] : default;

    /// <summary>The GSI that leads to the first of some lines, of which there is one. Needs no lock.</summary>
    public readonly Gsi GsiOf(ulong lines) => _gsis[BitOperations.TrailingZeroCount(lines)];

    /// <summary>The routes after KVM_CREATE_IRQCHIP: GSI n to pin n, and to line n of the PIC below 16.</summary>
    public static bool TryCreateDefault(out RouteTable table)
    {
        table = default;
        if (!KernelArray<Route>.TryAllocate(IoApic.Pins, out table._routes))
            return false;
        for (int number = 0; number < IoApic.Pins && Gsi.TryCreate((uint)number, out Gsi gsi); number++)
        {
            if (number < PicLines)
                table.Add(gsi, number);
            table.Add(gsi, PicLines + number);
        }
        return true;
    }

    /// <summary>
    /// The routes that KVM_SET_GSI_ROUTING asks for. EINVAL for a GSI, chip, pin or MSI that cannot be, or a GSI that
    /// leads to two MSIs or twice to one chip.
    /// </summary>
    public static int Create(ReadOnlySpan<kvm_irq_routing_entry> entries, bool pins, bool wide, out RouteTable table)
    {
        table = default;
        int needed = 0;
        foreach (ref readonly kvm_irq_routing_entry entry in entries)
            needed = Math.Max(needed, (int)Math.Min(entry.gsi, Gsi.Limit) + 1);
        if (needed > Gsi.Limit)
            return Errno.EINVAL;
        if (needed != 0 && !KernelArray<Route>.TryAllocate(needed, out table._routes))
            return Errno.ENOMEM;
        foreach (ref readonly kvm_irq_routing_entry entry in entries)
        {
            if (Gsi.TryCreate(entry.gsi, out Gsi gsi) && table.TryAdd(gsi, in entry, pins, wide))
                continue;
            table.Free();
            return Errno.EINVAL;
        }
        return Errno.Ok;
    }

    private bool TryAdd(Gsi gsi, in kvm_irq_routing_entry entry, bool pins, bool wide)
    {
        ref Route route = ref _routes.Span[gsi.Value];
        if (entry.flags != 0 || route.IsMsi)
            return false;
        if (entry.type == kvm_irq_routing_entry.KVM_IRQ_ROUTING_MSI)
        {
            ulong address = (ulong)entry.u.msi.address_hi << 32 | entry.u.msi.address_lo;
            if (route.Lines != 0 || wide && (entry.u.msi.address_hi & 0xff) != 0)
                return false;
            route = new Route { IsMsi = true, Address = address, Data = entry.u.msi.data };
            return true;
        }
        uint chip = entry.u.irqchip.irqchip, pin = entry.u.irqchip.pin;
        int first = (int)chip * LinesPerPic, count = chip < kvm_irqchip.KVM_IRQCHIP_IOAPIC ? LinesPerPic : IoApic.Pins;
        if (!pins || entry.type != kvm_irq_routing_entry.KVM_IRQ_ROUTING_IRQCHIP
            || chip > kvm_irqchip.KVM_IRQCHIP_IOAPIC || pin >= count
            || (route.Lines >> first & (1ul << count) - 1) != 0)
            return false;
        Add(gsi, first + (int)pin);
        return true;
    }

    private void Add(Gsi gsi, int line)
    {
        _routes.Span[gsi.Value].Lines |= 1ul << line;
        _gsis[line] = gsi;
    }
}
