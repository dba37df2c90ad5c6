// SPDX-License-Identifier: GPL-2.0-only
using Kernel;

namespace System;

public static class Math
{
    public static sbyte Min(sbyte val1, sbyte val2) => val1 <= val2 ? val1 : val2;

    public static sbyte Max(sbyte val1, sbyte val2) => val1 >= val2 ? val1 : val2;

    public static sbyte Clamp(sbyte value, sbyte min, sbyte max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static byte Min(byte val1, byte val2) => val1 <= val2 ? val1 : val2;

    public static byte Max(byte val1, byte val2) => val1 >= val2 ? val1 : val2;

    public static byte Clamp(byte value, byte min, byte max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static short Min(short val1, short val2) => val1 <= val2 ? val1 : val2;

    public static short Max(short val1, short val2) => val1 >= val2 ? val1 : val2;

    public static short Clamp(short value, short min, short max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static ushort Min(ushort val1, ushort val2) => val1 <= val2 ? val1 : val2;

    public static ushort Max(ushort val1, ushort val2) => val1 >= val2 ? val1 : val2;

    public static ushort Clamp(ushort value, ushort min, ushort max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static int Min(int val1, int val2) => val1 <= val2 ? val1 : val2;

    public static int Max(int val1, int val2) => val1 >= val2 ? val1 : val2;

    public static int Clamp(int value, int min, int max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static uint Min(uint val1, uint val2) => val1 <= val2 ? val1 : val2;

    public static uint Max(uint val1, uint val2) => val1 >= val2 ? val1 : val2;

    public static uint Clamp(uint value, uint min, uint max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static long Min(long val1, long val2) => val1 <= val2 ? val1 : val2;

    public static long Max(long val1, long val2) => val1 >= val2 ? val1 : val2;

    public static long Clamp(long value, long min, long max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static ulong Min(ulong val1, ulong val2) => val1 <= val2 ? val1 : val2;

    public static ulong Max(ulong val1, ulong val2) => val1 >= val2 ? val1 : val2;

    public static ulong Clamp(ulong value, ulong min, ulong max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static nint Min(nint val1, nint val2) => val1 <= val2 ? val1 : val2;

    public static nint Max(nint val1, nint val2) => val1 >= val2 ? val1 : val2;

    public static nint Clamp(nint value, nint min, nint max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static nuint Min(nuint val1, nuint val2) => val1 <= val2 ? val1 : val2;

    public static nuint Max(nuint val1, nuint val2) => val1 >= val2 ? val1 : val2;

    public static nuint Clamp(nuint value, nuint min, nuint max)
    {
        if (min > max)
        {
            ThrowHelper.Argument();
        }

        return value < min ? min : value > max ? max : value;
    }

    public static sbyte Abs(sbyte value) => value >= 0 ? value : checked((sbyte)-value);

    public static int Sign(sbyte value) => value < 0 ? -1 : value > 0 ? 1 : 0;

    public static short Abs(short value) => value >= 0 ? value : checked((short)-value);

    public static int Sign(short value) => value < 0 ? -1 : value > 0 ? 1 : 0;

    public static int Abs(int value) => value >= 0 ? value : checked((int)-value);

    public static int Sign(int value) => value < 0 ? -1 : value > 0 ? 1 : 0;

    public static long Abs(long value) => value >= 0 ? value : checked((long)-value);

    public static int Sign(long value) => value < 0 ? -1 : value > 0 ? 1 : 0;

    public static (int Quotient, int Remainder) DivRem(int left, int right)
    {
        int quotient = left / right;
        return (quotient, left - (quotient * right));
    }

    public static (uint Quotient, uint Remainder) DivRem(uint left, uint right)
    {
        uint quotient = left / right;
        return (quotient, left - (quotient * right));
    }

    public static (long Quotient, long Remainder) DivRem(long left, long right)
    {
        long quotient = left / right;
        return (quotient, left - (quotient * right));
    }

    public static (ulong Quotient, ulong Remainder) DivRem(ulong left, ulong right)
    {
        ulong quotient = left / right;
        return (quotient, left - (quotient * right));
    }

    public static long BigMul(int a, int b) => (long)a * b;

    public static ulong BigMul(uint a, uint b) => (ulong)a * b;

    /// <summary>The full product: <paramref name="low"/> 64 bits, and the high ones as the result.</summary>
    public static ulong BigMul(ulong a, ulong b, out ulong low)
    {
        low = a * b;
        return X86.MultiplyHigh(a, b);
    }

    /// <summary>The full signed product: <paramref name="low"/> 64 bits, and the high ones as the result.</summary>
    public static long BigMul(long a, long b, out long low)
    {
        low = a * b;
        return (long)X86.MultiplyHigh((ulong)a, (ulong)b) - ((a >> 63) & b) - ((b >> 63) & a);
    }
}
