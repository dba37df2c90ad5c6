// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>The lab cannot do what was asked; the message says what is missing and what to do about it.</summary>
public sealed class LabException(string message, Exception? cause = null) : Exception(message, cause);

/// <summary>What a lane's emulator is made from cannot be had here.</summary>
public sealed class LaneMissingException(string message, Exception cause) : Exception(message, cause);
