// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>KVM_CHECK_EXTENSION: only what is complete (UAPI linux/kvm.h, KVM_CAP_*).</summary>
internal static class Capabilities
{
    private const uint
        // What a VM and its memory have.
        KVM_CAP_USER_MEMORY = 3, KVM_CAP_SET_TSS_ADDR = 4, KVM_CAP_SET_IDENTITY_MAP_ADDR = 37, KVM_CAP_NR_VCPUS = 9,
        KVM_CAP_NR_MEMSLOTS = 10, KVM_CAP_MAX_VCPUS = 66, KVM_CAP_MAX_VCPU_ID = 128, KVM_CAP_SYNC_MMU = 16,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21, KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30, KVM_CAP_READONLY_MEM = 81,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168, KVM_CAP_DIRTY_LOG_RING = 192, KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223,
        KVM_CAP_CHECK_EXTENSION_VM = 105, KVM_CAP_ENABLE_CAP_VM = 98,
        // Interrupts and devices.
        KVM_CAP_IRQCHIP = 0, KVM_CAP_PIT = 11, KVM_CAP_PIT2 = 33, KVM_CAP_PIT_STATE2 = 35,
        KVM_CAP_REINJECT_CONTROL = 24, KVM_CAP_IRQ_ROUTING = 25, KVM_CAP_IRQ_INJECT_STATUS = 26, KVM_CAP_IRQFD = 32,
        KVM_CAP_IRQFD_RESAMPLE = 82, KVM_CAP_SIGNAL_MSI = 77, KVM_CAP_SPLIT_IRQCHIP = 121, KVM_CAP_X2APIC_API = 129,
        KVM_CAP_TSC_DEADLINE_TIMER = 72, KVM_CAP_SET_BOOT_CPU_ID = 34, KVM_CAP_IOAPIC_POLARITY_IGNORED = 97,
        KVM_CAP_IOEVENTFD = 36, KVM_CAP_IOEVENTFD_NO_LENGTH = 100, KVM_CAP_IOEVENTFD_ANY_LENGTH = 122,
        KVM_CAP_COALESCED_MMIO = 15, KVM_CAP_COALESCED_PIO = 162, KVM_CAP_NOP_IO_DELAY = 12, KVM_CAP_USER_NMI = 22,
        // The state of a vCPU.
        KVM_CAP_HLT = 1, KVM_CAP_EXT_CPUID = 7, KVM_CAP_EXT_EMUL_CPUID = 95, KVM_CAP_MP_STATE = 14,
        KVM_CAP_SET_GUEST_DEBUG = 23, KVM_CAP_SET_GUEST_DEBUG2 = 195, KVM_CAP_X86_ROBUST_SINGLESTEP = 51,
        KVM_CAP_MCE = 31, KVM_CAP_INTERNAL_ERROR_DATA = 40, KVM_CAP_VCPU_EVENTS = 41, KVM_CAP_EXCEPTION_PAYLOAD = 164,
        KVM_CAP_X86_TRIPLE_FAULT_EVENT = 218, KVM_CAP_DEBUGREGS = 50, KVM_CAP_XSAVE = 55, KVM_CAP_XSAVE2 = 208,
        KVM_CAP_XCRS = 56, KVM_CAP_SREGS2 = 200, KVM_CAP_SYNC_REGS = 74, KVM_CAP_IMMEDIATE_EXIT = 136,
        KVM_CAP_DISABLE_QUIRKS2 = 213, KVM_CAP_GET_MSR_FEATURES = 153, KVM_CAP_MSR_PLATFORM_INFO = 159,
        KVM_CAP_X86_USER_SPACE_MSR = 188, KVM_CAP_X86_MSR_FILTER = 189, KVM_CAP_VCPU_ATTRIBUTES = 127,
        // Clocks and what the guest is told.
        KVM_CAP_CLOCKSOURCE = 8, KVM_CAP_ADJUST_CLOCK = 39, KVM_CAP_GET_TSC_KHZ = 61, KVM_CAP_KVMCLOCK_CTRL = 76,
        KVM_CAP_ASYNC_PF = 59, KVM_CAP_ASYNC_PF_INT = 183, KVM_CAP_ENFORCE_PV_FEATURE_CPUID = 190;

