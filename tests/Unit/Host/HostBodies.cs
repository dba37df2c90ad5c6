// SPDX-License-Identifier: GPL-2.0-only
// In place of src/Hypervisor/Host/Linux: the same services of a simulated host.
using SharpKvm.Cpu;
using SharpKvm.Tests.Host;

namespace SharpKvm.Host;

internal static partial class KernelPages
{
    public static Hpa Allocate() => SimulatedHost.Current.AllocatePage();

    public static void Free(Hpa page) => FreeBitmap(page, 0);

    public static nint Address(Hpa page) => SimulatedHost.Current.AddressOf(page);

    public static Hpa AllocateBitmap(int order) => SimulatedHost.Current.AllocateBitmap(order);

    public static void FreeBitmap(Hpa bitmap, int order)
    {
        for (ulong page = 0; page < 1UL << order && !bitmap.IsNull; page++)
            SimulatedHost.Current.FreePage(new Hpa(bitmap.Value + page * Page.Size));
    }
}

internal readonly struct HostVm(nint handle) : IReaders
{
    private readonly nint _handle = handle;
    private SimulatedVm Vm => SimulatedHost.Current.Vm(_handle);

    public void LockMmu() => Vm.Lock();
    public void UnlockMmu() => Vm.Unlock();
    public void LockIrq() => Vm.LockIrq();
    public void UnlockIrq() => Vm.UnlockIrq();
    public ulong InvalidationSequence()
    {
        Schedule.Point();
        return Vm.Sequence;
    }
    public void LockMmuShared() => Vm.LockShared();
    public void UnlockMmuShared() => Vm.UnlockShared();
    public bool IsInvalidated(ulong sequence, Hva start, ulong bytes) =>
        Vm.IsInvalidated(sequence, start, bytes);
    public bool FindPage(Hva address, bool write, out HostPage page)
    {
        bool found = SimulatedHost.Current.Process.Find(address, write, out page);
        Schedule.Point();
        return found;
    }

    public PageLookup FaultPage(Hva address, bool write, bool wait)
    {
        PageLookup found = SimulatedHost.Current.Process.FaultIn(address, write, wait);
        Schedule.Point();
        return found;
    }
    public void FlushTlbs() => Vm.FlushTlbs();
    public void SynchronizeSlots() => Vm.Synchronize();
    void IReaders.Wait() => SynchronizeSlots();
    public void SetChipTimer(ulong deadline) => Vm.ChipTimer = deadline;
    public int AssignIrqFd(int descriptor, uint gsi, int resampler, bool resample) =>
        Vm.AssignIrqFd(descriptor, gsi, resampler, resample);
    public int DeassignIrqFd(int descriptor, uint gsi, out bool stillResampled)
    {
        int result = Vm.DeassignIrqFd(descriptor, gsi);
        stillResampled = Vm.IrqFds.Values.Any(irqfd => irqfd.Gsi == gsi && irqfd.Resampler >= 0);
        return result;
    }
    public void ResampleIrqFds(uint gsi) => Vm.ResampleIrqFds(gsi);
    public int CreateVcpu(uint id)
    {
        int descriptor = SimulatedHost.Current.Thread.NextDescriptor++;
        if (descriptor >= 0)
            Vm.Vm.Vcpus.Add(id, new KernelRef<Vcpu>(1));
        return descriptor;
    }
    public static int Create() => SimulatedHost.Current.Thread.NextDescriptor++;
}

internal static class HostCpu
{
    public static bool TryReadMsr(uint index, out ulong value) =>
        SimulatedHost.Current.Cpu.Msrs.TryGetValue(index, out value);

    public static void WriteMsr(uint index, ulong value) => SimulatedHost.Current.Cpu.Msrs[index] = value;

