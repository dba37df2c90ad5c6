// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>
/// Integer operations on operands of 1, 2, 4 or 8 bytes with their effect on RFLAGS. Operands come zero-extended,
/// results go out so. Flags that the manual leaves undefined get what current processors give where that is simple.
/// </summary>
internal static class Alu
{
    private const ulong Status = Rflags.Cf | Rflags.Pf | Rflags.Af | Rflags.Zf | Rflags.Sf | Rflags.Of;

    public static ulong Mask(int size) => ulong.MaxValue >> (64 - size * 8);

    public static ulong SignExtend(ulong value, int size)
    {
        int shift = 64 - size * 8;
        return (ulong)((long)(value << shift) >> shift);
    }

    private static bool Top(ulong value, int size) => (value >> (size * 8 - 1) & 1) != 0;

    private static void Put(ref ulong flags, ulong bit, bool on) => flags = on ? flags | bit : flags & ~bit;

    /// <summary>SF, ZF and PF by the result; CF, OF and AF as given.</summary>
    private static ulong Set(ref ulong flags, ulong result, int size, bool carry, bool overflow, bool adjust)
    {
        result &= Mask(size);
        flags &= ~Status;
        flags |= (carry ? Rflags.Cf : 0) | (overflow ? Rflags.Of : 0) | (adjust ? Rflags.Af : 0)
            | (result == 0 ? Rflags.Zf : 0) | (Top(result, size) ? Rflags.Sf : 0)
            | ((BitOperations.PopCount((uint)(byte)result) & 1) == 0 ? Rflags.Pf : 0);
        return result;
    }

    public static ulong Add(ulong a, ulong b, bool carry, int size, ref ulong flags)
    {
        ulong result = a + b + (carry ? 1UL : 0);
        ulong carries = (a & b) | ((a | b) & ~result);
        return Set(ref flags, result, size, Top(carries, size), Top((a ^ result) & (b ^ result), size),
            (carries & 8) != 0);
    }

    public static ulong Subtract(ulong a, ulong b, bool borrow, int size, ref ulong flags)
    {
        ulong result = a - b - (borrow ? 1UL : 0);
        ulong borrows = (~a & b) | ((~a | b) & result);
        return Set(ref flags, result, size, Top(borrows, size), Top((a ^ b) & (a ^ result), size), (borrows & 8) != 0);
    }

    public static ulong Logic(ulong result, int size, ref ulong flags) =>
        Set(ref flags, result, size, false, false, false);

    /// <summary>INC and DEC: CF stays.</summary>
    public static ulong Step(ulong a, bool up, int size, ref ulong flags)
    {
        ulong carry = flags & Rflags.Cf;
        ulong result = up ? Add(a, 1, false, size, ref flags) : Subtract(a, 1, false, size, ref flags);
        flags = (flags & ~Rflags.Cf) | carry;
        return result;
    }

    /// <summary>The two-operand operations Add … Test.</summary>
    public static ulong Binary(Op operation, ulong a, ulong b, int size, ref ulong flags)
    {
        bool carry = (flags & Rflags.Cf) != 0;
        return operation switch
        {
            Op.Add => Add(a, b, false, size, ref flags),
            Op.Or => Logic(a | b, size, ref flags),
            Op.Adc => Add(a, b, carry, size, ref flags),
            Op.Sbb => Subtract(a, b, carry, size, ref flags),
            Op.And or Op.Test => Logic(a & b, size, ref flags),
            Op.Xor => Logic(a ^ b, size, ref flags),
            _ => Subtract(a, b, false, size, ref flags),
        };
    }

    /// <summary>The shifts and rotates Rol … Sar by a count that is not masked yet.</summary>
    public static ulong Shift(Op operation, ulong value, int count, int size, ref ulong flags)
    {
        count &= size == 8 ? 63 : 31;
        if (count == 0)
            return value;
        int bits = size * 8;
        return operation switch
        {
            Op.Rol or Op.Ror => Rotate(operation == Op.Rol, value, count % bits, bits, size, ref flags),
            Op.Rcl or Op.Rcr => Rotate(operation == Op.Rcl, value, count % (bits + 1), bits + 1, size, ref flags),
            Op.Shl => ShiftLeft(value, count, size, ref flags),
            _ => ShiftRight(operation == Op.Sar, value, count, size, ref flags),
        };
    }

    private static ulong ShiftLeft(ulong value, int count, int size, ref ulong flags)
    {
        bool carry = count <= size * 8 && Top(value << (count - 1), size);
        ulong result = value << count;
        return Set(ref flags, result, size, carry, Top(result, size) != carry, false);
    }

    private static ulong ShiftRight(bool arithmetic, ulong value, int count, int size, ref ulong flags)
    {
        ulong before = arithmetic ? (ulong)((long)SignExtend(value, size) >> (count - 1)) : value >> (count - 1);
        ulong result = arithmetic ? (ulong)((long)before >> 1) : before >> 1;
        bool overflow = !arithmetic && Top(value, size);
        return Set(ref flags, result, size, (before & 1) != 0, overflow, false);
    }

