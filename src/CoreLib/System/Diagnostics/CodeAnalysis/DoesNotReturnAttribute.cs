// SPDX-License-Identifier: GPL-2.0-only
namespace System.Diagnostics.CodeAnalysis;

[AttributeUsage(AttributeTargets.All)]
public sealed class DoesNotReturnAttribute : Attribute;
