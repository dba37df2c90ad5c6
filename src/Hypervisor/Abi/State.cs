// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

// Arguments of the ioctls that get and set guest state: the UAPI's names, order and sizes (asm/kvm.h, linux/kvm.h).
// Structs lie in memory in the order of their fields unless they say otherwise.

/// <summary>KVM_GET_REGS, KVM_SET_REGS.</summary>
internal struct kvm_regs
{
    public ulong rax, rbx, rcx, rdx;
    public ulong rsi, rdi, rsp, rbp;
    public ulong r8, r9, r10, r11;
    public ulong r12, r13, r14, r15;
    public ulong rip, rflags;

    /// <summary>The general registers in the order of their fields.</summary>
    private static ReadOnlySpan<Gpr> Order =>
    [
        Gpr.Rax, Gpr.Rbx, Gpr.Rcx, Gpr.Rdx, Gpr.Rsi, Gpr.Rdi, Gpr.Rsp, Gpr.Rbp,
        Gpr.R8, Gpr.R9, Gpr.R10, Gpr.R11, Gpr.R12, Gpr.R13, Gpr.R14, Gpr.R15,
    ];

    public static kvm_regs Of(ref GuestRegisters registers)
    {
        kvm_regs regs = new() { rip = registers.Rip, rflags = registers.Rflags };
        Span<ulong> values = MemoryMarshal.Cast<kvm_regs, ulong>(new Span<kvm_regs>(ref regs));
        for (int i = 0; i < Order.Length; i++)
            values[i] = registers[Order[i]];
        return regs;
    }

    public readonly GuestRegisters ToRegisters()
    {
        GuestRegisters registers = new() { Rip = rip, Rflags = rflags | Rflags.Fixed };
        ReadOnlySpan<ulong> values = MemoryMarshal.Cast<kvm_regs, ulong>(new ReadOnlySpan<kvm_regs>(in this));
        for (int i = 0; i < Order.Length; i++)
            registers[Order[i]] = values[i];
        return registers;
    }
}

internal struct kvm_segment
{
    public ulong @base;
    public uint limit;
    public ushort selector;
    public byte type, present, dpl, db, s, l, g, avl, unusable, padding;

    /// <summary>Unusable when it is not present; a limit beyond 1 MiB implies 4 KiB granularity.</summary>
    public static kvm_segment Of(Segment segment) => new()
    {
        @base = segment.Base, limit = segment.Limit, selector = segment.Selector,
        type = (byte)segment.Type, s = Flag.Of(segment.IsCodeOrData), dpl = (byte)segment.Dpl,
        present = Flag.Of(segment.Present), unusable = Flag.Of(!segment.Present),
        avl = (byte)(segment.Attributes >> 8 & 1), l = Flag.Of(segment.Long), db = Flag.Of(segment.Big),
        g = Flag.Of(segment.Granularity || segment.Limit > 0xfffff),
    };

    public readonly Segment ToSegment()
    {
        int isPresent = unusable == 0 ? present & 1 : 0;
        int attributes = type & Segment.TypeMask | (s & 1) << 4 | (dpl & 3) << Segment.DplShift | isPresent << 7
            | (avl & 1) << 8 | (l & 1) << 9 | (db & 1) << 10 | (g & 1) << 11;
        return new() { Base = @base, Limit = limit, Selector = selector, Attributes = (ushort)attributes };
    }
}

internal struct kvm_dtable
{
    public ulong @base;
    public ushort limit;
    public ushort padding0, padding1, padding2;

    public static kvm_dtable Of(DescriptorTable table) => new() { @base = table.Base, limit = table.Limit };
    public readonly DescriptorTable ToTable() => new() { Base = @base, Limit = limit };
}

/// <summary>The part that kvm_sregs and kvm_sregs2 have in common; both begin with it.</summary>
internal struct kvm_sregs_common
{
    public kvm_segment cs, ds, es, fs, gs, ss;
    public kvm_segment tr, ldt;
    public kvm_dtable gdt, idt;
    public ulong cr0, cr2, cr3, cr4, cr8;
    public ulong efer, apic_base;

    /// <summary>The segments in the order of their fields, <see cref="cs"/> to <see cref="ldt"/>.</summary>
    // SAFETY: the layout is sequential, the eight fields stand one after the other.
    [UnscopedRef] public Span<kvm_segment> Segments => MemoryMarshal.CreateSpan(ref cs, 8);

    /// <summary>What each of them is.</summary>
    public static ReadOnlySpan<SegmentName> Names =>
    [
        SegmentName.Cs, SegmentName.Ds, SegmentName.Es, SegmentName.Fs,
        SegmentName.Gs, SegmentName.Ss, SegmentName.Tr, SegmentName.Ldtr,
    ];
}

/// <summary>KVM_GET_SREGS, KVM_SET_SREGS.</summary>
internal struct kvm_sregs
{
    public kvm_sregs_common common;
    public InlineArray4<ulong> interrupt_bitmap;
}

/// <summary>KVM_GET_SREGS2, KVM_SET_SREGS2.</summary>
internal struct kvm_sregs2
{
    public const ulong KVM_SREGS2_FLAGS_PDPTRS_VALID = 1;

    public kvm_sregs_common common;
    public ulong flags;
    public InlineArray4<ulong> pdptrs;
}

/// <summary>What kvm_fpu and the FXSAVE image have in common: control, status, tags and the last instruction.</summary>
internal struct x87_environment
{
    public ushort fcw, fsw;
    public byte ftwx, pad1;
    public ushort last_opcode;
    public ulong last_ip, last_dp;
}

