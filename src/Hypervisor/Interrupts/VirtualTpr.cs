// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>
/// A word of guest memory that stands for the task priority (KVM_SET_VAPIC_ADDR): a guest whose accesses to TPR were
/// patched, by QEMU's option ROM, uses it in place of the register. Bits 0-7 are TPR, 8-15 the priority in service,
/// 24-31 the highest request.
/// </summary>
internal static class VirtualTpr<TVendor> where TVendor : struct, IVendor
{
    /// <summary>Address 0 ends the use. EINVAL without a local APIC in the kernel, or for what is no memory.</summary>
    public static int Set(ref Vcpu vcpu, ulong address)
    {
        if (!vcpu.HasApic || address != 0 && !GuestMemory.TryRead(ref vcpu.Vm, new Gpa(address), out uint _))
            return Errno.EINVAL;
        vcpu.VirtualTpr = new Gpa(address);
        return Errno.Ok;
    }

    /// <summary>Before the guest runs: what it has written. The page may be gone; then nothing changes.</summary>
    public static void Load(ref Vcpu vcpu)
    {
        if (GuestMemory.TryRead(ref vcpu.Vm, vcpu.VirtualTpr, out byte priority))
            Apic<TVendor>.SetTpr(ref vcpu, priority);
    }

    /// <summary>After it ran: what it may read.</summary>
    public static void Store(ref Vcpu vcpu)
    {
        ref Lapic apic = ref vcpu.Apic;
        uint request = (uint)Math.Max(apic.HighestRequest(), 0), service = (uint)Math.Max(apic.HighestInService(), 0);
        GuestMemory.TryWrite(ref vcpu.Vm, vcpu.VirtualTpr, apic.Tpr | (service & 0xf0) << 8 | request << 24);
    }
}
