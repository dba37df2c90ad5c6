// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Where the I/O APIC is, and its registers (82093AA datasheet, chapter 3).</summary>
static class Ioapic
{
    public const ulong Base = 0xFEC00000;

    /// <summary>Indexes; the redirection table has two for each pin.</summary>
    public const byte Id = 0, Version = 1, Arbitration = 2, Redirection = 0x10;
}
