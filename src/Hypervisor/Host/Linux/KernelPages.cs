// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

internal static partial class KernelPages
{
    /// <summary>One zeroed page, charged to the calling process; <see cref="Hpa.IsNull"/> when there is none.</summary>
    public static Hpa Allocate() => Allocate(0, 0);

    /// <summary>Null is nothing to free.</summary>
    public static void Free(Hpa page) => FreeBitmap(page, 0);

    /// <summary>2^order contiguous pages with all bits set, for bitmaps that hardware reads.</summary>
    public static Hpa AllocateBitmap(int order) => Allocate(order, 0xff);

    public static void FreeBitmap(Hpa bitmap, int order) => Free(bitmap.IsNull ? 0 : Address(bitmap), order);

    /// <summary>Where the kernel's direct map has the page.</summary>
    public static nint Address(Hpa page) => DirectMap + (nint)page.Value;

    /// <summary>Where that begins; set when the module is loaded.</summary>
    public static nint DirectMap;

    [KernelImport("sk_pages_allocate")] private static extern Hpa Allocate(int order, byte fill);
    [KernelImport("free_pages")] private static extern void Free(nint address, int order);
}
