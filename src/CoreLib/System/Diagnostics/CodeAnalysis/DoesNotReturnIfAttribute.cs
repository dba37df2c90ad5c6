// SPDX-License-Identifier: GPL-2.0-only
namespace System.Diagnostics.CodeAnalysis;

[AttributeUsage(AttributeTargets.Parameter)]
public sealed class DoesNotReturnIfAttribute(bool value) : Attribute
{
    public bool Value => value;
}
