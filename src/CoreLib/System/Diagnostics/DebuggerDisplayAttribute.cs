// SPDX-License-Identifier: GPL-2.0-only
namespace System.Diagnostics;

[AttributeUsage(AttributeTargets.All)]
public sealed class DebuggerDisplayAttribute(string? value) : Attribute
{
    public string? Value => value;
}
