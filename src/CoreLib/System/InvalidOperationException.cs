// SPDX-License-Identifier: GPL-2.0-only
namespace System;

/// <summary>Thrown by compiler-generated code only; the IL pass makes it a trap.</summary>
public class InvalidOperationException : Exception;
