// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>
/// Segment registers in the order of their encoding, the two system segments, and the registers of descriptor tables,
/// which are a <see cref="DescriptorTable"/> only.
/// </summary>
internal enum SegmentName : byte
{
    Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr, Gdtr, Idtr,
}

/// <summary>
/// A segment register with its hidden part. <see cref="Attributes"/> is descriptor bits 40-47 in bits 0-7 and bits
/// 52-55 in bits 8-11, the packing of the VMCB (APM vol. 2, appendix B).
/// </summary>
internal struct Segment
{
    public const int DplShift = 5;
    public const ushort TypeMask = 0xf, CodeOrData = 1 << 4, PresentBit = 1 << 7, LongBit = 1 << 9, BigBit = 1 << 10,
        GranularityBit = 1 << 11;

    public ushort Selector;
    public ushort Attributes;
    /// <summary>Limit in bytes, already scaled by the granularity bit.</summary>
    public uint Limit;
    public ulong Base;

    public readonly int Type => Attributes & TypeMask;
    public readonly bool IsCodeOrData => (Attributes & CodeOrData) != 0;
    public readonly int Dpl => (Attributes >> DplShift) & 3;
    public readonly bool Present => (Attributes & PresentBit) != 0;
    public readonly bool Long => (Attributes & LongBit) != 0;
    public readonly bool Big => (Attributes & BigBit) != 0;
    public readonly bool Granularity => (Attributes & GranularityBit) != 0;
    public readonly bool IsCode => IsCodeOrData && (Attributes & 8) != 0;
    public readonly bool IsConforming => IsCode && (Attributes & 4) != 0;
    /// <summary>Bytes of a field in a TSS, or of what goes through a gate: those of 32 bits have bit 3 set.</summary>
    public readonly int FieldSize => (Attributes & 8) != 0 ? 4 : 2;
}

/// <summary>GDTR or IDTR.</summary>
internal struct DescriptorTable
{
    public ulong Base;
    public ushort Limit;
}

/// <summary>Types of system descriptors (SDM vol. 3, 3.5); those of 32 and 64 bits have bit 3 set.</summary>
internal static class SystemType
{
    public const int Tss = 1, Ldt = 2, CallGate = 4, TaskGate = 5, InterruptGate = 6, Busy = 2, Wide = 8;
}

/// <summary>An entry of a descriptor table (SDM vol. 3, 3.4.5, 5.8.3, 6.11) and where it lies.</summary>
internal struct Descriptor
{
    public ulong Address;
    public ulong Raw;
    /// <summary>What it says as a segment. A gate has its type, DPL and P there, too.</summary>
    public Segment Segment;

    /// <summary>The system type; -1: a segment of code or data.</summary>
    public readonly int Type => Segment.IsCodeOrData ? -1 : Segment.Type;
    public readonly ulong GateSelector => Raw >> 16 & 0xffff;
    public readonly ulong GateOffset => (Raw & 0xffff) | (Segment.FieldSize == 4 ? Raw >> 32 & 0xffff0000 : 0);

    public void Parse()
    {
        Segment.Attributes = (ushort)((Raw >> 40 & 0xff) | (Raw >> 44 & 0xf00));
        Segment.Base = (Raw >> 16 & 0xffffff) | (Raw >> 32 & 0xff000000);
        uint pages = (uint)((Raw & 0xffff) | (Raw >> 32 & 0xf0000));
        Segment.Limit = Segment.Granularity ? pages << 12 | 0xfff : pages;
    }
}

/// <summary>
/// What asked for another task, in the numbers of VMX (SDM vol. 3, table 28-6). The gate is one in the IDT.
/// </summary>
internal enum TaskSwitchCause : byte
{
    Call, Iret, Jump, Gate,
}
