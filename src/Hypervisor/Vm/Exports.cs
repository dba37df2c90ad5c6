// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime;
using SharpKvm.Host;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Paravirt;
using SharpKvm.Svm;

namespace SharpKvm.Vm;

/// <summary>
/// Where the shim enters the core, each through the door. The addresses are those of structures that the shim
/// allocated in the sizes asked for here.
/// </summary>
internal static class Exports
{
    [RuntimeExport("sk_core_probe")]
    private static long Probe(ulong frameMask, int levels, nuint sharedSize)
    {
        if (sharedSize != (nuint)Unsafe.SizeOf<VcpuShared>())
        {
            Log.Error("the core's VcpuShared has not the size of the shim's sk_vcpu_shared\0"u8, sharedSize);
            return Errno.EINVAL;
        }
        HostVm.DescribeTables(frameMask, levels);
        return SvmHardware.Probe();
    }

    [RuntimeExport("sk_core_release")]
    private static long Release()
    {
        SvmHardware.Release();
        return Errno.Ok;
    }

    [RuntimeExport("sk_core_cpu_enable")]
    private static long EnableCpu(ulong savePage) => SvmHardware.Enable(new Hpa(savePage));

    [RuntimeExport("sk_core_cpu_disable")]
    private static long DisableCpu()
    {
        SvmHardware.Disable();
        return Errno.Ok;
    }

    [RuntimeExport("sk_core_vm_size")]
    private static long VmSize() => Unsafe.SizeOf<Vm>();

    [RuntimeExport("sk_core_vcpu_size")]
    private static long VcpuSize() => Unsafe.SizeOf<Vcpu>();

    [RuntimeExport("sk_core_vm_init")]
    private static long InitVm(nint core, nint host, nint ring)
    {
        ref Vm vm = ref new KernelRef<Vm>(core).Value;
        vm.Host = new HostVm(host);
        vm.Coalesced = CoalescedIo.Over(ring);
        vm.Clock.Start();
        HostCpu.Cpuid(0x80000008, 0, out Cpu.CpuidLeaf widths);
        return VmMemory.Init(ref vm, (int)(widths.Eax & 0xff));
    }

    [RuntimeExport("sk_core_vm_destroy")]
    private static long DestroyVm(nint core)
    {
        ref Vm vm = ref new KernelRef<Vm>(core).Value;
        VmMemory.Destroy(ref vm);
        vm.MsrFilter.Destroy();
        vm.IoEventFds.Destroy();
        vm.Irqchip.Destroy();
        return Errno.Ok;
    }

    [RuntimeExport("sk_core_vcpu_init")]
    private static long InitVcpu(nint core, nint vm, ulong id)
    {
        ref Vcpu vcpu = ref new KernelRef<Vcpu>(core).Value;
        vcpu.VmRef = new KernelRef<Vm>(vm);
        vcpu.Id = (uint)id;
        int result = DirtyRing.Create(ref vcpu);
        if (result == Errno.Ok)
            result = SvmVendor.CreateVcpu(ref vcpu);
        if (result == Errno.Ok)
            result = Cpu.Reset<SvmVendor>.PowerOn(ref vcpu);
        if (result != Errno.Ok)
            DestroyVcpu(core);
        return result;
    }

    /// <summary>All of the vCPU exists: others may find it.</summary>
    [RuntimeExport("sk_core_vcpu_show")]
    private static long ShowVcpu(nint core)
    {
        KernelRef<Vcpu> vcpu = new(core);
        vcpu.Value.Vm.Vcpus.Add(vcpu.Value.Id, vcpu);
        return Errno.Ok;
    }

    [RuntimeExport("sk_core_vcpu_destroy")]
    private static long DestroyVcpu(nint core)
    {
        ref Vcpu vcpu = ref new KernelRef<Vcpu>(core).Value;
        vcpu.Cpuid.Free();
        vcpu.SpareTables.Free();
        SvmVendor.DestroyVcpu(ref vcpu);
        return Errno.Ok;
    }

    [RuntimeExport("sk_core_system_ioctl")]
    private static long SystemIoctl(uint command, ulong argument) => SystemIoctls.Dispatch(command, argument);

    [RuntimeExport("sk_core_vm_ioctl")]
    private static long VmIoctl(nint core, uint command, ulong argument) =>
        VmIoctls.Dispatch(ref new KernelRef<Vm>(core).Value, command, argument);

    [RuntimeExport("sk_core_vcpu_ioctl")]
    private static long VcpuIoctl(nint core, uint command, ulong argument) =>
        VcpuIoctls<SvmVendor>.Dispatch(ref new KernelRef<Vcpu>(core).Value, command, argument);

    [RuntimeExport("sk_core_run")]
    private static long Run(nint core) => RunLoop<SvmVendor>.Run(ref new KernelRef<Vcpu>(core).Value);

    /// <summary>Linux takes pages of the process away. When this returns, no vCPU uses them.</summary>
    [RuntimeExport("sk_core_invalidate")]
    private static long Invalidate(nint core, ulong start, ulong end)
    {
        Invalidation.UnmapHva(ref new KernelRef<Vm>(core).Value, new Hva(start), new Hva(end));
        return Errno.Ok;
    }

    /// <summary>
    /// Linux asks whether the guest has used pages of the process, and will ask again; without an end, only whether it
    /// has used one.
    /// </summary>
    [RuntimeExport("sk_core_age")]
    private static long Age(nint core, ulong start, ulong end)
    {
        ref Vm vm = ref new KernelRef<Vm>(core).Value;
        bool young = end == 0
            ? Invalidation.IsYoung<Npt>(ref vm, new Hva(start))
            : Invalidation.Age<Npt>(ref vm, new Hva(start), new Hva(end));
        return young ? 1 : 0;
    }

    /// <summary>A page that <see cref="HostVcpu.FetchPage"/> asked for is there, or cannot be.</summary>
    [RuntimeExport("sk_core_page_fetched")]
    private static long PageFetched(nint core, int number)
    {
        AsyncFaults<SvmVendor>.Arrive(ref new KernelRef<Vcpu>(core).Value, number);
        return Errno.Ok;
    }

    /// <summary>An irqfd was signalled, in any context; the GSI was checked when it was assigned.</summary>
    [RuntimeExport("sk_core_irqfd")]
    private static long IrqFd(nint core, uint number, bool resample)
    {
        if (Gsi.TryCreate(number, out Gsi gsi))
            IrqChip.Trigger(ref new KernelRef<Vm>(core).Value, gsi, resample);
        return Errno.Ok;
    }

    /// <summary>The timer of the interrupt chips, in interrupt context.</summary>
    [RuntimeExport("sk_core_chip_timer")]
    private static long ChipTimerExpired(nint core)
    {
        IrqChip.TimerExpired(ref new KernelRef<Vm>(core).Value);
        return Errno.Ok;
    }
}
