// SPDX-License-Identifier: GPL-2.0-only
// Bodies of the core's Host classes for unit tests; the kernel's are imports of the shim.
using System.Runtime.InteropServices;
using System.Text;
using SharpKvm.Cpu;
using SharpKvm.Tests.Host;

namespace SharpKvm.Host;

internal static partial class KernelPages
{
    public static partial Hpa Allocate() => SimulatedHost.Current.AllocatePage();

    public static partial void Free(Hpa page) => SimulatedHost.Current.FreePage(page);

    private static partial nint Address(Hpa page) => SimulatedHost.Current.AddressOf(page);

    public static partial Hpa AllocateBitmap(int order) => SimulatedHost.Current.AllocateBitmap(order);

    public static partial void FreeBitmap(Hpa bitmap, int order)
    {
        for (ulong page = 0; page < 1UL << order; page++)
            SimulatedHost.Current.FreePage(new Hpa(bitmap.Value + page * Page.Size));
    }

    public static partial Span<byte> Bytes(Hpa page) => SimulatedHost.Current.BytesOf(page);

    public static partial Span<ulong> Entries(Hpa page) =>
        MemoryMarshal.Cast<byte, ulong>(SimulatedHost.Current.BytesOf(page));
}

internal static partial class KernelHeap
{
    public static partial nint Allocate(nuint bytes) => SimulatedHost.Current.AllocateBlock(bytes);

    public static partial void Free(nint address) => SimulatedHost.Current.FreeBlock(address);
}

internal static partial class UserMemory
{
    public static partial bool Read(Hva source, Span<byte> destination) =>
        SimulatedHost.Current.Process.Read(source.Value, destination);

    public static partial bool Write(Hva destination, ReadOnlySpan<byte> source) =>
        SimulatedHost.Current.Process.Write(destination.Value, source);

    public static partial bool ReadWords(Hva source, Span<byte> destination) => Read(source, destination);
    public static partial bool TryReadUInt64(Hva source, out ulong value) => TryRead(source, out value);

    public static partial Exchange CompareExchange(Hva address, int size, ulong expected, ulong replacement) =>
        SimulatedHost.Current.Process.CompareExchange(address.Value, size, expected, replacement);

    public static partial bool IsUserRange(Hva start, ulong bytes) =>
        bytes <= SimulatedProcess.UserEnd && start.Value <= SimulatedProcess.UserEnd - bytes;
}

internal readonly partial struct HostVm
{
    private SimulatedVm Vm => SimulatedHost.Current.Vm(_handle);

    public partial void LockMmu() => Vm.Lock();
    public partial void UnlockMmu() => Vm.Unlock();
    public partial void LockIrq() => Vm.LockIrq();
    public partial void UnlockIrq() => Vm.UnlockIrq();
    public partial ulong InvalidationSequence()
    {
        Schedule.Point();
        return Vm.Sequence;
    }
    public partial void LockMmuShared() => Vm.LockShared();
    public partial void UnlockMmuShared() => Vm.UnlockShared();
    public partial bool IsInvalidated(ulong sequence, Hva start, ulong bytes) =>
        Vm.IsInvalidated(sequence, start, bytes);
    public partial bool FindPage(Hva address, bool write, out HostPage page)
    {
        bool found = SimulatedHost.Current.Process.Find(address, write, out page);
        Schedule.Point();
        return found;
    }

    public partial PageLookup FaultPage(Hva address, bool write, bool wait)
    {
        PageLookup found = SimulatedHost.Current.Process.FaultIn(address, write, wait);
        Schedule.Point();
        return found;
    }
    public partial void FlushTlbs() => Vm.FlushTlbs();
    public partial void SynchronizeSlots() => Vm.Synchronize();
    public partial void SetChipTimer(ulong deadline) => Vm.ChipTimer = deadline;
    public partial int AssignIrqFd(int descriptor, uint gsi, int resampler, bool resample) =>
        Vm.AssignIrqFd(descriptor, gsi, resampler, resample);
    public partial int DeassignIrqFd(int descriptor, uint gsi, out bool stillResampled)
    {
        int result = Vm.DeassignIrqFd(descriptor, gsi);
        stillResampled = Vm.IrqFds.Values.Any(irqfd => irqfd.Gsi == gsi && irqfd.Resampler >= 0);
        return result;
    }
    public partial void ResampleIrqFds(uint gsi) => Vm.ResampleIrqFds(gsi);
    public partial int CreateVcpu(uint id)
    {
        int descriptor = SimulatedHost.Current.Thread.NextDescriptor++;
        if (descriptor >= 0)
            Vm.Vm.Vcpus.Add(id, new KernelRef<SharpKvm.Vm.Vcpu>(1));
        return descriptor;
    }
    public static partial int Create() => SimulatedHost.Current.Thread.NextDescriptor++;
}

