// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct Int16 : IEquatable<short>, IComparable<short>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly short _value;
#pragma warning restore CS0169

    public const short MaxValue = 32767;
    public const short MinValue = -32768;

    public bool Equals(short other) => this == other;

    public int CompareTo(short other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
