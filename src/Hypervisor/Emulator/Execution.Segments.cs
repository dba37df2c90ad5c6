// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>Segment registers and descriptors.</summary>
internal ref partial struct Execution<TMachine>
{
    private readonly bool IsLongMode => (_machine.Efer & Efer.Lma) != 0;

    private readonly bool HasDescriptors => _protected && !_virtual8086;

    /// <summary>An exception that names a selector.</summary>
    private bool Refuse(byte vector, ulong selector) => Raise(vector, (uint)selector & 0xfffc | _external);

    /// <summary>LES, LDS, LSS, LFS, LGS.</summary>
    private bool LoadFarSegment()
    {
        SegmentName name = _i.Map == 0 ? _i.Opcode == 0xc4 ? SegmentName.Es : SegmentName.Ds
            : (SegmentName)(_i.Opcode & 7);
        return LoadFarPointer(out ulong offset, out ulong selector) && LoadSegment(name, selector, _machine.Cpl)
            && SetRegister(_i.Reg, _i.OperandSize, offset);
    }

    /// <summary>A segment of real mode or virtual-8086 mode: limit and rights stay.</summary>
    private Segment RealSegment(SegmentName name, ulong selector)
    {
        Segment segment = _machine.GetSegment(name);
        segment.Selector = (ushort)selector;
        segment.Base = (selector & 0xffff) << 4;
        return segment;
    }

    /// <summary>
    /// Loads ES, SS, DS, FS or GS at a privilege level, the LDTR or TR (SDM vol. 2, MOV, LLDT, LTR). The last step of
    /// its instruction as far as faults go.
    /// </summary>
    private bool LoadSegment(SegmentName name, ulong selector, int level)
    {
        Segment segment = new() { Selector = (ushort)selector };
        if (!HasDescriptors)
            segment = RealSegment(name, selector);
        else if ((selector & 0xfffc) != 0 || name == SegmentName.Tr)
        {
            if (!ReadSegment(name, selector, level, out segment))
                return false;
        }
        else if (name == SegmentName.Ss)
        {
            // A null SS is for 64-bit code below CPL 3 only.
            if (!Long64 || level == 3 || (int)(selector & 3) != level)
                return Refuse(_refusal, 0);
            segment.Attributes = (ushort)(Segment.CodeOrData | 3 | level << Segment.DplShift | Segment.PresentBit
                | Segment.BigBit | Segment.GranularityBit);
            segment.Limit = uint.MaxValue;
        }
        _machine.SetSegment(name, in segment);
        return true;
    }

    /// <summary>
    /// Reads the descriptor of a segment that is to be used at privilege <paramref name="level"/>, and marks it as
    /// accessed or busy. <paramref name="inner"/>: code behind a gate, which may be more privileged.
    /// </summary>
    private bool ReadSegment(SegmentName name, ulong selector, int level, out Segment segment, bool inner = false)
    {
        bool read = ReadDescriptor(selector, out Descriptor found);
        segment = found.Segment;
        if (!read)
            return false;
        int rpl = (int)selector & 3, dpl = segment.Dpl;
        bool global = (selector & 4) == 0, data = segment.IsCodeOrData && !segment.IsCode;
        // Data: writable. Code: readable.
        bool opened = (segment.Type & 2) != 0;
        bool permitted = name switch
        {
            SegmentName.Cs => segment.IsCode && !(IsLongMode && segment is { Long: true, Big: true })
                && (inner || segment.IsConforming ? dpl <= level : dpl == level),
            SegmentName.Ss => data && opened && rpl == level && dpl == level,
            SegmentName.Ldtr => global && found.Type == SystemType.Ldt,
            SegmentName.Tr => global && (found.Type & ~SystemType.Wide) == SystemType.Tss,
            _ => (data || segment.IsCode && opened) && (segment.IsConforming || dpl >= Math.Max(rpl, level)),
        };
        if (!permitted)
            return Refuse(_refusal, selector);
        if (!segment.Present)
            return Refuse(name == SegmentName.Ss ? Fault.StackSegment : name == SegmentName.Ldtr
                && _refusal == Fault.InvalidTss ? _refusal : Fault.SegmentNotPresent, selector);
        segment.Selector = (ushort)selector;
        int mark = name switch { SegmentName.Ldtr => 0, SegmentName.Tr => SystemType.Busy, _ => 1 };
        return Mark(ref segment, found.Address, mark);
    }

    /// <summary>Sets a bit of the type.</summary>
    private bool Mark(ref Segment segment, ulong descriptor, int bit)
    {
        bool marked = (segment.Attributes & bit) == bit;
        segment.Attributes |= (ushort)bit;
        return marked || WriteLinear(descriptor + 5, 1, segment.Attributes, Rights.System);
    }

    /// <summary>Reads a descriptor of the GDT or the LDT. A null selector is refused.</summary>
    private bool ReadDescriptor(ulong selector, out Descriptor found)
    {
        Segment local = _machine.GetSegment(SegmentName.Ldtr);
        DescriptorTable global = _machine.Gdtr;
        bool isLocal = (selector & 4) != 0, exists = isLocal ? local.Present : (selector & 0xfffc) != 0;
        return ReadEntry(isLocal ? local.Base : global.Base, !exists ? 0 : isLocal ? local.Limit : global.Limit,
            (uint)selector & 0xfff8, (uint)selector & 0xfffc, out found);
    }

    private bool ReadEntry(ulong table, uint limit, uint index, uint error, out Descriptor found)
    {
        found = new() { Address = table + index };
        if (index + 7 > limit)
            return Raise(_refusal, error | _external);
        bool read = ReadLinear(found.Address, 8, Rights.System, out found.Raw);
        found.Parse();
        return read;
    }
}
