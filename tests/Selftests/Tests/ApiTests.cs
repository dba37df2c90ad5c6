// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The handshake: version, capabilities, sizes, creating objects.</summary>
static class ApiTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("api/struct_layout", () => Check.Equal("", string.Join("; ", UapiLayout.Mismatches()), "layouts")),
        new("api/version", Version),
        new("api/version_argument", VersionArgument),
        new("api/vcpu_mmap_size", VcpuMmapSize),
        new("api/required_extensions", RequiredExtensions),
        new("api/absent_extensions", AbsentExtensions),
        new("api/extension_values", ExtensionValues),
        new("api/unknown_extension", UnknownExtension),
        new("api/extension_on_vm", ExtensionOnVm),
        new("api/create_vm_bad_type", CreateVmBadType),
        new("api/vcpu_id_limits", VcpuIdLimits),
        new("api/vcpu_id_twice", VcpuIdTwice),
        new("api/several_vcpus", SeveralVcpus),
        new("api/run_page_initial", RunPageInitial),
        new("api/mmap_limits", MmapLimits),
        new("api/vm_outlives_system_fd", VmOutlivesSystemFd),
        new("api/vcpu_outlives_vm_fd", VcpuOutlivesVmFd),
    ];

    static void Version()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Equal(Kvm.ExpectedApiVersion, kvm.ApiVersion, "KVM_GET_API_VERSION");
    }

    static void VersionArgument()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Fails(Errno.EINVAL, kvm.TryCall(KvmIoctl.GetApiVersion, 1), "GET_API_VERSION with an argument");
        Check.Fails(Errno.EINVAL, kvm.TryCall(KvmIoctl.GetVcpuMmapSize, 1), "GET_VCPU_MMAP_SIZE with an argument");
    }

    static void VcpuMmapSize()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        int size = kvm.VcpuMmapSize;
        Check.That(size >= 4096 && size % 4096 == 0, $"size {size} is not whole pages");
    }

    /// <summary>Without these QEMU 7.2 refuses to start or misbehaves with user-space interrupt controllers.</summary>
    static void RequiredExtensions()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        foreach (KvmCap cap in (KvmCap[])
            [
                KvmCap.UserMemory, KvmCap.DestroyMemoryRegionWorks, KvmCap.JoinMemoryRegionsWorks, KvmCap.SetTssAddr,
                KvmCap.ExtCpuid, KvmCap.MpState, KvmCap.Mce, KvmCap.ImmediateExit, KvmCap.Debugregs, KvmCap.VcpuEvents,
                KvmCap.Xsave, KvmCap.Xcrs, KvmCap.SetGuestDebug, KvmCap.UserNmi, KvmCap.SyncMmu,
                KvmCap.InternalErrorData, KvmCap.X86RobustSinglestep, KvmCap.SetIdentityMapAddr, KvmCap.ReadonlyMem,
                KvmCap.GetTscKhz, KvmCap.Sregs2, KvmCap.Xsave2, KvmCap.Hlt, KvmCap.NrMemslots, KvmCap.CheckExtensionVm,
            ])
        {
            Check.That(kvm.CheckExtension(cap) > 0, $"capability {cap} is missing");
        }
    }

    /// <summary>Capabilities of other architectures, and numbers that were given back.</summary>
    static void AbsentExtensions()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        foreach (uint cap in (uint[])[5, 20, 42, 43, 64, 70, 94, 101, 126, 169])
            Check.Equal(0, kvm.CheckExtension((KvmCap)cap), $"capability {cap}");
    }

    static void ExtensionValues()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        int recommended = kvm.CheckExtension(KvmCap.NrVcpus), most = kvm.CheckExtension(KvmCap.MaxVcpus);
        Check.That(recommended >= 1, "NR_VCPUS is at least 1");
        Check.That(most >= recommended, "MAX_VCPUS is at least NR_VCPUS");
        Check.That(kvm.CheckExtension(KvmCap.MaxVcpuId) >= most, "MAX_VCPU_ID is at least MAX_VCPUS");
        Check.That(kvm.CheckExtension(KvmCap.NrMemslots) >= 32, "at least 32 memory slots");
        Check.That(kvm.CheckExtension(KvmCap.Xsave2) >= 4096, "XSAVE2 is at least 4096 bytes");
        int debug = kvm.CheckExtension(KvmCap.SetGuestDebug2);
        Check.Equal(3, debug & 3, "SET_GUEST_DEBUG2 has ENABLE and SINGLESTEP");
    }

    static void UnknownExtension()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Equal(0, kvm.TryCall(KvmIoctl.CheckExtension, 0x7FFFFFFF), "capability 0x7fffffff");
        Check.Equal(0, kvm.TryCall(KvmIoctl.CheckExtension, nuint.MaxValue), "capability -1");
    }

    static void ExtensionOnVm()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        foreach (KvmCap cap in (KvmCap[])[KvmCap.UserMemory, KvmCap.NrMemslots, KvmCap.MaxVcpus, KvmCap.Xsave2])
            Check.Equal(kvm.CheckExtension(cap), vm.CheckExtension(cap), $"{cap} on the VM");
    }

    static void CreateVmBadType()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Fails(Errno.EINVAL, kvm.TryCall(KvmIoctl.CreateVm, 0x1234), "CREATE_VM of an unknown type");
    }

    static void VcpuIdLimits()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        int limit = kvm.CheckExtension(KvmCap.MaxVcpuId);
        foreach (nuint id in (nuint[])[(nuint)limit, 0x7FFFFFFF, 0x80000000, uint.MaxValue])
            Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.CreateVcpu, id), $"CREATE_VCPU {id}");
        vm.CreateVcpu((uint)limit - 1);
    }

    static void VcpuIdTwice()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        vm.CreateVcpu(3);
        Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreateVcpu, 3), "CREATE_VCPU 3 again");
        vm.CreateVcpu(0);
    }

    static void SeveralVcpus()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Vcpu[] vcpus = [.. Enumerable.Range(0, 4).Select(id => vm.CreateVcpu((uint)id))];
        for (int i = 0; i < vcpus.Length; i++)
        {
            KvmRegs regs = vcpus[i].Regs;
            regs.R15 = (ulong)i + 100;
            vcpus[i].Regs = regs;
        }
        for (int i = 0; i < vcpus.Length; i++)
            Check.Equal((ulong)i + 100, vcpus[i].Regs.R15, $"r15 of vCPU {i}");
    }

    static void RunPageInitial()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Vcpu vcpu = vm.CreateVcpu();
        Check.Equal(0, vcpu.Run.RequestInterruptWindow, "request_interrupt_window");
        Check.Equal(0, vcpu.Run.ImmediateExit, "immediate_exit");
        Check.Equal(0ul, vcpu.Run.KvmValidRegs, "kvm_valid_regs");
    }

    static void MmapLimits()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Vcpu vcpu = vm.CreateVcpu();
        nint beyond = Libc.MemoryMap(0, 4096, Libc.ProtRead, Libc.MapShared, vcpu.Fd, kvm.VcpuMmapSize + (1 << 20));
        if (beyond == Libc.MapFailed)
            return;
        bool readable = Process.CanRead(beyond);
        _ = Libc.MemoryUnmap(beyond, 4096);
        Check.That(!readable, "a page far behind the run mapping can be read");
    }

    static void VmOutlivesSystemFd()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Kvm second = TestEnvironment.OpenKvm();
        using Vm other = second.CreateVm();
        second.Dispose();
        Check.Succeeds(other.TryCall(KvmIoctl.CheckExtension, (uint)KvmCap.UserMemory), "VM without its system fd");
        Check.Succeeds(other.TryCall(KvmIoctl.SetTssAddr, 0xFFFBD000), "SET_TSS_ADDR without the system fd");
    }

    static void VcpuOutlivesVmFd()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.mov(al, 0x42);
            code.@out(0x10, al);
        });
        // The machine lives on behind its CPU's descriptor.
        _ = Libc.Close(guest.Vm.Fd);
        Check.Bytes([0x42], guest.ExpectPort(KvmRunIo.Out, 0x10, 1), "output after close(vm)");
    }
}
