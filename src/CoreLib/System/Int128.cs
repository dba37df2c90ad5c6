// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace System;

/// <summary>A signed 128-bit integer. Arithmetic wraps around.</summary>
public readonly struct Int128 : IEquatable<Int128>, IComparable<Int128>
{
    // The order is the ABI's.
    private readonly ulong _lower;
    private readonly ulong _upper;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Int128(ulong upper, ulong lower)
    {
        _lower = lower;
        _upper = upper;
    }

    public static Int128 Zero => default;

    public static Int128 One => new(0, 1);

    public static Int128 MinValue => new(0x8000_0000_0000_0000, 0);

    public static Int128 MaxValue => new(0x7fff_ffff_ffff_ffff, ulong.MaxValue);

    public static Int128 operator +(Int128 left, Int128 right)
    {
        ulong lower = left._lower + right._lower;
        return new(left._upper + right._upper + (lower < left._lower ? 1UL : 0), lower);
    }

    public static Int128 operator -(Int128 left, Int128 right)
        => new(left._upper - right._upper - (left._lower < right._lower ? 1UL : 0), left._lower - right._lower);

    public static Int128 operator -(Int128 value) => Zero - value;

    public static Int128 operator *(Int128 left, Int128 right)
    {
        ulong upper = Math.BigMul(left._lower, right._lower, out ulong lower);
        return new(upper + (left._upper * right._lower) + (left._lower * right._upper), lower);
    }

    public static Int128 operator /(Int128 left, Int128 right)
    {
        UInt128 quotient = Magnitude(left) / Magnitude(right);
        return (long)(left._upper ^ right._upper) < 0 ? -(Int128)quotient : (Int128)quotient;
    }

    public static Int128 operator %(Int128 left, Int128 right)
    {
        UInt128 remainder = Magnitude(left) % Magnitude(right);
        return IsNegative(left) ? -(Int128)remainder : (Int128)remainder;
    }

    public static bool IsNegative(Int128 value) => (long)value._upper < 0;

    public static Int128 Abs(Int128 value) => IsNegative(value) ? -value : value;

    private static UInt128 Magnitude(Int128 value) => (UInt128)Abs(value);

    public static Int128 operator ++(Int128 value) => value + One;

    public static Int128 operator --(Int128 value) => value - One;

    public static Int128 operator &(Int128 left, Int128 right)
        => new(left._upper & right._upper, left._lower & right._lower);

    public static Int128 operator |(Int128 left, Int128 right)
        => new(left._upper | right._upper, left._lower | right._lower);

    public static Int128 operator ^(Int128 left, Int128 right)
        => new(left._upper ^ right._upper, left._lower ^ right._lower);

    public static Int128 operator ~(Int128 value) => new(~value._upper, ~value._lower);

    public static Int128 operator <<(Int128 value, int shiftAmount)
    {
        int shift = shiftAmount & 127;
        return shift == 0 ? value
            : shift < 64 ? new((value._upper << shift) | (value._lower >> (64 - shift)), value._lower << shift)
            : new(value._lower << (shift - 64), 0);
    }

    public static Int128 operator >>(Int128 value, int shiftAmount)
    {
        int shift = shiftAmount & 127;
        ulong sign = (ulong)((long)value._upper >> 63);
        return shift == 0 ? value
            : shift < 64
                ? new((ulong)((long)value._upper >> shift), (value._lower >> shift) | (value._upper << (64 - shift)))
            : new(sign, (ulong)((long)value._upper >> (shift - 64)));
    }

    public static Int128 operator >>>(Int128 value, int shiftAmount) => (Int128)((UInt128)value >> shiftAmount);

    public static bool operator ==(Int128 left, Int128 right)
        => left._lower == right._lower && left._upper == right._upper;

    public static bool operator !=(Int128 left, Int128 right) => !(left == right);

    public static bool operator <(Int128 left, Int128 right)
        => left._upper == right._upper ? left._lower < right._lower : (long)left._upper < (long)right._upper;

    public static bool operator >(Int128 left, Int128 right) => right < left;

    public static bool operator <=(Int128 left, Int128 right) => !(right < left);

    public static bool operator >=(Int128 left, Int128 right) => !(left < right);

    public static implicit operator Int128(sbyte value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static implicit operator Int128(short value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static implicit operator Int128(int value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static implicit operator Int128(long value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static implicit operator Int128(nint value) => new((ulong)((long)value >> 63), (ulong)(long)value);

    public static implicit operator Int128(byte value) => new(0, value);

    public static implicit operator Int128(ushort value) => new(0, value);

    public static implicit operator Int128(uint value) => new(0, value);

    public static implicit operator Int128(ulong value) => new(0, value);

    public static implicit operator Int128(nuint value) => new(0, value);

    public static implicit operator Int128(char value) => new(0, value);

    public static explicit operator UInt128(Int128 value) => new(value._upper, value._lower);

    public static explicit operator sbyte(Int128 value) => unchecked((sbyte)value._lower);

    public static explicit operator byte(Int128 value) => unchecked((byte)value._lower);

    public static explicit operator short(Int128 value) => unchecked((short)value._lower);

    public static explicit operator ushort(Int128 value) => unchecked((ushort)value._lower);

    public static explicit operator int(Int128 value) => unchecked((int)value._lower);

    public static explicit operator uint(Int128 value) => unchecked((uint)value._lower);

    public static explicit operator long(Int128 value) => unchecked((long)value._lower);

    public static explicit operator ulong(Int128 value) => unchecked((ulong)value._lower);

    public static explicit operator nint(Int128 value) => unchecked((nint)value._lower);

    public static explicit operator nuint(Int128 value) => unchecked((nuint)value._lower);

    public static explicit operator char(Int128 value) => unchecked((char)value._lower);

    public bool Equals(Int128 other) => this == other;

    public int CompareTo(Int128 other) => this < other ? -1 : this > other ? 1 : 0;

    public override bool Equals(object? other) => false;

    public override int GetHashCode() => (int)_lower;
}
