// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Arch;

/// <summary>Segment registers in the order of their encoding, then the two system segments.</summary>
internal enum SegmentName : byte
{
    Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr,
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
