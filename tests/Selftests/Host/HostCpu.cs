// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.Intrinsics.X86;

namespace SharpKvm.Selftests;

/// <summary>What the CPU under the hypervisor is.</summary>
static class HostCpu
{
    /// <summary>QEMU's emulation, whose SVM lacks a few intercepts.</summary>
    public static bool IsEmulatedByTcg
    {
        get
        {
            (_, int ebx, int ecx, int edx) = X86Base.CpuId(0x40000000, 0);
            return (ebx, ecx, edx) == (0x54474354, 0x43544743, 0x47435447); // "TCGTCGTCGTCG"
        }
    }

    /// <summary>A bit of the host's own CPUID, as this program sees it.</summary>
    public static bool HasLeaf7Bit(int register, int bit)
    {
        (_, int ebx, int ecx, _) = X86Base.CpuId(7, 0);
        return ((register == 1 ? ebx : ecx) >> bit & 1) != 0;
    }
}
