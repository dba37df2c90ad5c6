// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Client;

/// <content>Interrupt controllers, timers, interrupt routing and eventfds.</content>
public sealed unsafe partial class Vm
{
    /// <summary>KVM_CREATE_IRQCHIP: PIC, IOAPIC and local APICs in the kernel; before the first vCPU.</summary>
    public void CreateIrqchip() => Call(KvmIoctl.CreateIrqchip);

    /// <summary>
    /// KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel, an IOAPIC with this many pins in user space.
    /// </summary>
    public void CreateSplitIrqchip(uint pins) => EnableCap(KvmCap.SplitIrqchip, pins);

    /// <summary>KVM_CREATE_PIT2.</summary>
    public void CreatePit2(uint flags = 0)
    {
        var config = new KvmPitConfig { Flags = flags };
        Call(KvmIoctl.CreatePit2, ref config);
    }

    /// <summary>KVM_GET_IRQCHIP.</summary>
    public KvmIrqchip GetIrqchip(KvmIrqchipId chip)
    {
        var state = new KvmIrqchip { ChipId = chip };
        Call(KvmIoctl.GetIrqchip, ref state);
        return state;
    }

    /// <summary>KVM_SET_IRQCHIP.</summary>
    public void SetIrqchip(KvmIrqchip state) => Call(KvmIoctl.SetIrqchip, ref state);

    /// <summary>KVM_GET_PIT2, KVM_SET_PIT2.</summary>
    public KvmPitState2 Pit2
    {
        get => Get<KvmPitState2>(KvmIoctl.GetPit2);
        set => Call(KvmIoctl.SetPit2, ref value);
    }

    /// <summary>KVM_REINJECT_CONTROL as it is: whether ticks that the guest has missed come later.</summary>
    public int TryReinjectControl(bool reinject)
    {
        var control = new KvmReinjectControl { PitReinject = reinject ? (byte)1 : (byte)0 };
        return TryCall(KvmIoctl.ReinjectControl, ref control);
    }

    /// <summary>KVM_IRQ_LINE: drives a line high or low.</summary>
    public void SetIrqLine(uint gsi, bool high)
    {
        var line = new KvmIrqLevel { Irq = gsi, Level = high ? 1u : 0 };
        Call(KvmIoctl.IrqLine, ref line);
    }

    /// <summary>KVM_IRQ_LINE_STATUS: drives a line and tells how many CPUs were interrupted: 0 when the interrupt was
    /// already pending, -1 when it was masked.</summary>
    public int SetIrqLineStatus(uint gsi, bool high)
    {
        var line = new KvmIrqLevel { Irq = gsi, Level = high ? 1u : 0 };
        Call(KvmIoctl.IrqLineStatus, ref line);
        return (int)line.Irq;
    }

    /// <summary>A line high and low again.</summary>
    public void PulseIrqLine(uint gsi)
    {
        SetIrqLine(gsi, true);
        SetIrqLine(gsi, false);
    }

    /// <summary>KVM_SET_GSI_ROUTING: replaces the whole table.</summary>
    public void SetGsiRouting(params ReadOnlySpan<KvmIrqRoutingEntry> entries)
    {
        int result = TrySetGsiRouting(entries);
        if (result < 0)
            throw new KvmException($"routing table of {entries.Length} entries", (Errno)(-result));
    }

    /// <inheritdoc cref="SetGsiRouting"/>
    /// <returns>0, or the negated error number.</returns>
    public int TrySetGsiRouting(params ReadOnlySpan<KvmIrqRoutingEntry> entries) =>
        TryCall(KvmIoctl.SetGsiRouting, FlexibleArray.Pack(8, MemoryMarshal.AsBytes(entries), entries.Length));

    /// <summary>KVM_SIGNAL_MSI as it is: more than 0 when it was delivered, 0 when the guest blocked it.</summary>
    public int TrySignalMsi(KvmMsi message) => TryCall(KvmIoctl.SignalMsi, ref message);

    /// <summary>KVM_IRQFD: interrupts <paramref name="gsi"/> whenever the eventfd is signalled. With
    /// <paramref name="resample"/> the line stays high until the guest's EOI, which signals that one.</summary>
    public int TryIrqfd(EventFd source, uint gsi, EventFd? resample = null, bool deassign = false)
    {
        var request = new KvmIrqfd
        {
            Fd = source.Fd, Gsi = gsi, Resamplefd = resample?.Fd ?? 0,
            Flags = (resample != null ? KvmIrqfd.FlagResample : 0) | (deassign ? KvmIrqfd.FlagDeassign : 0),
        };
        return TryCall(KvmIoctl.Irqfd, ref request);
    }

    /// <summary>KVM_IOEVENTFD as it is.</summary>
    public int TryIoeventfd(KvmIoeventfd request) => TryCall(KvmIoctl.Ioeventfd, ref request);

    /// <summary>KVM_REGISTER_COALESCED_MMIO: writes there are collected in <see cref="Vcpu.CoalescedRing"/>.</summary>
    public int TryRegisterCoalesced(ulong address, uint size, uint pio = 0) =>
        Zone(KvmIoctl.RegisterCoalescedMmio, address, size, pio);

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO.</summary>
    public int TryUnregisterCoalesced(ulong address, uint size, uint pio = 0) =>
        Zone(KvmIoctl.UnregisterCoalescedMmio, address, size, pio);

    /// <summary>KVM_GET_CLOCK, KVM_SET_CLOCK: the guest's time in nanoseconds.</summary>
    public KvmClockData Clock
    {
        get => Get<KvmClockData>(KvmIoctl.GetClock);
        set => Call(KvmIoctl.SetClock, ref value);
    }

    int Zone(uint request, ulong address, uint size, uint pio)
    {
        var zone = new KvmCoalescedMmioZone { Addr = address, Size = size, Pio = pio };
        return TryCall(request, ref zone);
    }
}
