// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Runtime.CompilerServices;

namespace Kernel;

/// <summary>
/// An array in kernel memory with an explicit owner: who allocates it frees it. An index outside of it traps.
/// </summary>
internal readonly struct KernelArray<T> where T : unmanaged
{
    private readonly nint _address;
    public readonly int Length;

    private KernelArray(nint address, int length)
    {
        _address = address;
        Length = length;
    }

    public bool IsNull => _address == 0;
    public nint Address => _address;

    /// <summary>Memory that another owns; of length 0 at a null address.</summary>
    public static KernelArray<T> At(nint address, int length) => new(address, address == 0 ? 0 : length);

    /// <summary>Zeroed memory for <paramref name="length"/> elements, charged to the calling process.</summary>
    public static bool TryAllocate(int length, out KernelArray<T> array)
    {
        nint address = KernelHeap.Allocate((nuint)(uint)length * (nuint)Unsafe.SizeOf<T>());
        array = new KernelArray<T>(address, address == 0 ? 0 : length);
        return address != 0;
    }

    /// <summary>The same memory, but only its first elements. To be freed instead of this.</summary>
    public KernelArray<T> First(int length) => new(_address, Math.Min(length, Length));

    /// <summary>A reference that lives as long as the memory.</summary>
    public KernelRef<T> RefAt(int index) => new((uint)index < (uint)Length ? _address + index * Unsafe.SizeOf<T>() : 0);

    public void Free() => KernelHeap.Free(_address);

    /// <summary>All elements. Valid until <see cref="Free"/>.</summary>
    // SAFETY: the address and length come from TryAllocate and never change.
    public unsafe Span<T> Span => new((void*)_address, Length);
}
