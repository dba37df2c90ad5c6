// SPDX-License-Identifier: GPL-2.0-only
using System;

namespace Kernel;

/// <summary>
/// Puts a struct or an enum into <c>core.h</c>, which the build writes for C and assembler sources. A struct gets this
/// name, and each of its fields an offset by the same name; each value of an enum has it as its prefix.
/// </summary>
[AttributeUsage(AttributeTargets.Struct | AttributeTargets.Enum)]
public sealed class KernelHeaderAttribute(string name) : Attribute
{
    public string Name => name;
}
