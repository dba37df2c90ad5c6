// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace SharpKvm.Client;

/// <summary>Three values in a row inside a structure of the kernel's.</summary>
[InlineArray(3)]
public struct Array3<T>
{
    T _first;
}

/// <summary>Four values in a row inside a structure of the kernel's.</summary>
[InlineArray(4)]
public struct Array4<T>
{
    T _first;
}

/// <summary>Eight values in a row inside a structure of the kernel's.</summary>
[InlineArray(8)]
public struct Array8<T>
{
    T _first;
}

/// <summary>Nine values in a row inside a structure of the kernel's.</summary>
[InlineArray(9)]
public struct Array9<T>
{
    T _first;
}

/// <summary>Fifteen values in a row inside a structure of the kernel's.</summary>
[InlineArray(15)]
public struct Array15<T>
{
    T _first;
}

/// <summary>Sixteen values in a row inside a structure of the kernel's.</summary>
[InlineArray(16)]
public struct Array16<T>
{
    T _first;
}

/// <summary>24 values in a row inside a structure of the kernel's.</summary>
[InlineArray(24)]
public struct Array24<T>
{
    T _first;
}

/// <summary>26 values in a row inside a structure of the kernel's.</summary>
[InlineArray(26)]
public struct Array26<T>
{
    T _first;
}

/// <summary>64 values in a row inside a structure of the kernel's.</summary>
[InlineArray(64)]
public struct Array64<T>
{
    T _first;
}

/// <summary>170 values in a row inside a structure of the kernel's.</summary>
[InlineArray(170)]
public struct Array170<T>
{
    T _first;
}

/// <summary>1024 values in a row inside a structure of the kernel's.</summary>
[InlineArray(1024)]
public struct Array1024<T>
{
    T _first;
}
