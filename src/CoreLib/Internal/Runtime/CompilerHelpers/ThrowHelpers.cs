// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics.CodeAnalysis;

namespace Internal.Runtime.CompilerHelpers;

/// <summary>The helpers the compiler calls by name when a check fails. None of them exists as code: each call becomes
/// a trap of its line.</summary>
internal static class ThrowHelpers
{
    [DoesNotReturn]
    internal static void ThrowIndexOutOfRangeException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowOverflowException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowDivideByZeroException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowNullReferenceException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowArgumentException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowArgumentOutOfRangeException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowPlatformNotSupportedException() => throw null!;

    [DoesNotReturn]
    internal static void ThrowNotSupportedException() => throw null!;
}