    /// <summary>KVM_X2APIC_API_USE_32BIT_IDS and _DISABLE_BROADCAST_QUIRK.</summary>
    private const ulong Use32BitIds = 1 << 0, DisableBroadcastQuirk = 1 << 1;

    private const ulong UserMsrReasons = Abi.kvm_run.Msr.KVM_MSR_EXIT_REASON_INVAL
        | Abi.kvm_run.Msr.KVM_MSR_EXIT_REASON_UNKNOWN | Abi.kvm_run.Msr.KVM_MSR_EXIT_REASON_FILTER;

    public static int Check(ulong capability) => capability switch
    {
        KVM_CAP_USER_MEMORY or KVM_CAP_SET_TSS_ADDR or KVM_CAP_SET_IDENTITY_MAP_ADDR or KVM_CAP_SYNC_MMU
            or KVM_CAP_DESTROY_MEMORY_REGION_WORKS or KVM_CAP_JOIN_MEMORY_REGIONS_WORKS or KVM_CAP_READONLY_MEM
            or KVM_CAP_CHECK_EXTENSION_VM or KVM_CAP_ENABLE_CAP_VM or KVM_CAP_IRQCHIP or KVM_CAP_PIT or KVM_CAP_PIT2
            or KVM_CAP_PIT_STATE2 or KVM_CAP_REINJECT_CONTROL or KVM_CAP_IRQ_INJECT_STATUS or KVM_CAP_IRQFD
            or KVM_CAP_IRQFD_RESAMPLE or KVM_CAP_SIGNAL_MSI or KVM_CAP_SPLIT_IRQCHIP or KVM_CAP_TSC_DEADLINE_TIMER
            or KVM_CAP_SET_BOOT_CPU_ID or KVM_CAP_IOAPIC_POLARITY_IGNORED or KVM_CAP_IOEVENTFD
            or KVM_CAP_IOEVENTFD_NO_LENGTH or KVM_CAP_IOEVENTFD_ANY_LENGTH or KVM_CAP_COALESCED_PIO
            or KVM_CAP_NOP_IO_DELAY or KVM_CAP_USER_NMI or KVM_CAP_HLT or KVM_CAP_EXT_CPUID or KVM_CAP_EXT_EMUL_CPUID
            or KVM_CAP_MP_STATE or KVM_CAP_SET_GUEST_DEBUG or KVM_CAP_X86_ROBUST_SINGLESTEP
            or KVM_CAP_INTERNAL_ERROR_DATA or KVM_CAP_VCPU_EVENTS or KVM_CAP_EXCEPTION_PAYLOAD
            or KVM_CAP_X86_TRIPLE_FAULT_EVENT or KVM_CAP_DEBUGREGS or KVM_CAP_SREGS2 or KVM_CAP_IMMEDIATE_EXIT
            or KVM_CAP_GET_MSR_FEATURES or KVM_CAP_MSR_PLATFORM_INFO or KVM_CAP_X86_USER_SPACE_MSR
            or KVM_CAP_X86_MSR_FILTER or KVM_CAP_VCPU_ATTRIBUTES or KVM_CAP_CLOCKSOURCE or KVM_CAP_GET_TSC_KHZ
            or KVM_CAP_KVMCLOCK_CTRL or KVM_CAP_ASYNC_PF or KVM_CAP_ASYNC_PF_INT
            or KVM_CAP_ENFORCE_PV_FEATURE_CPUID => 1,
        KVM_CAP_DISABLE_QUIRKS2 => (int)Quirks.All,
        KVM_CAP_SYNC_REGS => (int)Abi.kvm_run.KVM_SYNC_X86_VALID_FIELDS,
        KVM_CAP_ADJUST_CLOCK => (int)Abi.kvm_clock_data.Flags,
        KVM_CAP_XSAVE or KVM_CAP_XCRS => HostCpu.SupportedXcr0() != 0 ? 1 : 0,
        KVM_CAP_XSAVE2 => 4096,
        KVM_CAP_NR_VCPUS or KVM_CAP_MAX_VCPUS or KVM_CAP_MAX_VCPU_ID => VcpuTable.Size,
        KVM_CAP_NR_MEMSLOTS => MemorySlots.MaxSlots,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => (int)(DirtyLog.ManualProtect | DirtyLog.InitiallySet),
        KVM_CAP_DIRTY_LOG_RING or KVM_CAP_DIRTY_LOG_RING_ACQ_REL => (int)DirtyRing.MaxBytes,
        KVM_CAP_MCE => MsrState.MaxBanks,
        KVM_CAP_IRQ_ROUTING => (int)Gsi.Limit,
        KVM_CAP_X2APIC_API => (int)(Use32BitIds | DisableBroadcastQuirk),
        KVM_CAP_COALESCED_MMIO => (int)Abi.kvm_coalesced_mmio_ring.KVM_COALESCED_MMIO_PAGE_OFFSET,
        KVM_CAP_SET_GUEST_DEBUG2 => (int)DebugState.SupportedControl,
        _ => 0,
    };

