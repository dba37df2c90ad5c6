// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Cpu;

/// <summary>A simulated host that looks like an AMD EPYC, one VM, and a vCPU after power-up.</summary>
internal sealed class TestVcpu : IDisposable
{
    /// <summary>Where arguments of ioctls lie in user space.</summary>
    public const ulong Argument = 0x10_0000;
    public const ulong ArgumentPages = 8;
    /// <summary>An address where nothing is mapped.</summary>
    public const ulong Nowhere = 0x20_0000;

    private Vcpu _vcpu;

    public TestVcpu(uint id = 0)
    {
        Host = new SimulatedHost();
        FillCpuid(Host.Cpu);
        Host.Process.Map(Argument, ArgumentPages);
        Machine = new SimulatedVm(Host);
        Assert.That(VmMemory.Init(ref Machine.Vm, 48), Is.Zero);
        PowerOn(ref _vcpu, id);
    }

    public SimulatedHost Host { get; }
    public SimulatedVm Machine { get; }
    public ref Vcpu Vcpu => ref _vcpu;
    public FakeControlBlock Block => FakeControlBlock.Of(ref _vcpu);

    /// <summary>Makes a second vCPU of the same VM.</summary>
    public void PowerOn(ref Vcpu vcpu, uint id)
    {
        vcpu.Id = id;
        vcpu.VmRef = Machine.Ref;
        vcpu.Shared.Host = new HostVcpu((nint)id + 1);
        Assert.That(vcpu.Apic.Create(), Is.Zero);
        Assert.That(FakeVendor.CreateVcpu(ref vcpu), Is.Zero);
        Reset<FakeVendor>.PowerOn(ref vcpu);
    }

    public void Dispose()
    {
        _vcpu.Cpuid.Free();
        _vcpu.Apic.Free();
        FakeVendor.DestroyVcpu(ref _vcpu);
        VmMemory.Destroy(ref Machine.Vm);
        Host.AssertNothingInUse();
        Host.Dispose();
    }

    public void Put<T>(in T value, ulong offset = 0) where T : unmanaged =>
        Assert.That(UserMemory.TryWrite(new Hva(Argument + offset), value), Is.True);

    public T Take<T>(ulong offset = 0) where T : unmanaged
    {
        Assert.That(UserMemory.TryRead(new Hva(Argument + offset), out T value), Is.True);
        return value;
    }

    public long Call(uint command, ulong argument = Argument) =>
        VcpuIoctls<FakeVendor>.Dispatch(ref _vcpu, command, argument);

    public long Set<T>(uint command, in T value) where T : unmanaged
    {
        Put(in value);
        return Call(command);
    }

    /// <summary>Calls a getter over memory full of ones, so that a byte not written shows.</summary>
    public T Get<T>(uint command) where T : unmanaged
    {
        byte[] ones = new byte[System.Runtime.CompilerServices.Unsafe.SizeOf<T>()];
        Array.Fill(ones, (byte)0xff);
        Assert.That(UserMemory.Write(new Hva(Argument), ones), Is.True);
        Assert.That(Call(command), Is.Zero);
        return Take<T>();
    }

    /// <summary>KVM_SET_CPUID2 with these entries.</summary>
    public long SetCpuid(params ReadOnlySpan<kvm_cpuid_entry2> entries)
    {
        Put(new kvm_cpuid2 { nent = (uint)entries.Length });
        for (int i = 0; i < entries.Length; i++)
            Put(entries[i], 8 + 40 * (ulong)i);
        return Call(KVM_SET_CPUID2);
    }

    /// <summary>Gives the guest all that KVM_GET_SUPPORTED_CPUID lists.</summary>
    public void SetSupportedCpuid()
    {
        Put(new kvm_cpuid2 { nent = CpuidTable.MaxEntries });
        Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, Argument), Is.Zero);
        Assert.That(Call(KVM_SET_CPUID2), Is.Zero);
    }

    public static kvm_cpuid_entry2 Entry(
        uint function, uint eax = 0, uint ebx = 0, uint ecx = 0, uint edx = 0, uint? index = null) =>
        new()
        {
            function = function, index = index ?? 0, flags = index.HasValue ? 1u : 0,
            eax = eax, ebx = ebx, ecx = ecx, edx = edx,
        };

    /// <summary>Every feature bit is set, so that only the masks of the core decide.</summary>
    internal static void FillCpuid(SimulatedCpu cpu)
    {
        Leaf(0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65);
        Leaf(1, 0, 0x00800f12, 0x05080800, ~0u, ~0u);
        Leaf(7, 0, 2, ~0u, ~0u, ~0u);
        Leaf(7, 1, ~0u, ~0u, ~0u, ~0u);
        Leaf(0xd, 0, 7, 0x340, 0x340, 0);
        Leaf(0xd, 1, ~0u, 0x340, 0x1800, 0);
        Leaf(0xd, 2, 0x100, 0x240, 0, 0);
        Leaf(0xd, 9, 8, 0x980, 0, 0);
        Leaf(0x80000000, 0, 0x80000023, 0x68747541, 0x444d4163, 0x69746e65);
        Leaf(0x80000001, 0, 0x00800f12, 0x40000000, ~0u, ~0u);
        for (uint leaf = 0x80000002; leaf <= 0x80000006; leaf++)
            Leaf(leaf, 0, leaf, 1, 2, 3);
        Leaf(0x80000007, 0, 1, 2, 3, ~0u);
        Leaf(0x80000008, 0, 0x3030, ~0u, 0x7003, 1);
        Leaf(0x8000000a, 0, 1, 0x8000, 0, ~0u);
        Leaf(0x8000001d, 0, 0x121, 1, 2, 3);
        Leaf(0x8000001d, 1, 0x143, 4, 5, 6);
        Leaf(0x8000001e, 0, 5, 0x100, 0, 0);
        Leaf(0x80000021, 0, ~0u, ~0u, 0, 0);
        cpu.Msrs[Msr.MicrocodeRevision] = 0x08001227;
        cpu.Msrs[Msr.DeCfg] = 0xffff;

        void Leaf(uint leaf, uint subleaf, uint eax, uint ebx, uint ecx, uint edx) =>
            cpu.Cpuid[(leaf, subleaf)] = new CpuidLeaf { Eax = eax, Ebx = ebx, Ecx = ecx, Edx = edx };
    }
}
