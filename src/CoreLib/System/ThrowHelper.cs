// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics.CodeAnalysis;

namespace System;

/// <summary>The class library's own checks. None exists as code: each call becomes a trap of its line.</summary>
internal static class ThrowHelper
{
    [DoesNotReturn]
    internal static void OutOfRange() => throw null!;

    [DoesNotReturn]
    internal static void Argument() => throw null!;

    [DoesNotReturn]
    internal static void DivideByZero() => throw null!;

    [DoesNotReturn]
    internal static void Invalid() => throw null!;
}
