// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vmx;

/// <summary>
/// Fields of the virtual machine control structure (SDM vol. 3, appendix B), by their encodings. Those of the host's
/// state that change with the CPU or thread are the shim's.
/// </summary>
internal enum VmcsField : uint
{
    Vpid = 0x0000,
    PostedVector = 0x0002,
    /// <summary>ES, CS, SS, DS, FS, GS, LDTR, TR, two apart; so are the limits, access rights and bases.</summary>
    Selector = 0x0800,
    /// <summary>The highest requested vector and, in bits 8-15, the highest in service.</summary>
    InterruptStatus = 0x0810,
    PmlIndex = 0x0812,
    HostSelector = 0x0c00,
    MsrBitmap = 0x2004,
    PmlAddress = 0x200e,
    TscOffset = 0x2010,
    VirtualApic = 0x2012,
    ApicAccess = 0x2014,
    PostedDescriptor = 0x2016,
    EptPointer = 0x201a,
    /// <summary>Four words, two apart: vectors whose end exits.</summary>
    EoiExits = 0x201c,
    GuestPhysicalAddress = 0x2400,
    LinkPointer = 0x2800,
    GuestDebugCtl = 0x2802,
    GuestPat = 0x2804,
    GuestEfer = 0x2806,
    /// <summary>The four PDPTEs of PAE paging.</summary>
    GuestPdpte = 0x280a,
    HostPat = 0x2c00,
    HostEfer = 0x2c02,
    PinControls = 0x4000,
    PrimaryControls = 0x4002,
    ExceptionBitmap = 0x4004,
    PageFaultMask = 0x4006,
    PageFaultMatch = 0x4008,
    Cr3TargetCount = 0x400a,
    ExitControls = 0x400c,
    ExitStoreCount = 0x400e,
    ExitLoadCount = 0x4010,
    EntryControls = 0x4012,
    EntryLoadCount = 0x4014,
    EntryInterruption = 0x4016,
    EntryErrorCode = 0x4018,
    EntryInstructionLength = 0x401a,
    TprThreshold = 0x401c,
    SecondaryControls = 0x401e,
    InstructionError = 0x4400,
    ExitReason = 0x4402,
    ExitInterruption = 0x4404,
    ExitErrorCode = 0x4406,
    InterruptedEvent = 0x4408,
    InterruptedErrorCode = 0x440a,
    InstructionLength = 0x440c,
    InstructionInformation = 0x440e,
    Limit = 0x4800,
    GdtrLimit = 0x4810,
    IdtrLimit = 0x4812,
    AccessRights = 0x4814,
    Interruptibility = 0x4824,
    Activity = 0x4826,
    SysenterCs = 0x482a,
    PreemptionTimer = 0x482e,
    HostSysenterCs = 0x4c00,
    Cr0Mask = 0x6000,
    Cr4Mask = 0x6002,
    Cr0Shadow = 0x6004,
    Cr4Shadow = 0x6006,
    Qualification = 0x6400,
    Cr0 = 0x6800,
    Cr3 = 0x6802,
    Cr4 = 0x6804,
    Base = 0x6806,
    GdtrBase = 0x6816,
    IdtrBase = 0x6818,
    Dr7 = 0x681a,
    Rsp = 0x681c,
    Rip = 0x681e,
    Rflags = 0x6820,
    PendingDebug = 0x6822,
    SysenterEsp = 0x6824,
    SysenterEip = 0x6826,
    HostCr0 = 0x6c00,
    HostCr4 = 0x6c04,
    HostSysenterEip = 0x6c12,
}

/// <summary>The VMCS that is loaded on this CPU: that of the vCPU whose thread this is.</summary>
internal static class Vmcs
{
    [MethodImpl(AggressiveInlining)] public static ulong Read(VmcsField field) => HostCpu.ReadVmcs((uint)field);

    [MethodImpl(AggressiveInlining)]
    public static void Write(VmcsField field, ulong value) => HostCpu.WriteVmcs((uint)field, value);

    /// <summary>A field of a segment register; of GDTR and IDTR the limit and base.</summary>
    [MethodImpl(AggressiveInlining)]
    public static VmcsField Of(VmcsField field, SegmentName name) => field + 2 * (uint)name;
}
