// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

// Arguments of the ioctls of interrupt chips, interrupt routes and event channels (asm/kvm.h, linux/kvm.h). A Size
// larger than the fields stands for reserved ones at the end of what only user space fills.

[InlineArray(24)] internal struct ulong_24 { private ulong _first; }

[InlineArray(1024)] internal struct byte_1024 { private byte _first; }

/// <summary>One 8259, in <see cref="kvm_irqchip"/>.</summary>
internal struct kvm_pic_state
{
    /// <summary>The lines' levels, to find edges.</summary>
    public byte last_irr;
    public byte irr, imr, isr;
    /// <summary>The line of highest priority.</summary>
    public byte priority_add;
    public byte irq_base;
    /// <summary>Whether reads give ISR rather than IRR.</summary>
    public byte read_reg_select;
    public byte poll;
    public byte special_mask;
    /// <summary>The initialization word that comes next: 0 none, 1 ICW2, 2 ICW3, 3 ICW4.</summary>
    public byte init_state;
    public byte auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode;
    /// <summary>Whether ICW4 is part of the initialization.</summary>
    public byte init4;
    public byte elcr, elcr_mask;
}

/// <summary>The IOAPIC, in <see cref="kvm_irqchip"/>.</summary>
internal struct kvm_ioapic_state
{
    public const int KVM_IOAPIC_NUM_PINS = 24;

    public ulong base_address;
    public uint ioregsel, id, irr, pad;
    public ulong_24 redirtbl;
}

/// <summary>KVM_GET_IRQCHIP, KVM_SET_IRQCHIP.</summary>
internal struct kvm_irqchip
{
    public const uint KVM_IRQCHIP_PIC_MASTER = 0, KVM_IRQCHIP_PIC_SLAVE = 1, KVM_IRQCHIP_IOAPIC = 2;

    [StructLayout(LayoutKind.Explicit, Size = 512)]
    public struct chip_state
    {
        [FieldOffset(0)] public kvm_pic_state pic;
        [FieldOffset(0)] public kvm_ioapic_state ioapic;
    }

    public uint chip_id, pad;
    public chip_state chip;
}

/// <summary>KVM_GET_LAPIC, KVM_SET_LAPIC: the registers' page, each at its offset (SDM vol. 3, 11.4.1).</summary>
internal struct kvm_lapic_state
{
    public byte_1024 regs;
}

/// <summary>KVM_CREATE_PIT2.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
internal struct kvm_pit_config
{
    public const uint KVM_PIT_SPEAKER_DUMMY = 1;

    public uint flags;
}

internal struct kvm_pit_channel_state
{
    /// <summary>The initial count, 1 to 65536.</summary>
    public uint count;
    public ushort latched_count;
    public byte count_latched, status_latched, status;
    public byte read_state, write_state;
    public byte write_latch;
    public byte rw_mode, mode, bcd;
    public byte gate;
    /// <summary>When the count was loaded, in nanoseconds of the monotonic clock.</summary>
    public long count_load_time;
}

/// <summary>KVM_GET_PIT2, KVM_SET_PIT2; KVM_GET_PIT and KVM_SET_PIT take the channels alone.</summary>
internal struct kvm_pit_state2
{
    public const uint KVM_PIT_FLAGS_HPET_LEGACY = 1, KVM_PIT_FLAGS_SPEAKER_DATA_ON = 2;

    public InlineArray3<kvm_pit_channel_state> channels;
    public uint flags;
    public InlineArray9<uint> reserved;
}

/// <summary>KVM_REINJECT_CONTROL.</summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal struct kvm_reinject_control
{
    public byte pit_reinject;
}

/// <summary>KVM_IRQ_LINE; KVM_IRQ_LINE_STATUS answers in <see cref="status"/>.</summary>
[StructLayout(LayoutKind.Explicit)]
internal struct kvm_irq_level
{
    [FieldOffset(0)] public uint irq;
    [FieldOffset(0)] public int status;
    [FieldOffset(4)] public uint level;
}

/// <summary>KVM_SIGNAL_MSI.</summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal struct kvm_msi
{
    public const uint KVM_MSI_VALID_DEVID = 1;

    public uint address_lo, address_hi, data;
    public uint flags, devid;
}

/// <summary>Head of KVM_SET_GSI_ROUTING; <see cref="kvm_irq_routing_entry"/> elements follow.</summary>
internal struct kvm_irq_routing
{
    public uint nr, flags;
}

internal struct kvm_irq_routing_entry
{
    public const uint KVM_IRQ_ROUTING_IRQCHIP = 1, KVM_IRQ_ROUTING_MSI = 2;

    [StructLayout(LayoutKind.Explicit, Size = 32)]
    public struct irq_target
    {
        [FieldOffset(0)] public kvm_irq_routing_irqchip irqchip;
        [FieldOffset(0)] public kvm_irq_routing_msi msi;
    }

    public uint gsi, type, flags, pad;
    public irq_target u;
}

internal struct kvm_irq_routing_irqchip
{
    public uint irqchip, pin;
}

internal struct kvm_irq_routing_msi
{
    public uint address_lo, address_hi, data;
    public uint devid;
}

/// <summary>KVM_IRQFD.</summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
internal struct kvm_irqfd
{
    public const uint KVM_IRQFD_FLAG_DEASSIGN = 1 << 0, KVM_IRQFD_FLAG_RESAMPLE = 1 << 1;

    public uint fd, gsi, flags, resamplefd;
}

/// <summary>KVM_IOEVENTFD.</summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
internal struct kvm_ioeventfd
{
    public const uint KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0, KVM_IOEVENTFD_FLAG_PIO = 1 << 1,
        KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2;

    public ulong datamatch, addr;
    /// <summary>1, 2, 4 or 8 bytes; 0: a write of any length.</summary>
    public uint len;
    public int fd;
    public uint flags;
}

/// <summary>KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO.</summary>
internal struct kvm_coalesced_mmio_zone
{
    public ulong addr;
    public uint size, pio;
}

/// <summary>Element of <see cref="kvm_coalesced_mmio_ring"/>: one write.</summary>
internal struct kvm_coalesced_mmio
{
    public ulong phys_addr;
    public uint len, pio;
    public ulong data;
}

/// <summary>
/// Head of the page in which writes wait for user space, which may change any of it at any time;
/// <see cref="kvm_coalesced_mmio"/> elements fill the rest.
/// </summary>
internal struct kvm_coalesced_mmio_ring
{
    /// <summary>Page of the vCPU's mapping that holds the ring.</summary>
    public const ulong KVM_COALESCED_MMIO_PAGE_OFFSET = 2;
    /// <summary>Elements in a page of 4 KiB (the header's KVM_COALESCED_MMIO_MAX).</summary>
    public const uint Length = (4096 - 8) / 24;

    /// <summary>Element that user space takes next, and the one that is filled next.</summary>
    public uint first, last;
}
