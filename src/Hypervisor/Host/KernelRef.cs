// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>
/// A reference to a structure in kernel memory that outlives its holder (a vCPU's VM, a VM's memory-slot table).
/// </summary>
internal readonly struct KernelRef<T>(nint address) where T : unmanaged
{
    public readonly nint Address = address;

    public bool IsNull => Address == 0;

    // SAFETY: made only from addresses of structures whose life the shim or the owner guarantees; a null traps.
    public unsafe ref T Value => ref Unsafe.AsRef<T>((void*)Address);
}
