// SPDX-License-Identifier: GPL-2.0-only
using System.Threading;

namespace Kernel;

/// <summary>Those who look at a <see cref="Published{T}"/>, each in a read section (of RCU or SRCU).</summary>
internal interface IReaders
{
    /// <summary>Returns when all read sections are over that had begun.</summary>
    void Wait();
}

/// <summary>
/// A structure of the heap that is replaced as a whole under a lock of its owner, while who looks at it, in a read
/// section, keeps what was found. At first there is none.
/// </summary>
internal struct Published<T> where T : unmanaged
{
    private nint _address;

    public KernelRef<T> Current => new(Volatile.Read(ref _address));

    /// <summary>Returns when nobody looks at the old one any more, and frees it.</summary>
    public void Replace<TReaders>(TReaders readers, KernelRef<T> next) where TReaders : struct, IReaders
    {
        nint old = _address;
        Volatile.Write(ref _address, next.Address);
        if (old == 0)
            return;
        readers.Wait();
        KernelHeap.Free(old);
    }

    /// <summary>Nobody looks any more.</summary>
    public void Free()
    {
        KernelHeap.Free(_address);
        _address = 0;
    }
}
