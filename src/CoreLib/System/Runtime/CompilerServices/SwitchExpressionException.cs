// SPDX-License-Identifier: GPL-2.0-only
namespace System.Runtime.CompilerServices;

/// <summary>What a switch expression without a matching arm would throw; the IL pass makes it a trap.</summary>
public sealed class SwitchExpressionException : Exception;
