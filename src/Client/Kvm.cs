// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Client;

/// <summary>The KVM device itself: what this host can do, and where virtual machines come from.</summary>
public sealed class Kvm : KvmObject
{
    /// <summary>The device of this project's module, unless it was loaded with another <c>devname=</c>.</summary>
    public const string DefaultDevice = "/dev/sharpkvm";

    /// <summary>The one API version there is.</summary>
    public const int ExpectedApiVersion = 12;

    /// <summary>Opens a KVM device; <see cref="KvmException"/> when it is absent or not accessible.</summary>
    public Kvm(string device = DefaultDevice) : base(Libc.Open(device, Libc.OpenReadWrite | Libc.OpenCloseOnExec))
    {
        if (Fd < 0)
            throw new KvmException($"open {device}", Libc.LastError);
    }

    /// <summary>KVM_GET_API_VERSION.</summary>
    public int ApiVersion => Call(KvmIoctl.GetApiVersion);

    /// <summary>KVM_GET_VCPU_MMAP_SIZE in bytes.</summary>
    public int VcpuMmapSize => Call(KvmIoctl.GetVcpuMmapSize);

    /// <summary>KVM_CREATE_VM, again when a signal came in between.</summary>
    public Vm CreateVm()
    {
        int result;
        do
            result = TryCall(KvmIoctl.CreateVm);
        while (result == -(int)Errno.EINTR);
        return new(this, result >= 0 ? result : throw new KvmException("KVM_CREATE_VM", (Errno)(-result)));
    }

    /// <summary>KVM_GET_SUPPORTED_CPUID: the leaves that a guest may be given.</summary>
    public KvmCpuidEntry2[] GetSupportedCpuid() => CpuidList.Read(this, KvmIoctl.GetSupportedCpuid);

    /// <summary>KVM_GET_EMULATED_CPUID.</summary>
    public KvmCpuidEntry2[] GetEmulatedCpuid() => CpuidList.Read(this, KvmIoctl.GetEmulatedCpuid);

    /// <summary>KVM_GET_MSR_INDEX_LIST: the MSRs to save and restore.</summary>
    public uint[] GetMsrIndexList() => ReadIndexList(KvmIoctl.GetMsrIndexList);

    /// <summary>KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe the host.</summary>
    public uint[] GetMsrFeatureIndexList() => ReadIndexList(KvmIoctl.GetMsrFeatureIndexList);

    uint[] ReadIndexList(uint request)
    {
        // struct kvm_msr_list: count, then that many indices. Asked with room for none, the kernel tells the count.
        uint[] list = [0];
        int result = TryCall(request, MemoryMarshal.AsBytes(list.AsSpan()));
        if (result < 0 && result != -(int)Errno.E2BIG)
            throw new KvmException("list of MSRs", (Errno)(-result));
        list = new uint[1 + list[0]];
        list[0] = (uint)list.Length - 1;
        Call(request, MemoryMarshal.AsBytes(list.AsSpan()));
        return list[1..(int)(1 + list[0])];
    }
}
