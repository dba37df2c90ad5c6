// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>The MSRs that guests may access (KVM_X86_SET_MSR_FILTER).</summary>
internal struct MsrFilter
{
    private const int BitmapBytes = (int)kvm_msr_filter_range.KVM_MSR_FILTER_MAX_BITMAP_SIZE;

    [InlineArray(BitmapBytes)] private struct Bitmap { private byte _first; }

    private struct Table
    {
        public kvm_msr_filter Filter;
        /// <summary>One for each range.</summary>
        public InlineArray16<Bitmap> Bitmaps;
    }

    private Published<Table> _table;

    /// <summary>The filter in place may refuse something: vCPUs must not access MSRs past it.</summary>
    public bool IsActive => !_table.Current.IsNull;

    public void Destroy() => _table.Free();

    /// <summary>EINVAL for unknown flags, bitmaps that are too large, or nothing but a refusal of all.</summary>
    public static int Set(ref Vm.Vm vm, in kvm_msr_filter filter)
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
        KernelRef<Table> table = active ? KernelRef<Table>.Allocate() : default;
        if (active && table.IsNull)
            return Errno.ENOMEM;
        for (int i = 0; active && i < kvm_msr_filter.KVM_MSR_FILTER_MAX_RANGES; i++)
        {
            int length = (int)(filter.ranges[i].nmsrs + 7) / 8;
            if (UserMemory.Read(new Hva(filter.ranges[i].bitmap), table.Value.Bitmaps[i][..length]))
                continue;
            KernelHeap.Free(table.Address);
            return Errno.EFAULT;
        }
        if (active)
            table.Value.Filter = filter;
        vm.MsrFilter._table.Replace(vm.Host, table);
        vm.Vcpus.RequestAll(VcpuRequests.MsrFilter);
        return Errno.Ok;
    }

    /// <summary>Whether a guest's access may go on. The x2APIC's MSRs are never filtered.</summary>
    public bool Allows(uint index, bool write)
    {
        KernelRef<Table> table = _table.Current;
        if (table.IsNull || index is >= Msr.X2apic and <= Msr.X2apicLast)
            return true;
        uint kind = write ? kvm_msr_filter_range.KVM_MSR_FILTER_WRITE : kvm_msr_filter_range.KVM_MSR_FILTER_READ;
        for (int i = 0; i < kvm_msr_filter.KVM_MSR_FILTER_MAX_RANGES; i++)
        {
            ref kvm_msr_filter_range range = ref table.Value.Filter.ranges[i];
            uint bit = index - range.@base;
            if ((range.flags & kind) != 0 && bit < range.nmsrs)
                return (table.Value.Bitmaps[i][(int)(bit / 8)] >> (int)(bit % 8) & 1) != 0;
        }
        return table.Value.Filter.flags == 0;
    }
}
