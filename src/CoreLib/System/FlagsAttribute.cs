// SPDX-License-Identifier: GPL-2.0-only
namespace System;

[AttributeUsage(AttributeTargets.Enum)]
public sealed class FlagsAttribute : Attribute;
