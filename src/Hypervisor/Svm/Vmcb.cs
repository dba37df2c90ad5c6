// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Svm;

/// <summary>The virtual machine control block: control area and state save area (APM vol. 2, appendix B).</summary>
[StructLayout(LayoutKind.Explicit, Size = 4096)]
internal struct Vmcb
{
    [FieldOffset(0x000)] public uint InterceptCr;
    [FieldOffset(0x004)] public uint InterceptDr;
    [FieldOffset(0x008)] public uint InterceptExceptions;
    [FieldOffset(0x00c)] public Intercept3 Intercept3;
    [FieldOffset(0x010)] public Intercept4 Intercept4;
    [FieldOffset(0x014)] public Intercept5 Intercept5;
    [FieldOffset(0x040)] public ulong IopmBase;
    [FieldOffset(0x048)] public ulong MsrpmBase;
    [FieldOffset(0x050)] public ulong TscOffset;
    [FieldOffset(0x058)] public uint Asid;
    [FieldOffset(0x05c)] public TlbControl TlbControl;
    [FieldOffset(0x060)] public VirtualInterrupt VirtualInterrupt;
    [FieldOffset(0x064)] public uint VirtualVector;
    [FieldOffset(0x068)] public ulong InterruptShadow;
    [FieldOffset(0x070)] public ulong ExitCode;
    [FieldOffset(0x078)] public ulong ExitInfo1;
    [FieldOffset(0x080)] public ulong ExitInfo2;
    [FieldOffset(0x088)] public EventInjection ExitInterrupt;
    [FieldOffset(0x090)] public ulong NestedControl;
    [FieldOffset(0x0a8)] public EventInjection Inject;
    [FieldOffset(0x0b0)] public ulong NestedCr3;
    [FieldOffset(0x0c8)] public ulong NextRip;

    [FieldOffset(0x400)] public SegmentFile Segments;
    [FieldOffset(0x4cb)] public byte Cpl;
    [FieldOffset(0x4d0)] public ulong Efer;
    [FieldOffset(0x548)] public ulong Cr4;
    [FieldOffset(0x550)] public ulong Cr3;
    [FieldOffset(0x558)] public ulong Cr0;
    [FieldOffset(0x560)] public ulong Dr7;
    [FieldOffset(0x568)] public ulong Dr6;
    [FieldOffset(0x570)] public ulong Rflags;
    [FieldOffset(0x578)] public ulong Rip;
    [FieldOffset(0x5d8)] public ulong Rsp;
    [FieldOffset(0x5f8)] public ulong Rax;
    [FieldOffset(0x600)] public ulong Star;
    [FieldOffset(0x608)] public ulong Lstar;
    [FieldOffset(0x610)] public ulong Cstar;
    [FieldOffset(0x618)] public ulong Sfmask;
    [FieldOffset(0x620)] public ulong KernelGsBase;
    [FieldOffset(0x628)] public ulong SysenterCs;
    [FieldOffset(0x630)] public ulong SysenterEsp;
    [FieldOffset(0x638)] public ulong SysenterEip;
    [FieldOffset(0x640)] public ulong Cr2;
    [FieldOffset(0x668)] public ulong GuestPat;

    [UnscopedRef] public ref Segment this[SegmentName name]
    {
        // Those that are asked for most come first.
        [MethodImpl(AggressiveInlining)] get => ref Segments[name switch
        {
            <= SegmentName.Gs => (int)name,
            SegmentName.Gdtr => 6, SegmentName.Ldtr => 7, SegmentName.Idtr => 8, _ => 9,
        }];
    }
}

/// <summary>ES, CS, SS, DS, FS, GS in encoding order, then GDTR, LDTR, IDTR, TR.</summary>
[InlineArray(10)] internal struct SegmentFile { private Segment _first; }

/// <summary>Intercept vector 3, offset 00Ch.</summary>
[Flags] internal enum Intercept3 : uint
{
    Intr = 1u << 0, Nmi = 1u << 1, Smi = 1u << 2, Init = 1u << 3, Vintr = 1u << 4, Rdpmc = 1u << 15,
    Cpuid = 1u << 18, Rsm = 1u << 19, Iret = 1u << 20, Invd = 1u << 22, Hlt = 1u << 24, Invlpg = 1u << 25,
    Invlpga = 1u << 26, Ioio = 1u << 27, Msr = 1u << 28, TaskSwitch = 1u << 29, Shutdown = 1u << 31,
}

/// <summary>Intercept vector 4, offset 010h.</summary>
[Flags] internal enum Intercept4 : uint
{
    Vmrun = 1u << 0, Vmmcall = 1u << 1, Vmload = 1u << 2, Vmsave = 1u << 3, Stgi = 1u << 4, Clgi = 1u << 5,
    Skinit = 1u << 6, Rdtscp = 1u << 7, Wbinvd = 1u << 9, Monitor = 1u << 10, Mwait = 1u << 11,
    Xsetbv = 1u << 13, Rdpru = 1u << 14,
}

/// <summary>Intercept vector 5, offset 014h.</summary>
[Flags] internal enum Intercept5 : uint
{
    Invpcid = 1u << 2,
}

internal enum TlbControl : uint
{
    Nothing = 0,
    FlushAll = 1,
    FlushAsid = 3,
}

/// <summary>Offset 060h: virtual TPR and interrupt (APM vol. 2, 15.21).</summary>
[Flags] internal enum VirtualInterrupt : uint
{
    TprMask = 0xf,
    Pending = 1u << 8,
    HighestPriority = 0xfu << 16,
    IgnoreTpr = 1u << 20,
    MaskHost = 1u << 24,
}

/// <summary>#VMEXIT codes (APM vol. 2, appendix C).</summary>
internal static class ExitCode
{
    public const ulong ReadCr0 = 0x00, WriteCr0 = 0x10, ReadDr0 = 0x20, WriteDr15 = 0x3f, Debug = 0x41,
        Breakpoint = 0x43, InvalidOpcode = 0x46, PageFault = 0x4e, AlignmentCheck = 0x51, MachineCheck = 0x52,
        Intr = 0x60, Nmi = 0x61, Smi = 0x62, Init = 0x63, Vintr = 0x64, Rdpmc = 0x6f, Cpuid = 0x72, Rsm = 0x73,
        Iret = 0x74, Invd = 0x76, Hlt = 0x78, Invlpg = 0x79, Invlpga = 0x7a, Ioio = 0x7b, Msr = 0x7c,
        TaskSwitch = 0x7d, Shutdown = 0x7f, Vmrun = 0x80, Vmmcall = 0x81, Vmload = 0x82, Vmsave = 0x83,
        Stgi = 0x84, Clgi = 0x85, Skinit = 0x86, Rdtscp = 0x87, Wbinvd = 0x89, Monitor = 0x8a, Mwait = 0x8b,
        MwaitArmed = 0x8c, Xsetbv = 0x8d, Rdpru = 0x8e, Invpcid = 0xa2, NestedPageFault = 0x400,
        Invalid = ulong.MaxValue;
}
