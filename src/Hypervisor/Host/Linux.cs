// SPDX-License-Identifier: GPL-2.0-only
#if !SIMULATED
using Kernel;
using SharpKvm.Cpu;

namespace SharpKvm.Host;

/// <summary>
/// The functions of the shim (src/Shim), each one kernel service; those that take and return what the core does stand
/// below in place of a method's body.
/// </summary>
internal static unsafe class Shim
{
    [KernelImport("sk_pages_allocate")]
    public static extern ulong PagesAllocate(uint order, byte fill);
    [KernelImport("free_pages")]
    public static extern void PagesFree(void* address, uint order);
    [KernelImport("sk_page_address")]
    public static extern void* PageAddress(ulong address);
    [KernelImport("_copy_from_user")]
    public static extern nuint UserRead(void* destination, ulong source, nuint bytes);
    [KernelImport("_copy_to_user")]
    public static extern nuint UserWrite(ulong destination, void* source, nuint bytes);
    [KernelImport("sk_user_read_u64")]
    public static extern int UserReadUInt64(ulong source, ulong* value);
    [KernelImport("sk_user_read_words")]
    public static extern int UserReadWords(void* destination, ulong source, nuint bytes);
    [KernelImport("sk_user_range")]
    public static extern int UserRange(ulong start, ulong bytes);
    [KernelImport("sk_user_exchange")]
    public static extern long UserExchange(ulong address, uint size, ulong expected, ulong replacement);
    [KernelImport("sk_fault_page")]
    public static extern long FaultPage(nint vm, ulong address, byte write, byte wait);
    [KernelImport("sk_mmu_lock")] public static extern void MmuLock(nint vm);
    [KernelImport("sk_mmu_unlock")] public static extern void MmuUnlock(nint vm);
    [KernelImport("sk_mmu_read_lock")]
    public static extern void MmuReadLock(nint vm);
    [KernelImport("sk_mmu_read_unlock")]
    public static extern void MmuReadUnlock(nint vm);
    [KernelImport("sk_irq_lock")] public static extern void IrqLock(nint vm);
    [KernelImport("sk_irq_unlock")] public static extern void IrqUnlock(nint vm);
    [KernelImport("sk_request_all")]
    public static extern void RequestAll(nint vm, VcpuRequests requests, byte wait);
    [KernelImport("sk_synchronize_slots")]
    public static extern void SynchronizeSlots(nint vm);
    [KernelImport("hrtimer_start_range_ns")]
    public static extern void StartTimer(nint timer, ulong deadline, ulong slack, uint mode);
    [KernelImport("hrtimer_try_to_cancel")]
    public static extern int TryCancelTimer(nint timer);
    [KernelImport("hrtimer_cancel")]
    public static extern int CancelTimer(nint timer);
    [KernelImport("sk_irqfd_assign")]
    public static extern long AssignIrqFd(nint vm, int descriptor, uint gsi, int resampler, byte resample);
    [KernelImport("sk_irqfd_deassign")]
    public static extern long DeassignIrqFd(nint vm, int descriptor, uint gsi, byte* resampled);
    [KernelImport("sk_irqfd_resample")]
    public static extern void ResampleIrqFds(nint vm, uint gsi);
    [KernelImport("eventfd_ctx_fdget")] public static extern nint OpenEvent(int fd);
    [KernelImport("eventfd_ctx_put")]
    public static extern void CloseEvent(nint context);
    [KernelImport("sk_eventfd_signal")]
    public static extern void SignalEvent(nint context);
    [KernelImport("sk_create_vm")] public static extern int CreateVm();
    [KernelImport("sk_create_vcpu")]
    public static extern long CreateVcpu(nint vm, uint id);
    [KernelImport("sk_vcpu_enter")] public static extern long VcpuEnter(nint vcpu);
    [KernelImport("sk_vcpu_work")] public static extern long VcpuWork(nint vcpu);
    [KernelImport("sk_vcpu_kick")] public static extern void VcpuKick(nint vcpu);
    [KernelImport("sk_vcpu_halt")]
    public static extern int VcpuHalt(nint vcpu, ulong poll);
    [KernelImport("sk_vcpu_yield_to")] public static extern void YieldTo(nint vcpu);
    [KernelImport("sk_vcpu_allocate_ring")]
    public static extern nint AllocateRing(nint vcpu, nuint bytes);
    [KernelImport("sk_vcpu_fetch_page")]
    public static extern int FetchPage(nint vcpu, ulong page, byte write, uint number);
    [KernelImport("sk_vcpu_renew_slots")]
    public static extern void VcpuRenewSlots(nint vcpu);
    [KernelImport("fpu_copy_guest_fpstate_to_uabi")]
    public static extern void FpuExport(nint fpu, void* buffer, uint size, ulong components, uint pkru);
    [KernelImport("fpu_copy_uabi_to_guest_fpstate")]
    public static extern int FpuImport(nint fpu, void* buffer, ulong components, uint* pkru);
    [KernelImport("sk_read_msr")]
    public static extern int ReadMsr(uint index, ulong* value);
    [KernelImport("ktime_get_with_offset")]
    public static extern ulong KtimeWithOffset(int clock);
    [KernelImport("check_tsc_unstable")] public static extern int TscIsUnstable();
    [KernelImport("sk_parameters")] public static extern ulong Parameters();
    [KernelImport("_printk")]
    public static extern int Print(byte* format, byte* text, ulong value);
}

