// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime;
using SharpKvm.Svm;
using SharpKvm.Vmx;

namespace SharpKvm.Vm;

/// <summary>
/// Where the shim enters the core, each through the door. The addresses are those of structures that the shim
/// allocated in the sizes asked for here.
/// </summary>
internal static class Exports
{
    /// <summary>The CPUs have VMX; otherwise SVM.</summary>
    private static bool s_isVmx;

    private static bool HasNestedPaging => s_isVmx ? VmxHardware.HasEpt : SvmHardware.HasNestedPaging;

    [RuntimeExport("sk_core_probe")] private static long Probe(ulong frameMask, nint directMap, nuint sharedSize)
    {
        if (sharedSize != (nuint)Unsafe.SizeOf<VcpuShared>())
        {
            Log.Error("the core's VcpuShared has not the size of the shim's sk_vcpu_shared\0"u8, sharedSize);
            return Errno.EINVAL;
        }
        HostVm.DescribeTables(frameMask);
        KernelPages.DirectMap = directMap;
        const uint Vmx = 1 << 5;
        s_isVmx = (CpuidLeaf.OfHost(1).Ecx & Vmx) != 0;
        int result = s_isVmx ? VmxHardware.Probe() : SvmHardware.Probe();
        return result == Errno.Ok && s_isVmx ? 1 : result;
    }

    [RuntimeExport("sk_core_release")] private static void Release()
    {
        SvmHardware.Release();
        VmxHardware.Release();
    }

    [RuntimeExport("sk_core_cpu_enable")] private static long EnableCpu(ulong page) =>
        s_isVmx ? VmxHardware.Enable(new Hpa(page)) : SvmHardware.Enable(new Hpa(page));

    [RuntimeExport("sk_core_cpu_disable")] private static void DisableCpu()
    {
        if (s_isVmx)
            HostCpu.LeaveVmx();
        else
            SvmHardware.Disable();
    }

    [RuntimeExport("sk_core_vm_size")] private static long VmSize() => Unsafe.SizeOf<Vm>();

    [RuntimeExport("sk_core_vcpu_size")] private static long VcpuSize() => Unsafe.SizeOf<Vcpu>();

    [RuntimeExport("sk_core_vm_init")] private static long InitVm(ref Vm vm, HostVm host, nint ring)
    {
        vm.Host = host;
        vm.Coalesced = CoalescedIo.Over(ring);
        vm.Clock.Start();
        int result = VmMemory.Init(ref vm, (int)(CpuidLeaf.OfHost(0x80000008).Eax & 0xff));
        return result == Errno.Ok && !HasNestedPaging ? vm.Memory.Shadow.Create(ShadowTables.MaxPages) : result;
    }

    [RuntimeExport("sk_core_vm_destroy")] private static void DestroyVm(ref Vm vm)
    {
        VmMemory.Destroy(ref vm);
        vm.MsrFilter.Destroy();
        vm.IoEventFds.Destroy();
        vm.Irqchip.Destroy();
    }

    [RuntimeExport("sk_core_vcpu_init")] private static long InitVcpu(ref Vcpu vcpu, KernelRef<Vm> vm, uint id)
    {
        vcpu.VmRef = vm;
        vcpu.Id = id;
        int result = DirtyRing.Create(ref vcpu);
        if (result == Errno.Ok)
            result = s_isVmx ? Create<VmxVendor>(ref vcpu) : Create<SvmVendor>(ref vcpu);
        return result;
    }

    private static int Create<TVendor>(ref Vcpu vcpu) where TVendor : struct, IVendor
    {
        int result = vcpu.Apic.Create();
        if (result == Errno.Ok)
            result = TVendor.CreateVcpu(ref vcpu);
        if (result == Errno.Ok)
            Reset<TVendor>.PowerOn(ref vcpu);
        return result;
    }

