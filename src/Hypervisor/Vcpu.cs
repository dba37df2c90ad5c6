// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Svm;
using SharpKvm.Vm;
using SharpKvm.Vmx;

namespace SharpKvm;

/// <summary>A virtual CPU. Lives in memory that the shim allocated together with its own part.</summary>
internal struct Vcpu
{
    /// <summary>
    /// What the world switch and the shim share with the core; first, because they address it by offset.
    /// </summary>
    public VcpuShared Shared;
    public KernelRef<Vm.Vm> VmRef;
    public uint Id;

    /// <summary>CPUID as SET_CPUID2 gave it, and what follows from it (reserved bits, address width).</summary>
    public CpuidTable Cpuid;
    /// <summary>MSRs that hardware does not switch: APIC_BASE, MISC_ENABLE, MTRRs, MCE banks, TSC_AUX …</summary>
    public MsrState Msrs;
    /// <summary>As the guest sees it; what hardware runs with differs.</summary>
    public ulong Efer;
    /// <summary>From the host's time-stamp counter to the guest's. Also read by other vCPUs' threads.</summary>
    public ulong TscOffset;
    /// <summary>DR0-3, DR6 and guest debugging by user space.</summary>
    public DebugState Debug;
    /// <summary>Exceptions, interrupts and NMIs that wait for delivery or were interrupted in it.</summary>
    public EventState Events;
    /// <summary>The local APIC, if the kernel has one for this VM.</summary>
    public Lapic Apic;
    /// <summary>Guest memory that stands for TPR (KVM_SET_VAPIC_ADDR); 0: none does.</summary>
    public Gpa VirtualTpr;
    public ParavirtState Paravirt;
    public MpState MpState;
    /// <summary>How long it polls before it sleeps in a halt, in nanoseconds.</summary>
    public ulong HaltPoll;
    /// <summary>Split mode: the vector whose end user space's IOAPIC wants to know.</summary>
    public byte EoiVector;
    /// <summary>Empty pages that wait to become nested tables.</summary>
    public TablePool SpareTables;
    public ShadowVcpu Shadow;
    public DirtyRing DirtyRing;
    /// <summary>A port or memory access that user space is serving.</summary>
    public PendingIo Pending;
    public ExitTrace Exits;
    /// <summary>How many were ever noted: where the next goes.</summary>
    public uint ExitCount;
    public SvmVcpu Svm;
    public VmxVcpu Vmx;

    [UnscopedRef] public ref GuestRegisters Registers => ref Shared.Registers;
    [UnscopedRef] public ref kvm_run Run => ref Shared.Run.Value;
    public readonly ref Vm.Vm Vm => ref VmRef.Value;
    /// <summary>Whether the kernel has a local APIC for it.</summary>
    public readonly bool HasApic => Vm.Irqchip.Mode != IrqchipMode.None;

    /// <summary>
    /// Whether an access is to the page that IA32_APIC_BASE names. In other modes than xAPIC nothing is there, not even
    /// for user space (KVM's quirk LAPIC_MMIO_HOLE).
    /// </summary>
    [MethodImpl(AggressiveInlining)] public readonly bool OwnsApicPage(Gpa address) =>
        address.Frame.Value == new Gpa(Msrs.ApicBase).Frame.Value && HasApic;

    /// <summary>KVM_EXIT_IOAPIC_EOI follows when the instruction is over.</summary>
    public void RequestEoiExit(byte vector)
    {
        EoiVector = vector;
        Shared.Request(VcpuRequests.EoiExit);
    }

    /// <summary>Notes an exit in the trace ring.</summary>
    [MethodImpl(AggressiveInlining)] public void Trace(uint reason, ulong info1, ulong info2)
    {
        ref ExitRecord record = ref Exits[(int)(ExitCount++ % ExitTrace.Length)];
        record.Tsc = HostCpu.Tsc();
        record.Rip = Shared.Registers.Rip;
        record.Reason = reason;
        record.Info1 = info1;
        record.Info2 = info2;
    }
}
