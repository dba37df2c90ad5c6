// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>Known to the compiler, refused by the IL pass: there is no reflection.</summary>
public abstract class Type
{
    /// <summary>Named by the C# compiler for <c>typeof</c>.</summary>
    public static Type GetTypeFromHandle(RuntimeTypeHandle handle) => null!;
}
