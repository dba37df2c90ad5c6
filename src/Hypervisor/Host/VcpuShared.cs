// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using SharpKvm.Cpu;

namespace SharpKvm.Host;

/// <summary>
/// The part of a vCPU that the shim and its world switch read and write; struct sk_vcpu_shared in src/Shim/shim.h has
/// the same layout, and the build proves it.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal struct VcpuShared
{
    public GuestRegisters Registers;
    /// <summary>Physical address of the VMCB (SVM).</summary>
    public ulong ControlBlock;
    /// <summary>The shim's own part of this vCPU.</summary>
    public HostVcpu Host;
    /// <summary>Kernel address of the kvm_run page shared with user space.</summary>
    public ulong RunPage;
    /// <summary>Guest XCR0, TSC_AUX and PKRU: switched by the shim only where they differ from the host's.</summary>
    public ulong Xcr0;
    public ulong TscAux;
    /// <summary>DR0-3 to load before entry when <see cref="EntryFlags.LoadDebugRegisters"/> is set.</summary>
    public ulong Dr0;
    public ulong Dr1;
    public ulong Dr2;
    public ulong Dr3;
    public EntryFlags Flags;
    /// <summary>What others ask of this vCPU before its next entry: set atomically by anyone, cleared by its thread.</summary>
    public VcpuRequests Requests;
}

/// <summary>What the world switch does besides the switch.</summary>
[Flags]
internal enum EntryFlags : uint
{
    None = 0,
    LoadDebugRegisters = 1 << 0,
}

/// <summary>Requests to a vCPU.</summary>
[Flags]
internal enum VcpuRequests : uint
{
    None = 0,
    /// <summary>Nested mappings were removed.</summary>
    FlushTlb = 1 << 0,
    /// <summary>The thread moved to another physical CPU.</summary>
    Migrated = 1 << 1,
    /// <summary>An event may have become deliverable (KVM_NMI from another thread).</summary>
    Event = 1 << 2,
    /// <summary>The VM was ended by a trap in the core.</summary>
    Dead = 1 << 3,
}

/// <summary>The shim's part of a vCPU.</summary>
internal readonly partial struct HostVcpu(nint handle)
{
    private readonly nint _handle = handle;
}
