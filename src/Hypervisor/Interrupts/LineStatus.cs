// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>What became of a change of a controller's input line, in the values of KVM_IRQ_LINE_STATUS.</summary>
internal enum LineStatus
{
    /// <summary>The line is masked.</summary>
    Masked = -1,
    /// <summary>An earlier interrupt of the line still waits, or no CPU took it.</summary>
    Coalesced = 0,
    /// <summary>A new interrupt is on its way, or the line fell.</summary>
    Delivered = 1,
}
