// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>The services of a vCPU's thread that are functions of the shim alone.</summary>
internal static class HostVcpuServices
{
    /// <summary>
    /// Sees to it that the vCPU looks at its requests soon: wakes its thread from <see cref="Halt"/>, or makes it leave
    /// the guest. From any context; the request is set before. Post: in the guest it takes the posted interrupts.
    /// </summary>
    [KernelImport("sk_vcpu_kick")] public static extern void Kick(this HostVcpu vcpu, bool post);

    /// <summary>
    /// Sleeps until a request is set. Before that it polls until <paramref name="pollEnd"/>
    /// (<see cref="HostCpu.Nanoseconds"/>; 0: not at all).
    /// </summary>
    [KernelImport("sk_vcpu_halt")] public static extern HaltEnd Halt(this HostVcpu vcpu, ulong pollEnd);

    /// <summary>Gives the calling thread's CPU to the vCPU's thread, if that is in KVM_RUN and waits for one.</summary>
    [KernelImport("sk_vcpu_yield_to")] public static extern void YieldTo(this HostVcpu vcpu);

    /// <summary>
    /// Has a page made present by another thread, which then calls the core's PageFetched with the number. False: no
    /// memory.
    /// </summary>
    [KernelImport("sk_vcpu_fetch_page")]
    public static extern bool FetchPage(this HostVcpu vcpu, Hva page, bool write, int number);

    /// <summary>Leaves and enters the read section of the memory-slot table, and works in between.</summary>
    [KernelImport("sk_vcpu_work")] public static extern void RenewSlots(this HostVcpu vcpu);

    /// <summary>VMX: no CPU keeps anything of the control block, which may be freed.</summary>
    [KernelImport("sk_vmx_forget")] public static extern void ForgetVmcs(this HostVcpu vcpu);

    /// <summary>
    /// VMX: the control block, which may be new, is loaded, as it is whenever the core works for the vCPU, and
    /// <see cref="VcpuShared.SyscallMsrs"/> is what the guest has now, and what it gets with the next entry.
    /// </summary>
    [KernelImport("sk_vmx_reload")] public static extern void Reload(this HostVcpu vcpu);
}

/// <summary>The shim's part of a vCPU; the kernel keeps the guest's FPU state (struct fpu_guest) in it.</summary>
internal readonly unsafe struct HostVcpu(nint handle)
{
    private const int FxsaveSize = 512, XsaveHeaderSize = 64;

    private readonly nint _handle = handle;

    /// <summary>
    /// One turn of the guest. False when a request, a signal or a due reschedule kept it from entering: handle the
    /// requests, call <see cref="Work"/>, try again.
    /// </summary>
    public bool Enter() => Enter(this) == 0;
    [KernelImport("sk_vcpu_enter")] private static extern long Enter(HostVcpu vcpu);

    /// <summary>Reschedules and does other pending work of the thread. False: a signal waits.</summary>
    public bool Work() => Work(this) == 0;
    [KernelImport("sk_vcpu_work")] private static extern long Work(HostVcpu vcpu);

    /// <summary>
    /// Arms the vCPU's one timer: at <paramref name="deadline"/> (<see cref="HostCpu.Nanoseconds"/>)
    /// <see cref="VcpuRequests.Timer"/> is set and the vCPU kicked. 0 cancels it. By the vCPU's own thread only.
    /// </summary>
    public void SetTimer(ulong deadline)
    {
        if (deadline != 0)
            HrTimer.Start(Shared.Timer, Math.Min(deadline, HrTimer.Never), 0, HrTimer.AbsolutePinnedHard);
        else
            HrTimer.Cancel(Shared.Timer);
    }

    /// <summary>
    /// Zeroed memory for the vCPU's dirty ring; null when there is none. It lives as long as the vCPU.
    /// </summary>
    public KernelArray<kvm_dirty_gfn> AllocateRing(int entries) =>
        KernelArray<kvm_dirty_gfn>.At(AllocateRing(this, (nuint)entries * (nuint)sizeof(kvm_dirty_gfn)), entries);
    [KernelImport("sk_vcpu_allocate_ring")] private static extern nint AllocateRing(HostVcpu vcpu, nuint bytes);

    /// <summary>Signals that are blocked during KVM_RUN, if <paramref name="active"/>.</summary>
    public int SetSignalMask(ulong mask, bool active)
    {
        const ulong SigKill = 1ul << 8, SigStop = 1ul << 18;
        Shared.SignalMask = mask & ~(SigKill | SigStop);
        Shared.MasksSignals = active ? 1u : 0;
        return Errno.Ok;
    }

    /// <summary>What struct sk_vcpu begins with.</summary>
    // SAFETY: the handle is the address of one, which outlives the core's vCPU.
    private ref VcpuShared Shared => ref **(VcpuShared**)_handle;

    /// <summary>
    /// The FXSAVE image and the XSAVE header behind it (SDM vol. 1, 13.4), 576 bytes. The guest's state is there, and
    /// not in the registers, until the next entry.
    /// </summary>
    public Span<byte> LegacyFpu()
    {
        StoreFpu(this);
        // SAFETY: every XSAVE image begins with these.
        return new((void*)Shared.Xsave, FxsaveSize + XsaveHeaderSize);
    }
    [KernelImport("sk_vcpu_store_fpu")] private static extern void StoreFpu(HostVcpu vcpu);

    /// <summary>Bytes of the state in the format of KVM_GET_XSAVE2; at least those of struct kvm_xsave, 4096.</summary>
    public uint XsaveSize() => Shared.XsaveSize;

    /// <summary>Writes the state in the XSAVE format of the UAPI: 0, ENOMEM or EFAULT.</summary>
    public int FpuToUser(Hva destination)
    {
        if (!KernelArray<byte>.TryAllocate((int)XsaveSize(), out KernelArray<byte> image))
            return Errno.ENOMEM;
        Export(Shared.Fpu, ref image.Span[0], XsaveSize(), HostCpu.SupportedXcr0(), Shared.Pkru);
        bool done = UserMemory.Write(destination, image.Span);
        image.Free();
        return done ? Errno.Ok : Errno.EFAULT;
    }

    /// <summary>
    /// Takes the state from the XSAVE format of the UAPI: 0, ENOMEM, EFAULT, or EINVAL for impossible contents.
    /// </summary>
    public int FpuFromUser(Hva source)
    {
        if (!KernelArray<byte>.TryAllocate((int)XsaveSize(), out KernelArray<byte> image))
            return Errno.ENOMEM;
        int result = UserMemory.Read(source, image.Span)
            ? Import(Shared.Fpu, ref image.Span[0], HostCpu.SupportedXcr0(), ref Shared.Pkru)
            : Errno.EFAULT;
        image.Free();
        return result;
    }

    [KernelImport("fpu_copy_guest_fpstate_to_uabi")]
    private static extern void Export(nint fpu, ref byte image, uint size, ulong components, uint pkru);
    [KernelImport("fpu_copy_uabi_to_guest_fpstate")]
    private static extern int Import(nint fpu, ref byte image, ulong components, ref uint pkru);
}
