// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;

namespace SharpKvm.Tests.Host;

/// <summary>The physical CPU: tests fill in what it has.</summary>
internal sealed class SimulatedCpu
{
    public Dictionary<(uint Leaf, uint Subleaf), CpuidLeaf> Cpuid { get; } = [];
    public Dictionary<uint, ulong> Msrs { get; } = [];
    public ulong Tsc { get; set; }
    public uint TscKhz { get; set; } = 2_000_000;
    public ulong SupportedXcr0 { get; set; } = 7;
    public int PredictorFlushes { get; set; }
    public bool IgnoreMsrs { get; set; }

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
    /// <summary>One turn of the guest, by vCPU; none enters by default.</summary>
    public Func<nint, bool> Guest { get; set; } = _ => false;
    public bool SignalPending { get; set; }
    public (ulong Mask, bool Active) SignalMask { get; set; }
    public int SlotRenewals { get; set; }
    /// <summary>What KVM_CREATE_VM and KVM_CREATE_VCPU return.</summary>
    public int NextDescriptor { get; set; } = 10;
}
