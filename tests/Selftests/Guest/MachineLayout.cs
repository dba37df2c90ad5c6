// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Where a <see cref="Machine"/> keeps what it adds to <see cref="GuestLayout"/>, and the ports by which
/// its code talks to the test.</summary>
static class MachineLayout
{
    /// <summary>What guest code has saved, 32 bits each (<see cref="MachineAssembler.Save"/>).</summary>
    public const ulong Results = GuestLayout.Data;

    /// <summary>Variables of the test, whole pages.</summary>
    public const ulong Shared = 0x28000;

    /// <summary>32 bits: how the counting handler ends an interrupt, an <see cref="EoiMode"/>.</summary>
    public const ulong EoiMode = 0x2F000;

    /// <summary>A page for each CPU: counters of its vectors, the order in which they came, its stack.</summary>
    public const ulong PerCpu = 0x30000, PerCpuSize = 0x1000;

    public const int MaxCpus = 64;

    /// <summary>Offsets in a CPU's page, which is where its GS base points.</summary>
    public const int Counts = 0, Log = 0x400, LogLength = 256, LogCount = 0x500, Index = 0x504, Entry = 0x508;

    /// <summary>Where CPUs that are started by SIPI begin: 16-bit code, pointers to tables, 64-bit code.</summary>
    public const ulong Trampoline = 0x70000, TrampolineTables = Trampoline + 0x80, Trampoline64 = Trampoline + 0x100;
    public const byte TrampolineVector = (byte)(Trampoline >> 12);

    /// <summary>Handlers and programs, one after the other.</summary>
    public const ulong Programs = 0x71000, ProgramsEnd = 0x80000;

    /// <summary>The guest tells that it is done, with a number; that an exception came, with its vector.</summary>
    public const byte DonePort = 0xE0, ExceptionPort = 0xEF;

    public static ulong CpuPage(int cpu) => PerCpu + (ulong)cpu * PerCpuSize;
}

/// <summary>What the counting interrupt handler does at its end.</summary>
enum EoiMode : uint
{
    None,
    XApic,
    X2Apic,

    /// <summary>Non-specific EOIs to both 8259s.</summary>
    Pic,
}

/// <summary>Which interrupt controllers are in the kernel.</summary>
enum Chips
{
    None,

    /// <summary>PIC, IOAPIC and local APICs.</summary>
    Kernel,

    /// <summary>Local APICs only.</summary>
    Split,
}
