// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>The VM ioctls of interrupt chips and routes; the caller holds the VM's lock.</summary>
internal static class IrqchipIoctls
{
    /// <summary>ENXIO without controllers in the kernel; the status goes back with KVM_IRQ_LINE_STATUS.</summary>
    public static int SetLine(ref Vm.Vm vm, kvm_irq_level line, out int status)
    {
        status = 0;
        if (vm.Irqchip.Mode == IrqchipMode.None)
            return Errno.ENXIO;
        status = Gsi.TryCreate(line.irq, out Gsi gsi)
            ? IrqChip.SetLine(ref vm, gsi, LineSource.UserSpace, line.level != 0) : -1;
        return Errno.Ok;
    }

    /// <summary>How many CPUs the message reached; EPERM when nobody has its address.</summary>
    public static int SignalMsi(ref Vm.Vm vm, in kvm_msi msi)
    {
        if (vm.Irqchip.Mode == IrqchipMode.None || msi.flags != 0 || vm.Irqchip.Wide && (msi.address_hi & 0xff) != 0)
            return Errno.EINVAL;
        return IrqChip.SendMsi(ref vm, (ulong)msi.address_hi << 32 | msi.address_lo, msi.data);
    }

    public static int SetRouting(ref Vm.Vm vm, in kvm_irq_routing head, Hva elements)
    {
        if (vm.Irqchip.Mode == IrqchipMode.None || head.nr > Gsi.Limit || head.flags != 0)
            return Errno.EINVAL;
        int error = UserMemory.Copy(elements, head.nr, out KernelArray<kvm_irq_routing_entry> entries);
        RouteTable routes = default;
        if (error == Errno.Ok)
            error = RouteTable.Create(entries.Span, vm.Irqchip.Mode == IrqchipMode.Kernel, vm.Irqchip.Wide, out routes);
        entries.Free();
        if (error == Errno.Ok)
            IrqChip.Replace(ref vm, routes);
        return error;
    }

    /// <summary>EINVAL for flags or a GSI that cannot be, EBADF and EINVAL for what is no eventfd, EBUSY.</summary>
    public static int ChangeIrqFd(ref Vm.Vm vm, in kvm_irqfd request)
    {
        const uint Known = kvm_irqfd.KVM_IRQFD_FLAG_DEASSIGN | kvm_irqfd.KVM_IRQFD_FLAG_RESAMPLE;
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
    public static int AccessPit(ref Vm.Vm vm, ref kvm_pit_state2 state, bool set)
    {
        if (!vm.Irqchip.HasPit)
            return Errno.ENXIO;
        vm.Host.LockIrq();
        if (set)
            vm.Irqchip.Pit.Set(in state, HostCpu.Nanoseconds());
        else
            state = vm.Irqchip.Pit.Get(HostCpu.Nanoseconds());
        vm.Irqchip.ArmTimer(vm.Host);
        vm.Host.UnlockIrq();
        return Errno.Ok;
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