// SAFETY of this file: pointers handed to the shim are to locals or spans that live through the call; addresses that
// come back are of kernel memory whose life the callers' contracts state. Spans of pages rely on the direct map.

internal static unsafe partial class KernelPages
{
    public static partial Hpa Allocate() => new(Shim.PagesAllocate(0, 0));
    public static partial void Free(Hpa page) => Shim.PagesFree(Shim.PageAddress(page.Value), 0);
    public static partial Span<byte> Bytes(Hpa page) => new(Shim.PageAddress(page.Value), Page.Size);
    public static partial Span<ulong> Entries(Hpa page) => new(Shim.PageAddress(page.Value), EntriesPerTable);
    private static partial nint Address(Hpa page) => (nint)Shim.PageAddress(page.Value);
    public static partial Hpa AllocateBitmap(int order) => new(Shim.PagesAllocate((uint)order, 0xff));
    public static partial void FreeBitmap(Hpa bitmap, int order) =>
        Shim.PagesFree(Shim.PageAddress(bitmap.Value), (uint)order);
}

internal static partial class KernelHeap
{
    [KernelImport("sk_heap_allocate")]
    public static extern partial nint Allocate(nuint bytes);
    [KernelImport("kvfree")] public static extern partial void Free(nint address);
}

internal static unsafe partial class UserMemory
{
    public static partial bool Read(Hva source, Span<byte> destination)
    {
        fixed (byte* target = destination)
            return Shim.UserRead(target, source.Value, (nuint)destination.Length) == 0;
    }

    public static partial bool Write(Hva destination, ReadOnlySpan<byte> source)
    {
        fixed (byte* from = source)
            return Shim.UserWrite(destination.Value, from, (nuint)source.Length) == 0;
    }

    public static partial bool ReadWords(Hva source, Span<byte> destination)
    {
        fixed (byte* target = destination)
            return Shim.UserReadWords(target, source.Value, (nuint)destination.Length) != 0;
    }

    public static partial bool TryReadUInt64(Hva source, out ulong value)
    {
        ulong read;
        if (Shim.UserReadUInt64(source.Value, &read) == 0)
        {
            value = 0;
            return false;
        }
        value = read;
        return true;
    }

    public static partial Exchange CompareExchange(Hva address, int size, ulong expected, ulong replacement) =>
        (Exchange)Shim.UserExchange(address.Value, (uint)size, expected, replacement);

    public static partial bool IsUserRange(Hva start, ulong bytes) => Shim.UserRange(start.Value, bytes) != 0;
}

