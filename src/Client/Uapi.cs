// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Client;

// The structures of linux/kvm.h and asm/kvm.h, one to one: struct kvm_vcpu_events is KvmVcpuEvents, its field
// exception.has_error_code is Exception.HasErrorCode. Layouts are checked by UapiLayout.

/// <summary><c>struct kvm_regs</c></summary>
public struct KvmRegs
{
    public ulong Rax, Rbx, Rcx, Rdx, Rsi, Rdi, Rsp, Rbp;
    public ulong R8, R9, R10, R11, R12, R13, R14, R15;
    public ulong Rip, Rflags;
}

/// <summary><c>struct kvm_segment</c></summary>
public struct KvmSegment
{
    public ulong Base;
    public uint Limit;
    public ushort Selector;
    public byte Type, Present, Dpl, Db, S, L, G, Avl, Unusable, Padding;
}

/// <summary><c>struct kvm_dtable</c></summary>
public struct KvmDtable
{
    public ulong Base;
    public ushort Limit, Padding0, Padding1, Padding2;
}

/// <summary><c>struct kvm_sregs</c></summary>
public struct KvmSregs
{
    public KvmSegment Cs, Ds, Es, Fs, Gs, Ss, Tr, Ldt;
    public KvmDtable Gdt, Idt;
    public ulong Cr0, Cr2, Cr3, Cr4, Cr8, Efer, ApicBase;
    public Array4<ulong> InterruptBitmap;
}

/// <summary><c>struct kvm_sregs2</c></summary>
public struct KvmSregs2
{
    public const ulong FlagsPdptrsValid = 1;

    public KvmSegment Cs, Ds, Es, Fs, Gs, Ss, Tr, Ldt;
    public KvmDtable Gdt, Idt;
    public ulong Cr0, Cr2, Cr3, Cr4, Cr8, Efer, ApicBase, Flags;
    public Array4<ulong> Pdptrs;
}

/// <summary>Sixteen bytes: an x87 or XMM register.</summary>
public struct KvmVector
{
    public ulong Low, High;
}

/// <summary><c>struct kvm_fpu</c></summary>
public struct KvmFpu
{
    public Array8<KvmVector> Fpr;
    public ushort Fcw, Fsw;
    public byte Ftwx, Pad1;
    public ushort LastOpcode;
    public ulong LastIp, LastDp;
    public Array16<KvmVector> Xmm;
    public uint Mxcsr, Pad2;
}

/// <summary><c>struct kvm_msr_entry</c></summary>
public record struct KvmMsrEntry(uint Index, uint Reserved, ulong Data);

/// <summary><c>struct kvm_cpuid_entry2</c></summary>
public struct KvmCpuidEntry2
{
    public const uint FlagSignificantIndex = 1;

    public uint Function, Index, Flags, Eax, Ebx, Ecx, Edx, Padding0, Padding1, Padding2;
}

/// <summary><c>struct kvm_userspace_memory_region</c></summary>
public struct KvmUserspaceMemoryRegion
{
    public uint Slot;
    public KvmMem Flags;
    public ulong GuestPhysAddr, MemorySize, UserspaceAddr;
}

/// <summary><c>KVM_MEM_…</c></summary>
[Flags]
public enum KvmMem : uint
{
    None = 0,
    LogDirtyPages = 1,
    Readonly = 2,
}

/// <summary><c>struct kvm_dirty_log</c></summary>
public struct KvmDirtyLog
{
    public uint Slot, Padding1;
    public ulong DirtyBitmap;
}

/// <summary><c>struct kvm_clear_dirty_log</c></summary>
public struct KvmClearDirtyLog
{
    public uint Slot, NumPages;
    public ulong FirstPage, DirtyBitmap;
}

/// <summary><c>struct kvm_enable_cap</c></summary>
public struct KvmEnableCap
{
    public uint Cap, Flags;
    public Array4<ulong> Args;
    public Array8<ulong> Pad;
}

/// <summary><c>struct kvm_mp_state</c></summary>
public struct KvmMpState
{
    public const uint Runnable = 0, Uninitialized = 1, InitReceived = 2, Halted = 3, SipiReceived = 4;

    public uint MpState;
}

/// <summary><c>struct kvm_translation</c></summary>
public struct KvmTranslation
{
    public ulong LinearAddress, PhysicalAddress;
    public byte Valid, Writeable, Usermode, Pad0;
    public uint Pad1;
}

/// <summary><c>struct kvm_debugregs</c></summary>
public struct KvmDebugregs
{
    public Array4<ulong> Db;
    public ulong Dr6, Dr7, Flags;
    public Array9<ulong> Reserved;
}

/// <summary><c>struct kvm_guest_debug</c></summary>
public struct KvmGuestDebug
{
    public KvmGuestDebugControl Control;
    public uint Pad;
    public Array8<ulong> Debugreg;
}

/// <summary><c>KVM_GUESTDBG_…</c></summary>
[Flags]
public enum KvmGuestDebugControl : uint
{
    None = 0,
    Enable = 1,
    Singlestep = 2,
    UseSwBp = 0x10000,
    UseHwBp = 0x20000,
    InjectDb = 0x40000,
    InjectBp = 0x80000,
    BlockIrq = 0x100000,
}

/// <summary><c>struct kvm_vcpu_events</c></summary>
public struct KvmVcpuEvents
{
    public const uint ValidNmiPending = 1, ValidSipiVector = 2, ValidShadow = 4, ValidSmm = 8, ValidPayload = 0x10;
    public const byte ShadowMovSs = 1, ShadowSti = 2;

    public struct ExceptionState
    {
        public byte Injected, Nr, HasErrorCode, Pending;
        public uint ErrorCode;
    }

