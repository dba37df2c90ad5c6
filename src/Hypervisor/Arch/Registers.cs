// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>IA32_APIC_BASE (SDM vol. 3, 11.4.4).</summary>
internal static class ApicBase
{
    public const ulong Bsp = 1 << 8, X2apic = 1 << 10, Enable = 1 << 11, DefaultAddress = 0xfee00000;
    /// <summary>x2APIC mode is reserved where it is not a feature.</summary>
    public const ulong Reserved = 0x2ff | X2apic;
}
