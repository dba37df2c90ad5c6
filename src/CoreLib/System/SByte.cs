// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct SByte : IEquatable<sbyte>, IComparable<sbyte>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly sbyte _value;
#pragma warning restore CS0169

    public const sbyte MaxValue = 127;
    public const sbyte MinValue = -128;

    public bool Equals(sbyte other) => this == other;

    public int CompareTo(sbyte other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
