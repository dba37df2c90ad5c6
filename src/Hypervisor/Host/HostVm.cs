// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Outcome of making a page of guest memory present.</summary>
internal enum PageLookup : byte
{
    Found,
    /// <summary>No memory is mapped there, or not with the rights asked for: EFAULT to user space.</summary>
    Absent,
    /// <summary>A signal arrived while waiting.</summary>
    Interrupted,
    /// <summary>The page must be fetched, and the caller does not wait.</summary>
    NotYet,
}

/// <summary>
/// A page of the process. It may be used only as <see cref="HostVm.IsInvalidated"/> allows: nothing pins it.
/// </summary>
internal struct HostPage
{
    public Pfn Frame;
    /// <summary>The host mapping allows writes, so that the nested mapping may.</summary>
    public bool Writable;
}

/// <summary>What Linux keeps for a VM: locks, the MMU notifier, and the list of its vCPUs.</summary>
internal readonly partial struct HostVm(nint handle)
{
    private readonly nint _handle = handle;

    /// <summary>
    /// The lock of the nested tables. A spinlock: nothing that sleeps under it, user memory included. The MMU notifier
    /// calls the core with this lock already held.
    /// </summary>
    public partial void LockMmu();
    public partial void UnlockMmu();

    /// <summary>
    /// The lock of the interrupt chips and routes that the vCPUs share. Interrupts are off under it, because it is
    /// taken in interrupt handlers too.
    /// </summary>
    public partial void LockIrq();
    public partial void UnlockIrq();

    /// <summary>
    /// Sequence of invalidations by Linux. Read before <see cref="LookUpPage"/>; the page may be mapped only if, with
    /// the MMU lock held, <see cref="IsInvalidated"/> says false.
    /// </summary>
    public partial ulong InvalidationSequence();
    public partial bool IsInvalidated(ulong sequence, Hva address);

    /// <summary>Makes the page at <paramref name="address"/> present (faulting it in, which may sleep).</summary>
    /// <param name="wait">False: <see cref="PageLookup.NotYet"/> instead of waiting for a disk.</param>
    public partial PageLookup LookUpPage(Hva address, bool write, bool wait, out HostPage page);

    /// <summary>Makes every vCPU leave the guest and flush its TLB before it enters again; waits for them.</summary>
    public partial void FlushTlbs();

    /// <summary>Waits until no vCPU still uses a memory-slot table that was replaced before this call (SRCU).</summary>
    public partial void SynchronizeSlots();

    /// <summary>
    /// When the core's ChipTimerExpired is called next (<see cref="HostCpu.Nanoseconds"/>); 0: never. From any context.
    /// </summary>
    public partial void SetChipTimer(ulong deadline);

    /// <summary>KVM_IRQFD; the GSI was checked. 0, EBADF, EINVAL, EBUSY or ENOMEM.</summary>
    public partial int AssignIrqFd(int descriptor, uint gsi, int resampler, bool resample);
    public partial int DeassignIrqFd(int descriptor, uint gsi, out bool stillResampled);

    /// <summary>Signals the resampling eventfds of a GSI. On a vCPU's thread, no lock held.</summary>
    public partial void ResampleIrqFds(uint gsi);

    /// <summary>KVM_CREATE_VCPU: a new file descriptor or an errno.</summary>
    public partial int CreateVcpu(uint id);

    /// <summary>KVM_CREATE_VM: a new file descriptor or an errno.</summary>
    public static partial int Create();
}
