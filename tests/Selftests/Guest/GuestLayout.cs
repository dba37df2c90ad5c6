// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Where things lie in a test guest's memory: 640 KiB of RAM, identity-mapped when there is paging, so that
/// 16-bit code reaches everything too. From <see cref="RamSize"/> on there is no memory: accesses are MMIO.</summary>
static class GuestLayout
{
    public const ulong RamSize = 0xA0000;
    public const ulong Code = 0x1000, UserStackTop = 0x7000, StackTop = 0x8000;
    public const ulong Gdt = 0x9000, Tss = 0x9800, Idt = 0xA000, Stubs = 0xB000;
    public const ulong PageTables = 0x10000;
    public const ulong Data = 0x20000;
    public const ulong Mmio = 0xD0000;

    /// <summary>The level that maps the first 2 (two-level paging: 4) MiB in pages of 4 KiB, entry by entry.</summary>
    public const ulong LowPageTable = PageTables + 0x6000;

    public const int StubSize = 16;

    /// <summary>Selectors of the descriptor table that <see cref="GuestTables"/> builds.</summary>
    public const ushort Code32 = 0x08, Data32 = 0x10, Code64 = 0x18, UserData = 0x23, UserCode64 = 0x2B,
        UserCode32 = 0x33, TssSelector = 0x38, Code16 = 0x48, Data16 = 0x50, SpareGate = 0x58, SpareTss = 0x60;
}
