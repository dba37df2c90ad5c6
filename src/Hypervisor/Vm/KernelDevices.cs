// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Abi;
using SharpKvm.Host;
using SharpKvm.Interrupts;

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
        uint value = IrqChip.ReadIoApic(ref vcpu.Vm, address.Offset & ~3u);
        data.Clear();
        int shift = (int)(address.Offset & 3);
        MemoryMarshal.AsBytes(new Span<uint>(ref value))[shift..Math.Min(4, shift + data.Length)].CopyTo(data);
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
        ref Vm vm = ref vcpu.Vm;
        if (vm.Irqchip.OwnsIoApic(address))
        {
            // Its registers are 32 bits wide: other writes have no meaning.
            if (length >= sizeof(uint) && (address.Offset & 3) == 0)
                IrqChip.WriteIoApic(ref vm, address.Offset, (uint)data);
            return true;
        }
        return WatchesWrites(ref vm) && (vm.IoEventFds.TrySignal(port: false, address.Value, length, data)
            || CoalescedIo.TryAdd(ref vm, port: false, address.Value, length, data));
    }

    /// <summary>Spares most accesses the search.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool WatchesWrites(ref Vm vm) => !vm.IoEventFds.IsEmpty || !vm.Coalesced.IsEmpty;

    /// <summary>
    /// <paramref name="data"/> is <paramref name="count"/> items of <paramref name="size"/> bytes.
    /// </summary>
    /// <returns>How many items were served; the others go to user space.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
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
        while (write && served < count && TryPortWrite(ref vm, port, data.Slice(served * size, size)))
            served++;
        return served;
    }

    private static bool TryPortWrite(ref Vm vm, ushort port, ReadOnlySpan<byte> item)
    {
        ulong value = 0;
        item.CopyTo(MemoryMarshal.AsBytes(new Span<ulong>(ref value)));
        return TryPortWrite(ref vm, port, (uint)item.Length, value);
    }

    /// <summary>OUT of one item to an ioeventfd, or into the ring.</summary>
    public static bool TryPortWrite(ref Vm vm, ushort port, uint length, ulong value) =>
        WatchesWrites(ref vm) && (vm.IoEventFds.TrySignal(port: true, port, length, value)
            || CoalescedIo.TryAdd(ref vm, port: true, port, length, value));
}
