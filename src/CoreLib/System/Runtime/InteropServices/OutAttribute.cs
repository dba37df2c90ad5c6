// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.InteropServices;

[AttributeUsage(AttributeTargets.Parameter)]
public sealed class OutAttribute : Attribute;
