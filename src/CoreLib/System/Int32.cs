// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct Int32 : IEquatable<int>, IComparable<int>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly int _value;
#pragma warning restore CS0169

    public const int MaxValue = 2147483647;
    public const int MinValue = -2147483648;

    public bool Equals(int other) => this == other;

    public int CompareTo(int other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
