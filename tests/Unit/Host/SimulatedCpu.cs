// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;

namespace SharpKvm.Tests.Host;

/// <summary>The physical CPU: tests fill in what it has.</summary>
internal sealed class SimulatedCpu
{
    public Dictionary<(uint Leaf, uint Subleaf), CpuidLeaf> Cpuid { get; } = [];
    public Dictionary<uint, ulong> Msrs { get; } = [];
    public ulong Tsc { get; set; }
    public ulong Nanoseconds { get; set; } = 1_000_000_000;
    public ulong RealNanoseconds { get; set; } = 1_700_000_000_123_456_789;
    public bool TscIsStable { get; set; } = true;
    public uint TscKhz { get; set; } = 2_000_000;
    public ulong SupportedXcr0 { get; set; } = 7;
    public int PredictorFlushes { get; set; }
    public bool IgnoreMsrs { get; set; }
    public bool NestedPaging { get; set; } = true;
    /// <summary>The module's parameter, in nanoseconds.</summary>
    public ulong HaltPoll { get; set; }

    public const ulong Vmxe = 1 << 13;
    public ulong Cr0 { get; set; } = 0x8005_0033;
    public ulong Cr4 { get; set; }
    /// <summary>What was flushed of guests: pointers to the extended page tables, and VPIDs.</summary>
    public List<(ulong Tables, ulong Vpid)> GuestFlushes { get; } = [];
    /// <summary>Fields of the VMCS that is loaded, and the vCPU that it is of; there is only one.</summary>
    public Dictionary<uint, ulong> Vmcs { get; } = [];
    public nint LoadedVmcs { get; set; }
    /// <summary>What VMXON found at its region, and whether it succeeds.</summary>
    public uint VmxRevision { get; private set; }
    public bool RefusesVmx { get; set; }
    public bool HasMultihitBug { get; set; }
    public bool HasPostedVector { get; set; } = true;

    public bool EnterVmx(Hpa region)
    {
        VmxRevision = BitConverter.ToUInt32(KernelPages.Bytes(region));
        if (!RefusesVmx)
            Cr4 |= Vmxe;
        return !RefusesVmx;
    }

    /// <summary>FPU images by vCPU: legacy area, XSAVE header, the rest of the UAPI's 4,096 bytes.</summary>
    public Dictionary<nint, byte[]> Fpu { get; } = [];

    public Span<byte> FpuOf(nint vcpu)
    {
        if (!Fpu.TryGetValue(vcpu, out byte[]? image))
            Fpu[vcpu] = image = new byte[4096];
        return image;
    }
}

/// <summary>The thread that runs a vCPU.</summary>
internal sealed class SimulatedThread
{
    public SimulatedThread() => Work = _ => !SignalPending;

    /// <summary>One turn of the guest, by vCPU; none enters by default.</summary>
    public Func<nint, bool> Guest { get; set; } = _ => false;
    /// <summary>A vCPU that halts; by default a signal comes.</summary>
    public Func<nint, HaltEnd> Halt { get; set; } = _ => HaltEnd.Interrupted;
    /// <summary>How long the last one polled before it slept, in nanoseconds.</summary>
    public ulong LastPoll { get; set; }
    /// <summary>vCPUs in the order of their kicks.</summary>
    public List<nint> Kicks { get; } = [];
    /// <summary>vCPUs that were told of posted interrupts.</summary>
    public List<nint> Posts { get; } = [];
    /// <summary>The deadline of each vCPU's timer, 0 when it is not armed.</summary>
    public Dictionary<nint, ulong> Timers { get; } = [];
    /// <summary>vCPUs in the order in which others gave up the CPU for them.</summary>
    public List<nint> Yields { get; } = [];
    /// <summary>
    /// Pages that others are to fetch, with the numbers to report them by; and whether there is memory for it.
    /// </summary>
    public List<(Hva Page, bool Write, int Number)> Fetches { get; } = [];
    public bool CanFetch { get; set; } = true;
    public bool SignalPending { get; set; }
    /// <summary>The thread is rescheduled, or a signal ends KVM_RUN.</summary>
    public Func<nint, bool> Work { get; set; }
    public (ulong Mask, bool Active) SignalMask { get; set; }
    public int SlotRenewals { get; set; }
    /// <summary>How often the MSRs of system calls were fetched from the CPU.</summary>
    public int MsrTakes { get; set; }
    /// <summary>What KVM_CREATE_VM and KVM_CREATE_VCPU return.</summary>
    public int NextDescriptor { get; set; } = 10;
}
