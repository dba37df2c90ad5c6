// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace Kernel;

/// <summary>A reference to a structure in kernel memory that outlives its holder.</summary>
internal readonly struct KernelRef<T>(nint address) where T : unmanaged
{
    public readonly nint Address = address;

    public bool IsNull => Address == 0;

    /// <summary>A zeroed one of the heap; null when there is no memory.</summary>
    public static KernelRef<T> Allocate() => new(KernelHeap.Allocate((nuint)Unsafe.SizeOf<T>()));

    // SAFETY: made only from addresses of structures whose life C or the owner guarantees; a null traps.
    public unsafe ref T Value => ref Unsafe.AsRef<T>((void*)Address);
}
