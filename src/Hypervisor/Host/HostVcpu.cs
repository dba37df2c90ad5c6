// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Why a vCPU sleeps no longer.</summary>
internal enum HaltEnd : byte
{
    /// <summary>A request was set while the thread still polled.</summary>
    Polled,
    /// <summary>A request was set while the thread slept.</summary>
    Woken,
    /// <summary>A signal or other work of the thread.</summary>
    Interrupted,
}

/// <summary>The shim's part of a vCPU.</summary>
internal readonly partial struct HostVcpu(nint handle)
{
    private readonly nint _handle = handle;

    /// <summary>
    /// One turn of the guest. False when a request, a signal or a due reschedule kept it from entering: handle the
    /// requests, call <see cref="Work"/>, try again.
    /// </summary>
    public partial bool Enter();

    /// <summary>Reschedules and does other pending work of the thread. False: a signal waits.</summary>
    public partial bool Work();

    /// <summary>
    /// Sees to it that the vCPU looks at its requests soon: wakes its thread from <see cref="Halt"/>, or makes it leave
    /// the guest. From any context; the request is set before.
    /// </summary>
    public partial void Kick();

    /// <summary>Sleeps until a request is set. Before that it polls for so many nanoseconds.</summary>
    public partial HaltEnd Halt(ulong pollNanoseconds);

    /// <summary>Gives the calling thread's CPU to the vCPU's thread, if that is in KVM_RUN and waits for one.</summary>
    public partial void YieldTo();

    /// <summary>
    /// Arms the vCPU's one timer: at <paramref name="deadline"/> (<see cref="HostCpu.Nanoseconds"/>)
    /// <see cref="VcpuRequests.Timer"/> is set and the vCPU kicked. 0 cancels it. By the vCPU's own thread only.
    /// </summary>
    public partial void SetTimer(ulong deadline);

    /// <summary>
    /// Zeroed memory for the vCPU's dirty ring; null when there is none. It lives as long as the vCPU.
    /// </summary>
    public partial KernelArray<Abi.kvm_dirty_gfn> AllocateRing(int entries);
    /// <summary>
    /// Has a page made present by another thread, which then calls the core's PageFetched with the number. False: no
    /// memory.
    /// </summary>
    public partial bool FetchPage(Hva page, bool write, int number);

    /// <summary>Leaves and enters the read section of the memory-slot table.</summary>
    public partial void RenewSlots();

    /// <summary>Signals that are blocked during KVM_RUN, if <paramref name="active"/>.</summary>
    public partial void SetSignalMask(ulong mask, bool active);

    // The guest's FPU state, which the kernel keeps (struct fpu_guest).
    public const int FxsaveSize = 512;
    public const int XsaveHeaderSize = 64;

    /// <summary>
    /// The FXSAVE image and the XSAVE header behind it (SDM vol. 1, 13.4), 576 bytes. Only while the guest's state
    /// is not in the registers.
    /// </summary>
    public partial Span<byte> LegacyFpu();

    /// <summary>Bytes of the state in the format of KVM_GET_XSAVE2; at least those of struct kvm_xsave, 4096.</summary>
    public partial uint XsaveSize();

    /// <summary>Writes the state in the XSAVE format of the UAPI, <paramref name="size"/> bytes.</summary>
    public partial bool FpuToUser(Hva destination, uint size);

    /// <summary>
    /// Takes the state from the XSAVE format of the UAPI: 0, EFAULT, or EINVAL for impossible contents.
    /// </summary>
    public partial int FpuFromUser(Hva source);
}
