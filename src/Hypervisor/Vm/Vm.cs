// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Host;
using SharpKvm.Mmu;

namespace SharpKvm.Vm;

/// <summary>A virtual machine. Lives in memory that the shim allocated together with its own part.</summary>
internal struct Vm
{
    public HostVm Host;
    /// <summary>Memory slots, nested tables, dirty logs.</summary>
    public VmMemory Memory;
    /// <summary>What its vCPUs share: enabled capabilities, the time-stamp counter's base.</summary>
    public VmCpuState Cpu;
    /// <summary>Ids that are taken, a bit each.</summary>
    public VcpuIdSet VcpuIds;
    public bool HasVcpus;
}

/// <summary>A bit for each possible vCPU id.</summary>
[InlineArray((Capabilities.MaxVcpus + 63) / 64)]
internal struct VcpuIdSet
{
    private ulong _first;
}
