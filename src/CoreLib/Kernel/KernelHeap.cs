// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>
/// The kernel's general allocator (kvzalloc and kvfree). May sleep. A module that uses it lists heap.o in its Kbuild,
/// and kvfree in its IMPORTS.
/// </summary>
internal static class KernelHeap
{
    /// <summary>Zeroed memory, charged to the calling process; null when there is none.</summary>
    [KernelImport("cs_heap_allocate")] public static extern nint Allocate(nuint bytes);

    /// <summary>Null is nothing to free.</summary>
    [KernelImport("kvfree")] public static extern void Free(nint address);
}
