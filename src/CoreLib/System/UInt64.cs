// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct UInt64 : IEquatable<ulong>, IComparable<ulong>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly ulong _value;
#pragma warning restore CS0169

    public const ulong MaxValue = 0xffffffffffffffff;
    public const ulong MinValue = 0;

    public bool Equals(ulong other) => this == other;

    public int CompareTo(ulong other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
