// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime;

/// <summary>Binds an <c>extern</c> method to a C function: <c>[RuntimeImport("*", "name")]</c> with
/// <c>[MethodImpl(MethodImplOptions.InternalCall)]</c>.</summary>
[AttributeUsage(AttributeTargets.Method)]
public sealed class RuntimeImportAttribute(string dllName, string entryPoint) : Attribute
{
    public string DllName => dllName;

    public string EntryPoint => entryPoint;
}
