// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

/// <summary>ioctl commands of linux/kvm.h, encoded as asm-generic/ioctl.h does.</summary>
internal static class Ioctl
{
    private const uint Write = 1u << 30, Read = 2u << 30, Kvm = 0xae << 8;

    public const uint KVM_GET_API_VERSION = Kvm | 0x00, KVM_CREATE_VM = Kvm | 0x01,
        KVM_GET_MSR_INDEX_LIST = Read | Write | 4 << 16 | Kvm | 0x02, KVM_CHECK_EXTENSION = Kvm | 0x03,
        KVM_GET_VCPU_MMAP_SIZE = Kvm | 0x04, KVM_GET_SUPPORTED_CPUID = Read | Write | 8 << 16 | Kvm | 0x05,
        KVM_GET_EMULATED_CPUID = Read | Write | 8 << 16 | Kvm | 0x09,
        KVM_GET_MSR_FEATURE_INDEX_LIST = Read | Write | 4 << 16 | Kvm | 0x0a;

    public const uint
        KVM_CREATE_VCPU = Kvm | 0x41, KVM_GET_DIRTY_LOG = Write | 16 << 16 | Kvm | 0x42,
        KVM_CLEAR_DIRTY_LOG = Read | Write | 24 << 16 | Kvm | 0xc0, KVM_RESET_DIRTY_RINGS = Kvm | 0xc7,
        KVM_SET_NR_MMU_PAGES = Kvm | 0x44, KVM_GET_NR_MMU_PAGES = Kvm | 0x45,
        KVM_SET_USER_MEMORY_REGION = Write | 32 << 16 | Kvm | 0x46, KVM_SET_TSS_ADDR = Kvm | 0x47,
        KVM_SET_IDENTITY_MAP_ADDR = Write | 8 << 16 | Kvm | 0x48, KVM_CREATE_IRQCHIP = Kvm | 0x60,
        KVM_IRQ_LINE = Write | 8 << 16 | Kvm | 0x61, KVM_GET_IRQCHIP = Read | Write | 520 << 16 | Kvm | 0x62,
        KVM_SET_IRQCHIP = Read | 520 << 16 | Kvm | 0x63, KVM_CREATE_PIT = Kvm | 0x64,
        KVM_GET_PIT = Read | Write | 72 << 16 | Kvm | 0x65, KVM_SET_PIT = Read | 72 << 16 | Kvm | 0x66,
        KVM_IRQ_LINE_STATUS = Read | Write | 8 << 16 | Kvm | 0x67,
        KVM_REGISTER_COALESCED_MMIO = Write | 16 << 16 | Kvm | 0x67,
        KVM_UNREGISTER_COALESCED_MMIO = Write | 16 << 16 | Kvm | 0x68,
        KVM_SET_GSI_ROUTING = Write | 8 << 16 | Kvm | 0x6a, KVM_REINJECT_CONTROL = Kvm | 0x71,
        KVM_IRQFD = Write | 32 << 16 | Kvm | 0x76, KVM_CREATE_PIT2 = Write | 64 << 16 | Kvm | 0x77,
        KVM_SET_BOOT_CPU_ID = Kvm | 0x78, KVM_IOEVENTFD = Write | 64 << 16 | Kvm | 0x79,
        KVM_SET_CLOCK = Write | 48 << 16 | Kvm | 0x7b, KVM_GET_CLOCK = Read | 48 << 16 | Kvm | 0x7c,
        KVM_GET_PIT2 = Read | 112 << 16 | Kvm | 0x9f, KVM_SET_PIT2 = Write | 112 << 16 | Kvm | 0xa0,
        KVM_SET_TSC_KHZ = Kvm | 0xa2, KVM_GET_TSC_KHZ = Kvm | 0xa3, KVM_ENABLE_CAP = Write | 104 << 16 | Kvm | 0xa3,
        KVM_X86_SET_MSR_FILTER = Write | 392 << 16 | Kvm | 0xc6, KVM_SIGNAL_MSI = Write | 32 << 16 | Kvm | 0xa5;

