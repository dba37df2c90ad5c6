// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Paravirt;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Vm;

/// <summary>ioctls on the device.</summary>
internal static class SystemIoctls
{
    private const int ApiVersion = 12;
    /// <summary>kvm_run, the port data, and the ring of coalesced writes.</summary>
    private const int VcpuMmapSize = 3 * Page.Size;

    public static long Dispatch(uint command, ulong argument)
    {
        var pointer = new Hva(argument);
        return command switch
        {
            KVM_GET_API_VERSION => argument == 0 ? ApiVersion : Errno.EINVAL,
            // The type of a machine: x86 has only 0.
            KVM_CREATE_VM => argument == 0 ? HostVm.Create() : Errno.EINVAL,
            KVM_CHECK_EXTENSION => Capabilities.Check(argument),
            KVM_GET_VCPU_MMAP_SIZE => argument == 0 ? VcpuMmapSize : Errno.EINVAL,
            KVM_GET_SUPPORTED_CPUID => HostCpuid.Supported(pointer),
            KVM_GET_EMULATED_CPUID => HostCpuid.Emulated(pointer),
            KVM_GET_MSR_INDEX_LIST => MsrLists.IndexList(pointer),
            KVM_GET_MSR_FEATURE_INDEX_LIST => MsrLists.FeatureIndexList(pointer),
            KVM_GET_MSRS => MsrLists.GetFeatures(pointer),
            KVM_X86_GET_MCE_CAP_SUPPORTED => MsrLists.McCapSupported(pointer),
            _ => Errno.EINVAL,
        };
    }
}

/// <summary>ioctls on a VM; the shim holds its lock.</summary>
internal static class VmIoctls
{
    private const int DefaultMmuPages = 0, LeastMmuPages = 64;
    /// <summary>
    /// KVM_SET_TSS_ADDR takes three pages below 4 GiB (they matter to VMX without unrestricted guest).
    /// </summary>
    private const ulong TssPages = 3;

    public static long Dispatch(ref Vm vm, uint command, ulong argument)
    {
        var pointer = new Hva(argument);
        return command switch
        {
            KVM_CHECK_EXTENSION => Capabilities.Check(argument),
            KVM_ENABLE_CAP => UserMemory.TryRead(pointer, out kvm_enable_cap capability)
                ? Capabilities.Enable(ref vm, capability.cap, capability.flags, capability.args[0]) : Errno.EFAULT,
            KVM_CREATE_VCPU => CreateVcpu(ref vm, argument),
            KVM_SET_BOOT_CPU_ID => SetBootCpu(ref vm, argument),
            KVM_SET_USER_MEMORY_REGION => UserMemory.TryRead(pointer, out kvm_userspace_memory_region region)
                ? MemorySlots.SetRegion(ref vm, in region) : Errno.EFAULT,
            KVM_GET_DIRTY_LOG => UserMemory.TryRead(pointer, out kvm_dirty_log log)
                ? DirtyLog.Get(ref vm, in log) : Errno.EFAULT,
            KVM_CLEAR_DIRTY_LOG => UserMemory.TryRead(pointer, out kvm_clear_dirty_log cleared)
                ? DirtyLog.Clear(ref vm, in cleared) : Errno.EFAULT,
            KVM_RESET_DIRTY_RINGS => DirtyRing.ResetAll(ref vm),
            KVM_SET_NR_MMU_PAGES => argument < LeastMmuPages ? Errno.EINVAL : Errno.Ok,
            KVM_GET_NR_MMU_PAGES => DefaultMmuPages,
            KVM_SET_TSS_ADDR => argument > uint.MaxValue - TssPages * Page.Size + 1 ? Errno.EINVAL : Errno.Ok,
            KVM_SET_IDENTITY_MAP_ADDR => !UserMemory.TryRead(pointer, out ulong _) ? Errno.EFAULT
                // Only the first vCPU would use it.
                : vm.Vcpus.Count != 0 ? Errno.EINVAL : Errno.Ok,
            KVM_CREATE_IRQCHIP => IrqChip.Create(ref vm),
            KVM_GET_IRQCHIP => IrqchipIoctls.AccessChip(ref vm, pointer, set: false),
            KVM_SET_IRQCHIP => IrqchipIoctls.AccessChip(ref vm, pointer, set: true),
            KVM_IRQ_LINE => IrqchipIoctls.SetLine(ref vm, pointer, reports: false),
            KVM_IRQ_LINE_STATUS => IrqchipIoctls.SetLine(ref vm, pointer, reports: true),
            KVM_SIGNAL_MSI => IrqchipIoctls.SignalMsi(ref vm, pointer),
            KVM_SET_GSI_ROUTING => IrqchipIoctls.SetRouting(ref vm, pointer),
            KVM_IRQFD => IrqchipIoctls.ChangeIrqFd(ref vm, pointer),
            KVM_CREATE_PIT => IrqchipIoctls.CreatePit(ref vm, kvm_pit_config.KVM_PIT_SPEAKER_DUMMY),
            KVM_CREATE_PIT2 => UserMemory.TryRead(pointer, out kvm_pit_config pit)
                ? IrqchipIoctls.CreatePit(ref vm, pit.flags) : Errno.EFAULT,
            KVM_GET_PIT => IrqchipIoctls.AccessPit<kvm_pit_state>(ref vm, pointer, set: false),
            KVM_SET_PIT => IrqchipIoctls.AccessPit<kvm_pit_state>(ref vm, pointer, set: true),
            KVM_GET_PIT2 => IrqchipIoctls.AccessPit<kvm_pit_state2>(ref vm, pointer, set: false),
            KVM_SET_PIT2 => IrqchipIoctls.AccessPit<kvm_pit_state2>(ref vm, pointer, set: true),
            KVM_REINJECT_CONTROL => IrqchipIoctls.ControlReinjection(ref vm, pointer),
            KVM_IOEVENTFD => UserMemory.TryRead(pointer, out kvm_ioeventfd ioEventFd)
                ? IoEventFds.Change(ref vm, in ioEventFd) : Errno.EFAULT,
            KVM_REGISTER_COALESCED_MMIO or KVM_UNREGISTER_COALESCED_MMIO =>
                UserMemory.TryRead(pointer, out kvm_coalesced_mmio_zone zone)
                ? CoalescedIo.Change(ref vm, in zone, add: command == KVM_REGISTER_COALESCED_MMIO) : Errno.EFAULT,
            KVM_X86_SET_MSR_FILTER => SetMsrFilter(ref vm, pointer),
            KVM_GET_CLOCK => VmClock.Get(ref vm, pointer),
            KVM_SET_CLOCK => VmClock.Set(ref vm, pointer),
            KVM_SET_TSC_KHZ => VmCpuState.SetTscKhz((uint)argument),
            KVM_GET_TSC_KHZ => VmCpuState.GetTscKhz(),
            _ => Errno.ENOTTY,
        };
    }

