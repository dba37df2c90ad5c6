// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace System.Threading;

/// <summary>Atomic operations, each a full barrier. A method that calls itself is expanded by the compiler.</summary>
public static class Interlocked
{
    [Intrinsic]
    public static int CompareExchange(ref int location1, int value, int comparand)
        => CompareExchange(ref location1, value, comparand);

    [Intrinsic]
    public static int Exchange(ref int location1, int value) => Exchange(ref location1, value);

    [Intrinsic]
    private static int ExchangeAdd(ref int location1, int value) => ExchangeAdd(ref location1, value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Add(ref int location1, int value) => ExchangeAdd(ref location1, value) + value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Increment(ref int location) => Add(ref location, 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Decrement(ref int location) => Add(ref location, -1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int And(ref int location1, int value)
    {
        int current = location1;
        while (true)
        {
            int seen = CompareExchange(ref location1, current & value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Or(ref int location1, int value)
    {
        int current = location1;
        while (true)
        {
            int seen = CompareExchange(ref location1, current | value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [Intrinsic]
    public static uint CompareExchange(ref uint location1, uint value, uint comparand)
        => CompareExchange(ref location1, value, comparand);

    [Intrinsic]
    public static uint Exchange(ref uint location1, uint value) => Exchange(ref location1, value);

    [Intrinsic]
    private static uint ExchangeAdd(ref uint location1, uint value) => ExchangeAdd(ref location1, value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Add(ref uint location1, uint value) => ExchangeAdd(ref location1, value) + value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Increment(ref uint location) => Add(ref location, 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Decrement(ref uint location) => Add(ref location, uint.MaxValue);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint And(ref uint location1, uint value)
    {
        uint current = location1;
        while (true)
        {
            uint seen = CompareExchange(ref location1, current & value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Or(ref uint location1, uint value)
    {
        uint current = location1;
        while (true)
        {
            uint seen = CompareExchange(ref location1, current | value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [Intrinsic]
    public static long CompareExchange(ref long location1, long value, long comparand)
        => CompareExchange(ref location1, value, comparand);

    [Intrinsic]
    public static long Exchange(ref long location1, long value) => Exchange(ref location1, value);

    [Intrinsic]
    private static long ExchangeAdd(ref long location1, long value) => ExchangeAdd(ref location1, value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Add(ref long location1, long value) => ExchangeAdd(ref location1, value) + value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Increment(ref long location) => Add(ref location, 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Decrement(ref long location) => Add(ref location, -1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long And(ref long location1, long value)
    {
        long current = location1;
        while (true)
        {
            long seen = CompareExchange(ref location1, current & value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Or(ref long location1, long value)
    {
        long current = location1;
        while (true)
        {
            long seen = CompareExchange(ref location1, current | value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [Intrinsic]
    public static ulong CompareExchange(ref ulong location1, ulong value, ulong comparand)
        => CompareExchange(ref location1, value, comparand);

    [Intrinsic]
    public static ulong Exchange(ref ulong location1, ulong value) => Exchange(ref location1, value);

    [Intrinsic]
    private static ulong ExchangeAdd(ref ulong location1, ulong value) => ExchangeAdd(ref location1, value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Add(ref ulong location1, ulong value) => ExchangeAdd(ref location1, value) + value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Increment(ref ulong location) => Add(ref location, 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Decrement(ref ulong location) => Add(ref location, ulong.MaxValue);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong And(ref ulong location1, ulong value)
    {
        ulong current = location1;
        while (true)
        {
            ulong seen = CompareExchange(ref location1, current & value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Or(ref ulong location1, ulong value)
    {
        ulong current = location1;
        while (true)
        {
            ulong seen = CompareExchange(ref location1, current | value, current);
            if (seen == current)
            {
                return seen;
            }

            current = seen;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Read(ref readonly long location) => Volatile.Read(in location);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Read(ref readonly ulong location) => Volatile.Read(in location);

    [Intrinsic]
    public static void MemoryBarrier() => MemoryBarrier();
}
