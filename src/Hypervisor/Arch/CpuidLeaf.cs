// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>What one CPUID instruction returns.</summary>
internal struct CpuidLeaf
{
    public uint Eax, Ebx, Ecx, Edx;

    public static CpuidLeaf OfHost(uint leaf, uint subleaf = 0)
    {
        HostCpu.Cpuid(leaf, subleaf, out CpuidLeaf result);
        return result;
    }

    /// <summary>A register by number, EAX = 0.</summary>
    [UnscopedRef] public ref uint this[int register] => ref MemoryMarshal.CreateSpan(ref Eax, 4)[register];
}
