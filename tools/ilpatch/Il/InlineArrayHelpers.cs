// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;

namespace IlPatch.Il;

/// <summary>
/// Has the C# compiler's helpers for elements of inline arrays inlined. They come to a few instructions, but the one
/// for read-only arrays is just too long for the native compiler to do so by itself.
/// </summary>
internal static class InlineArrayHelpers
{
    public static void Run(IlAssembly assembly)
    {
        foreach (MethodDefinition method in assembly.MethodsWithBody)
        {
            if (method.Name.StartsWith("InlineArrayAs", StringComparison.Ordinal))
            {
                method.AggressiveInlining = true;
            }
        }
    }
}
