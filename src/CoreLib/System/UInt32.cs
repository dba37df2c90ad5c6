// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct UInt32 : IEquatable<uint>, IComparable<uint>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly uint _value;
#pragma warning restore CS0169

    public const uint MaxValue = 0xffffffff;
    public const uint MinValue = 0;

    public bool Equals(uint other) => this == other;

    public int CompareTo(uint other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
