// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Svm;

/// <summary>What all SVM guests share: features and the permission bitmaps.</summary>
internal static class SvmHardware
{
    private const uint MsrVmCr = 0xc0010114, MsrVmHsavePa = 0xc0010117, MsrEfer = 0xc0000080;
    private const ulong VmCrSvmDisable = 1 << 4;
    private const int IopmOrder = 2, MsrpmOrder = 1;

    /// <summary>I/O permission bitmap, all ports intercepted (12 KiB).</summary>
    public static Hpa Iopm;
    /// <summary>MSR permission bitmap (8 KiB).</summary>
    public static Hpa Msrpm;
    public static bool HasNestedPaging;
    public static bool HasNextRip;
    public static bool HasFlushByAsid;

    /// <summary>At load: 0, ENODEV when the CPU or firmware has no usable SVM, ENOMEM.</summary>
    public static int Probe()
    {
        CpuidLeaf extended = CpuidLeaf.OfHost(0x80000001), svm = CpuidLeaf.OfHost(0x8000000a);
        if ((extended.Ecx & 1 << 2) == 0)
        {
            Log.Error("this CPU has neither AMD SVM nor Intel VMX\0"u8, extended.Ecx);
            return Errno.ENODEV;
        }
        if (HostCpu.TryReadMsr(MsrVmCr, out ulong vmCr) && (vmCr & VmCrSvmDisable) != 0)
        {
            Log.Error("SVM is disabled by the firmware: enable it in the BIOS setup; VM_CR\0"u8, vmCr);
            return Errno.ENODEV;
        }
        HasNestedPaging = (svm.Edx & 1) != 0 && Parameters.NestedPaging();
        HasNextRip = (svm.Edx & 1 << 3) != 0;
        HasFlushByAsid = (svm.Edx & 1 << 6) != 0;
        AddressSpaces.Count = svm.Ebx;
        if (HostCpu.TryReadMsr(MsrEfer, out ulong efer) && (efer & Efer.Svme) != 0)
        {
            Log.Error("another hypervisor uses SVM on this CPU; EFER\0"u8, efer);
            return Errno.EBUSY;
        }
        Iopm = KernelPages.AllocateBitmap(IopmOrder);
        Msrpm = KernelPages.AllocateBitmap(MsrpmOrder);
        if (Iopm.IsNull || Msrpm.IsNull)
        {
            Release();
            return Errno.ENOMEM;
        }
        MsrPermissions.PassThrough(Msrpm);
        return Errno.Ok;
    }

    /// <summary>At unload.</summary>
    public static void Release()
    {
        KernelPages.FreeBitmap(Iopm, IopmOrder);
        KernelPages.FreeBitmap(Msrpm, MsrpmOrder);
        Iopm = default;
        Msrpm = default;
    }

    /// <summary>On the calling CPU, with interrupts off. EBUSY when someone else has switched SVM on.</summary>
    public static int Enable(Hpa savePage)
    {
        if (!HostCpu.TryReadMsr(MsrEfer, out ulong efer))
            return Errno.EIO;
        if ((efer & Efer.Svme) != 0)
            return Errno.EBUSY;
        HostCpu.WriteMsr(MsrEfer, efer | Efer.Svme);
        HostCpu.WriteMsr(MsrVmHsavePa, savePage.Value);
        return Errno.Ok;
    }

    /// <summary>On the calling CPU, with interrupts off.</summary>
    public static void Disable()
    {
        HostCpu.WriteMsr(MsrVmHsavePa, 0);
        if (HostCpu.TryReadMsr(MsrEfer, out ulong efer))
            HostCpu.WriteMsr(MsrEfer, efer & ~Efer.Svme);
    }
}

/// <summary>The MSR permission bitmap: two bits an MSR, read and write (APM vol. 2, 15.11).</summary>
internal static class MsrPermissions
{
    private const int RangeBytes = 0x800;

    /// <summary>Lets the guest access the MSRs that VMLOAD and VMSAVE switch.</summary>
    public static void PassThrough(Hpa bitmap)
    {
        // 0x174-0x176 SYSENTER, 0xc0000081-84 STAR to SFMASK, 0xc0000100-102 FS, GS, KernelGS bases.
        Allow(bitmap, 0, 0x174, 3);
        Allow(bitmap, 1, 0x81, 4);
        Allow(bitmap, 1, 0x100, 3);
    }

    private static void Allow(Hpa bitmap, int range, uint first, int count)
    {
        for (uint msr = first; msr < first + count; msr++)
        {
            int offset = range * RangeBytes + (int)(msr / 4);
            Span<byte> page = KernelPages.Bytes(new Hpa(bitmap.Value + ((ulong)offset & ~Page.OffsetMask)));
            page[offset & (int)Page.OffsetMask] &= (byte)~(3 << (int)(msr % 4 * 2));
        }
    }
}