    /// <summary>KVM_ENABLE_CAP on the VM.</summary>
    public static int Enable(ref Vm vm, in kvm_enable_cap request)
    {
        uint capability = request.cap;
        ulong argument = request.args[0];
        ulong known = capability switch
        {
            KVM_CAP_DISABLE_QUIRKS2 => (ulong)Quirks.All,
            KVM_CAP_X86_USER_SPACE_MSR => UserMsrReasons,
            KVM_CAP_X2APIC_API => Use32BitIds | DisableBroadcastQuirk,
            _ => ulong.MaxValue,
        };
        if (request.flags != 0 || (argument & ~known) != 0)
            return Errno.EINVAL;
        bool on = (argument & 1) != 0;
        switch (capability)
        {
            case KVM_CAP_EXCEPTION_PAYLOAD: vm.Cpu.ExceptionPayload = on; return Errno.Ok;
            case KVM_CAP_X86_TRIPLE_FAULT_EVENT: vm.Cpu.TripleFaultEvent = on; return Errno.Ok;
            case KVM_CAP_MSR_PLATFORM_INFO: vm.Cpu.HidesPlatformInfo = !on; return Errno.Ok;
            case KVM_CAP_DISABLE_QUIRKS2: vm.Cpu.DisabledQuirks = (Quirks)argument; return Errno.Ok;
            case KVM_CAP_X86_USER_SPACE_MSR: vm.Cpu.UserMsrReasons = (uint)argument; return Errno.Ok;
            case KVM_CAP_X2APIC_API:
                vm.Irqchip.Wide |= (argument & Use32BitIds) != 0;
                vm.Irqchip.NoBroadcastQuirk |= (argument & DisableBroadcastQuirk) != 0;
                return Errno.Ok;
            case KVM_CAP_MAX_VCPU_ID when argument is not 0 and <= VcpuTable.Size && vm.VcpuIdLimit == 0:
                vm.VcpuIdLimit = (uint)argument;
                return Errno.Ok;
            case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: return DirtyLog.Choose(ref vm, argument);
            case KVM_CAP_DIRTY_LOG_RING or KVM_CAP_DIRTY_LOG_RING_ACQ_REL: return DirtyRing.Enable(ref vm, argument);
            case KVM_CAP_SPLIT_IRQCHIP: return IrqChip.Split(ref vm, argument);
            default: return Errno.EINVAL;
        }
    }

    /// <summary>KVM_ENABLE_CAP on a vCPU.</summary>
    public static int Enable(ref Vcpu vcpu, in kvm_enable_cap request)
    {
        if (request.flags != 0 || request.cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
            return Errno.EINVAL;
        vcpu.Paravirt.FollowsCpuid = request.args[0] != 0;
        return Errno.Ok;
    }
}
