// SPDX-License-Identifier: GPL-2.0-only
namespace System;

public struct RuntimeTypeHandle
{
#pragma warning disable CS0169 // Laid out for the compiler, never read.
    private nint _value;
#pragma warning restore CS0169
}
