// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>A local APIC (SDM vol. 3, chapter 11).</summary>
internal struct Lapic
{
}
