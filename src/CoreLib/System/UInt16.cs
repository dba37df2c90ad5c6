// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct UInt16 : IEquatable<ushort>, IComparable<ushort>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly ushort _value;
#pragma warning restore CS0169

    public const ushort MaxValue = 0xffff;
    public const ushort MinValue = 0;

    public bool Equals(ushort other) => this == other;

    public int CompareTo(ushort other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
