// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime;

/// <summary>Gives the method a plain symbol that C code can call, through the door, under the kernel's rules.</summary>
[AttributeUsage(AttributeTargets.Method)]
public sealed class RuntimeExportAttribute(string entryPoint) : Attribute
{
    public string EntryPoint => entryPoint;
}
