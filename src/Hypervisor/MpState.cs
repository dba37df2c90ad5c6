// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm;

/// <summary>KVM_MP_STATE_*: what a vCPU is doing.</summary>
internal enum MpState : uint
{
    Runnable = 0,
    /// <summary>Not the boot processor, and not yet started: waits for INIT.</summary>
    Uninitialized = 1,
    /// <summary>Waits for a start-up message (SIPI).</summary>
    InitReceived = 2,
    Halted = 3,
    /// <summary>Only in KVM_SET_MP_STATE: <see cref="InitReceived"/>, and the start-up message has come.</summary>
    SipiReceived = 4,
}
