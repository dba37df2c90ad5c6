// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>A virtual machine. Lives in memory that the shim allocated together with its own part.</summary>
internal struct Vm : IInterruptSink
{
    public HostVm Host;
    /// <summary>Memory slots, nested tables, dirty logs.</summary>
    public VmMemory Memory;
    /// <summary>What its vCPUs share: enabled capabilities, the time-stamp counter's base.</summary>
    public VmCpuState Cpu;
    public MsrFilter MsrFilter;
    public VcpuTable Vcpus;
    /// <summary>What guests read as kvmclock.</summary>
    public VmClock Clock;
    /// <summary>Interrupt controllers in the kernel.</summary>
    public IrqChip Irqchip;
    /// <summary>No vCPU has this id or a higher one (KVM_CAP_MAX_VCPU_ID); 0: it was not set.</summary>
    public uint VcpuIdLimit;
    /// <summary>The vCPU that runs first (KVM_SET_BOOT_CPU_ID).</summary>
    public uint BootCpuId;
    public IoEventFds IoEventFds;
    public CoalescedIo Coalesced;

    int IInterruptSink.Deliver(in InterruptMessage message) => ApicBus.Send(ref this, in message);
}
