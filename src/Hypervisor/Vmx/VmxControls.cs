// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vmx;

/// <summary>Pin-based controls (SDM vol. 3, 25.6.1).</summary>
[Flags] internal enum PinControls : uint
{
    ExternalInterrupt = 1u << 0,
    Nmi = 1u << 3,
    VirtualNmis = 1u << 5,
    PreemptionTimer = 1u << 6,
    PostedInterrupts = 1u << 7,
}

/// <summary>Primary processor-based controls (25.6.2).</summary>
[Flags] internal enum PrimaryControls : uint
{
    InterruptWindow = 1u << 2,
    TscOffset = 1u << 3,
    Hlt = 1u << 7,
    Invlpg = 1u << 9,
    Mwait = 1u << 10,
    Rdpmc = 1u << 11,
    Cr3Load = 1u << 15,
    Cr3Store = 1u << 16,
    Cr8Load = 1u << 19,
    Cr8Store = 1u << 20,
    TprShadow = 1u << 21,
    NmiWindow = 1u << 22,
    MovDr = 1u << 23,
    AllPorts = 1u << 24,
    MsrBitmap = 1u << 28,
    Monitor = 1u << 29,
    Secondary = 1u << 31,
}

/// <summary>Secondary processor-based controls (25.6.2).</summary>
[Flags] internal enum SecondaryControls : uint
{
    /// <summary>Accesses to the APIC-access page exit, or are to the virtual-APIC page.</summary>
    ApicAccesses = 1u << 0,
    Ept = 1u << 1,
    Rdtscp = 1u << 3,
    /// <summary>MSRs 800H to 8FFH are the virtual-APIC page's.</summary>
    X2apic = 1u << 4,
    Vpid = 1u << 5,
    Wbinvd = 1u << 6,
    UnrestrictedGuest = 1u << 7,
    /// <summary>More registers than TPR are.</summary>
    ApicRegisters = 1u << 8,
    InterruptDelivery = 1u << 9,
    Invpcid = 1u << 12,
    /// <summary>Page-modification logging.</summary>
    Pml = 1u << 17,
}

/// <summary>VM-exit controls (25.7.1).</summary>
[Flags] internal enum ExitControls : uint
{
    SaveDebug = 1u << 2,
    HostLongMode = 1u << 9,
    AcknowledgeInterrupt = 1u << 15,
    LoadPat = 1u << 19,
    LoadEfer = 1u << 21,
}

/// <summary>VM-entry controls (25.8.1).</summary>
[Flags] internal enum EntryControls : uint
{
    LoadDebug = 1u << 2,
    LongMode = 1u << 9,
    LoadPat = 1u << 14,
    LoadEfer = 1u << 15,
}

/// <summary>Guest interruptibility state (25.4.2).</summary>
internal static class Interruptibility
{
    public const ulong Sti = 1 << 0, MovSs = 1 << 1, Nmi = 1 << 3;
}

/// <summary>Basic exit reasons (appendix C).</summary>
internal static class ExitReason
{
    public const uint EntryFailure = 1u << 31;

    public const uint Exception = 0, Interrupt = 1, TripleFault = 2, Init = 3, StartUp = 4, InterruptWindow = 7,
        NmiWindow = 8, TaskSwitch = 9, Cpuid = 10, Hlt = 12, Invd = 13, Invlpg = 14, Rdpmc = 15, Vmcall = 18,
        Vmclear = 19, Vmxon = 27, ControlRegister = 28, DebugRegister = 29, Port = 30, Rdmsr = 31, Wrmsr = 32,
        Mwait = 36, Monitor = 39, TprBelowThreshold = 43, ApicAccess = 44, EndOfInterrupt = 45, EptViolation = 48,
        Invept = 50, PreemptionTimer = 52, Invvpid = 53, Wbinvd = 54, Xsetbv = 55, ApicWrite = 56, Invpcid = 58,
        PmlFull = 62;
}
