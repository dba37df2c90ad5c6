// SPDX-License-Identifier: GPL-2.0-only
namespace System;

[AttributeUsage(AttributeTargets.Parameter)]
public sealed class ParamArrayAttribute : Attribute;
