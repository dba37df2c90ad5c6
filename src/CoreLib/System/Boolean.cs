// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public readonly struct Boolean : IEquatable<bool>
{
#pragma warning disable CS0169 // The compiler gives the primitive its one field of its own type.
    private readonly bool _value;
#pragma warning restore CS0169

    public bool Equals(bool other) => this == other;
}
