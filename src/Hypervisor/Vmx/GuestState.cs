// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Vmx;

/// <summary>What an entry demands of a guest that is not unrestricted (SDM vol. 3, 27.3.1.1 and 27.3.1.2).</summary>
internal static class GuestState
{
    /// <summary>
    /// Paging is on, as it always is with shadow tables, and the segment registers are as protected or virtual-8086
    /// mode leaves them.
    /// </summary>
    public static bool IsEnterable(ref Vcpu vcpu)
    {
        const int VirtualRights = 0xf3;
        ulong paging = VmxHardware.HasEpt ? Cr0.Pe | Cr0.Pg : Cr0.Pe;
        bool virtual8086 = (vcpu.Registers.Rflags & Rflags.Vm) != 0, enterable = (vcpu.Vmx.Cr0 & paging) == paging;
        int level = VmxVendor.GetCpl(ref vcpu), rpl = VmxVendor.GetSegment(ref vcpu, SegmentName.Cs).Selector & 3;
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Tr && enterable; name++)
        {
            Segment segment = VmxVendor.GetSegment(ref vcpu, name);
            enterable = !virtual8086 || name > SegmentName.Gs ? IsEnterable(name, in segment, level, rpl)
                : segment.Base == (ulong)segment.Selector << 4
                    && segment is { Limit: ushort.MaxValue, Attributes: VirtualRights };
        }
        return enterable;
    }

    /// <param name="name">Which it is.</param>
    /// <param name="segment">What is in it.</param>
    /// <param name="level">DPL of SS.</param>
    /// <param name="codeRpl">RPL of CS.</param>
    private static bool IsEnterable(SegmentName name, in Segment segment, int level, int codeRpl)
    {
        const int Local = 2, Task16 = 3, Task32 = 11, SystemBits = Segment.TypeMask | Segment.CodeOrData;
        int rpl = segment.Selector & 3, system = segment.Attributes & SystemBits;
        bool accessed = segment.Present && segment.IsCodeOrData && (segment.Type & 1) != 0;
        // Data: writable. Code: readable.
        bool opened = (segment.Type & 2) != 0, global = (segment.Selector & 4) == 0;
        return name switch
        {
            SegmentName.Cs => accessed && segment.IsCode && segment is not { Long: true, Big: true }
                && (segment.IsConforming ? segment.Dpl <= level : segment.Dpl == level),
            SegmentName.Ss => segment.Dpl == rpl && rpl == codeRpl
                && (!segment.Present || accessed && opened && !segment.IsCode),
            SegmentName.Tr => segment.Present && system is Task16 or Task32 && global,
            SegmentName.Ldtr => !segment.Present || system == Local && global,
            _ => !segment.Present || accessed && (opened || !segment.IsCode)
                && (segment.IsConforming || segment.Dpl >= rpl),
        };
    }
}
