// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime;
using System.Runtime.CompilerServices;
using Kernel;

namespace Traps;

internal struct Node
{
    public ulong Value;
    public ulong Other;
}

/// <summary>Each method can fail in one way; main.c says with which arguments, and what must come of it.</summary>
internal static unsafe class Failing
{
    [RuntimeExport("trap_read")]
    private static ulong Read(ulong* pointer) => *pointer;

    [RuntimeExport("trap_write")]
    private static ulong Write(byte* pointer)
    {
        *pointer = 1;
        return 0;
    }

    [RuntimeExport("trap_field")]
    private static ulong Field(Node* node) => Take(ref *node);

    [RuntimeExport("trap_indexed")]
    private static ulong Indexed(byte* pointer, long index) => pointer[index];

    [RuntimeExport("trap_atomic")]
    private static ulong Atomic(ulong* pointer) => Interlocked.Add(ref *pointer, 1);

    [RuntimeExport("trap_struct")]
    private static ulong CopyStruct(Node* to, Node* from)
    {
        *to = *from;
        return 0;
    }

    [RuntimeExport("trap_move")]
    private static ulong Move(byte* to, byte* from, int length)
    {
        new ReadOnlySpan<byte>(from, length).CopyTo(new Span<byte>(to, length));
        return 0;
    }

    [RuntimeExport("trap_clear")]
    private static ulong Clear(byte* to, int length)
    {
        new Span<byte>(to, length).Clear();
        return 0;
    }

    [RuntimeExport("trap_index")]
    private static ulong Index(byte* data, int length, int index) => new Span<byte>(data, length)[index];

    [RuntimeExport("trap_slice")]
    private static ulong Slice(byte* data, int length, int start)
        => (ulong)new Span<byte>(data, length).Slice(start).Length;

    [RuntimeExport("trap_overflow")]
    private static long Overflow(long left, long right) => checked(left * right);

    [RuntimeExport("trap_divide")]
    private static long Divide(long left, long right) => left / right;

    [RuntimeExport("trap_xgetbv")]
    private static ulong ReadControl(uint index) => X86.Xgetbv(index);

    [RuntimeExport("trap_switch")]
    private static ulong Switch(int value) => value switch
    {
        0 => 10,
        1 => 20,
    };

    /// <summary>Fails a few frames down, with every callee-saved register in use.</summary>
    [RuntimeExport("trap_deep")]
    private static ulong Deep(ulong depth, ulong* pointer)
    {
        ulong a = depth * 3, b = depth ^ 5, c = depth + 7, d = depth << 2;
        ulong below = depth == 0 ? *pointer : Deep(depth - 1, pointer);
        return below + a + (b * c) + d;
    }

    /// <summary>C says nothing of the upper bits of a small result.</summary>
    [RuntimeExport("trap_small")]
    private static long Small(long value)
        => SmallBool(value) ? 1 : SmallByte(value) + ((long)SmallShort(value) << 16) + (ViaTail(value) << 40);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static long ViaTail(long value) => Tail(value) ? 1 : 0;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool Tail(long value) => SmallBool(value);

    [KernelImport("traps_small")]
    private static extern bool SmallBool(long value);

    [KernelImport("traps_small")]
    private static extern byte SmallByte(long value);

    [KernelImport("traps_small_short")]
    private static extern short SmallShort(long value);

    /// <summary>Calls back into C, which enters again; the inner trap must not end the outer call.</summary>
    [RuntimeExport("trap_nested")]
    private static long Nested(long value)
    {
        long seen = EnterAgain(value);
        return seen + 1;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static ulong Take(ref Node node) => node.Other;

    [KernelImport("traps_enter_again")]
    private static extern long EnterAgain(long value);
}
