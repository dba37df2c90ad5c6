// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>
/// Control registers as software writes them (SDM vol. 3, 2.5 and 4.1.2; APM vol. 2, 3.1). A setter that returns false
/// has changed nothing: #GP(0). Privilege is the caller's to check.
/// </summary>
internal static class ControlRegisters<TVendor> where TVendor : struct, IVendor
{
    private const ulong PcidMask = 0xfff;
    private const ulong NoFlush = 1ul << 63;
    /// <summary>Components of XCR0 (SDM vol. 1, 13.1).</summary>
    private const ulong X87 = 1 << 0, Sse = 1 << 1, Avx = 1 << 2, Bounds = 3 << 3, Avx512 = 7 << 5, Pkru = 1 << 9;

    public static bool TrySetCr0(ref Vcpu vcpu, ulong value)
    {
        if (!Cr0.IsValid(value))
            return false;
        value = value & Cr0.Defined | Cr0.Et;
        ulong efer = vcpu.Efer, cr4 = TVendor.GetCr4(ref vcpu);
        ulong changed = value ^ TVendor.GetCr0(ref vcpu);
        if ((changed & Cr0.Pg) != 0 && (efer & Efer.Lme) != 0)
        {
            bool enable = (value & Cr0.Pg) != 0;
            bool code64 = TVendor.GetSegment(ref vcpu, SegmentName.Cs).Long;
            if (code64 || (enable ? (cr4 & Cr4.Pae) == 0 : (cr4 & Cr4.Pcide) != 0))
                return false;
            TVendor.SetEfer(ref vcpu, enable ? efer | Efer.Lma : efer & ~Efer.Lma);
        }
        TVendor.SetCr0(ref vcpu, value);
        return true;
    }

    public static bool TrySetCr3(ref Vcpu vcpu, ulong value)
    {
        if ((TVendor.GetCr4(ref vcpu) & Cr4.Pcide) != 0)
            value &= ~NoFlush;
        if ((vcpu.Efer & Efer.Lma) != 0 && !vcpu.Cpuid.IsValidGpa(value))
            return false;
        TVendor.SetCr3(ref vcpu, value);
        return true;
    }

    public static bool TrySetCr4(ref Vcpu vcpu, ulong value)
    {
        ulong old = TVendor.GetCr4(ref vcpu), changed = value ^ old;
        bool longMode = (vcpu.Efer & Efer.Lma) != 0;
        if ((value & ~vcpu.Cpuid.Cr4Allowed) != 0
            || longMode && ((value & Cr4.Pae) == 0 || (changed & Cr4.La57) != 0)
            || (changed & value & Cr4.Pcide) != 0 && (!longMode || (TVendor.GetCr3(ref vcpu) & PcidMask) != 0))
            return false;
        TVendor.SetCr4(ref vcpu, value);
        if ((changed & (Cr4.Osxsave | Cr4.Pke)) != 0)
            UpdateDependents(ref vcpu);
        return true;
    }

    /// <summary>The task priority.</summary>
    public static bool TrySetCr8(ref Vcpu vcpu, ulong value)
    {
        if (value > 15)
            return false;
        if (vcpu.HasApic)
            Apic<TVendor>.SetTpr(ref vcpu, (byte)(value << 4));
        vcpu.Events.Cr8 = (byte)value;
        return true;
    }

    /// <summary>A write by the guest: LMA is not writable, LME only while paging is off.</summary>
    public static bool TrySetEfer(ref Vcpu vcpu, ulong value, ulong allowed)
    {
        ulong old = vcpu.Efer;
        if ((value & ~allowed) != 0
            || ((value ^ old) & Efer.Lme) != 0 && (TVendor.GetCr0(ref vcpu) & Cr0.Pg) != 0)
            return false;
        TVendor.SetEfer(ref vcpu, value & ~Efer.Lma | old & Efer.Lma);
        return true;
    }

    /// <summary>EFER bits that user space may set whatever the guest's CPUID says: those that the host has.</summary>
    public static ulong EferOfHost() => Efer.Sce | Efer.Lme | Efer.Lma
        | (FeatureWords.IsSupported(Feature.Nx) ? Efer.Nxe : 0)
        | (FeatureWords.IsSupported(Feature.FxsrOpt) ? Efer.Ffxsr : 0);

    /// <summary>XSETBV (SDM vol. 2): at CPL 0, register 0, and combinations of components that can exist.</summary>
    public static bool TrySetXcr0(ref Vcpu vcpu, uint index, ulong value) =>
        index == 0 && TVendor.GetCpl(ref vcpu) == 0 && TryAssignXcr0(ref vcpu, value);

    public static bool TryAssignXcr0(ref Vcpu vcpu, ulong value)
    {
        if ((value & X87) == 0 || (value & ~(vcpu.Cpuid.Xcr0Allowed | X87)) != 0
            || (value & (Avx | Sse)) == Avx
            || (value & Bounds) is not (0 or Bounds)
            || (value & Avx512) != 0 && (value & (Avx512 | Avx)) != (Avx512 | Avx))
            return false;
        vcpu.Shared.Xcr0 = value;
        UpdateDependents(ref vcpu);
        return true;
    }

    /// <summary>
    /// CR4, XCR0 or IA32_APIC_BASE has changed: so does what CPUID says of them, and what the guest has use for.
    /// </summary>
    public static void UpdateDependents(ref Vcpu vcpu)
    {
        ulong cr4 = TVendor.GetCr4(ref vcpu), xcr0 = (cr4 & Cr4.Osxsave) != 0 ? vcpu.Shared.Xcr0 : 0;
        vcpu.Cpuid.UpdateRuntime(cr4, vcpu.Msrs.ApicBase, vcpu.Shared.Xcr0);
        vcpu.Shared.Set(EntryFlags.Xcr0, xcr0 != 0);
        vcpu.Shared.Set(EntryFlags.Pkru, (cr4 & Cr4.Pke) != 0 || (xcr0 & Pkru) != 0);
    }

    /// <summary>Whether KVM_SET_SREGS may load these values: a state that the CPU itself could be in.</summary>
    public static bool IsValid(ref Vcpu vcpu, in kvm_sregs_common sregs)
    {
        if (!Cr0.IsValid(sregs.cr0) || (sregs.cr4 & ~vcpu.Cpuid.Cr4Allowed) != 0 || (sregs.efer & ~EferOfHost()) != 0)
            return false;
        bool isLong = (sregs.efer & Efer.Lme) != 0 && (sregs.cr0 & Cr0.Pg) != 0;
        bool fits = isLong ? (sregs.cr4 & Cr4.Pae) != 0 && vcpu.Cpuid.IsValidGpa(sregs.cr3) : sregs.cs.l == 0;
        return fits && ((sregs.efer & Efer.Lma) != 0) == isLong
            && Apic<TVendor>.IsValidBase(ref vcpu, sregs.apic_base);
    }
}
