// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct Byte : IEquatable<byte>, IComparable<byte>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly byte _value;
#pragma warning restore CS0169

    public const byte MaxValue = 0xff;
    public const byte MinValue = 0;

    public bool Equals(byte other) => this == other;

    public int CompareTo(byte other) => this < other ? -1 : this > other ? 1 : 0;

    public override int GetHashCode() => (int)this;
}
