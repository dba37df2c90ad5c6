// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>The part of a vCPU that the shim and its world switch read and write.</summary>
[KernelHeader("sk_vcpu_shared")]
internal struct VcpuShared
{
    public GuestRegisters Registers;
    /// <summary>Physical address of the VMCB (SVM) or VMCS (VMX).</summary>
    public ulong ControlBlock;
    /// <summary>Guest values that the shim switches where they differ from the host's.</summary>
    public ulong SpecCtrl;
    /// <summary>VMX: what it leaves to software.</summary>
    public ulong Cr2;
    /// <summary>STAR, LSTAR, SFMASK, KERNEL_GS_BASE, EFER; see <see cref="HostVcpu.Reload"/>.</summary>
    public InlineArray5<ulong> SyscallMsrs;
    public ulong Xcr0;
    public ulong TscAux;
    /// <summary>DR0-3 to load before entry when <see cref="EntryFlags.LoadDebugRegisters"/> is set.</summary>
    public InlineArray4<ulong> Dr;
    /// <summary>The shim's own part of this vCPU.</summary>
    public HostVcpu Host;
    /// <summary>The guest's FPU state (struct fpu_guest), and in it the XSAVE image.</summary>
    public nint Fpu, Xsave;
    /// <summary>The vCPU's timer (struct hrtimer).</summary>
    public nint Timer;
    /// <summary>Signals that are blocked during KVM_RUN, if <see cref="MasksSignals"/> is not 0.</summary>
    public ulong SignalMask;
    /// <summary>The page shared with user space.</summary>
    public KernelRef<kvm_run> Run;
    /// <summary>The page of port data behind the run page.</summary>
    public KernelRef<PortPage> Port;
    /// <summary>Nanoseconds that the thread has waited for a CPU, as of when it last got one.</summary>
    public ulong RunDelay;
    public EntryFlags Flags;
    /// <summary>
    /// What others ask of this vCPU before its next entry: set atomically by anyone, cleared by its thread.
    /// </summary>
    public uint RequestBits;
    /// <summary>Requests that are made whenever the thread gets a CPU.</summary>
    public uint OnLoad;
    public uint Pkru;
    /// <summary>Bytes of the state in the format of KVM_GET_XSAVE2.</summary>
    public uint XsaveSize;
    public uint MasksSignals;
    /// <summary>VMX: why the guest's turn ended; all ones: the entry failed before it began.</summary>
    public uint ExitReason;

    public readonly VcpuRequests Requests => (VcpuRequests)RequestBits;

    public void Set(EntryFlags flag, bool isSet) => Flags = isSet ? Flags | flag : Flags & ~flag;

    public void Request(VcpuRequests request) => Interlocked.Or(ref RequestBits, (uint)request);

    /// <summary>
    /// Sets the bits and sees to it that the vCPU looks at them soon. From any context. Post: the CPU, if it runs the
    /// guest, is to take the posted interrupts, without an exit.
    /// </summary>
    public void RequestNow(VcpuRequests request, bool post = false)
    {
        Request(request);
        Host.Kick(post);
    }
}

/// <summary>What the world switch does besides the switch.</summary>
[Flags, KernelHeader("SK_ENTER")]
internal enum EntryFlags : uint
{
    None = 0,
    LoadDebugRegisters = 1 << 0,
    /// <summary>The guest's TLB is flushed: to be counted.</summary>
    Flushes = 1 << 1,
    /// <summary>VMX: the guest is in long mode, where it has use for SYSCALL's MSRs and SWAPGS.</summary>
    Syscalls = 1 << 2,
    /// <summary>The guest has use for XCR0 (CR4.OSXSAVE), and for PKRU: otherwise the host's stay.</summary>
    Xcr0 = 1 << 3, Pkru = 1 << 4,
}

/// <summary>By what Linux has a CPU in a guest take posted interrupts.</summary>
[KernelHeader("SK_POSTED")]
internal enum Posted : uint { Vector = 0xf2 }

/// <summary>Requests to a vCPU.</summary>
[Flags, KernelHeader("SK_REQUEST")]
internal enum VcpuRequests : uint
{
    None = 0,
    /// <summary>Nested mappings were removed.</summary>
    FlushTlb = 1 << 0,
    /// <summary>The thread moved to another physical CPU.</summary>
    Migrated = 1 << 1,
    /// <summary>The VM was ended by a trap in the core.</summary>
    Dead = 1 << 3,
    /// <summary>For tests: fail a bounds check in the core.</summary>
    Trap = 1 << 5,
    /// <summary>Someone waits for the end of an old memory-slot table.</summary>
    RenewSlots = 1 << 4,
    /// <summary>The local APIC has an interrupt that it did not have, or another reason to look at it.</summary>
    Event = 1 << 6,
    /// <summary>The vCPU's timer has expired.</summary>
    Timer = 1 << 7,
    /// <summary>Messages of the APIC bus that need the vCPU's own thread.</summary>
    Nmi = 1 << 8,
    Init = 1 << 9,
    StartUp = 1 << 10,
    /// <summary>Split mode: user space is told of the end of an interrupt.</summary>
    EoiExit = 1 << 11,
    /// <summary>The guest's clock page is to be written.</summary>
    Clock = 1 << 12,
    /// <summary>The guest is told how long the thread waited for a CPU.</summary>
    Steal = 1 << 13,
    /// <summary>Another vCPU ends this one's halt (KVM_HC_KICK_CPU).</summary>
    Unhalt = 1 << 14,
    /// <summary>A page that the guest was told is missing may be there.</summary>
    Page = 1 << 15,
    /// <summary>Other MSRs are filtered.</summary>
    MsrFilter = 1 << 16,
    /// <summary>The vCPU's dirty ring has no room for what its next turn may write.</summary>
    RingFull = 1 << 17,
    /// <summary>The end of other interrupts is to exit.</summary>
    Ends = 1 << 18,
}

/// <summary>Port data of KVM_EXIT_IO, shared with user space.</summary>
[InlineArray(Page.Size)] internal struct PortPage { private byte _first; }
