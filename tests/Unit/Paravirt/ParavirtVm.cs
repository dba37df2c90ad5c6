// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Paravirt;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Interrupts;
using SharpKvm.Tests.Mmu;
using SharpKvm.Vm;
using Machine = SharpKvm.Cpu.Msrs<SharpKvm.Tests.Cpu.FakeVendor>;
using Requests = SharpKvm.Paravirt.Paravirtual<SharpKvm.Tests.Cpu.FakeVendor>;

namespace SharpKvm.Tests.Paravirt;

/// <summary>A VM of some vCPUs with local APICs, 64 KiB of memory at guest address 0, and a running clock.</summary>
internal sealed class ParavirtVm : IDisposable
{
    public const ulong MemoryPages = 16;
    public const ulong Argument = 0x10_0000;
    /// <summary>Where no memory is.</summary>
    public const ulong Nowhere = 0xd000_0000;

    public ParavirtVm(uint vcpus = 1, bool stableTsc = true)
    {
        Vm = new ApicVm();
        Host.Cpu.TscIsStable = stableTsc;
        Host.Cpu.Tsc = 5_000_000_000;
        Memory = new TestMemory(Host, Vm.Machine);
        Memory.AddMemory(0, 0, MemoryPages);
        Host.Process.Map(Argument, 1);
        Vm.Vm.Clock.Start();
        for (uint id = 0; id < vcpus; id++)
            Vm.Add(id);
    }

    public ApicVm Vm { get; }
    public TestMemory Memory { get; }
    public SharpKvm.Tests.Host.SimulatedHost Host => Vm.Host;
    public ref Vcpu this[uint id] => ref Vm[id];

    public bool Set(uint id, uint msr, ulong value, bool host = false) =>
        Machine.TrySet(ref this[id], msr, value, host);

    public ulong Get(uint id, uint msr)
    {
        Assert.That(Machine.TryGet(ref this[id], msr, host: false, out ulong value), Is.True);
        return value;
    }

    /// <summary>A WRMSR that must succeed, and what the run loop does before the guest runs on.</summary>
    public void Write(uint id, uint msr, ulong value)
    {
        Assert.That(Set(id, msr, value), Is.True, $"WRMSR {msr:x}");
        Handle();
    }

    /// <summary>Serves the requests of all vCPUs, and those that follow.</summary>
    public void Handle()
    {
        for (int round = 0; round < 3; round++)
        {
            foreach (uint id in Vm.Ids)
                Requests.HandleRequests(ref this[id], Vm.TakeRequests(id));
        }
    }

    public void Migrate(uint id) => Requests.HandleRequests(ref this[id], VcpuRequests.Migrated);

    /// <summary>Time passes; both clocks of the host go on.</summary>
    public void Pass(ulong nanoseconds) => Vm.Pass(Host.Cpu.Nanoseconds + nanoseconds);

    public T Read<T>(ulong address) where T : unmanaged
    {
        Assert.That(GuestMemory.TryRead(ref Vm.Vm, new Gpa(address), out T value), Is.True);
        return value;
    }

    public void Put<T>(ulong address, T value) where T : unmanaged =>
        Assert.That(GuestMemory.TryWrite(ref Vm.Vm, new Gpa(address), value), Is.True);

    public PvClockTime Page(ulong address)
    {
        Assert.That(Read<uint>(address) & 1, Is.Zero, "version");
        return Read<PvClockTime>(address + 8);
    }

    /// <summary>What the guest's clock says on a vCPU whose page is at <paramref name="address"/>.</summary>
    public ulong GuestTime(uint id, ulong address)
    {
        PvClockTime page = Page(address);
        ulong tsc = Host.Cpu.Tsc + this[id].TscOffset;
        return page.SystemTime + GuestClock.Scale(tsc - page.TscTimestamp, page.Multiplier, page.Shift);
    }

    public kvm_clock_data GetClock()
    {
        Assert.That(VmIoctls.Dispatch(ref Vm.Vm, Ioctl.KVM_GET_CLOCK, Argument), Is.Zero);
        Assert.That(UserMemory.TryRead(new Hva(Argument), out kvm_clock_data data), Is.True);
        return data;
    }

    public long SetClock(kvm_clock_data data)
    {
        Assert.That(UserMemory.TryWrite(new Hva(Argument), data), Is.True);
        return VmIoctls.Dispatch(ref Vm.Vm, Ioctl.KVM_SET_CLOCK, Argument);
    }

    public void Dispose() => Vm.Dispose();
}
