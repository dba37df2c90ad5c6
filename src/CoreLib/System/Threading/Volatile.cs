// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace System.Threading;

/// <summary>Loads with acquire and stores with release order.</summary>
public static class Volatile
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read(ref readonly bool location) => As<bool, BooleanCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref bool location, bool value) => As<bool, BooleanCell>(in location).Value = value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte Read(ref readonly byte location) => As<byte, ByteCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref byte location, byte value) => As<byte, ByteCell>(in location).Value = value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static sbyte Read(ref readonly sbyte location) => (sbyte)As<sbyte, ByteCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref sbyte location, sbyte value) => As<sbyte, ByteCell>(in location).Value = (byte)value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ushort Read(ref readonly ushort location) => As<ushort, UInt16Cell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref ushort location, ushort value) => As<ushort, UInt16Cell>(in location).Value = value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static short Read(ref readonly short location) => (short)As<short, UInt16Cell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref short location, short value)
        => As<short, UInt16Cell>(in location).Value = (ushort)value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Read(ref readonly uint location) => As<uint, UInt32Cell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref uint location, uint value) => As<uint, UInt32Cell>(in location).Value = value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Read(ref readonly int location) => (int)As<int, UInt32Cell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref int location, int value) => As<int, UInt32Cell>(in location).Value = (uint)value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static nuint Read(ref readonly nuint location) => As<nuint, UIntPtrCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref nuint location, nuint value) => As<nuint, UIntPtrCell>(in location).Value = value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static nint Read(ref readonly nint location) => (nint)As<nint, UIntPtrCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref nint location, nint value) => As<nint, UIntPtrCell>(in location).Value = (nuint)value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Read(ref readonly ulong location) => (ulong)As<ulong, UIntPtrCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref ulong location, ulong value)
        => As<ulong, UIntPtrCell>(in location).Value = (nuint)value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static long Read(ref readonly long location) => (long)As<long, UIntPtrCell>(in location).Value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Write(ref long location, long value) => As<long, UIntPtrCell>(in location).Value = (nuint)value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ref TCell As<T, TCell>(scoped ref readonly T location)
        where T : struct
        where TCell : struct
        => ref Unsafe.As<T, TCell>(ref Unsafe.AsRef(in location));

    private struct BooleanCell
    {
        public volatile bool Value;
    }

    private struct ByteCell
    {
        public volatile byte Value;
    }

    private struct UInt16Cell
    {
        public volatile ushort Value;
    }

    private struct UInt32Cell
    {
        public volatile uint Value;
    }

    private struct UIntPtrCell
    {
        public volatile nuint Value;
    }
}
