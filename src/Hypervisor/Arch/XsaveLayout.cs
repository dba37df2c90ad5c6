// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>Sizes of the XSAVE area (SDM vol. 1, 13.4), from the host's CPUID leaf 0xD.</summary>
internal static class XsaveLayout
{
    /// <summary>XSAVEC and XSAVES in subleaf 1, EAX.</summary>
    public const uint CompactionBits = 1 << 1 | 1 << 3;
    private const uint HeaderEnd = 576;

    public static uint Size(ulong xcr0, bool compacted)
    {
        uint end = HeaderEnd;
        for (uint component = 2; component < 63; component++)
        {
            if ((xcr0 >> (int)component & 1) == 0)
                continue;
            CpuidLeaf leaf = CpuidLeaf.OfHost(0xd, component);
            uint offset = leaf.Ebx;
            if (compacted)
                offset = (leaf.Ecx & 2) != 0 ? (end + 63) & ~63u : end;
            end = Math.Max(end, offset + leaf.Eax);
        }
        return end;
    }
}