/// <summary>KVM_GET_FPU, KVM_SET_FPU.</summary>
internal struct kvm_fpu
{
    public InlineArray16<ulong> fpr;
    public x87_environment x87;
    public InlineArray16<InlineArray2<ulong>> xmm;
    public uint mxcsr, pad2;
}

/// <summary>The FXSAVE image and the head of the XSAVE header behind it (SDM vol. 1, 10.5 and 13.4).</summary>
[StructLayout(LayoutKind.Explicit, Size = 576)]
internal struct fxregs_state
{
    public const ulong X87 = 1, Sse = 2;

    [FieldOffset(0)] public x87_environment x87;
    [FieldOffset(24)] public uint mxcsr;
    [FieldOffset(32)] public InlineArray16<ulong> st;
    [FieldOffset(160)] public InlineArray16<InlineArray2<ulong>> xmm;
    /// <summary>XSTATE_BV: the components that are not in their initial state.</summary>
    [FieldOffset(512)] public ulong present;
}

internal struct kvm_msr_entry
{
    public uint index, reserved;
    public ulong data;
}

/// <summary>Head of KVM_GET_MSRS and KVM_SET_MSRS; <see cref="kvm_msr_entry"/> elements follow.</summary>
internal struct kvm_msrs
{
    public uint nmsrs, pad;
}

internal struct kvm_cpuid_entry2
{
    public const uint KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0;

    public uint function, index, flags;
    public uint eax, ebx, ecx, edx;
    public InlineArray3<uint> padding;
}

/// <summary>Head of KVM_SET_CPUID2 and its kin; elements follow.</summary>
internal struct kvm_cpuid2
{
    public uint nent, padding;
}

internal struct kvm_debug_exit_arch
{
    public uint exception, pad;
    public ulong pc, dr6, dr7;
}

/// <summary>KVM_SET_GUEST_DEBUG.</summary>
internal struct kvm_guest_debug
{
    public const uint KVM_GUESTDBG_ENABLE = 1 << 0, KVM_GUESTDBG_SINGLESTEP = 1 << 1, KVM_GUESTDBG_USE_SW_BP = 1 << 16,
        KVM_GUESTDBG_USE_HW_BP = 1 << 17, KVM_GUESTDBG_INJECT_DB = 1 << 18, KVM_GUESTDBG_INJECT_BP = 1 << 19;

    public uint control, pad;
    public InlineArray8<ulong> debugreg;
}

/// <summary>
/// KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS. The header has a struct for each event: exception.injected and so on.
/// </summary>
internal struct kvm_vcpu_events
{
    public const uint KVM_VCPUEVENT_VALID_NMI_PENDING = 1 << 0, KVM_VCPUEVENT_VALID_SIPI_VECTOR = 1 << 1,
        KVM_VCPUEVENT_VALID_SHADOW = 1 << 2, KVM_VCPUEVENT_VALID_SMM = 1 << 3, KVM_VCPUEVENT_VALID_PAYLOAD = 1 << 4,
        KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 1 << 5;

    public byte exception_injected, exception_nr, exception_has_error_code, exception_pending;
    public uint exception_error_code;
    public byte interrupt_injected, interrupt_nr, interrupt_soft, interrupt_shadow;
    public byte nmi_injected, nmi_pending, nmi_masked, nmi_pad;
    public uint sipi_vector, flags;
    public byte smi_smm, smi_pending, smi_smm_inside_nmi, smi_latched_init;
    public byte triple_fault_pending;
    public InlineArray2<InlineArray13<byte>> reserved;
    public byte exception_has_payload;
    public ulong exception_payload;
}

/// <summary>Registers in the run page (KVM_CAP_SYNC_REGS).</summary>
internal struct kvm_sync_regs
{
    public kvm_regs regs;
    public kvm_sregs sregs;
    public kvm_vcpu_events events;
}

/// <summary>KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS.</summary>
internal struct kvm_debugregs
{
    public InlineArray4<ulong> db;
    public ulong dr6, dr7, flags;
    public ulong reserved0, reserved1, reserved2, reserved3, reserved4, reserved5, reserved6, reserved7, reserved8;
}

internal struct kvm_xcr
{
    public uint xcr, reserved;
    public ulong value;
}

/// <summary>KVM_GET_XCRS, KVM_SET_XCRS.</summary>
internal struct kvm_xcrs
{
    public const uint KVM_MAX_XCRS = 16;

    public uint nr_xcrs, flags;
    public InlineArray16<kvm_xcr> xcrs;
    public InlineArray16<ulong> padding;
}

/// <summary>KVM_TRANSLATE.</summary>
internal struct kvm_translation
{
    public ulong linear_address, physical_address;
    public byte valid, writeable, usermode;
    public byte pad0, pad1, pad2, pad3, pad4;
}

/// <summary>KVM_HAS_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR.</summary>
internal struct kvm_device_attr
{
    public uint flags, group;
    public ulong attr;
    /// <summary>User address of the value.</summary>
    public ulong addr;
}

/// <summary>KVM_TPR_ACCESS_REPORTING.</summary>
internal struct kvm_tpr_access_ctl
{
    public uint enabled, flags;
    public uint reserved0, reserved1, reserved2, reserved3, reserved4, reserved5, reserved6, reserved7;
}

/// <summary>KVM_X86_SET_MCE.</summary>
internal struct kvm_x86_mce
{
    public ulong status, addr, misc, mcg_status;
    public byte bank;
    public byte pad10, pad11, pad12, pad13, pad14, pad15, pad16;
    public ulong pad20, pad21, pad22;
}
