// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct IntPtr : IEquatable<nint>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly nint _value;
#pragma warning restore CS0169

    public static nint Zero => 0;

    public static int Size => 8;

    public bool Equals(nint other) => this == other;
}
