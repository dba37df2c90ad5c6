// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace System;

/// <summary>An unsigned 128-bit integer. Arithmetic wraps around.</summary>
public readonly struct UInt128 : IEquatable<UInt128>, IComparable<UInt128>
{
    // The order is the ABI's.
    private readonly ulong _lower;
    private readonly ulong _upper;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public UInt128(ulong upper, ulong lower)
    {
        _lower = lower;
        _upper = upper;
    }

    public static UInt128 Zero => default;

    public static UInt128 One => new(0, 1);

    public static UInt128 MinValue => new(0, 0);

    public static UInt128 MaxValue => new(ulong.MaxValue, ulong.MaxValue);

    public static UInt128 operator +(UInt128 left, UInt128 right)
    {
        ulong lower = left._lower + right._lower;
        return new(left._upper + right._upper + (lower < left._lower ? 1UL : 0), lower);
    }

    public static UInt128 operator -(UInt128 left, UInt128 right)
        => new(left._upper - right._upper - (left._lower < right._lower ? 1UL : 0), left._lower - right._lower);

    public static UInt128 operator -(UInt128 value) => Zero - value;

    public static UInt128 operator *(UInt128 left, UInt128 right)
    {
        ulong upper = Math.BigMul(left._lower, right._lower, out ulong lower);
        return new(upper + (left._upper * right._lower) + (left._lower * right._upper), lower);
    }

    public static UInt128 operator /(UInt128 left, UInt128 right) => Divide(left, right, out _);

    public static UInt128 operator %(UInt128 left, UInt128 right)
    {
        Divide(left, right, out UInt128 remainder);
        return remainder;
    }

    /// <summary>Shift and subtract; two 64-bit values are divided by the processor.</summary>
    private static UInt128 Divide(UInt128 left, UInt128 right, out UInt128 remainder)
    {
        if ((left._upper | right._upper) == 0)
        {
            remainder = left._lower % right._lower;
            return left._lower / right._lower;
        }

        if ((right._upper | right._lower) == 0)
        {
            ThrowHelper.DivideByZero();
        }

        UInt128 quotient = default;
        remainder = default;
        for (int bit = 127; bit >= 0; bit--)
        {
            bool isCarried = (long)remainder._upper < 0;
            remainder = (remainder << 1) | ((left >> bit) & One);
            quotient <<= 1;
            if (isCarried || remainder >= right)
            {
                remainder -= right;
                quotient |= One;
            }
        }

        return quotient;
    }

    public static UInt128 operator ++(UInt128 value) => value + One;

    public static UInt128 operator --(UInt128 value) => value - One;

    public static UInt128 operator &(UInt128 left, UInt128 right)
        => new(left._upper & right._upper, left._lower & right._lower);

    public static UInt128 operator |(UInt128 left, UInt128 right)
        => new(left._upper | right._upper, left._lower | right._lower);

    public static UInt128 operator ^(UInt128 left, UInt128 right)
        => new(left._upper ^ right._upper, left._lower ^ right._lower);

    public static UInt128 operator ~(UInt128 value) => new(~value._upper, ~value._lower);

    public static UInt128 operator <<(UInt128 value, int shiftAmount)
    {
        int shift = shiftAmount & 127;
        return shift == 0 ? value
            : shift < 64 ? new((value._upper << shift) | (value._lower >> (64 - shift)), value._lower << shift)
            : new(value._lower << (shift - 64), 0);
    }

    public static UInt128 operator >>(UInt128 value, int shiftAmount)
    {
        int shift = shiftAmount & 127;
        return shift == 0 ? value
            : shift < 64 ? new(value._upper >> shift, (value._lower >> shift) | (value._upper << (64 - shift)))
            : new(0, value._upper >> (shift - 64));
    }

    public static UInt128 operator >>>(UInt128 value, int shiftAmount) => value >> shiftAmount;

    public static bool operator ==(UInt128 left, UInt128 right)
        => left._lower == right._lower && left._upper == right._upper;

    public static bool operator !=(UInt128 left, UInt128 right) => !(left == right);

    public static bool operator <(UInt128 left, UInt128 right)
        => left._upper == right._upper ? left._lower < right._lower : left._upper < right._upper;

    public static bool operator >(UInt128 left, UInt128 right) => right < left;

    public static bool operator <=(UInt128 left, UInt128 right) => !(right < left);

    public static bool operator >=(UInt128 left, UInt128 right) => !(left < right);

    public static implicit operator UInt128(byte value) => new(0, value);

    public static implicit operator UInt128(ushort value) => new(0, value);

    public static implicit operator UInt128(uint value) => new(0, value);

    public static implicit operator UInt128(ulong value) => new(0, value);

    public static implicit operator UInt128(nuint value) => new(0, value);

    public static implicit operator UInt128(char value) => new(0, value);

    public static explicit operator UInt128(sbyte value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static explicit operator UInt128(short value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static explicit operator UInt128(int value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static explicit operator UInt128(long value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static explicit operator UInt128(nint value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static explicit operator Int128(UInt128 value) => new(value._upper, value._lower);

    public static explicit operator sbyte(UInt128 value) => unchecked((sbyte)value._lower);

    public static explicit operator byte(UInt128 value) => unchecked((byte)value._lower);

    public static explicit operator short(UInt128 value) => unchecked((short)value._lower);

    public static explicit operator ushort(UInt128 value) => unchecked((ushort)value._lower);

    public static explicit operator int(UInt128 value) => unchecked((int)value._lower);

    public static explicit operator uint(UInt128 value) => unchecked((uint)value._lower);

    public static explicit operator long(UInt128 value) => unchecked((long)value._lower);

    public static explicit operator ulong(UInt128 value) => unchecked((ulong)value._lower);

    public static explicit operator nint(UInt128 value) => unchecked((nint)value._lower);

    public static explicit operator nuint(UInt128 value) => unchecked((nuint)value._lower);

    public static explicit operator char(UInt128 value) => unchecked((char)value._lower);

    public bool Equals(UInt128 other) => this == other;

    public int CompareTo(UInt128 other) => this < other ? -1 : this > other ? 1 : 0;

    public override bool Equals(object? other) => false;

    public override int GetHashCode() => (int)_lower;
}