    public const uint
        KVM_GET_REGS = Read | 144 << 16 | Kvm | 0x81, KVM_SET_REGS = Write | 144 << 16 | Kvm | 0x82,
        KVM_GET_SREGS = Read | 312 << 16 | Kvm | 0x83, KVM_SET_SREGS = Write | 312 << 16 | Kvm | 0x84,
        KVM_TRANSLATE = Read | Write | 24 << 16 | Kvm | 0x85, KVM_INTERRUPT = Write | 4 << 16 | Kvm | 0x86,
        KVM_GET_MSRS = Read | Write | 8 << 16 | Kvm | 0x88, KVM_SET_MSRS = Write | 8 << 16 | Kvm | 0x89,
        KVM_SET_SIGNAL_MASK = Write | 4 << 16 | Kvm | 0x8b,
        KVM_GET_FPU = Read | 416 << 16 | Kvm | 0x8c, KVM_SET_FPU = Write | 416 << 16 | Kvm | 0x8d,
        KVM_GET_LAPIC = Read | 1024 << 16 | Kvm | 0x8e, KVM_SET_LAPIC = Write | 1024 << 16 | Kvm | 0x8f,
        KVM_SET_CPUID2 = Write | 8 << 16 | Kvm | 0x90, KVM_GET_CPUID2 = Read | Write | 8 << 16 | Kvm | 0x91,
        KVM_TPR_ACCESS_REPORTING = Read | Write | 40 << 16 | Kvm | 0x92,
        KVM_SET_VAPIC_ADDR = Write | 8 << 16 | Kvm | 0x93, KVM_GET_MP_STATE = Read | 4 << 16 | Kvm | 0x98,
        KVM_SET_MP_STATE = Write | 4 << 16 | Kvm | 0x99, KVM_NMI = Kvm | 0x9a,
        KVM_SET_GUEST_DEBUG = Write | 72 << 16 | Kvm | 0x9b, KVM_X86_SETUP_MCE = Write | 8 << 16 | Kvm | 0x9c,
        KVM_X86_GET_MCE_CAP_SUPPORTED = Read | 8 << 16 | Kvm | 0x9d, KVM_X86_SET_MCE = Write | 64 << 16 | Kvm | 0x9e,
        KVM_GET_VCPU_EVENTS = Read | 64 << 16 | Kvm | 0x9f, KVM_SET_VCPU_EVENTS = Write | 64 << 16 | Kvm | 0xa0,
        KVM_GET_DEBUGREGS = Read | 128 << 16 | Kvm | 0xa1, KVM_SET_DEBUGREGS = Write | 128 << 16 | Kvm | 0xa2,
        KVM_GET_XSAVE = Read | 4096 << 16 | Kvm | 0xa4, KVM_SET_XSAVE = Write | 4096 << 16 | Kvm | 0xa5,
        KVM_GET_XCRS = Read | 392 << 16 | Kvm | 0xa6, KVM_SET_XCRS = Write | 392 << 16 | Kvm | 0xa7,
        KVM_KVMCLOCK_CTRL = Kvm | 0xad, KVM_SMI = Kvm | 0xb7, KVM_GET_SREGS2 = Read | 320 << 16 | Kvm | 0xcc,
        KVM_SET_SREGS2 = Write | 320 << 16 | Kvm | 0xcd, KVM_SET_DEVICE_ATTR = Write | 24 << 16 | Kvm | 0xe1,
        KVM_GET_DEVICE_ATTR = Write | 24 << 16 | Kvm | 0xe2, KVM_HAS_DEVICE_ATTR = Write | 24 << 16 | Kvm | 0xe3,
        KVM_GET_XSAVE2 = Read | 4096 << 16 | Kvm | 0xcf;
}
