// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>Outcome of a MOV to or from a debug register.</summary>
internal enum DebugAccess : byte
{
    Done,
    /// <summary>#UD.</summary>
    Undefined,
    /// <summary>#GP(0).</summary>
    Protection,
    /// <summary>DR7.GD: #DB is queued already.</summary>
    Debug,
}
