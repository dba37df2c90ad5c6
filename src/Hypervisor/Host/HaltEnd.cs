// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Why a vCPU sleeps no longer.</summary>
internal enum HaltEnd : byte
{
    /// <summary>A request was set while the thread still polled.</summary>
    Polled,
    /// <summary>A request was set while the thread slept.</summary>
    Woken,
    /// <summary>A signal or other work of the thread.</summary>
    Interrupted,
}
