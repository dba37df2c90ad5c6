// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>The services for a VM that are functions of the shim alone.</summary>
internal static class HostVmServices
{
    /// <summary>
    /// The lock of the nested tables. It spins: nothing that sleeps under it, user memory included. The MMU notifier
    /// calls the core with this lock already held. Who holds it shared only adds mappings and rights.
    /// </summary>
    [KernelImport("sk_mmu_lock")] public static extern void LockMmu(this HostVm vm);
    [KernelImport("sk_mmu_unlock")] public static extern void UnlockMmu(this HostVm vm);
    [KernelImport("sk_mmu_read_lock")] public static extern void LockMmuShared(this HostVm vm);
    [KernelImport("sk_mmu_read_unlock")] public static extern void UnlockMmuShared(this HostVm vm);

    /// <summary>
    /// The lock of the interrupt chips and routes that the vCPUs share. Interrupts are off under it, because it is
    /// taken in interrupt handlers too.
    /// </summary>
    [KernelImport("sk_irq_lock")] public static extern void LockIrq(this HostVm vm);
    [KernelImport("sk_irq_unlock")] public static extern void UnlockIrq(this HostVm vm);

    /// <summary>Makes the page present, which may sleep: it is found then, unless Linux takes it away again.</summary>
    /// <param name="wait">False: <see cref="PageLookup.NotYet"/> instead of waiting for a disk.</param>
    [KernelImport("sk_fault_page")]
    public static extern PageLookup FaultPage(this HostVm vm, Hva address, bool write, bool wait);

    /// <summary>Waits until no vCPU still uses a table, of memory slots or others, that was replaced (SRCU).</summary>
    [KernelImport("sk_synchronize_slots")] public static extern void SynchronizeSlots(this HostVm vm);

    /// <summary>KVM_IRQFD; the GSI was checked. 0, EBADF, EINVAL, EBUSY or ENOMEM.</summary>
    [KernelImport("sk_irqfd_assign")]
    public static extern int AssignIrqFd(this HostVm vm, int descriptor, uint gsi, int resampler, bool resample);
    [KernelImport("sk_irqfd_deassign")]
    public static extern int DeassignIrqFd(this HostVm vm, int descriptor, uint gsi, out bool stillResampled);

    /// <summary>Signals the resampling eventfds of a GSI. On a vCPU's thread, no lock held.</summary>
    [KernelImport("sk_irqfd_resample")] public static extern void ResampleIrqFds(this HostVm vm, uint gsi);

    /// <summary>KVM_CREATE_VCPU: a new file descriptor or an errno.</summary>
    [KernelImport("sk_create_vcpu")] public static extern int CreateVcpu(this HostVm vm, uint id);
}

/// <summary>What Linux keeps for a VM: locks, the MMU notifier, and the list of its vCPUs.</summary>
internal readonly unsafe struct HostVm(nint handle) : IReaders
{
    private readonly nint _handle = handle;

    /// <summary>
    /// What struct sk_vm begins with: the process's page tables, and what Linux takes from them. The timer of the chips
    /// is next.
    /// </summary>
    [KernelHeader("sk_vm_shared")]
    private struct Header
    {
        public ulong* Tables;
        public ulong Sequence, Running, Start, End;
    }

    // SAFETY: the handle is the address of a struct sk_vm, which outlives the core's VM.
    private ref Header Shared => ref *(Header*)_handle;

    /// <summary>KVM_CREATE_VM: a new file descriptor or an errno.</summary>
    [KernelImport("sk_create_vm")] public static extern int Create();

    /// <summary>
    /// Sequence of invalidations by Linux. Read before <see cref="FindPage"/>; the page may be mapped only if, with the
    /// MMU lock held, <see cref="IsInvalidated"/> says false for all that the new entry maps.
    /// </summary>
    public ulong InvalidationSequence() => Volatile.Read(ref Shared.Sequence);
    public bool IsInvalidated(ulong sequence, Hva start, ulong bytes) => Shared.Sequence != sequence
        || Shared.Running != 0 && start.Value < Shared.End && start.Value + bytes > Shared.Start;

    // Bits of the process's page tables (SDM vol. 3, 4.5); where the frame is, Linux knows (memory encryption).
    private const ulong Present = 1 << 0, Writable = 1 << 1, User = 1 << 2, Dirty = 1 << 6, Large = 1 << 7;
    private static ulong s_frameMask;
    private static int s_levels;

    /// <summary>Called when the module is loaded.</summary>
    public static void DescribeTables(ulong frameMask)
    {
        s_frameMask = frameMask;
        s_levels = (X86.ReadCr4() & Cr4.La57) != 0 ? 5 : 4;
    }

    /// <summary>
    /// The page at <paramref name="address"/> as the process has it mapped now, if it may be used so. Sleeps never.
    /// </summary>
    // With interrupts off no table is freed; the notifier's sequence guards what is found. No reference is taken, so it
    // does not matter whether a struct page stands behind it. A page that Linux takes for clean is not writable: so
    // it learns of writes, because it calls the notifier before it marks a page clean.
    public bool FindPage(Hva address, bool write, out HostPage page)
    {
        ulong needed = Present | User | (write ? Writable : 0), entry;
        int level = s_levels, shift;
        X86.Cli();
        for (ulong* table = Shared.Tables;; level--)
        {
            shift = Page.Shift + (level - 1) * 9;
            entry = Volatile.Read(ref table[(address.Value >> shift) % KernelPages.EntriesPerTable]);
            if ((entry & needed) != needed || level == 1 || (entry & Large) != 0)
                break;
            table = (ulong*)KernelPages.Address(new Hpa(entry & s_frameMask));
        }
        X86.Sti();
        ulong offset = (1ul << shift) - 1;
        page = new HostPage
        {
            Frame = new Pfn((entry & s_frameMask & ~offset | address.Value & offset) >> Page.Shift), Level = level,
            Writable = (entry & (Writable | Dirty)) == (Writable | Dirty),
        };
        return (entry & needed) == needed && (page.Writable || !write);
    }

    /// <summary>
    /// Makes every vCPU leave the guest and flush its TLB before it enters again; waits for them. Also under the MMU
    /// lock.
    /// </summary>
    public void FlushTlbs() => RequestAll(this, VcpuRequests.FlushTlb, wait: true);
    [KernelImport("sk_request_all")] private static extern void RequestAll(HostVm vm, VcpuRequests what, bool wait);

    void IReaders.Wait() => this.SynchronizeSlots();

    /// <summary>
    /// When the core's ChipTimerExpired is called next (<see cref="HostCpu.Nanoseconds"/>); 0: never. From any context.
    /// </summary>
    public void SetChipTimer(ulong deadline)
    {
        nint timer = _handle + sizeof(Header);
        if (deadline != 0)
            HrTimer.Start(timer, deadline, 0, HrTimer.AbsoluteHard);
        else
            HrTimer.TryCancel(timer); // Under the irq lock nobody waits for a handler that wants it.
    }
}
