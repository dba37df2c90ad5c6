// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Svm;

/// <summary>What SVM keeps for a vCPU besides its VMCB.</summary>
internal struct SvmVcpu
{
    public KernelRef<Vmcb> Vmcb;
    public Hpa VmcbPage;
    public Asid Asid;
    /// <summary>As the guest sees them; CR3 with shadow paging only. What hardware runs with differs.</summary>
    public ulong Cr0, Cr3, Cr4;
    /// <summary>An NMI is being handled: no other until IRET.</summary>
    public bool NmiMasked;
    /// <summary>IRET was intercepted at <see cref="IretRip"/> and has not completed yet.</summary>
    public bool IretRunning;
    public ulong IretRip;
    /// <summary>TF was set behind the guest's back to learn when the IRET has completed.</summary>
    public bool StepsOverIret;
}
