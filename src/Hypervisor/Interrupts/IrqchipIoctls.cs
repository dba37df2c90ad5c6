// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>The VM ioctls of interrupt chips and routes; the caller holds the VM's lock.</summary>
internal static class IrqchipIoctls
{
    /// <summary>ENXIO without controllers in the kernel; the status goes back with KVM_IRQ_LINE_STATUS.</summary>
    public static int SetLine(ref Vm.Vm vm, Hva argument, bool reports)
    {
        if (!UserMemory.TryRead(argument, out kvm_irq_level line))
            return Errno.EFAULT;
        if (vm.Irqchip.Mode == IrqchipMode.None)
            return Errno.ENXIO;
        int status = Gsi.TryCreate(line.irq, out Gsi gsi)
            ? IrqChip.SetLine(ref vm, gsi, LineSource.UserSpace, line.level != 0)
            : -1;
        return !reports || UserMemory.TryWrite(argument, line with { status = status }) ? Errno.Ok : Errno.EFAULT;
    }

    /// <summary>How many CPUs the message reached; EPERM when nobody has its address.</summary>
    public static int SignalMsi(ref Vm.Vm vm, Hva argument)
    {
        if (!UserMemory.TryRead(argument, out kvm_msi msi))
            return Errno.EFAULT;
        if (vm.Irqchip.Mode == IrqchipMode.None || msi.flags != 0 || vm.Irqchip.Wide && (msi.address_hi & 0xff) != 0)
            return Errno.EINVAL;
        return IrqChip.SendMsi(ref vm, (ulong)msi.address_hi << 32 | msi.address_lo, msi.data);
    }

    public static int SetRouting(ref Vm.Vm vm, Hva argument)
    {
        if (!UserMemory.TryRead(argument, out kvm_irq_routing head))
            return Errno.EFAULT;
        if (vm.Irqchip.Mode == IrqchipMode.None || head.nr > Gsi.Limit || head.flags != 0)
            return Errno.EINVAL;
        int error = RouteTable.Read(argument + (ulong)Unsafe.SizeOf<kvm_irq_routing>(), head.nr,
            pins: vm.Irqchip.Mode == IrqchipMode.Kernel, vm.Irqchip.Wide, out RouteTable routes);
        if (error == Errno.Ok)
            IrqChip.Replace(ref vm, routes);
        return error;
    }

    /// <summary>EINVAL for flags or a GSI that cannot be, EBADF and EINVAL for what is no eventfd, EBUSY.</summary>
    public static int ChangeIrqFd(ref Vm.Vm vm, Hva argument)
    {
        const uint Known = kvm_irqfd.KVM_IRQFD_FLAG_DEASSIGN | kvm_irqfd.KVM_IRQFD_FLAG_RESAMPLE;
        if (!UserMemory.TryRead(argument, out kvm_irqfd request))
            return Errno.EFAULT;
        bool resample = (request.flags & kvm_irqfd.KVM_IRQFD_FLAG_RESAMPLE) != 0;
        if ((request.flags & ~Known) != 0 || !Gsi.TryCreate(request.gsi, out Gsi gsi))
            return Errno.EINVAL;
        if ((request.flags & kvm_irqfd.KVM_IRQFD_FLAG_DEASSIGN) != 0)
        {
            int result = vm.Host.DeassignIrqFd((int)request.fd, request.gsi, out bool stillResampled);
            // Nobody is left who would lower the line.
            if (!stillResampled)
                IrqChip.SetLine(ref vm, gsi, LineSource.ResampleFd, false);
            return result;
        }
        if (vm.Irqchip.Mode == IrqchipMode.None || resample && vm.Irqchip.Mode != IrqchipMode.Kernel)
            return Errno.EINVAL;
        if (resample)
            IrqChip.Watch(ref vm, gsi);
        return vm.Host.AssignIrqFd((int)request.fd, request.gsi, (int)request.resamplefd, resample);
    }

    /// <summary>
    /// KVM_GET_IRQCHIP and KVM_SET_IRQCHIP. ENXIO unless the shared chips are in the kernel, EINVAL for a chip that is
    /// none.
    /// </summary>
    public static int AccessChip(ref Vm.Vm vm, Hva argument, bool set)
    {
        if (!UserMemory.TryRead(argument, out kvm_irqchip state))
            return Errno.EFAULT;
        if (vm.Irqchip.Mode != IrqchipMode.Kernel)
            return Errno.ENXIO;
        if (state.chip_id > kvm_irqchip.KVM_IRQCHIP_IOAPIC)
            return Errno.EINVAL;
        IrqChip.Access(ref vm, ref state, set);
        return set || UserMemory.TryWrite(argument, state) ? Errno.Ok : Errno.EFAULT;
    }

    /// <summary>
    /// EEXIST when there is one, ENOENT without the shared chips. Unknown flags are ignored, as by KVM.
    /// </summary>
    public static int CreatePit(ref Vm.Vm vm, uint flags)
    {
        if (vm.Irqchip.HasPit)
            return Errno.EEXIST;
        if (vm.Irqchip.Mode != IrqchipMode.Kernel)
            return Errno.ENOENT;
        vm.Host.LockIrq();
        vm.Irqchip.Pit.Reset(HostCpu.Nanoseconds());
        vm.Irqchip.HasSpeaker = (flags & kvm_pit_config.KVM_PIT_SPEAKER_DUMMY) != 0;
        vm.Irqchip.HasPit = true;
        vm.Host.UnlockIrq();
        return Errno.Ok;
    }

    /// <summary>Gets or sets the state, of which KVM_GET_PIT and KVM_SET_PIT take the first part.</summary>
    public static int AccessPit<T>(ref Vm.Vm vm, Hva argument, bool set) where T : unmanaged
    {
        kvm_pit_state2 state = default;
        ref T part = ref Unsafe.As<kvm_pit_state2, T>(ref state);
        if (set && !UserMemory.TryRead(argument, out part))
            return Errno.EFAULT;
        if (!vm.Irqchip.HasPit)
            return Errno.ENXIO;
        vm.Host.LockIrq();
        if (set)
            vm.Irqchip.Pit.Set(in state, HostCpu.Nanoseconds());
        else
            state = vm.Irqchip.Pit.Get(HostCpu.Nanoseconds());
        vm.Irqchip.ArmTimer(vm.Host);
        vm.Host.UnlockIrq();
        return set || UserMemory.TryWrite(argument, part) ? Errno.Ok : Errno.EFAULT;
    }

    public static int ControlReinjection(ref Vm.Vm vm, Hva argument)
    {
        if (!UserMemory.TryRead(argument, out kvm_reinject_control control))
            return Errno.EFAULT;
        if (!vm.Irqchip.HasPit)
            return Errno.ENXIO;
        vm.Host.LockIrq();
        vm.Irqchip.Pit.Reinject = control.pit_reinject != 0;
        vm.Host.UnlockIrq();
        return Errno.Ok;
    }
}
