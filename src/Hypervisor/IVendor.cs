// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm;

/// <summary>
/// What differs between AMD SVM and Intel VMX. Implemented by empty structs, so that each use is compiled for its
/// vendor and calls are direct. State that hardware keeps in its control block is read and written here; the rest
/// lives in <see cref="Vcpu"/>.
/// </summary>
internal interface IVendor
{
    static abstract int CreateVcpu(ref Vcpu vcpu);
    static abstract void DestroyVcpu(ref Vcpu vcpu);

    static abstract Segment GetSegment(ref Vcpu vcpu, SegmentName name);
    static abstract void SetSegment(ref Vcpu vcpu, SegmentName name, in Segment segment);
    /// <summary>GDTR or IDTR.</summary>
    static abstract DescriptorTable GetTable(ref Vcpu vcpu, SegmentName name);
    static abstract void SetTable(ref Vcpu vcpu, SegmentName name, DescriptorTable table);
    /// <summary>The code is 64-bit code: CS.L, in long mode.</summary>
    static abstract bool Is64Bit(ref Vcpu vcpu);
    static abstract int GetCpl(ref Vcpu vcpu);
    static abstract void SetCpl(ref Vcpu vcpu, int cpl);

    /// <summary>Guest values; the setters take values that <c>ControlRegisters</c> has checked.</summary>
    static abstract ulong GetCr0(ref Vcpu vcpu);
    static abstract void SetCr0(ref Vcpu vcpu, ulong value);
    static abstract ref ulong Cr2(ref Vcpu vcpu);
    static abstract ulong GetCr3(ref Vcpu vcpu);
    static abstract void SetCr3(ref Vcpu vcpu, ulong value);
    static abstract ulong GetCr4(ref Vcpu vcpu);
    static abstract void SetCr4(ref Vcpu vcpu, ulong value);
    /// <summary>Sets <see cref="Vcpu.Efer"/>, and what hardware runs with.</summary>
    static abstract void SetEfer(ref Vcpu vcpu, ulong value);

    /// <summary>The DR7 in effect (the others are in <see cref="Vcpu.Debug"/>).</summary>
    static abstract ulong GetDr7(ref Vcpu vcpu);
    static abstract void SetDr7(ref Vcpu vcpu, ulong value);
    /// <summary>Recomputes exception and debug register intercepts after a change of guest debugging.</summary>
    static abstract void UpdateDebug(ref Vcpu vcpu);

    /// <summary>
    /// MSRs whose value lives in the vendor's control block (STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, FS_BASE,
    /// GS_BASE, SYSENTER_*, PAT). False when <paramref name="index"/> is none of them.
    /// </summary>
    static abstract bool TryGetMsr(ref Vcpu vcpu, uint index, out ulong value);
    static abstract bool TrySetMsr(ref Vcpu vcpu, uint index, ulong value);

    /// <summary>Intercepts all MSRs while <see cref="Vm.Vm.MsrFilter"/> is active.</summary>
    static abstract void UpdateMsrFilter(ref Vcpu vcpu);

    /// <summary>
    /// Takes away instructions that the guest's CPUID does not have, where the CPU can be told to. The first KVM_RUN.
    /// </summary>
    static abstract void ApplyCpuid(ref Vcpu vcpu);

    /// <summary>
    /// The APIC is in another mode, or others want to know of the end of other interrupts: what the CPU does for it.
    /// </summary>
    static abstract void UpdateApic(ref Vcpu vcpu);

    /// <summary>Hardware takes up <see cref="Vcpu.TscOffset"/>, which has changed.</summary>
    static abstract void UpdateTscOffset(ref Vcpu vcpu);

    /// <summary>
    /// Has the vCPU look at its APIC's timer at <paramref name="target"/> (<see cref="HostCpu.Nanoseconds"/>, which is
    /// <paramref name="now"/>); 0: not any more. Again with <paramref name="halts"/> when it is about to sleep.
    /// </summary>
    static abstract void SetTimer(ref Vcpu vcpu, ulong target, ulong now, bool halts);

    /// <summary>Interrupt shadow as KVM_X86_SHADOW_INT_* bits.</summary>
    static abstract int GetInterruptShadow(ref Vcpu vcpu);
    static abstract void SetInterruptShadow(ref Vcpu vcpu, int shadow);
    static abstract bool GetNmiMasked(ref Vcpu vcpu);
    static abstract void SetNmiMasked(ref Vcpu vcpu, bool masked);

    /// <summary>The guest exits as soon as it can take an interrupt.</summary>
    static abstract void OpenInterruptWindow(ref Vcpu vcpu);
    /// <summary>The guest exits as soon as it can take the NMI that waits.</summary>
    static abstract void OpenNmiWindow(ref Vcpu vcpu);

    /// <summary>Opcode of the instruction that is a hypercall on this vendor's CPUs.</summary>
    static abstract uint Hypercall { get; }

    /// <summary>
    /// RIP behind the instruction that has just been intercepted. False: it is not <paramref name="opcode"/> any more,
    /// or can't be read; an exception may be queued.
    /// </summary>
    static abstract bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end);

    /// <summary>Whether an entry takes the guest's state as it is; else the emulator runs it.</summary>
    static abstract bool CanRun(ref Vcpu vcpu);

    /// <summary>One entry into the guest and the handling of its exit.</summary>
    static abstract VcpuAction Step(ref Vcpu vcpu);

    /// <summary>Forgets cached translations before the next entry.</summary>
    static abstract void FlushTlb(ref Vcpu vcpu);
}

/// <summary>KVM_X86_SHADOW_INT_*: what keeps interrupts away for one instruction.</summary>
internal static class InterruptShadow
{
    public const int None = 0, MovSs = 1, Sti = 2;
}

/// <summary>What the run loop does after an exit was handled.</summary>
internal enum VcpuAction : byte
{
    /// <summary>Enter the guest again.</summary>
    Resume,
    /// <summary>The guest was not entered: look at requests, signals and rescheduling first.</summary>
    Retry,
    /// <summary>Return 0 from KVM_RUN; the run page says why.</summary>
    UserSpace,
    /// <summary>Return -EINTR with KVM_EXIT_INTR.</summary>
    Interrupted,
    /// <summary>Return -EFAULT: guest memory could not be made present.</summary>
    Fault,
    /// <summary>Return -ENOMEM: the kernel has no page for a nested table.</summary>
    NoMemory,
}