    public static ulong Tsc() => SimulatedHost.Current.Cpu.Tsc;
    public static ulong Nanoseconds() => SimulatedHost.Current.Cpu.Nanoseconds;
    public static ulong RealNanoseconds() => SimulatedHost.Current.Cpu.RealNanoseconds;
    public static bool TscIsStable() => SimulatedHost.Current.Cpu.TscIsStable;
    public static uint TscKhz() => SimulatedHost.Current.Cpu.TscKhz;
    public static ulong SupportedXcr0() => SimulatedHost.Current.Cpu.SupportedXcr0;
    public static void FlushPredictors() => SimulatedHost.Current.Cpu.PredictorFlushes++;
    public static bool TryEnterVmx(Hpa region) => SimulatedHost.Current.Cpu.EnterVmx(region);
    public static void LeaveVmx() => SimulatedHost.Current.Cpu.Cr4 &= ~SimulatedCpu.Vmxe;
    public static ulong ReadVmcs(uint field) => SimulatedHost.Current.Cpu.Vmcs.GetValueOrDefault(field);
    public static void WriteVmcs(uint field, ulong value) => SimulatedHost.Current.Cpu.Vmcs[field] = value;
    public static void FlushGuest(ulong tables, ulong vpid) =>
        SimulatedHost.Current.Cpu.GuestFlushes.Add((tables, vpid));
    public static ulong ReadCr0() => SimulatedHost.Current.Cpu.Cr0;
    public static ulong ReadCr4() => SimulatedHost.Current.Cpu.Cr4;
}

internal static class Parameters
{
    public static bool IgnoreMsrs() => SimulatedHost.Current.Cpu.IgnoreMsrs;
    public static bool NestedPaging() => SimulatedHost.Current.Cpu.NestedPaging;
    public static ulong HaltPollNanoseconds() => SimulatedHost.Current.Cpu.HaltPoll;
    public static bool HasPostedVector() => SimulatedHost.Current.Cpu.HasPostedVector;
    public static bool HasMultihitBug() => SimulatedHost.Current.Cpu.HasMultihitBug;
}

internal readonly struct HostVcpu(nint handle)
{
    private readonly nint _handle = handle;

    public bool Enter() => SimulatedHost.Current.Thread.Guest(_handle);
    public bool Work() => SimulatedHost.Current.Thread.Work(_handle);
    public void Kick(bool post)
    {
        (post ? SimulatedHost.Current.Thread.Posts : SimulatedHost.Current.Thread.Kicks).Add(_handle);
        Schedule.Point();
    }

    public HaltEnd Halt(ulong pollEnd)
    {
        SimulatedHost.Current.Thread.LastPoll = pollEnd == 0 ? 0 : pollEnd - HostCpu.Nanoseconds();
        return SimulatedHost.Current.Thread.Halt(_handle);
    }

    public void YieldTo() => SimulatedHost.Current.Thread.Yields.Add(_handle);
    public void SetTimer(ulong deadline) => SimulatedHost.Current.Thread.Timers[_handle] = deadline;
    public KernelArray<SharpKvm.Abi.kvm_dirty_gfn> AllocateRing(int entries) =>
        KernelArray<SharpKvm.Abi.kvm_dirty_gfn>.At(SimulatedHost.Current.AllocateRing((nuint)entries * 16), entries);

    public bool FetchPage(Hva page, bool write, int number)
    {
        if (SimulatedHost.Current.Thread.CanFetch)
            SimulatedHost.Current.Thread.Fetches.Add((page, write, number));
        return SimulatedHost.Current.Thread.CanFetch;
    }

    public void RenewSlots() => SimulatedHost.Current.Thread.SlotRenewals++;
    public void ForgetVmcs() => SimulatedHost.Current.Cpu.LoadedVmcs = 0;
    public void Reload()
    {
        SimulatedHost.Current.Cpu.LoadedVmcs = _handle;
        SimulatedHost.Current.Thread.MsrTakes++;
    }
    public int SetSignalMask(ulong mask, bool active)
    {
        SimulatedHost.Current.Thread.SignalMask = (mask, active);
        return Errno.Ok;
    }

    public Span<byte> LegacyFpu() =>
        SimulatedHost.Current.Cpu.FpuOf(_handle)[..576];

    public uint XsaveSize() => (uint)SimulatedHost.Current.Cpu.FpuOf(_handle).Length;

    public int FpuToUser(Hva destination) =>
        UserMemory.Write(destination, SimulatedHost.Current.Cpu.FpuOf(_handle)) ? Errno.Ok : Errno.EFAULT;

    public int FpuFromUser(Hva source) =>
        UserMemory.Read(source, SimulatedHost.Current.Cpu.FpuOf(_handle)) ? Errno.Ok : Errno.EFAULT;
}
