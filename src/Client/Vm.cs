// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>A virtual machine: its memory slots and virtual CPUs.</summary>
public sealed unsafe partial class Vm : KvmObject
{
    readonly List<IDisposable> _owned = [];

    internal Vm(Kvm kvm, int fd) : base(fd) => Kvm = kvm;

    /// <summary>The device that the machine came from.</summary>
    public Kvm Kvm { get; }

    /// <summary>KVM_CREATE_VCPU. The CPU is disposed with the machine.</summary>
    public Vcpu CreateVcpu(uint id = 0)
    {
        var vcpu = new Vcpu(this, id, Call(KvmIoctl.CreateVcpu, id));
        _owned.Add(vcpu);
        return vcpu;
    }

    /// <summary>Maps fresh memory and makes it a slot. The memory is unmapped with the machine.</summary>
    public GuestMemory AddMemory(uint slot, ulong guestAddress, ulong size, KvmMem flags = KvmMem.None)
    {
        var memory = new GuestMemory(guestAddress, size);
        _owned.Add(memory);
        SetMemoryRegion(slot, flags, guestAddress, size, memory.HostAddress);
        return memory;
    }

    /// <summary>KVM_SET_USER_MEMORY_REGION: creates, moves, changes or (size 0) deletes a slot.</summary>
    public void SetMemoryRegion(uint slot, KvmMem flags, ulong guestAddress, ulong size, ulong hostAddress)
    {
        int result = TrySetMemoryRegion(slot, flags, guestAddress, size, hostAddress);
        if (result < 0)
            throw new KvmException($"memory slot {slot} at 0x{guestAddress:x}, 0x{size:x} bytes", (Errno)(-result));
    }

    /// <inheritdoc cref="SetMemoryRegion"/>
    /// <returns>0, or the negated error number.</returns>
    public int TrySetMemoryRegion(uint slot, KvmMem flags, ulong guestAddress, ulong size, ulong hostAddress)
    {
        var region = new KvmUserspaceMemoryRegion
        {
            Slot = slot, Flags = flags, GuestPhysAddr = guestAddress, MemorySize = size, UserspaceAddr = hostAddress,
        };
        return TryCall(KvmIoctl.SetUserMemoryRegion, ref region);
    }

    /// <summary>KVM_GET_DIRTY_LOG: the bitmap of pages written since the last call, one bit per page of the slot
    /// (<paramref name="pages"/> of them).</summary>
    public ulong[] GetDirtyLog(uint slot, int pages)
    {
        var bitmap = new ulong[(pages + 63) / 64];
        fixed (ulong* pointer = bitmap)
        {
            var request = new KvmDirtyLog { Slot = slot, DirtyBitmap = (ulong)pointer };
            Call(KvmIoctl.GetDirtyLog, ref request);
        }
        return bitmap;
    }

    protected override void Release()
    {
        // CPUs before memory: nothing runs any more when the memory goes.
        foreach (IDisposable item in _owned.OrderBy(item => item is GuestMemory))
            item.Dispose();
        _owned.Clear();
    }
}