internal readonly unsafe partial struct HostVm
{
    public partial void LockMmu() => Shim.MmuLock(_handle);
    public partial void UnlockMmu() => Shim.MmuUnlock(_handle);
    public partial void LockMmuShared() => Shim.MmuReadLock(_handle);
    public partial void UnlockMmuShared() => Shim.MmuReadUnlock(_handle);
    public partial void LockIrq() => Shim.IrqLock(_handle);
    public partial void UnlockIrq() => Shim.IrqUnlock(_handle);
    /// <summary>What struct sk_vm begins with; the timer of the chips is next.</summary>
    private struct Header
    {
        public ulong* Tables;
        public ulong Sequence, Running, Start, End;
    }

    private ref Header Shared => ref *(Header*)_handle;

    public partial ulong InvalidationSequence() => Volatile.Read(ref Shared.Sequence);
    public partial bool IsInvalidated(ulong sequence, Hva start, ulong bytes) => Shared.Sequence != sequence
        || Shared.Running != 0 && start.Value < Shared.End && start.Value + bytes > Shared.Start;

    // Bits of the process's page tables (SDM vol. 3, 4.5); where the frame is, Linux knows (memory encryption).
    private const ulong Present = 1 << 0, Writable = 1 << 1, User = 1 << 2, Dirty = 1 << 6, Large = 1 << 7;
    private static ulong s_frameMask;
    private static int s_levels;

    /// <summary>Called when the module is loaded.</summary>
    public static void DescribeTables(ulong frameMask, int levels)
    {
        s_frameMask = frameMask;
        s_levels = levels;
    }

    // With interrupts off no table is freed; the notifier's sequence guards what is found. No reference is taken, so it
    // does not matter whether a struct page stands behind it. A page that Linux takes for clean is not writable: so
    // it learns of writes, because it calls the notifier before it marks a page clean.
    public partial bool FindPage(Hva address, bool write, out HostPage page)
    {
        ulong needed = Present | User | (write ? Writable : 0), entry;
        int level = s_levels, shift;
        Kernel.X86.Cli();
        for (ulong* table = Shared.Tables;; level--)
        {
            shift = Page.Shift + (level - 1) * 9;
            entry = Volatile.Read(ref table[(address.Value >> shift) % KernelPages.EntriesPerTable]);
            if ((entry & needed) != needed || level == 1 || (entry & Large) != 0)
                break;
            table = (ulong*)Shim.PageAddress(entry & s_frameMask);
        }
        Kernel.X86.Sti();
        ulong offset = (1ul << shift) - 1;
        page = new HostPage
        {
            Frame = new Pfn((entry & s_frameMask & ~offset | address.Value & offset) >> Page.Shift), Level = level,
            Writable = (entry & (Writable | Dirty)) == (Writable | Dirty),
        };
        return (entry & needed) == needed && (page.Writable || !write);
    }

    public partial PageLookup FaultPage(Hva address, bool write, bool wait) => (PageLookup)Shim.FaultPage(
        _handle, address.Value, write ? (byte)1 : (byte)0, wait ? (byte)1 : (byte)0);

    public partial void FlushTlbs() => Shim.RequestAll(_handle, VcpuRequests.FlushTlb, wait: 1);
    public partial void SynchronizeSlots() => Shim.SynchronizeSlots(_handle);
    // HRTIMER_MODE_ABS_HARD. Under the irq lock nobody waits for a handler that wants it.
    public partial void SetChipTimer(ulong deadline)
    {
        if (deadline != 0)
            Shim.StartTimer(_handle + sizeof(Header), deadline, 0, 1 << 3);
        else
            Shim.TryCancelTimer(_handle + sizeof(Header));
    }

    public partial int AssignIrqFd(int descriptor, uint gsi, int resampler, bool resample) =>
        (int)Shim.AssignIrqFd(_handle, descriptor, gsi, resampler, resample ? (byte)1 : (byte)0);
    public partial int DeassignIrqFd(int descriptor, uint gsi, out bool stillResampled)
    {
        byte resampled = 0;
        long result = Shim.DeassignIrqFd(_handle, descriptor, gsi, &resampled);
        stillResampled = resampled != 0;
        return (int)result;
    }

    public partial void ResampleIrqFds(uint gsi) => Shim.ResampleIrqFds(_handle, gsi);
    public partial int CreateVcpu(uint id) => (int)Shim.CreateVcpu(_handle, id);

    public static partial int Create() => Shim.CreateVm();
}

