// SPDX-License-Identifier: GPL-2.0-only
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
        IoctlData data = new() { Command = command, Argument = argument };
        return data.Finish(command switch
        {
            KVM_GET_API_VERSION => argument == 0 ? ApiVersion : Errno.EINVAL,
            // The type of a machine: x86 has only 0.
            KVM_CREATE_VM => argument == 0 ? HostVm.Create() : Errno.EINVAL,
            KVM_CHECK_EXTENSION => Capabilities.Check(argument),
            KVM_GET_VCPU_MMAP_SIZE => argument == 0 ? VcpuMmapSize : Errno.EINVAL,
            KVM_GET_SUPPORTED_CPUID when data.Read() => HostCpuid.Supported(ref data),
            KVM_GET_EMULATED_CPUID when data.Read() => HostCpuid.Emulated(ref data),
            KVM_GET_MSR_INDEX_LIST when data.Read() => data.AnswerList(MsrLists.ToSave),
            KVM_GET_MSR_FEATURE_INDEX_LIST when data.Read() => data.AnswerList(MsrLists.Features),
            KVM_GET_MSRS when data.Read() => MsrLists.GetFeatures(data.Elements, data.As<kvm_msrs>().nmsrs),
            KVM_X86_GET_MCE_CAP_SUPPORTED => data.Answer(MsrState.McgSupported),
            _ => Errno.EINVAL,
        });
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
        IoctlData data = new() { Command = command, Argument = argument };
        return data.Finish(command switch
        {
            KVM_CHECK_EXTENSION => Capabilities.Check(argument),
            KVM_ENABLE_CAP when data.Read() => Capabilities.Enable(ref vm, in data.As<kvm_enable_cap>()),
            KVM_CREATE_VCPU => CreateVcpu(ref vm, argument),
            KVM_SET_BOOT_CPU_ID => SetBootCpu(ref vm, argument),
            KVM_SET_USER_MEMORY_REGION when data.Read() =>
                MemorySlots.SetRegion(ref vm, in data.As<kvm_userspace_memory_region>()),
            KVM_GET_DIRTY_LOG when data.Read() => DirtyLog.Get(ref vm, in data.As<kvm_dirty_log>()),
            KVM_CLEAR_DIRTY_LOG when data.Read() => DirtyLog.Clear(ref vm, in data.As<kvm_clear_dirty_log>()),
            KVM_RESET_DIRTY_RINGS => DirtyRing.ResetAll(ref vm),
            KVM_SET_NR_MMU_PAGES => argument < LeastMmuPages ? Errno.EINVAL : Errno.Ok,
            KVM_GET_NR_MMU_PAGES => DefaultMmuPages,
            KVM_SET_TSS_ADDR => argument > uint.MaxValue - TssPages * Page.Size + 1 ? Errno.EINVAL : Errno.Ok,
            // Only the first vCPU would use it.
            KVM_SET_IDENTITY_MAP_ADDR when data.Read() => vm.Vcpus.Count != 0 ? Errno.EINVAL : Errno.Ok,
            KVM_CREATE_IRQCHIP => IrqChip.Create(ref vm),
            KVM_GET_IRQCHIP when data.Read() => IrqChip.Access(ref vm, ref data.Out<kvm_irqchip>(), set: false),
            KVM_SET_IRQCHIP when data.Read() => IrqChip.Access(ref vm, ref data.As<kvm_irqchip>(), set: true),
            KVM_IRQ_LINE when data.Read() => IrqchipIoctls.SetLine(ref vm, data.As<kvm_irq_level>(), out _),
            KVM_IRQ_LINE_STATUS when data.Read() =>
                IrqchipIoctls.SetLine(ref vm, data.As<kvm_irq_level>(), out data.Out<kvm_irq_level>().status),
            KVM_SIGNAL_MSI when data.Read() => IrqchipIoctls.SignalMsi(ref vm, in data.As<kvm_msi>()),
            KVM_SET_GSI_ROUTING when data.Read() =>
                IrqchipIoctls.SetRouting(ref vm, in data.As<kvm_irq_routing>(), data.Elements),
            KVM_IRQFD when data.Read() => IrqchipIoctls.ChangeIrqFd(ref vm, in data.As<kvm_irqfd>()),
            KVM_CREATE_PIT => IrqchipIoctls.CreatePit(ref vm, kvm_pit_config.KVM_PIT_SPEAKER_DUMMY),
            KVM_CREATE_PIT2 when data.Read() => IrqchipIoctls.CreatePit(ref vm, data.As<kvm_pit_config>().flags),
            KVM_GET_PIT or KVM_GET_PIT2 =>
                IrqchipIoctls.AccessPit(ref vm, ref data.Out<kvm_pit_state2>(), set: false),
            KVM_SET_PIT or KVM_SET_PIT2 when data.Read() =>
                IrqchipIoctls.AccessPit(ref vm, ref data.As<kvm_pit_state2>(), set: true),
            KVM_REINJECT_CONTROL => IrqchipIoctls.ControlReinjection(ref vm, data.Pointer),
            KVM_IOEVENTFD when data.Read() => IoEventFds.Change(ref vm, in data.As<kvm_ioeventfd>()),
            KVM_REGISTER_COALESCED_MMIO or KVM_UNREGISTER_COALESCED_MMIO when data.Read() => CoalescedIo.Change(
                ref vm, in data.As<kvm_coalesced_mmio_zone>(), add: command == KVM_REGISTER_COALESCED_MMIO),
            KVM_X86_SET_MSR_FILTER when data.Read() => MsrFilter.Set(ref vm, in data.As<kvm_msr_filter>()),
            KVM_GET_CLOCK => VmClock.Get(ref vm, out data.Out<kvm_clock_data>()),
            KVM_SET_CLOCK when data.Read() => VmClock.Set(ref vm, data.As<kvm_clock_data>()),
            KVM_SET_TSC_KHZ => VmCpuState.SetTscKhz((uint)argument),
            KVM_GET_TSC_KHZ => (int)HostCpu.TscKhz(),
            _ => Errno.ENOTTY,
        });
    }

    private static long CreateVcpu(ref Vm vm, ulong id)
    {
        if (id >= (vm.VcpuIdLimit != 0 ? vm.VcpuIdLimit : VcpuTable.Size))
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
}

