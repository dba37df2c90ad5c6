// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

[AttributeUsage(AttributeTargets.All)]
public sealed class IntrinsicAttribute : Attribute;