    /// <summary>All of the vCPU exists: others may find it.</summary>
    [RuntimeExport("sk_core_vcpu_show")]
    private static void ShowVcpu(KernelRef<Vcpu> vcpu) => vcpu.Value.Vm.Vcpus.Add(vcpu.Value.Id, vcpu);

    /// <summary>Also after an init that failed.</summary>
    [RuntimeExport("sk_core_vcpu_destroy")] private static void DestroyVcpu(ref Vcpu vcpu)
    {
        vcpu.Cpuid.Free();
        vcpu.Apic.Free();
        vcpu.SpareTables.Free();
        vcpu.Shadow.Free();
        if (s_isVmx)
            VmxVendor.DestroyVcpu(ref vcpu);
        else
            SvmVendor.DestroyVcpu(ref vcpu);
    }

    [RuntimeExport("sk_core_system_ioctl")]
    private static long SystemIoctl(uint command, ulong argument) => SystemIoctls.Dispatch(command, argument);

    [RuntimeExport("sk_core_vm_ioctl")] private static long VmIoctl(ref Vm vm, uint command, ulong argument) =>
        VmIoctls.Dispatch(ref vm, command, argument);

    [RuntimeExport("sk_core_vcpu_ioctl")] private static long VcpuIoctl(ref Vcpu vcpu, uint command, ulong argument) =>
        s_isVmx ? VcpuIoctls<VmxVendor>.Dispatch(ref vcpu, command, argument)
            : VcpuIoctls<SvmVendor>.Dispatch(ref vcpu, command, argument);

    [RuntimeExport("sk_core_run")] private static long Run(ref Vcpu vcpu) =>
        s_isVmx ? RunLoop<VmxVendor>.Run(ref vcpu) : RunLoop<SvmVendor>.Run(ref vcpu);

    /// <summary>
    /// Linux takes pages of the process away. When this returns, no vCPU uses them; unless 0 is the answer, they may.
    /// </summary>
    [RuntimeExport("sk_core_invalidate")] private static long Invalidate(ref Vm vm, Hva start, Hva end)
    {
        Invalidation.UnmapHva(ref vm, start, end);
        return Errno.Ok;
    }

    /// <summary>
    /// Linux asks whether the guest has used pages of the process, and will ask again; without an end, only whether it
    /// has used one.
    /// </summary>
    [RuntimeExport("sk_core_age")] private static long Age(ref Vm vm, Hva start, Hva end) =>
        (s_isVmx && HasNestedPaging ? Age<Ept>(ref vm, start, end) : Age<Npt>(ref vm, start, end)) ? 1 : 0;

    private static bool Age<TFormat>(ref Vm vm, Hva start, Hva end) where TFormat : struct, INestedFormat =>
        end.Value == 0 ? Invalidation.IsYoung<TFormat>(ref vm, start) : Invalidation.Age<TFormat>(ref vm, start, end);

    [RuntimeExport("sk_core_show_exits")]
    private static void ShowExits(ref Vm vm, nint file) => ExitTrace.Show(ref vm, file);

    /// <summary>A page that <see cref="HostVcpu.FetchPage"/> asked for is there, or cannot be.</summary>
    [RuntimeExport("sk_core_page_fetched")]
    private static void PageFetched(ref Vcpu vcpu, int number) => AsyncFaultState.Arrive(ref vcpu, number);

    /// <summary>An irqfd was signalled, in any context; the GSI was checked when it was assigned.</summary>
    [RuntimeExport("sk_core_irqfd")] private static void IrqFd(ref Vm vm, uint number, bool resample)
    {
        if (Gsi.TryCreate(number, out Gsi gsi))
            IrqChip.Trigger(ref vm, gsi, resample);
    }

    /// <summary>The timer of the interrupt chips, in interrupt context.</summary>
    [RuntimeExport("sk_core_chip_timer")]
    private static void ChipTimerExpired(ref Vm vm) => IrqChip.TimerExpired(ref vm);
}
