// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>The root type. It exists for the compiler: the core allocates no objects.</summary>
public class Object
{
    // The compiler expects the method table pointer to be the first field.
#pragma warning disable CS0169 // Laid out for the compiler.
    private unsafe void* _methodTable;
#pragma warning restore CS0169

    public virtual bool Equals(object? other) => false;

    public virtual int GetHashCode() => 0;

    public virtual string? ToString() => null;
}
