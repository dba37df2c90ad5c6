// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vmx;

/// <summary>What VMX keeps for a vCPU besides its VMCS.</summary>
internal struct VmxVcpu
{
    public Hpa VmcsPage;
    public Asid Asid;
    /// <summary>As the VMCS has it.</summary>
    public ulong EptPointer;
    /// <summary>Where the CPU logs pages that the guest writes to; null where such writes fault.</summary>
    public Hpa Pml;
    /// <summary>The priority below which CR8 exits, as the VMCS has it.</summary>
    public ulong TprThreshold;
    /// <summary>
    /// When the preemption timer is to end the guest's turn, by the host's time-stamp counter; 0: the host's timer
    /// does, or none.
    /// </summary>
    public ulong Deadline;
    /// <summary>The host's timer is armed, or was.</summary>
    public bool HostTimer;
    /// <summary>Controls as the VMCS has them.</summary>
    public PinControls Pin;
    public PrimaryControls Primary;
    public SecondaryControls Secondary;
    public EntryControls Entry;
    /// <summary>What the guest believes to have; hardware runs with VMXE, MCE and NE set and the caches on.</summary>
    public ulong Cr0, Cr4;
    /// <summary>The guest's CR3, which is hardware's only where there are no shadow tables.</summary>
    public ulong Cr3;
    /// <summary>Legacy system-call entry, which Intel's 64-bit mode never uses.</summary>
    public ulong Cstar;
    public ulong Pat;
    /// <summary>RIP, RSP and RFLAGS as the VMCS has them.</summary>
    public ulong Rip, Rsp, Rflags;
    /// <summary>What the next entry injects, as the VMCS has it.</summary>
    public EventInjection Injection;
    /// <summary>An interrupt that waits behind another event or until the guest can take it.</summary>
    public QueuedInterrupt Held;
    /// <summary>The PDPTEs are to be read from the guest's memory, as MOV to CR3 does in PAE mode.</summary>
    public bool PdptesStale;
    /// <summary>Software has written CR0 or a segment register, so that the state may be none for an entry.</summary>
    public bool StateUnchecked;

    /// <summary>CR8 is TPR in the APIC's page while the guest runs (SDM vol. 3, 30.3); else its accesses exit.</summary>
    public readonly bool HasTpr => (Primary & PrimaryControls.TprShadow) != 0;

    /// <summary>The identifier as the VMCS has it; 0 is none.</summary>
    public readonly ulong Vpid => Asid.IsOwn ? Asid.Value : 0;
}
