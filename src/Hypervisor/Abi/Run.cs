// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

/// <summary>KVM_EXIT_*: why KVM_RUN returned.</summary>
internal enum Exit : uint
{
    KVM_EXIT_IO = 2,
    KVM_EXIT_DEBUG = 4,
    KVM_EXIT_HLT = 5,
    KVM_EXIT_MMIO = 6,
    KVM_EXIT_IRQ_WINDOW_OPEN = 7,
    KVM_EXIT_SHUTDOWN = 8,
    KVM_EXIT_FAIL_ENTRY = 9,
    KVM_EXIT_INTR = 10,
    KVM_EXIT_SET_TPR = 11,
    KVM_EXIT_INTERNAL_ERROR = 17,
    KVM_EXIT_IOAPIC_EOI = 26,
    KVM_EXIT_X86_RDMSR = 29,
    KVM_EXIT_X86_WRMSR = 30,
    KVM_EXIT_DIRTY_RING_FULL = 31,
}

/// <summary>
/// The page shared with user space (linux/kvm.h, struct kvm_run). User space may change any of it at any time: fields
/// are read once, and nothing read from it is used as an index.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 2352)]
internal struct kvm_run
{
    public const byte KVM_EXIT_IO_IN = 0, KVM_EXIT_IO_OUT = 1;
    /// <summary>Which of <see cref="kvm_sync_regs"/>: regs, sregs, events.</summary>
    public const ulong KVM_SYNC_X86_REGS = 1 << 0, KVM_SYNC_X86_SREGS = 1 << 1, KVM_SYNC_X86_EVENTS = 1 << 2,
        KVM_SYNC_X86_VALID_FIELDS = 7;
    public const uint KVM_INTERNAL_ERROR_EMULATION = 1, KVM_INTERNAL_ERROR_DELIVERY_EV = 3,
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4;
    public const ulong KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1;
    /// <summary>Page of the vCPU's mapping that carries port data.</summary>
    public const ulong KVM_PIO_PAGE_OFFSET = 1;

    [FieldOffset(0)] public byte request_interrupt_window;
    [FieldOffset(1)] public byte immediate_exit;
    [FieldOffset(8)] public Exit exit_reason;
    [FieldOffset(12)] public byte ready_for_interrupt_injection;
    [FieldOffset(13)] public byte if_flag;
    [FieldOffset(14)] public ushort flags;
    [FieldOffset(16)] public ulong cr8;
    [FieldOffset(24)] public ulong apic_base;

    [FieldOffset(32)] public FailEntry fail_entry;
    [FieldOffset(32)] public Io io;
    [FieldOffset(32)] public kvm_debug_exit_arch debug;
    [FieldOffset(32)] public Mmio mmio;
    [FieldOffset(32)] public Internal @internal;
    [FieldOffset(32)] public Eoi eoi;
    [FieldOffset(32)] public EmulationFailure emulation_failure;
    [FieldOffset(32)] public Msr msr;

    [FieldOffset(288)] public ulong kvm_valid_regs;
    [FieldOffset(296)] public ulong kvm_dirty_regs;
    [FieldOffset(304)] public kvm_sync_regs regs;

    internal struct FailEntry
    {
        public ulong hardware_entry_failure_reason;
        public uint cpu;
    }

    internal struct Io
    {
        public byte direction, size;
        public ushort port;
        public uint count;
        public ulong data_offset;
    }

    internal struct Mmio
    {
        public ulong phys_addr, data;
        public uint len;
        public byte is_write;
    }

    internal struct Internal
    {
        public uint suberror, ndata;
        public InlineArray16<ulong> data;
    }

    internal struct Eoi
    {
        public byte vector;
    }

    [StructLayout(LayoutKind.Explicit)]
    internal struct Msr
    {
        public const uint KVM_MSR_EXIT_REASON_INVAL = 1 << 0, KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1,
            KVM_MSR_EXIT_REASON_FILTER = 1 << 2;

        /// <summary>User space's answer: other than 0 is #GP.</summary>
        [FieldOffset(0)] public byte error;
        [FieldOffset(8)] public uint reason;
        [FieldOffset(12)] public uint index;
        [FieldOffset(16)] public ulong data;
    }

    internal struct EmulationFailure
    {
        public uint suberror, ndata;
        public ulong flags;
        public byte insn_size;
        public InlineArray15<byte> insn_bytes;
    }
}