    /// <summary>Rotates a ring of all bits, of which CF is one when it is longer than the operand.</summary>
    private static ulong Rotate(bool left, ulong value, int count, int ring, int size, ref ulong flags)
    {
        bool carry = (flags & Rflags.Cf) != 0, withCarry = ring > size * 8;
        for (int n = left ? count : ring - count; n > 0 && n < ring; n--)
        {
            bool top = Top(value, size);
            value = (value << 1 | ((withCarry ? carry : top) ? 1UL : 0)) & Mask(size);
            carry = top;
        }
        if (!withCarry)
            carry = left ? (value & 1) != 0 : Top(value, size);
        Put(ref flags, Rflags.Cf, carry);
        Put(ref flags, Rflags.Of, Top(value, size) != (left ? carry : Top(value << 1, size)));
        return value;
    }

    /// <summary>SHLD and SHRD.</summary>
    public static ulong DoubleShift(bool left, ulong value, ulong fill, int count, int size, ref ulong flags)
    {
        count &= size == 8 ? 63 : 31;
        int bits = size * 8;
        if (count == 0)
            return value;
        // Beyond the width (16 bits only) the result is undefined; the count wraps here.
        count = count > bits ? count - bits : count;
        ulong result = count == bits ? fill
            : left ? value << count | fill >> (bits - count) : value >> count | fill << (bits - count);
        bool carry = left ? Top(value << (count - 1), size) : (value >> (count - 1) & 1) != 0;
        return Set(ref flags, result, size, carry, Top(result ^ value, size), false);
    }

    /// <summary>Full product of two operands; CF and OF tell that the upper half carries information.</summary>
    public static ulong Multiply(ulong a, ulong b, int size, bool signed, out ulong high, ref ulong flags)
    {
        UInt128 product = signed
            ? (UInt128)((Int128)(long)SignExtend(a, size) * (long)SignExtend(b, size))
            : (UInt128)a * b;
        ulong low = (ulong)product & Mask(size);
        high = (ulong)(product >> (size * 8)) & Mask(size);
        bool carry = high != (signed && Top(low, size) ? Mask(size) : 0);
        Set(ref flags, low, size, carry, carry, false);
        return low;
    }

    /// <summary>Quotient and remainder of high:low by a divisor; false for a divide error.</summary>
    public static bool Divide(ulong high, ulong low, ulong divisor, int size, bool signed, out ulong quotient,
        out ulong remainder)
    {
        int bits = size * 8;
        ulong mask = Mask(size);
        bool negativeDividend = signed && Top(high, size);
        bool negative = negativeDividend != (signed && Top(divisor, size));
        UInt128 dividend = (UInt128)high << bits | low;
        if (negativeDividend)
            dividend = -dividend & (UInt128.MaxValue >> (128 - 2 * bits));
        if (negative != negativeDividend)
            divisor = (0 - divisor) & mask;
        quotient = remainder = 0;
        if (divisor == 0)
            return false;
        UInt128 magnitude = dividend / divisor;
        quotient = (ulong)(negative ? -magnitude : magnitude) & mask;
        remainder = (ulong)(dividend - magnitude * divisor);
        remainder = (negativeDividend ? 0 - remainder : remainder) & mask;
        return magnitude <= (signed ? (mask >> 1) + (negative ? 1UL : 0) : mask);
    }

    /// <summary>BSF, BSR, TZCNT and LZCNT. False: BSF or BSR of zero, which leaves the destination.</summary>
    public static bool Scan(bool forward, bool count, ulong value, int size, ref ulong flags, out ulong result)
    {
        bool zero = value == 0;
        int bits = size * 8;
        int leading = zero ? bits : BitOperations.LeadingZeroCount(value) - (64 - bits);
        int trailing = zero ? bits : BitOperations.TrailingZeroCount(value);
        result = (ulong)(forward ? trailing : count ? leading : bits - 1 - leading);
        Put(ref flags, Rflags.Zf, count ? result == 0 : zero);
        if (count)
            Put(ref flags, Rflags.Cf, zero);
        return count || !zero;
    }

    public static ulong PopCount(ulong value, ref ulong flags)
    {
        flags = (flags & ~Status) | (value == 0 ? Rflags.Zf : 0);
        return (ulong)BitOperations.PopCount(value);
    }

    /// <summary>Condition 0-15 of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).</summary>
    public static bool Condition(int code, ulong flags)
    {
        ReadOnlySpan<ulong> tested =
            [Rflags.Of, Rflags.Cf, Rflags.Zf, Rflags.Cf | Rflags.Zf, Rflags.Sf, Rflags.Pf, 0, Rflags.Zf];
        bool less = code >= 12 && (flags & Rflags.Sf) == 0 != ((flags & Rflags.Of) == 0);
        return (less || (flags & tested[code >> 1 & 7]) != 0) != ((code & 1) != 0);
    }
}
