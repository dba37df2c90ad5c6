// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Threading;

namespace Kernel;

/// <summary>
/// A set of small numbers as bits of words, which anyone may change at any time without a lock. A number that the words
/// have no place for traps.
/// </summary>
internal static class AtomicBits
{
    /// <summary>A number's word is the number by 64; the shift of a bit into place takes what is left of it.</summary>
    private const int WordShift = 6;

    /// <summary>Puts a number in. False: it was there. A full barrier in either case.</summary>
    public static bool TryAdd(Span<ulong> bits, int number)
    {
        ulong bit = 1ul << number;
        return (Interlocked.Or(ref bits[number >> WordShift], bit) & bit) == 0;
    }

    public static void Remove(Span<ulong> bits, int number) =>
        Interlocked.And(ref bits[number >> WordShift], ~(1ul << number));

    /// <summary>Puts in the lowest number of [first, end) that is not there: which it was, or -1 for none.</summary>
    public static int AddFirst(Span<ulong> bits, int first, int end)
    {
        for (int number = first; number < end; number++)
        {
            bool isThere = (Volatile.Read(ref bits[number >> WordShift]) >> number & 1) != 0;
            if (!isThere && TryAdd(bits, number))
                return number;
        }
        return -1;
    }
}