    public struct InterruptState
    {
        public byte Injected, Nr, Soft, Shadow;
    }

    public struct NmiState
    {
        public byte Injected, Pending, Masked, Pad;
    }

    public struct SmiState
    {
        public byte Smm, Pending, SmmInsideNmi, LatchedInit;
    }

    public ExceptionState Exception;
    public InterruptState Interrupt;
    public NmiState Nmi;
    public uint SipiVector, Flags;
    public SmiState Smi;
    public byte TripleFaultPending;
    public Array26<byte> Reserved;
    public byte ExceptionHasPayload;
    public ulong ExceptionPayload;
}

/// <summary><c>struct kvm_xcr</c></summary>
public struct KvmXcr
{
    public uint Xcr, Reserved;
    public ulong Value;
}

/// <summary><c>struct kvm_xcrs</c></summary>
public struct KvmXcrs
{
    public uint NrXcrs, Flags;
    public Array16<KvmXcr> Xcrs;
    public Array16<ulong> Padding;
}

/// <summary><c>struct kvm_xsave</c> without its flexible tail</summary>
public struct KvmXsave
{
    public Array1024<uint> Region;
}

/// <summary><c>struct kvm_clock_data</c></summary>
public struct KvmClockData
{
    public const uint FlagTscStable = 2, FlagRealtime = 4, FlagHostTsc = 8;

    public ulong Clock;
    public uint Flags, Pad0;
    public ulong Realtime, HostTsc, Pad1, Pad2;
}

/// <summary>Why KVM_RUN returned (<c>KVM_EXIT_…</c>).</summary>
public enum KvmExit : uint
{
    Unknown = 0,
    Exception = 1,
    Io = 2,
    Hypercall = 3,
    Debug = 4,
    Hlt = 5,
    Mmio = 6,
    IrqWindowOpen = 7,
    Shutdown = 8,
    FailEntry = 9,
    Intr = 10,
    SetTpr = 11,
    TprAccess = 12,
    Nmi = 16,
    InternalError = 17,
    SystemEvent = 24,
    IoapicEoi = 26,
    X86Rdmsr = 29,
    X86Wrmsr = 30,
    DirtyRingFull = 31,
}

/// <summary>Suberrors of <see cref="KvmExit.InternalError"/> (<c>KVM_INTERNAL_ERROR_…</c>).</summary>
public enum KvmInternalError : uint
{
    Emulation = 1,
    SimulEx = 2,
    DeliveryEv = 3,
    UnexpectedExitReason = 4,
}

/// <summary><c>kvm_run.io</c></summary>
public struct KvmRunIo
{
    public const byte In = 0, Out = 1;

    public byte Direction, Size;
    public ushort Port;
    public uint Count;
    public ulong DataOffset;
}

/// <summary><c>kvm_run.mmio</c></summary>
public struct KvmRunMmio
{
    public ulong PhysAddr;
    public Array8<byte> Data;
    public uint Len;
    public byte IsWrite;
}

/// <summary><c>kvm_run.debug.arch</c></summary>
public struct KvmRunDebug
{
    public uint Exception, Pad;
    public ulong Pc, Dr6, Dr7;
}

/// <summary><c>kvm_run.internal</c></summary>
public struct KvmRunInternal
{
    public KvmInternalError Suberror;
    public uint Ndata;
    public Array16<ulong> Data;
}

/// <summary><c>kvm_run.emulation_failure</c></summary>
public struct KvmRunEmulationFailure
{
    public const ulong FlagInstructionBytes = 1;

    public KvmInternalError Suberror;
    public uint Ndata;
    public ulong Flags;
    public byte InsnSize;
    public Array15<byte> InsnBytes;
}

/// <summary><c>kvm_run.fail_entry</c></summary>
public struct KvmRunFailEntry
{
    public ulong HardwareEntryFailureReason;
    public uint Cpu;
}

/// <summary><c>kvm_run.msr</c></summary>
public struct KvmRunMsr
{
    public ulong Error;
    public uint Reason, Index;
    public ulong Data;
}

/// <summary><c>struct kvm_run</c>, the page shared between the kernel and this process.</summary>
[StructLayout(LayoutKind.Explicit)]
public struct KvmRun
{
    [FieldOffset(0)] public byte RequestInterruptWindow;
    [FieldOffset(1)] public byte ImmediateExit;
    [FieldOffset(8)] public KvmExit ExitReason;
    [FieldOffset(12)] public byte ReadyForInterruptInjection;
    [FieldOffset(13)] public byte IfFlag;
    [FieldOffset(14)] public ushort Flags;
    [FieldOffset(16)] public ulong Cr8;
    [FieldOffset(24)] public ulong ApicBase;
    [FieldOffset(32)] public ulong HardwareExitReason;
    [FieldOffset(32)] public KvmRunIo Io;
    [FieldOffset(32)] public KvmRunMmio Mmio;
    [FieldOffset(32)] public KvmRunDebug Debug;
    [FieldOffset(32)] public KvmRunInternal Internal;
    [FieldOffset(32)] public KvmRunEmulationFailure EmulationFailure;
    [FieldOffset(32)] public KvmRunFailEntry FailEntry;
    [FieldOffset(32)] public KvmRunMsr Msr;

    /// <summary>eoi.vector of <see cref="KvmExit.IoapicEoi"/>.</summary>
    [FieldOffset(32)] public byte EoiVector;

    [FieldOffset(288)] public ulong KvmValidRegs;
    [FieldOffset(296)] public ulong KvmDirtyRegs;
    [FieldOffset(304)] public KvmRegs SyncRegs;
    [FieldOffset(448)] public KvmSregs SyncSregs;
    [FieldOffset(760)] public KvmVcpuEvents SyncEvents;
}
