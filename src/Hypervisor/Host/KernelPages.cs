// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Pages for nested tables and hardware structures, addressed by their physical address.</summary>
internal static partial class KernelPages
{
    public const int EntriesPerTable = Page.Size / sizeof(ulong);

    // SAFETY: the kernel's direct map has every page; who gave the address keeps the page as long as the span.
    /// <summary>The page as bytes, through the kernel's direct map.</summary>
    public static unsafe Span<byte> Bytes(Hpa page) => new((void*)Address(page), Page.Size);

    /// <summary>The page as a table of 512 entries.</summary>
    [MethodImpl(AggressiveInlining)]
    public static unsafe Span<ulong> Entries(Hpa page) => new((void*)Address(page), EntriesPerTable);

    /// <summary>The page as a hardware structure of at most its size.</summary>
    public static KernelRef<T> Reference<T>(Hpa page) where T : unmanaged =>
        new(Unsafe.SizeOf<T>() <= Page.Size ? Address(page) : 0);
}
