// SPDX-License-Identifier: GPL-2.0-only
using System;

namespace Kernel;

/// <summary>Binds a <c>static extern</c> method to a C function, of the shim or of the kernel. Parameters go as C takes
/// them: integers, pointers, <c>ref</c> as a pointer, a struct of one such field as that field.</summary>
[AttributeUsage(AttributeTargets.Method)]
public sealed class KernelImportAttribute(string function) : Attribute
{
    public string Function => function;
}
