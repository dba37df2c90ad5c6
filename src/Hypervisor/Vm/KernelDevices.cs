// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// Accesses to devices that do not go to user space: the interrupt controllers, ioeventfds, writes that are collected.
/// </summary>
internal static class KernelDevices<TVendor> where TVendor : struct, IVendor
{
    /// <summary>At most 8 bytes at a guest physical address without memory.</summary>
    public static bool TryRead(ref Vcpu vcpu, Gpa address, Span<byte> data)
    {
        if (vcpu.OwnsApicPage(address))
        {
            if (vcpu.Apic.Mode == ApicMode.Xapic)
                Apic<TVendor>.Read(ref vcpu, address.Offset, data);
            else
                data.Fill(0xff);
            return true;
        }
        if (!vcpu.Vm.Irqchip.OwnsIoApic(address))
            return false;
        // Its registers are 32 bits wide, and nothing is behind them.
        ulong value = IrqChip.ReadIoApic(ref vcpu.Vm, address.Offset & ~3u) >> (int)(address.Offset % 4 * 8);
        MemoryMarshal.AsBytes(new Span<ulong>(ref value))[..data.Length].CopyTo(data);
        return true;
    }

    public static bool TryWrite(ref Vcpu vcpu, Gpa address, uint length, ulong data)
    {
        if (vcpu.OwnsApicPage(address))
        {
            ReadOnlySpan<byte> bytes = MemoryMarshal.AsBytes(new Span<ulong>(ref data));
            if (vcpu.Apic.Mode == ApicMode.Xapic)
                Apic<TVendor>.Write(ref vcpu, address.Offset, bytes[..(int)length]);
            return true;
        }
        if (!vcpu.Vm.Irqchip.OwnsIoApic(address))
            return TryTake(ref vcpu.Vm, port: false, address.Value, length, data);
        // Other writes than of 32 bits have no meaning.
        if (length >= sizeof(uint) && (address.Offset & 3) == 0)
            IrqChip.WriteIoApic(ref vcpu.Vm, address.Offset, (uint)data);
        return true;
    }

    /// <summary>Whether a write is an ioeventfd's, or goes into the ring.</summary>
    [MethodImpl(AggressiveInlining)]
    public static bool TryTake(ref Vm vm, bool port, ulong address, uint length, ulong data) => WatchesWrites(ref vm)
        && (vm.IoEventFds.TrySignal(port, address, length, data)
            || CoalescedIo.TryAdd(ref vm, port, address, length, data));

    /// <summary>Spares most accesses the search.</summary>
    [MethodImpl(AggressiveInlining)]
    private static bool WatchesWrites(ref Vm vm) => !vm.IoEventFds.IsEmpty || !vm.Coalesced.IsEmpty;

    /// <summary>
    /// <paramref name="data"/> is <paramref name="count"/> items of <paramref name="size"/> bytes.
    /// </summary>
    /// <returns>How many items were served; the others go to user space.</returns>
    [MethodImpl(AggressiveInlining)]
    public static int Ports(ref Vm vm, bool write, ushort port, int size, int count, Span<byte> data) =>
        vm.Irqchip.Mode == IrqchipMode.Kernel || write && WatchesWrites(ref vm)
            ? Serve(ref vm, write, port, size, count, data)
            : 0;

    private static int Serve(ref Vm vm, bool write, ushort port, int size, int count, Span<byte> data)
    {
        if (vm.Irqchip.OwnsPort(port))
        {
            // The controllers' ports are a byte wide: a wider access is one to several of them.
            for (int i = 0; i < size * count; i++)
            {
                if (!IrqChip.TryAccessPort(ref vm, write, (ushort)(port + i % size), ref data[i]) && !write)
                    data[i] = 0xff;
            }
            return count;
        }
        int served = 0;
        for (; write && served < count; served++)
        {
            ulong value = 0;
            data.Slice(served * size, size).CopyTo(MemoryMarshal.AsBytes(new Span<ulong>(ref value)));
            if (!TryTake(ref vm, port: true, port, (uint)size, value))
                break;
        }
        return served;
    }
}
