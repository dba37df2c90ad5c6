// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>KVM_CHECK_EXTENSION: only what is complete (UAPI linux/kvm.h, KVM_CAP_*).</summary>
internal static class Capabilities
{
    /// <summary>The numbers of those that are simply there, by their names after KVM_CAP_.</summary>
    private static ReadOnlySpan<byte> Present =>
    [
        // USER_MEMORY, SET_TSS_ADDR, SET_IDENTITY_MAP_ADDR, SYNC_MMU, DESTROY_MEMORY_REGION_WORKS,
        // JOIN_MEMORY_REGIONS_WORKS, READONLY_MEM, CHECK_EXTENSION_VM, ENABLE_CAP_VM
        3, 4, 37, 16, 21, 30, 81, 105, 98,
        // IRQCHIP, PIT, PIT2, PIT_STATE2, REINJECT_CONTROL, IRQ_INJECT_STATUS, IRQFD, IRQFD_RESAMPLE, SIGNAL_MSI,
        // SPLIT_IRQCHIP, TSC_DEADLINE_TIMER, SET_BOOT_CPU_ID, IOAPIC_POLARITY_IGNORED
        0, 11, 33, 35, 24, 26, 32, 82, 77, 121, 72, 34, 97,
        // IOEVENTFD, IOEVENTFD_NO_LENGTH, IOEVENTFD_ANY_LENGTH, COALESCED_PIO, NOP_IO_DELAY, USER_NMI
        36, 100, 122, 162, 12, 22,
        // HLT, EXT_CPUID, EXT_EMUL_CPUID, MP_STATE, SET_GUEST_DEBUG, X86_ROBUST_SINGLESTEP, INTERNAL_ERROR_DATA,
        // VCPU_EVENTS, EXCEPTION_PAYLOAD, X86_TRIPLE_FAULT_EVENT, DEBUGREGS, SREGS2, IMMEDIATE_EXIT, GET_MSR_FEATURES,
        // MSR_PLATFORM_INFO, X86_USER_SPACE_MSR, X86_MSR_FILTER, VCPU_ATTRIBUTES
        1, 7, 95, 14, 23, 51, 40, 41, 164, 218, 50, 200, 136, 153, 159, 188, 189, 127,
        // CLOCKSOURCE, GET_TSC_KHZ, KVMCLOCK_CTRL, ASYNC_PF, ASYNC_PF_INT, ENFORCE_PV_FEATURE_CPUID
        8, 61, 76, 59, 183, 190,
    ];

    /// <summary>Those whose answer is a number, and those that can be enabled.</summary>
    private const uint KVM_CAP_NR_VCPUS = 9, KVM_CAP_NR_MEMSLOTS = 10, KVM_CAP_COALESCED_MMIO = 15,
        KVM_CAP_IRQ_ROUTING = 25, KVM_CAP_MCE = 31, KVM_CAP_ADJUST_CLOCK = 39, KVM_CAP_XSAVE = 55, KVM_CAP_XCRS = 56,
        KVM_CAP_MAX_VCPUS = 66, KVM_CAP_SYNC_REGS = 74, KVM_CAP_SPLIT_IRQCHIP = 121, KVM_CAP_MAX_VCPU_ID = 128,
        KVM_CAP_X2APIC_API = 129, KVM_CAP_MSR_PLATFORM_INFO = 159, KVM_CAP_EXCEPTION_PAYLOAD = 164,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168, KVM_CAP_X86_USER_SPACE_MSR = 188,
        KVM_CAP_ENFORCE_PV_FEATURE_CPUID = 190, KVM_CAP_DIRTY_LOG_RING = 192, KVM_CAP_SET_GUEST_DEBUG2 = 195,
        KVM_CAP_XSAVE2 = 208, KVM_CAP_DISABLE_QUIRKS2 = 213, KVM_CAP_X86_TRIPLE_FAULT_EVENT = 218,
        KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223;

    /// <summary>KVM_X2APIC_API_USE_32BIT_IDS and _DISABLE_BROADCAST_QUIRK.</summary>
    private const ulong Use32BitIds = 1 << 0, DisableBroadcastQuirk = 1 << 1;

    private const ulong UserMsrReasons = Abi.kvm_run.Msr.KVM_MSR_EXIT_REASON_INVAL
        | Abi.kvm_run.Msr.KVM_MSR_EXIT_REASON_UNKNOWN | Abi.kvm_run.Msr.KVM_MSR_EXIT_REASON_FILTER;

    public static int Check(ulong capability) => capability switch
    {
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
        _ => capability <= byte.MaxValue && Present.Contains((byte)capability) ? 1 : 0,
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
