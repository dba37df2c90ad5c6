// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using Kernel;

namespace System;

/// <summary>Bulk copy and clear. The compiler calls some by name; the door's assembly carries them out, so that
/// a bad address traps like any other access.</summary>
internal static class SpanHelpers
{
    /// <summary>Copies <paramref name="length"/> bytes; the ranges may overlap.</summary>
    [KernelImport("cs_memmove")]
    internal static extern void Memmove(ref byte destination, ref byte source, nuint length);

    /// <summary>Zeroes <paramref name="length"/> bytes.</summary>
    [KernelImport("cs_memzero")]
    internal static extern void ClearWithoutReferences(ref byte destination, nuint length);

    /// <summary>Sets <paramref name="length"/> bytes to one value.</summary>
    internal static void Fill(ref byte destination, byte value, nuint length)
    {
        for (nuint i = 0; i < length; i++)
        {
            Unsafe.Add(ref destination, i) = value;
        }
    }
}
