// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct UIntPtr : IEquatable<nuint>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly nuint _value;
#pragma warning restore CS0169

    public static nuint Zero => 0;

    public static int Size => 8;

    public bool Equals(nuint other) => this == other;
}
