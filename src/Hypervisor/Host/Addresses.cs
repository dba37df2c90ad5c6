// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Guest linear address: what segmentation yields and the guest's page tables translate.</summary>
internal readonly struct Gva(ulong value)
{
    public readonly ulong Value = value;

    public uint Offset => (uint)(Value & Page.OffsetMask);
    public static Gva operator +(Gva left, ulong bytes) => new(left.Value + bytes);
}

/// <summary>Guest physical address.</summary>
internal readonly struct Gpa(ulong value)
{
    public readonly ulong Value = value;

    public Gfn Frame => new(Value >> Page.Shift);
    public uint Offset => (uint)(Value & Page.OffsetMask);
    public static Gpa operator +(Gpa left, ulong bytes) => new(left.Value + bytes);
}

/// <summary>Guest frame number: a guest physical address in units of 4 KiB pages.</summary>
internal readonly struct Gfn(ulong value)
{
    public readonly ulong Value = value;

    public Gpa Address => new(Value << Page.Shift);
    public static Gfn operator +(Gfn left, ulong pages) => new(left.Value + pages);
}

/// <summary>Host physical address.</summary>
internal readonly struct Hpa(ulong value)
{
    public readonly ulong Value = value;

    public bool IsNull => Value == 0;
    public Pfn Frame => new(Value >> Page.Shift);
}

/// <summary>Host page frame number.</summary>
internal readonly struct Pfn(ulong value)
{
    public readonly ulong Value = value;

    public Hpa Address => new(Value << Page.Shift);
}
