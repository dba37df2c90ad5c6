// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace SharpKvm.Client;

// The structures of linux/kvm.h and asm/kvm.h for interrupt controllers, timers and eventfds, named as in Uapi.cs.

/// <summary>Chips of <see cref="KvmIrqchip"/> and <see cref="KvmIrqRoutingEntry"/> (<c>KVM_IRQCHIP_…</c>).</summary>
public enum KvmIrqchipId : uint
{
    PicMaster = 0,
    PicSlave = 1,
    Ioapic = 2,
}

/// <summary><c>struct kvm_pic_state</c>: one of the two 8259s.</summary>
public struct KvmPicState
{
    public byte LastIrr, Irr, Imr, Isr, PriorityAdd, IrqBase, ReadRegSelect, Poll, SpecialMask, InitState, AutoEoi,
        RotateOnAutoEoi, SpecialFullyNestedMode, Init4, Elcr, ElcrMask;
}

/// <summary><c>struct kvm_ioapic_state</c></summary>
public struct KvmIoapicState
{
    public const int NumPins = 24;

    /// <summary>Bits of a <see cref="Redirtbl"/> entry.</summary>
    public const ulong Logical = 1 << 11, ActiveLow = 1 << 13, RemoteIrr = 1 << 14, Level = 1 << 15, Masked = 1 << 16;

    public ulong BaseAddress;
    public uint Ioregsel, Id, Irr, Pad;
    public Array24<ulong> Redirtbl;
}

/// <summary><c>struct kvm_irqchip</c></summary>
[StructLayout(LayoutKind.Explicit, Size = 520)]
public struct KvmIrqchip
{
    [FieldOffset(0)] public KvmIrqchipId ChipId;
    [FieldOffset(8)] public KvmPicState Pic;
    [FieldOffset(8)] public KvmIoapicState Ioapic;
}

/// <summary><c>struct kvm_lapic_state</c>: the register page's first KiB, 32 bits at every 16th byte.</summary>
public struct KvmLapicState
{
    public Array1024<byte> Regs;

    /// <summary>The register at a byte offset as in the manuals, like 0x80 for the TPR.</summary>
    [UnscopedRef]
    public ref uint this[int offset] => ref Unsafe.As<byte, uint>(ref Regs[offset]);
}

/// <summary><c>struct kvm_irq_level</c></summary>
public struct KvmIrqLevel
{
    /// <summary>The GSI; KVM_IRQ_LINE_STATUS puts its result in the same place.</summary>
    public uint Irq;

    public uint Level;
}

/// <summary><c>struct kvm_pit_config</c></summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
public struct KvmPitConfig
{
    public const uint SpeakerDummy = 1;

    public uint Flags;
}

/// <summary><c>struct kvm_pit_channel_state</c></summary>
public struct KvmPitChannelState
{
    public uint Count;
    public ushort LatchedCount;
    public byte CountLatched, StatusLatched, Status, ReadState, WriteState, WriteLatch, RwMode, Mode, Bcd, Gate;
    public long CountLoadTime;
}

/// <summary><c>struct kvm_pit_state2</c></summary>
public struct KvmPitState2
{
    public const uint HpetLegacy = 1, SpeakerDataOn = 2;

    public Array3<KvmPitChannelState> Channels;
    public uint Flags;
    public Array9<uint> Reserved;
}

/// <summary><c>struct kvm_reinject_control</c></summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
public struct KvmReinjectControl
{
    public byte PitReinject;
}

/// <summary><c>struct kvm_irq_routing_entry</c></summary>
[StructLayout(LayoutKind.Explicit, Size = 48)]
public struct KvmIrqRoutingEntry
{
    public const uint TypeIrqchip = 1, TypeMsi = 2;

    [FieldOffset(0)] public uint Gsi;
    [FieldOffset(4)] public uint Type;
    [FieldOffset(8)] public uint Flags;
    [FieldOffset(12)] public uint Pad;
    [FieldOffset(16)] public KvmIrqchipId Irqchip;
    [FieldOffset(20)] public uint Pin;
    [FieldOffset(16)] public uint AddressLo;
    [FieldOffset(20)] public uint AddressHi;
    [FieldOffset(24)] public uint Data;

    /// <summary>A line to a chip's pin.</summary>
    public static KvmIrqRoutingEntry ToChip(uint gsi, KvmIrqchipId chip, uint pin) =>
        new() { Gsi = gsi, Type = TypeIrqchip, Irqchip = chip, Pin = pin };

    /// <summary>A line that sends a message.</summary>
    public static KvmIrqRoutingEntry ToMsi(uint gsi, KvmMsi message) => new()
    {
        Gsi = gsi, Type = TypeMsi, AddressLo = message.AddressLo, AddressHi = message.AddressHi, Data = message.Data,
    };
}

/// <summary><c>struct kvm_msi</c></summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
public struct KvmMsi
{
    public uint AddressLo, AddressHi, Data, Flags, Devid;
}

/// <summary><c>struct kvm_irqfd</c></summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
public struct KvmIrqfd
{
    public const uint FlagDeassign = 1, FlagResample = 2;

    public int Fd;
    public uint Gsi, Flags;
    public int Resamplefd;
}

/// <summary><c>struct kvm_ioeventfd</c></summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
public struct KvmIoeventfd
{
    public const uint FlagDatamatch = 1, FlagPio = 2, FlagDeassign = 4;

    public ulong Datamatch, Addr;
    public uint Len;
    public int Fd;
    public uint Flags;
}

/// <summary><c>struct kvm_coalesced_mmio_zone</c></summary>
public struct KvmCoalescedMmioZone
{
    public ulong Addr;
    public uint Size, Pio;
}

/// <summary><c>struct kvm_coalesced_mmio</c>: one write in the ring.</summary>
public struct KvmCoalescedMmio
{
    public ulong PhysAddr;
    public uint Len, Pio;
    public Array8<byte> Data;
}

/// <summary><c>struct kvm_coalesced_mmio_ring</c>, third page of a vCPU's mapping, shared by all vCPUs of a
/// machine: the kernel writes entries at <see cref="Last"/>, user space takes them at <see cref="First"/>.</summary>
public struct KvmCoalescedMmioRing
{
    /// <summary>Index of the page in the mapping.</summary>
    public const int PageOffset = 2;

    /// <summary>Entries; one always stays free.</summary>
    public const int Max = 170;

    public uint First, Last;
    public Array170<KvmCoalescedMmio> Entries;
}

/// <summary>Arguments of <c>KVM_CAP_X2APIC_API</c> (<c>KVM_X2APIC_API_…</c>).</summary>
[Flags]
public enum KvmX2apicApi : ulong
{
    Use32BitIds = 1,
    DisableBroadcastQuirk = 2,
}

/// <summary>Arguments of <c>KVM_CAP_X86_DISABLE_EXITS</c> (<c>KVM_X86_DISABLE_EXITS_…</c>).</summary>
[Flags]
public enum KvmX86DisableExits : ulong
{
    Mwait = 1,
    Hlt = 2,
    Pause = 4,
    Cstate = 8,
}
