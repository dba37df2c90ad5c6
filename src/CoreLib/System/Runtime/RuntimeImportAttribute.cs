// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime;

/// <summary>What <c>ilpatch il</c> makes of <see cref="Kernel.KernelImportAttribute"/>: the form that the native
/// compiler knows.</summary>
[AttributeUsage(AttributeTargets.Method)]
internal sealed class RuntimeImportAttribute(string dllName, string entryPoint) : Attribute
{
    public string DllName => dllName;

    public string EntryPoint => entryPoint;
}