internal readonly partial struct HostEvent
{
    public static partial int TryOpen(int descriptor, out HostEvent @event)
    {
        @event = new HostEvent(descriptor);
        return SimulatedHost.Current.Events.TryOpen(descriptor);
    }

    public partial void Signal() => SimulatedHost.Current.Events.Signal((int)_handle);
    public partial void Close() => SimulatedHost.Current.Events.Close((int)_handle);
}

internal static partial class HostCpu
{
    public static partial void Cpuid(uint leaf, uint subleaf, out CpuidLeaf result) =>
        SimulatedHost.Current.Cpu.Cpuid.TryGetValue((leaf, subleaf), out result);

    public static partial bool TryReadMsr(uint index, out ulong value) =>
        SimulatedHost.Current.Cpu.Msrs.TryGetValue(index, out value);

    public static partial void WriteMsr(uint index, ulong value) => SimulatedHost.Current.Cpu.Msrs[index] = value;

    public static partial ulong Tsc() => SimulatedHost.Current.Cpu.Tsc;
    public static partial ulong Nanoseconds() => SimulatedHost.Current.Cpu.Nanoseconds;
    public static partial ulong RealNanoseconds() => SimulatedHost.Current.Cpu.RealNanoseconds;
    public static partial bool TscIsStable() => SimulatedHost.Current.Cpu.TscIsStable;
    public static partial uint TscKhz() => SimulatedHost.Current.Cpu.TscKhz;
    public static partial ulong SupportedXcr0() => SimulatedHost.Current.Cpu.SupportedXcr0;
    public static partial void FlushPredictors() => SimulatedHost.Current.Cpu.PredictorFlushes++;
}

internal static partial class Parameters
{
    public static partial bool IgnoreMsrs() => SimulatedHost.Current.Cpu.IgnoreMsrs;
    public static partial ulong HaltPollNanoseconds() => SimulatedHost.Current.Cpu.HaltPoll;
}

internal static partial class Log
{
    public static partial void Error(ReadOnlySpan<byte> text, ulong value) =>
        SimulatedHost.Current.Log.Add($"{Encoding.UTF8.GetString(text).TrimEnd('\0')} {value:x}");
}

internal readonly partial struct HostVcpu
{
    public partial bool Enter() => SimulatedHost.Current.Thread.Guest(_handle);
    public partial bool Work() => SimulatedHost.Current.Thread.Work(_handle);
    public partial void Kick()
    {
        SimulatedHost.Current.Thread.Kicks.Add(_handle);
        Schedule.Point();
    }

    public partial HaltEnd Halt(ulong pollNanoseconds)
    {
        SimulatedHost.Current.Thread.LastPoll = pollNanoseconds;
        return SimulatedHost.Current.Thread.Halt(_handle);
    }

    public partial void YieldTo() => SimulatedHost.Current.Thread.Yields.Add(_handle);
    public partial void SetTimer(ulong deadline) => SimulatedHost.Current.Thread.Timers[_handle] = deadline;
    public partial KernelArray<SharpKvm.Abi.kvm_dirty_gfn> AllocateRing(int entries) =>
        KernelArray<SharpKvm.Abi.kvm_dirty_gfn>.At(SimulatedHost.Current.AllocateRing((nuint)entries * 16), entries);

    public partial bool FetchPage(Hva page, bool write, int number)
    {
        if (SimulatedHost.Current.Thread.CanFetch)
            SimulatedHost.Current.Thread.Fetches.Add((page, write, number));
        return SimulatedHost.Current.Thread.CanFetch;
    }

    public partial void RenewSlots() => SimulatedHost.Current.Thread.SlotRenewals++;
    public partial void SetSignalMask(ulong mask, bool active) =>
        SimulatedHost.Current.Thread.SignalMask = (mask, active);

    public partial Span<byte> LegacyFpu() =>
        SimulatedHost.Current.Cpu.FpuOf(_handle)[..(FxsaveSize + XsaveHeaderSize)];

    public partial uint XsaveSize() => (uint)SimulatedHost.Current.Cpu.FpuOf(_handle).Length;

    public partial bool FpuToUser(Hva destination, uint size) =>
        UserMemory.Write(destination, SimulatedHost.Current.Cpu.FpuOf(_handle)[..(int)size]);

    public partial int FpuFromUser(Hva source) =>
        UserMemory.Read(source, SimulatedHost.Current.Cpu.FpuOf(_handle)) ? Errno.Ok : Errno.EFAULT;
}
