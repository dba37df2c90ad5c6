// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Abi;

/// <summary>Argument of KVM_SET_USER_MEMORY_REGION.</summary>
internal struct kvm_userspace_memory_region
{
    public const uint KVM_MEM_LOG_DIRTY_PAGES = 1 << 0, KVM_MEM_READONLY = 1 << 1;

    /// <summary>Slot id in bits 0-15, address space in bits 16-31.</summary>
    public uint slot;
    public uint flags;
    public ulong guest_phys_addr;
    /// <summary>Bytes; 0 deletes the slot.</summary>
    public ulong memory_size;
    public ulong userspace_addr;
}

/// <summary>Argument of KVM_GET_DIRTY_LOG.</summary>
internal struct kvm_dirty_log
{
    public uint slot, padding1;
    /// <summary>User address of the bitmap: one bit per page, rounded up to 8 bytes.</summary>
    public ulong dirty_bitmap;
}

/// <summary>Argument of KVM_CLEAR_DIRTY_LOG.</summary>
internal struct kvm_clear_dirty_log
{
    public uint slot, num_pages;
    /// <summary>A multiple of 64.</summary>
    public ulong first_page;
    /// <summary>User address of the bitmap, whose first bit is the first page's.</summary>
    public ulong dirty_bitmap;
}

/// <summary>An entry of a vCPU's dirty ring.</summary>
internal struct kvm_dirty_gfn
{
    /// <summary>The page was written; set by the kernel.</summary>
    public const uint KVM_DIRTY_GFN_F_DIRTY = 1 << 0;
    /// <summary>User space has seen it; the kernel may use the entry again.</summary>
    public const uint KVM_DIRTY_GFN_F_RESET = 1 << 1;

    public uint flags, slot;
    /// <summary>Page within the slot.</summary>
    public ulong offset;
}

/// <summary>KVM_ENABLE_CAP.</summary>
internal struct kvm_enable_cap
{
    public uint cap, flags;
    public InlineArray4<ulong> args;
    public InlineArray8<ulong> pad;
}
