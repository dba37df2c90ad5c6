// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>Known to the compiler for constant data; the core allocates no arrays.</summary>
public abstract class Array
{
#pragma warning disable CS0649 // Laid out for the compiler.
    private readonly int _length;
#pragma warning restore CS0649

    public int Length => _length;
}

/// <summary>The type the compiler derives its array types' interfaces from.</summary>
internal class Array<T> : Array;