/// <summary>ioctls on a vCPU other than KVM_RUN; the shim holds its mutex.</summary>
internal static class VcpuIoctls<TVendor> where TVendor : struct, IVendor
{
    private const uint SignalSetSize = 8, XsaveRegionSize = 4096;

    public static long Dispatch(ref Vcpu vcpu, uint command, ulong argument)
    {
        IoctlData data = new() { Command = command, Argument = argument };
        Halting<TVendor>.AcceptMessages(ref vcpu);
        return data.Finish(command switch
        {
            KVM_GET_REGS => data.Answer(kvm_regs.Of(ref vcpu.Registers)),
            KVM_SET_REGS when data.Read() => StateIoctls<TVendor>.SetRegs(ref vcpu, in data.As<kvm_regs>()),
            KVM_GET_SREGS => StateIoctls<TVendor>.GetSregs(ref vcpu, out data.Out<kvm_sregs>()),
            KVM_SET_SREGS when data.Read() => StateIoctls<TVendor>.SetSregs(ref vcpu, ref data.As<kvm_sregs>()),
            KVM_GET_SREGS2 => StateIoctls<TVendor>.GetSregs2(ref vcpu, out data.Out<kvm_sregs2>()),
            KVM_SET_SREGS2 when data.Read() => StateIoctls<TVendor>.SetSregs2(ref vcpu, ref data.As<kvm_sregs2>()),
            KVM_GET_FPU => StateIoctls<TVendor>.GetFpu(ref vcpu, out data.Out<kvm_fpu>()),
            KVM_SET_FPU when data.Read() => StateIoctls<TVendor>.SetFpu(ref vcpu, in data.As<kvm_fpu>()),
            // A state that is larger than struct kvm_xsave is for KVM_GET_XSAVE2 only.
            KVM_GET_XSAVE when vcpu.Shared.Host.XsaveSize() > XsaveRegionSize => Errno.EINVAL,
            KVM_GET_XSAVE or KVM_GET_XSAVE2 => vcpu.Shared.Host.FpuToUser(data.Pointer),
            KVM_SET_XSAVE => vcpu.Shared.Host.FpuFromUser(data.Pointer),
            KVM_GET_XCRS => StateIoctls<TVendor>.GetXcrs(ref vcpu, out data.Out<kvm_xcrs>()),
            KVM_SET_XCRS when data.Read() => StateIoctls<TVendor>.SetXcrs(ref vcpu, in data.As<kvm_xcrs>()),
            KVM_GET_MSRS or KVM_SET_MSRS when data.Read() => StateIoctls<TVendor>.EachMsr(
                ref vcpu, data.Elements, data.As<kvm_msrs>().nmsrs, write: command == KVM_SET_MSRS),
            KVM_GET_DEBUGREGS => data.Answer(StateIoctls<TVendor>.GetDebugRegs(ref vcpu)),
            KVM_SET_DEBUGREGS when data.Read() =>
                StateIoctls<TVendor>.SetDebugRegs(ref vcpu, in data.As<kvm_debugregs>()),
            KVM_SET_GUEST_DEBUG when data.Read() =>
                Debugging<TVendor>.SetGuestDebug(ref vcpu, in data.As<kvm_guest_debug>()),
            KVM_GET_VCPU_EVENTS => Exceptions<TVendor>.Get(ref vcpu, out data.Out<kvm_vcpu_events>()),
            KVM_SET_VCPU_EVENTS when data.Read() => Exceptions<TVendor>.Set(ref vcpu, in data.As<kvm_vcpu_events>()),
            KVM_GET_MP_STATE => data.Answer(vcpu.MpState),
            KVM_SET_MP_STATE when data.Read() => Halting<TVendor>.Set(ref vcpu, data.As<MpState>()),
            KVM_GET_LAPIC when vcpu.HasApic => Apic<TVendor>.Get(ref vcpu, out data.Out<kvm_lapic_state>()),
            KVM_SET_LAPIC when vcpu.HasApic && data.Read() =>
                Apic<TVendor>.Set(ref vcpu, in data.As<kvm_lapic_state>()),
            KVM_SET_CPUID2 when data.Read() =>
                CpuidTable.Set<TVendor>(ref vcpu, data.Elements, data.As<kvm_cpuid2>().nent),
            KVM_GET_CPUID2 when data.Read() => data.AnswerList(vcpu.Cpuid.Entries),
            KVM_SET_TSC_KHZ => VmCpuState.SetTscKhz((uint)argument),
            KVM_GET_TSC_KHZ => (int)HostCpu.TscKhz(),
            KVM_TRANSLATE when data.Read() => StateIoctls<TVendor>.Translate(ref vcpu, ref data.Out<kvm_translation>()),
            KVM_INTERRUPT when data.Read() => StateIoctls<TVendor>.Interrupt(ref vcpu, data.As<uint>()),
            KVM_NMI => StateIoctls<TVendor>.Nmi(ref vcpu),
            // No system-management mode.
            KVM_SMI => Errno.ENOTTY,
            KVM_X86_SETUP_MCE when data.Read() => MachineCheck<TVendor>.SetUp(ref vcpu, data.As<ulong>()),
            KVM_X86_SET_MCE when data.Read() => MachineCheck<TVendor>.Set(ref vcpu, in data.As<kvm_x86_mce>()),
            // Reports would come from an APIC in the kernel: they cannot be switched on.
            KVM_TPR_ACCESS_REPORTING when data.Read() =>
                data.Out<kvm_tpr_access_ctl>() is { enabled: 0, flags: 0 } ? Errno.Ok : Errno.EINVAL,
            KVM_SET_VAPIC_ADDR when data.Read() => VirtualTpr<TVendor>.Set(ref vcpu, data.As<ulong>()),
            KVM_KVMCLOCK_CTRL => PvClock<TVendor>.NoteStopped(ref vcpu),
            KVM_ENABLE_CAP when data.Read() => Capabilities.Enable(ref vcpu, in data.As<kvm_enable_cap>()),
            KVM_HAS_DEVICE_ATTR or KVM_GET_DEVICE_ATTR or KVM_SET_DEVICE_ATTR when data.Read() =>
                StateIoctls<TVendor>.TscOffset(ref vcpu, command, in data.As<kvm_device_attr>()),
            KVM_SET_SIGNAL_MASK when argument == 0 => vcpu.Shared.Host.SetSignalMask(0, active: false),
            KVM_SET_SIGNAL_MASK when data.Read() => SetSignalMask(ref vcpu, data.As<uint>(), data.Elements),
            _ => Errno.EINVAL,
        });
    }

    /// <summary>struct kvm_signal_mask: a length, then the set; a null pointer ends the masking.</summary>
    private static int SetSignalMask(ref Vcpu vcpu, uint length, Hva set)
    {
        if (length != SignalSetSize)
            return Errno.EINVAL;
        return UserMemory.TryRead(set, out ulong mask)
            ? vcpu.Shared.Host.SetSignalMask(mask, active: true) : Errno.EFAULT;
    }
}
