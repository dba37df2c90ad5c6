// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace System;

public static class MemoryExtensions
{
    /// <summary>Whether both views have the same length and equal elements.</summary>
    public static bool SequenceEqual<T>(this ReadOnlySpan<T> span, ReadOnlySpan<T> other)
        where T : struct, IEquatable<T>
    {
        if (span.Length != other.Length)
        {
            return false;
        }

        for (int i = 0; i < span.Length; i++)
        {
            if (!span[i].Equals(other[i]))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>Whether both views have the same length and equal elements.</summary>
    public static bool SequenceEqual<T>(this Span<T> span, ReadOnlySpan<T> other)
        where T : struct, IEquatable<T>
        => SequenceEqual((ReadOnlySpan<T>)span, other);

    /// <summary>Index of the first equal element, or -1.</summary>
    public static int IndexOf<T>(this ReadOnlySpan<T> span, T value)
        where T : struct, IEquatable<T>
    {
        for (int i = 0; i < span.Length; i++)
        {
            if (span[i].Equals(value))
            {
                return i;
            }
        }

        return -1;
    }

    public static bool Contains<T>(this ReadOnlySpan<T> span, T value)
        where T : struct, IEquatable<T>
        => IndexOf(span, value) >= 0;

    /// <summary>Whether an element is not equal to the value.</summary>
    public static bool ContainsAnyExcept<T>(this ReadOnlySpan<T> span, T value)
        where T : struct, IEquatable<T>
    {
        for (int i = 0; i < span.Length; i++)
        {
            if (!span[i].Equals(value))
            {
                return true;
            }
        }

        return false;
    }

    public static bool ContainsAnyExcept<T>(this Span<T> span, T value)
        where T : struct, IEquatable<T>
        => ContainsAnyExcept((ReadOnlySpan<T>)span, value);
}