internal readonly unsafe partial struct HostVcpu
{
    public partial bool Enter() => Shim.VcpuEnter(_handle) == 0;
    public partial bool Work() => Shim.VcpuWork(_handle) == 0;
    public partial void Kick() => Shim.VcpuKick(_handle);
    public partial HaltEnd Halt(ulong pollNanoseconds) => (HaltEnd)Shim.VcpuHalt(_handle, pollNanoseconds);
    public partial void YieldTo() => Shim.YieldTo(_handle);
    // HRTIMER_MODE_ABS_PINNED_HARD, KTIME_MAX.
    public partial void SetTimer(ulong deadline)
    {
        if (deadline != 0)
            Shim.StartTimer(Shared.Timer, Math.Min(deadline, long.MaxValue), 0, 1 << 1 | 1 << 3);
        else
            Shim.CancelTimer(Shared.Timer);
    }

    public partial KernelArray<Abi.kvm_dirty_gfn> AllocateRing(int entries)
    {
        nint address = Shim.AllocateRing(_handle, (nuint)entries * (nuint)sizeof(Abi.kvm_dirty_gfn));
        return KernelArray<Abi.kvm_dirty_gfn>.At(address, entries);
    }

    public partial bool FetchPage(Hva page, bool write, int number) =>
        Shim.FetchPage(_handle, page.Value, write ? (byte)1 : (byte)0, (uint)number) != 0;
    public partial void RenewSlots() => Shim.VcpuRenewSlots(_handle);
    // SIGKILL and SIGSTOP cannot be blocked.
    public partial void SetSignalMask(ulong mask, bool active)
    {
        Shared.SignalMask = mask & ~(1ul << 8 | 1ul << 18);
        Shared.MasksSignals = active ? 1u : 0;
    }


    /// <summary>What struct sk_vcpu begins with.</summary>
    private ref VcpuShared Shared => ref **(VcpuShared**)_handle;

    public partial Span<byte> LegacyFpu() => new((void*)Shared.Xsave, FxsaveSize + XsaveHeaderSize);
    public partial uint XsaveSize() => Shared.XsaveSize;

    public partial bool FpuToUser(Hva destination, uint size)
    {
        if (!KernelArray<byte>.TryAllocate((int)size, out KernelArray<byte> image))
            return false;
        fixed (byte* buffer = image.Span)
            Shim.FpuExport(Shared.Fpu, buffer, size, HostCpu.SupportedXcr0(), Shared.Pkru);
        bool done = UserMemory.Write(destination, image.Span);
        image.Free();
        return done;
    }

    public partial int FpuFromUser(Hva source)
    {
        if (!KernelArray<byte>.TryAllocate((int)XsaveSize(), out KernelArray<byte> image))
            return Errno.ENOMEM;
        int result = Errno.EFAULT;
        if (UserMemory.Read(source, image.Span))
        {
            fixed (byte* buffer = image.Span)
            fixed (uint* pkru = &Shared.Pkru)
                result = Shim.FpuImport(Shared.Fpu, buffer, HostCpu.SupportedXcr0(), pkru);
        }
        image.Free();
        return result;
    }
}

internal readonly partial struct HostEvent
{
    public static partial int TryOpen(int descriptor, out HostEvent @event)
    {
        nint context = Shim.OpenEvent(descriptor);
        @event = new HostEvent(context);
        // The kernel returns small negative numbers in place of a pointer (ERR_PTR).
        return context is < 0 and >= -4095 ? (int)context : Errno.Ok;
    }

    public partial void Signal() => Shim.SignalEvent(_handle);
    public partial void Close() => Shim.CloseEvent(_handle);
}

internal static unsafe partial class HostCpu
{
    private const ulong AmxComponents = 3 << 17;

    public static partial void Cpuid(uint leaf, uint subleaf, out CpuidLeaf result)
    {
        fixed (CpuidLeaf* target = &result)
            Kernel.X86.Cpuid(leaf, subleaf, (uint*)target);
    }

    public static partial bool TryReadMsr(uint index, out ulong value)
    {
        ulong read = 0;
        bool done = Shim.ReadMsr(index, &read) != 0;
        value = read;
        return done;
    }

    public static partial void WriteMsr(uint index, ulong value) => Kernel.X86.Wrmsr(index, value);
    public static partial ulong Tsc() => Kernel.X86.Rdtsc();
    [KernelImport("ktime_get")] public static extern partial ulong Nanoseconds();
    // TK_OFFS_REAL
    public static partial ulong RealNanoseconds() => Shim.KtimeWithOffset(0);
    public static partial bool TscIsStable() => Shim.TscIsUnstable() == 0;
    public static partial uint TscKhz() => (uint)(Shim.Parameters() >> 32) & int.MaxValue;
    // Linux asks for permission before it saves the state of AMX.
    public static partial ulong SupportedXcr0() =>
        (Kernel.X86.ReadCr4() & Cr4.Osxsave) != 0 ? Kernel.X86.Xgetbv(0) & ~AmxComponents : 0;
    public static partial void FlushPredictors() => Kernel.X86.Wrmsr(Msr.PredCmd, 1);
}

internal static partial class Parameters
{
    public static partial bool IgnoreMsrs() => (long)Shim.Parameters() < 0;
    public static partial ulong HaltPollNanoseconds() => (uint)Shim.Parameters();
}

internal static unsafe partial class Log
{
    public static partial void Error(ReadOnlySpan<byte> text, ulong value)
    {
        // KERN_ERR. That the function is variadic makes no difference to one that gets no floating point.
        fixed (byte* start = text, format = "\u00013sharpkvm: %s (%#llx)\n\0"u8)
            Shim.Print(format, start, value);
    }
}
#endif
