// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime;
using System.Runtime.CompilerServices;

namespace System;

/// <summary>Bulk copy and clear. The compiler calls these two by name; the door's assembly carries them out, so that a
/// bad address traps like any other access.</summary>
internal static unsafe class SpanHelpers
{
    /// <summary>Copies <paramref name="length"/> bytes; the ranges may overlap.</summary>
    internal static void Memmove(ref byte destination, ref byte source, nuint length)
        => Move(Unsafe.AsPointer(ref destination), Unsafe.AsPointer(ref source), length);

    /// <summary>Zeroes <paramref name="length"/> bytes.</summary>
    internal static void Clear(ref byte destination, nuint length)
        => Zero(Unsafe.AsPointer(ref destination), length);

    /// <summary>The compiler's name for <see cref="Clear"/>.</summary>
    internal static void ClearWithoutReferences(ref byte destination, nuint length)
        => Zero(Unsafe.AsPointer(ref destination), length);

    /// <summary>The compiler's name for filling with one byte value.</summary>
    internal static void Fill(ref byte destination, byte value, nuint length)
    {
        for (nuint i = 0; i < length; i++)
        {
            Unsafe.Add(ref destination, i) = value;
        }
    }

    [MethodImpl(MethodImplOptions.InternalCall)]
    [RuntimeImport("*", "cs_memmove")]
    private static extern void Move(void* destination, void* source, nuint length);

    [MethodImpl(MethodImplOptions.InternalCall)]
    [RuntimeImport("*", "cs_memzero")]
    private static extern void Zero(void* destination, nuint length);
}
