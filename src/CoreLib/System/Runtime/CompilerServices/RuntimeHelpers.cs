// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

public static class RuntimeHelpers
{
    /// <summary>A view of constant data in the read-only section. The compiler supplies the body.</summary>
    [Intrinsic]
    public static ReadOnlySpan<T> CreateSpan<T>(RuntimeFieldHandle fldHandle) => default;

    [Intrinsic]
    public static bool IsReferenceOrContainsReferences<T>()
        where T : allows ref struct
        => IsReferenceOrContainsReferences<T>();
}
