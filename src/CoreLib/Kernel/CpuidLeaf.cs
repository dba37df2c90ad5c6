// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics.CodeAnalysis;
using System.Runtime.InteropServices;

namespace Kernel;

/// <summary>What one CPUID instruction returns.</summary>
internal struct CpuidLeaf
{
    public uint Eax, Ebx, Ecx, Edx;

    public static unsafe CpuidLeaf OfHost(uint leaf, uint subleaf = 0)
    {
        CpuidLeaf result;
        // SAFETY: the instruction writes four registers, which are the whole of a leaf.
        X86.Cpuid(leaf, subleaf, (uint*)&result);
        return result;
    }

    /// <summary>A register by number, EAX = 0.</summary>
    [UnscopedRef] public ref uint this[int register] => ref MemoryMarshal.CreateSpan(ref Eax, 4)[register];
}
