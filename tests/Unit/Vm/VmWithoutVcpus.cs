// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Tests.Host;
using SharpKvm.Tests.Mmu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Vm;

/// <summary>A new VM and a page for arguments of its ioctls.</summary>
internal sealed class VmWithoutVcpus : IDisposable
{
    private const ulong Argument = 0x10_0000;
    public const ulong Nowhere = 0x20_0000;

    private readonly TestMemory _memory = new();

    public VmWithoutVcpus() => _memory.Process.Map(Argument, 1);

    public SimulatedHost Host => _memory.Host;
    public ref SharpKvm.Vm.Vm Vm => ref _memory.Vm;

    public long Ioctl(uint command, ulong argument = 0) => VmIoctls.Dispatch(ref Vm, command, argument);

    public long Set<T>(uint command, in T value) where T : unmanaged
    {
        Assert.That(UserMemory.TryWrite(new Hva(Argument), value), Is.True);
        return Ioctl(command, Argument);
    }

    public long Enable(uint capability, ulong argument, uint flags = 0)
    {
        kvm_enable_cap enable = new() { cap = capability, flags = flags };
        enable.args[0] = argument;
        return Set(KVM_ENABLE_CAP, in enable);
    }

    public void Dispose()
    {
        Vm.IoEventFds.Destroy();
        Vm.MsrFilter.Destroy();
        Vm.Irqchip.Destroy();
        Assert.That(Host.Events.Holders, Is.Zero, "eventfds held");
        _memory.Destroy();
        _memory.Dispose();
    }
}
