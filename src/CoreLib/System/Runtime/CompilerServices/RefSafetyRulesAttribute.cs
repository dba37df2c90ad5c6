// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

[AttributeUsage(AttributeTargets.Module)]
public sealed class RefSafetyRulesAttribute(int version) : Attribute
{
    public int Version => version;
}
