// SPDX-License-Identifier: GPL-2.0-only

namespace SharpKvm.Cpu;

/// <summary>
/// The MSRs that guests may access (KVM_X86_SET_MSR_FILTER). vCPUs look at one of two filters while the other is
/// written under the VM's lock: who sees the version change while looking looks again.
/// </summary>
internal struct MsrFilter
{
    private const int
        BitmapBytes = (int)kvm_msr_filter_range.KVM_MSR_FILTER_MAX_BITMAP_SIZE,
        FilterBytes = BitmapBytes * kvm_msr_filter.KVM_MSR_FILTER_MAX_RANGES;

    /// <summary>Allocated with the first filter: the bitmaps of both, each in its own place.</summary>
    private KernelArray<byte> _bitmaps;
    private InlineArray2<kvm_msr_filter> _filters;
    /// <summary>Its lowest bit says which filter holds.</summary>
    private uint _version;
    /// <summary>The filter in place may refuse something: vCPUs must not access MSRs past it.</summary>
    public bool IsActive;

    public readonly void Destroy() => _bitmaps.Free();

    /// <summary>EINVAL for unknown flags, bitmaps that are too large, or nothing but a refusal of all.</summary>
    public int Set(in kvm_msr_filter filter)
    {
        bool active = false;
        foreach (ref readonly kvm_msr_filter_range range in (ReadOnlySpan<kvm_msr_filter_range>)filter.ranges)
        {
            if (range.nmsrs > BitmapBytes * 8 || range.nmsrs != 0 && range.flags is 0 or > 3)
                return Errno.EINVAL;
            active |= range.nmsrs != 0;
        }
        if ((filter.flags & ~kvm_msr_filter.KVM_MSR_FILTER_DEFAULT_DENY) != 0 || !active && filter.flags != 0)
            return Errno.EINVAL;
        if (_bitmaps.IsNull && !KernelArray<byte>.TryAllocate(2 * FilterBytes, out _bitmaps))
            return Errno.ENOMEM;

        uint next = _version + 1;
        for (int i = 0; i < kvm_msr_filter.KVM_MSR_FILTER_MAX_RANGES; i++)
        {
            ref readonly kvm_msr_filter_range range = ref filter.ranges[i];
            int length = (int)(range.nmsrs + 7) / 8;
            if (!UserMemory.Read(new Hva(range.bitmap), _bitmaps.Span.Slice(BitmapOf(next, i), length)))
                return Errno.EFAULT;
        }
        _filters[(int)(next & 1)] = filter;
        IsActive = active;
        Volatile.Write(ref _version, next);
        return Errno.Ok;
    }

    /// <summary>Whether a guest's access may go on. The x2APIC's MSRs are never filtered.</summary>
    public bool Allows(uint index, bool write)
    {
        if (!IsActive || index is >= Msr.X2apic and <= Msr.X2apicLast)
            return true;
        while (true)
        {
            uint version = Volatile.Read(ref _version);
            bool allowed = Find(version, index, write);
            Interlocked.MemoryBarrier();
            if (version == Volatile.Read(ref _version))
                return allowed;
        }
    }

    private static int BitmapOf(uint version, int range) => (int)(version & 1) * FilterBytes + range * BitmapBytes;

    private bool Find(uint version, uint index, bool write)
    {
        ref kvm_msr_filter filter = ref _filters[(int)(version & 1)];
        uint kind = write ? kvm_msr_filter_range.KVM_MSR_FILTER_WRITE : kvm_msr_filter_range.KVM_MSR_FILTER_READ;
        for (int i = 0; i < kvm_msr_filter.KVM_MSR_FILTER_MAX_RANGES; i++)
        {
            kvm_msr_filter_range range = filter.ranges[i];
            uint bit = index - range.@base;
            // The second: a filter that is being written; what is found then does not count.
            if ((range.flags & kind) != 0 && bit < range.nmsrs && bit < BitmapBytes * 8)
                return (_bitmaps.Span[BitmapOf(version, i) + (int)(bit / 8)] >> (int)(bit % 8) & 1) != 0;
        }
        return filter.flags == 0;
    }
}
