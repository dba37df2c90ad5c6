// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;

namespace SharpKvm.Host;

/// <summary>What the physical CPUs can do.</summary>
internal static partial class HostCpu
{
    public static partial void Cpuid(uint leaf, uint subleaf, out CpuidLeaf result);

    /// <summary>False when the MSR does not exist (#GP).</summary>
    public static partial bool TryReadMsr(uint index, out ulong value);

    /// <summary>Writes an MSR that is known to exist; anything else is a trap of the core.</summary>
    public static partial void WriteMsr(uint index, ulong value);

    public static partial ulong Tsc();

    /// <summary>CLOCK_MONOTONIC: what timers are armed by.</summary>
    public static partial ulong Nanoseconds();

    /// <summary>CLOCK_REALTIME: the time of day, since 1970.</summary>
    public static partial ulong RealNanoseconds();

    /// <summary>Whether the kernel trusts the time-stamp counters to be the same on all CPUs.</summary>
    public static partial bool TscIsStable();

    /// <summary>Rate of the time-stamp counter in kHz.</summary>
    public static partial uint TscKhz();

    /// <summary>XCR0 bits that the kernel's guest-FPU code can save; 0 without XSAVE.</summary>
    public static partial ulong SupportedXcr0();

    /// <summary>Indirect branch prediction barrier.</summary>
    public static partial void FlushPredictors();
}

/// <summary>Module parameters that the core asks for.</summary>
internal static partial class Parameters
{
    /// <summary>Unknown MSRs read as zero and swallow writes instead of #GP.</summary>
    public static partial bool IgnoreMsrs();

    /// <summary>The longest that a vCPU polls before it sleeps in a halt.</summary>
    public static partial ulong HaltPollNanoseconds();
}
