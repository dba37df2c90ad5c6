// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct Int64 : IEquatable<long>, IComparable<long>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly long _value;
#pragma warning restore CS0169

    public const long MaxValue = 0x7fffffffffffffff;
    public const long MinValue = -0x7fffffffffffffff - 1;

    public bool Equals(long other) => this == other;

    public int CompareTo(long other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