    private static long CreateVcpu(ref Vm vm, ulong id)
    {
        if (id >= (vm.VcpuIdLimit != 0 ? vm.VcpuIdLimit : Capabilities.MaxVcpuId))
            return Errno.EINVAL;
        return vm.Vcpus.Find((uint)id).IsNull ? vm.Host.CreateVcpu((uint)id) : Errno.EEXIST;
    }

    /// <summary>EBUSY once there are vCPUs.</summary>
    private static int SetBootCpu(ref Vm vm, ulong id)
    {
        if (vm.Vcpus.Count != 0)
            return Errno.EBUSY;
        vm.BootCpuId = (uint)id;
        return Errno.Ok;
    }

    private static int SetMsrFilter(ref Vm vm, Hva pointer)
    {
        int result = vm.MsrFilter.Set(pointer);
        if (result == Errno.Ok)
            vm.Vcpus.RequestAll(VcpuRequests.MsrFilter);
        return result;
    }
}

/// <summary>ioctls on a vCPU other than KVM_RUN; the shim holds its mutex.</summary>
internal static class VcpuIoctls<TVendor> where TVendor : struct, IVendor
{
    private const uint SignalSetSize = 8;

    public static long Dispatch(ref Vcpu vcpu, uint command, ulong argument)
    {
        var pointer = new Hva(argument);
        Halting<TVendor>.AcceptMessages(ref vcpu);
        return command switch
        {
            KVM_GET_REGS => StateIoctls<TVendor>.GetRegs(ref vcpu, pointer),
            KVM_SET_REGS => StateIoctls<TVendor>.SetRegs(ref vcpu, pointer),
            KVM_GET_SREGS => StateIoctls<TVendor>.GetSregs(ref vcpu, pointer),
            KVM_SET_SREGS => StateIoctls<TVendor>.SetSregs(ref vcpu, pointer),
            KVM_GET_SREGS2 => StateIoctls<TVendor>.GetSregs2(ref vcpu, pointer),
            KVM_SET_SREGS2 => StateIoctls<TVendor>.SetSregs2(ref vcpu, pointer),
            KVM_GET_FPU => StateIoctls<TVendor>.GetFpu(ref vcpu, pointer),
            KVM_SET_FPU => StateIoctls<TVendor>.SetFpu(ref vcpu, pointer),
            KVM_GET_XSAVE => StateIoctls<TVendor>.GetXsave(ref vcpu, pointer),
            KVM_GET_XSAVE2 => StateIoctls<TVendor>.GetXsave2(ref vcpu, pointer),
            KVM_SET_XSAVE => StateIoctls<TVendor>.SetXsave(ref vcpu, pointer),
            KVM_GET_XCRS => StateIoctls<TVendor>.GetXcrs(ref vcpu, pointer),
            KVM_SET_XCRS => StateIoctls<TVendor>.SetXcrs(ref vcpu, pointer),
            KVM_GET_MSRS => StateIoctls<TVendor>.GetMsrs(ref vcpu, pointer),
            KVM_SET_MSRS => StateIoctls<TVendor>.SetMsrs(ref vcpu, pointer),
            KVM_GET_DEBUGREGS => StateIoctls<TVendor>.GetDebugRegs(ref vcpu, pointer),
            KVM_SET_DEBUGREGS => StateIoctls<TVendor>.SetDebugRegs(ref vcpu, pointer),
            KVM_SET_GUEST_DEBUG => StateIoctls<TVendor>.SetGuestDebug(ref vcpu, pointer),
            KVM_GET_VCPU_EVENTS => StateIoctls<TVendor>.GetVcpuEvents(ref vcpu, pointer),
            KVM_SET_VCPU_EVENTS => StateIoctls<TVendor>.SetVcpuEvents(ref vcpu, pointer),
            KVM_GET_MP_STATE => Halting<TVendor>.Get(ref vcpu, pointer),
            KVM_SET_MP_STATE => Halting<TVendor>.Set(ref vcpu, pointer),
            KVM_GET_LAPIC => StateIoctls<TVendor>.GetLapic(ref vcpu, pointer),
            KVM_SET_LAPIC => StateIoctls<TVendor>.SetLapic(ref vcpu, pointer),
            KVM_SET_CPUID => StateIoctls<TVendor>.SetCpuid(ref vcpu, pointer),
            KVM_SET_CPUID2 => StateIoctls<TVendor>.SetCpuid2(ref vcpu, pointer),
            KVM_GET_CPUID2 => StateIoctls<TVendor>.GetCpuid2(ref vcpu, pointer),
            KVM_SET_TSC_KHZ => VmCpuState.SetTscKhz((uint)argument),
            KVM_GET_TSC_KHZ => VmCpuState.GetTscKhz(),
            KVM_TRANSLATE => StateIoctls<TVendor>.Translate(ref vcpu, pointer),
            KVM_INTERRUPT => StateIoctls<TVendor>.Interrupt(ref vcpu, pointer),
            KVM_NMI => StateIoctls<TVendor>.Nmi(ref vcpu),
            // No system-management mode.
            KVM_SMI => Errno.ENOTTY,
            KVM_X86_SETUP_MCE => StateIoctls<TVendor>.SetupMce(ref vcpu, pointer),
            KVM_X86_SET_MCE => StateIoctls<TVendor>.SetMce(ref vcpu, pointer),
            KVM_TPR_ACCESS_REPORTING => StateIoctls<TVendor>.TprAccessReporting(ref vcpu, pointer),
            KVM_SET_VAPIC_ADDR => VirtualTpr<TVendor>.Set(ref vcpu, pointer),
            KVM_KVMCLOCK_CTRL => PvClock<TVendor>.NoteStopped(ref vcpu),
            KVM_ENABLE_CAP => UserMemory.TryRead(pointer, out kvm_enable_cap capability)
                ? Capabilities.Enable(ref vcpu, capability.cap, capability.flags, capability.args[0]) : Errno.EFAULT,
            KVM_HAS_DEVICE_ATTR or KVM_GET_DEVICE_ATTR or KVM_SET_DEVICE_ATTR =>
                StateIoctls<TVendor>.TscOffset(ref vcpu, command, pointer),
            KVM_SET_SIGNAL_MASK => SetSignalMask(ref vcpu, pointer),
            _ => Errno.EINVAL,
        };
    }

    /// <summary>struct kvm_signal_mask: a length, then the set; a null pointer ends the masking.</summary>
    private static int SetSignalMask(ref Vcpu vcpu, Hva pointer)
    {
        if (pointer.Value == 0)
        {
            vcpu.Shared.Host.SetSignalMask(0, active: false);
            return Errno.Ok;
        }
        if (!UserMemory.TryRead(pointer, out uint length))
            return Errno.EFAULT;
        if (length != SignalSetSize)
            return Errno.EINVAL;
        if (!UserMemory.TryRead(pointer + sizeof(uint), out ulong mask))
            return Errno.EFAULT;
        vcpu.Shared.Host.SetSignalMask(mask, active: true);
        return Errno.Ok;
    }
}
