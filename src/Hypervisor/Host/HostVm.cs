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
    /// <summary>Level of the process's entry that maps it: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.</summary>
    public int Level;
    /// <summary>The host mapping allows writes, so that the nested mapping may.</summary>
    public bool Writable;
}

/// <summary>What Linux keeps for a VM: locks, the MMU notifier, and the list of its vCPUs.</summary>
internal readonly partial struct HostVm(nint handle)
{
    private readonly nint _handle = handle;

    /// <summary>
    /// The lock of the nested tables. It spins: nothing that sleeps under it, user memory included. The MMU notifier
    /// calls the core with this lock already held. Who holds it shared only adds mappings and rights.
    /// </summary>
    public partial void LockMmu();
    public partial void UnlockMmu();
    public partial void LockMmuShared();
    public partial void UnlockMmuShared();

    /// <summary>
    /// The lock of the interrupt chips and routes that the vCPUs share. Interrupts are off under it, because it is
    /// taken in interrupt handlers too.
    /// </summary>
    public partial void LockIrq();
    public partial void UnlockIrq();

    /// <summary>
    /// Sequence of invalidations by Linux. Read before <see cref="FindPage"/>; the page may be mapped only if, with the
    /// MMU lock held, <see cref="IsInvalidated"/> says false for all that the new entry maps.
    /// </summary>
    public partial ulong InvalidationSequence();
    public partial bool IsInvalidated(ulong sequence, Hva start, ulong bytes);

    /// <summary>
    /// The page at <paramref name="address"/> as the process has it mapped now, if it may be used so. Sleeps never.
    /// </summary>
    public partial bool FindPage(Hva address, bool write, out HostPage page);

    /// <summary>Makes the page present, which may sleep: it is found then, unless Linux takes it away again.</summary>
    /// <param name="wait">False: <see cref="PageLookup.NotYet"/> instead of waiting for a disk.</param>
    public partial PageLookup FaultPage(Hva address, bool write, bool wait);

    /// <summary>
    /// Makes every vCPU leave the guest and flush its TLB before it enters again; waits for them. Also under the MMU
    /// lock.
    /// </summary>
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
