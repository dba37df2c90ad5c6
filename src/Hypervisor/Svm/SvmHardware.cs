// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Svm;

/// <summary>What all SVM guests share: features and the permission bitmaps.</summary>
internal static class SvmHardware
{
    private const uint MsrVmCr = 0xc0010114, MsrVmHsavePa = 0xc0010117, MsrEfer = 0xc0000080;
    private const ulong VmCrSvmDisable = 1 << 4;
    private const int IopmOrder = 2, MsrpmOrder = 1, RangeBytes = 0x800;

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
        // What VMLOAD and VMSAVE switch: SYSENTER; STAR to SFMASK; the bases of FS, GS and KernelGS.
        PassThrough(0, Msr.SysenterCs, 3);
        PassThrough(1, Msr.Star & 0x1fff, 4);
        PassThrough(1, Msr.FsBase & 0x1fff, 3);
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

    /// <summary>Lets the guest access MSRs of a range of 8,192: two bits each, read and write (APM vol. 2, 15.11).</summary>
    private static void PassThrough(int range, uint first, uint count)
    {
        for (uint msr = first; msr < first + count; msr++)
        {
            int offset = range * RangeBytes + (int)(msr / 4);
            Span<byte> page = KernelPages.Bytes(new Hpa(Msrpm.Value + ((ulong)offset & ~Page.OffsetMask)));
            page[offset & (int)Page.OffsetMask] &= (byte)~(3 << (int)(msr % 4 * 2));
        }
    }
}
