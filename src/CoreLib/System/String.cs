// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>Known to the compiler, refused by the IL pass: text is UTF-8 literals in the core.</summary>
public sealed class String
{
#pragma warning disable CS0169, CS0649 // Laid out for the compiler.
    public readonly int Length;
    private readonly char _firstChar;
#pragma warning restore CS0169, CS0649
}
