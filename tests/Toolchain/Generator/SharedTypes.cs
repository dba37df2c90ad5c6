// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain.Generator;

/// <summary>Types that the random functions use: what the core is made of.</summary>
internal static class SharedTypes
{
    public const string Text = """
        internal struct S2 { public byte A; public ushort B; }

        internal struct S16 { public ulong A; public ulong B; }

        // No padding: its bytes are nobody's, and the test hashes memory.
        internal struct S24
        {
            public uint A;
            public uint E;
            public ulong B;
            public byte C;
            public byte F;
            public ushort D;
            public uint G;
        }

        internal struct S40 { public S24 Inner; public S16 Outer; }

        internal struct S200 { public S40 X; public S40 Y; public S40 Z; public S40 W; public S40 V; }

        [InlineArray(12)]
        internal struct Words { private ulong _first; }

        [InlineArray(33)]
        internal struct Bytes { private byte _first; }

        [StructLayout(LayoutKind.Explicit, Size = 16)]
        internal struct Overlay
        {
            [FieldOffset(0)] public ulong Whole;
            [FieldOffset(0)] public uint Low;
            [FieldOffset(4)] public uint High;
            [FieldOffset(6)] public ushort Top;
            [FieldOffset(8)] public S2 Small;
        }

        internal enum Color : byte { Red, Green = 3, Blue = 7 }

        internal readonly struct Gpa(ulong value)
        {
            public readonly ulong Value = value;

            public Gpa Page => new(Value & ~4095UL);

            public static Gpa operator +(Gpa left, ulong right) => new(left.Value + right);
        }

        internal interface IOperation
        {
            static abstract ulong Do(ulong left, ulong right);
            static abstract int Width { get; }
        }

        internal struct AddOperation : IOperation
        {
            public static ulong Do(ulong left, ulong right) => left + right;
            public static int Width => 8;
        }

        internal struct MixOperation : IOperation
        {
            public static ulong Do(ulong left, ulong right) => BitOperations.RotateLeft(left, (int)right & 63) ^ right;
            public static int Width => 3;
        }

        internal struct CheckedOperation : IOperation
        {
            public static ulong Do(ulong left, ulong right) => checked((left & 0xffffffff) * (right & 0xffffffff) - 1);
            public static int Width => 5;
        }

        internal interface ICounter { void Step(ulong by); ulong Total { get; } }

        internal struct Counter : ICounter
        {
            private ulong _total;

            public void Step(ulong by) => _total = (_total * 31) + by;

            public ulong Total => _total;
        }

        internal ref struct Cursor(Span<byte> data)
        {
            private readonly Span<byte> _data = data;
            private int _at;

            public byte Next() => _data[_at++];

            public bool AtEnd => _at == _data.Length;

            public ulong Sum()
            {
                ulong sum = 0;
                while (!AtEnd)
                {
                    sum = (sum << 1) + Next();
                }

                return sum;
            }
        }

        internal static class Data
        {
            public static ReadOnlySpan<byte> Table8 => [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3];

            public static ReadOnlySpan<ushort> Table16 => [0x101, 0x2003, 0x7fff, 0xffff, 0x8000, 12, 77];

            public static ReadOnlySpan<uint> Table32 => [1, 0x8000_0000, 0xdead_beef, 42, 7];

            public static ReadOnlySpan<ulong> Table64 => [0, ulong.MaxValue, 0x0123_4567_89ab_cdef];

            public static ReadOnlySpan<byte> Text => "the quick brown fox"u8;

            public static ulong K(ulong value) => value;

            public static ulong Fold<T>(ulong a, ulong b) where T : struct, IOperation
            {
                ulong result = b;
                for (int i = 0; i < T.Width; i++)
                {
                    result = T.Do(a + (ulong)i, result);
                }

                return result;
            }

            public static ulong Drive<T>(ref T counter, ulong a, int steps) where T : struct, ICounter
            {
                for (int i = 0; i < steps; i++)
                {
                    counter.Step(a ^ (ulong)i);
                }

                return counter.Total;
            }

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static S40 Make40(ulong a, ulong b)
                => new()
                {
                    Inner = new S24 { A = (uint)a, B = b, C = (byte)(a >> 8), D = (ushort)b },
                    Outer = new S16 { A = b, B = a },
                };

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static S16 Make16(ulong a, ulong b) => new() { A = a ^ b, B = a + b };

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static S200 Make200(ulong a, ulong b)
            {
                S200 result = default;
                result.X = Make40(a, b);
                result.Z = result.X;
                result.V = Make40(b, a);
                return result;
            }

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static ulong Take40(S40 value)
                => value.Inner.A + value.Inner.B + value.Inner.C + value.Inner.D + value.Outer.A - value.Outer.B;

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static ulong Take24(in S24 value, S16 by, ulong last)
                => value.A ^ value.B ^ value.C ^ value.D ^ by.A ^ (by.B * last);

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static ulong Many(ulong a, ulong b, ulong c, uint d, byte e, ulong f, ulong g, S16 h, ulong i)
                => a - b + (c * d) + e + (f ^ g) + h.A + h.B - i;

            public static ulong Hash(S200 value) => Hash(MemoryMarshal.AsBytes(MemoryMarshal.CreateSpan(ref value, 1)));

            public static ulong Hash(ReadOnlySpan<byte> data)
            {
                ulong hash = 14695981039346656037;
                foreach (byte b in data)
                {
                    hash = (hash ^ b) * 1099511628211;
                }

                return hash;
            }

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static ref ulong Pick(ref S16 value, bool second) => ref second ? ref value.B : ref value.A;

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static (ulong Low, uint High) Split(ulong value) => (value & 0xffff, (uint)(value >> 32));

            [MethodImpl(MethodImplOptions.NoInlining)]
            public static ulong? Maybe(ulong value) => (value & 1) == 0 ? value >> 1 : null;
        }
        """;
}
