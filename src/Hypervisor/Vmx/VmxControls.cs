// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vmx;

/// <summary>Pin-based controls (SDM vol. 3, 25.6.1).</summary>
[Flags]
internal enum PinControls : uint
{
    ExternalInterrupt = 1u << 0,
    Nmi = 1u << 3,
    VirtualNmis = 1u << 5,
    PreemptionTimer = 1u << 6,
}

/// <summary>Primary processor-based controls (25.6.2).</summary>
[Flags]
internal enum PrimaryControls : uint
{
    InterruptWindow = 1u << 2,
    TscOffset = 1u << 3,
    Hlt = 1u << 7,
    Mwait = 1u << 10,
    Rdpmc = 1u << 11,
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
[Flags]
internal enum SecondaryControls : uint
{
    Ept = 1u << 1,
    Rdtscp = 1u << 3,
    Vpid = 1u << 5,
    Wbinvd = 1u << 6,
    UnrestrictedGuest = 1u << 7,
    Invpcid = 1u << 12,
    /// <summary>Page-modification logging.</summary>
    Pml = 1u << 17,
}

/// <summary>VM-exit controls (25.7.1).</summary>
[Flags]
internal enum ExitControls : uint
{
    SaveDebug = 1u << 2,
    HostLongMode = 1u << 9,
    LoadPat = 1u << 19,
    LoadEfer = 1u << 21,
}

/// <summary>VM-entry controls (25.8.1).</summary>
[Flags]
internal enum EntryControls : uint
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

    public const uint Exception = 0;
    public const uint Interrupt = 1;
    public const uint TripleFault = 2;
    public const uint Init = 3;
    public const uint StartUp = 4;
    public const uint InterruptWindow = 7;
    public const uint NmiWindow = 8;
    public const uint TaskSwitch = 9;
    public const uint Cpuid = 10;
    public const uint Hlt = 12;
    public const uint Invd = 13;
    public const uint Rdpmc = 15;
    public const uint Vmcall = 18;
    public const uint Vmclear = 19;
    public const uint Vmxon = 27;
    public const uint ControlRegister = 28;
    public const uint DebugRegister = 29;
    public const uint Port = 30;
    public const uint Rdmsr = 31;
    public const uint Wrmsr = 32;
    public const uint Mwait = 36;
    public const uint Monitor = 39;
    public const uint TprBelowThreshold = 43;
    public const uint EptViolation = 48;
    public const uint Invept = 50;
    public const uint PreemptionTimer = 52;
    public const uint Invvpid = 53;
    public const uint Wbinvd = 54;
    public const uint Xsetbv = 55;
    public const uint PmlFull = 62;
}
