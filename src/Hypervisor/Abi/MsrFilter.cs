// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

/// <summary>One bitmap of <see cref="kvm_msr_filter"/>: a set bit allows the kinds of access in the flags.</summary>
internal struct kvm_msr_filter_range
{
    public const uint KVM_MSR_FILTER_READ = 1 << 0, KVM_MSR_FILTER_WRITE = 1 << 1;
    /// <summary>Bytes of a bitmap.</summary>
    public const uint KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600;

    public uint flags;
    /// <summary>Bits of the bitmap, the first of which stands for MSR <see cref="@base"/>.</summary>
    public uint nmsrs;
    public uint @base;
    /// <summary>User address.</summary>
    public ulong bitmap;
}

/// <summary>KVM_X86_SET_MSR_FILTER.</summary>
internal struct kvm_msr_filter
{
    public const uint KVM_MSR_FILTER_DEFAULT_DENY = 1 << 0;
    public const int KVM_MSR_FILTER_MAX_RANGES = 16;

    public uint flags;
    public InlineArray16<kvm_msr_filter_range> ranges;
}
