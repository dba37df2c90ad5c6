// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>
/// A structure of the heap that is replaced as a whole under the VM's lock, while who looks at it, in a read section of
/// the shim as for memory slots, keeps what was found. At first there is none.
/// </summary>
internal struct Published<T> where T : unmanaged
{
    private nint _address;

    public KernelRef<T> Current => new(Volatile.Read(ref _address));

    /// <summary>Returns when nobody looks at the old one any more, and frees it.</summary>
    public void Replace(HostVm vm, KernelRef<T> next)
    {
        nint old = _address;
        Volatile.Write(ref _address, next.Address);
        if (old == 0)
            return;
        vm.SynchronizeSlots();
        KernelHeap.Free(old);
    }

    /// <summary>Nobody looks any more.</summary>
    public void Free()
    {
        KernelHeap.Free(_address);
        _address = 0;
    }
}
