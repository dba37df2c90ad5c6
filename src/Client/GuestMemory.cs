// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;

namespace SharpKvm.Client;

/// <summary>Anonymous memory of this process that serves as guest memory from <see cref="GuestAddress"/> on.</summary>
/// <remarks>Accessors take guest-physical addresses and are bounds-checked. Untouched pages read as zero.</remarks>
public sealed unsafe class GuestMemory : IDisposable
{
    byte* _start;

    /// <summary>Maps <paramref name="size"/> bytes (a multiple of 4096).</summary>
    public GuestMemory(ulong guestAddress, ulong size)
    {
        nint start = Libc.MemoryMap(0, (nuint)size, Libc.ProtRead | Libc.ProtWrite,
            Libc.MapPrivate | Libc.MapAnonymous | Libc.MapNoReserve, -1, 0);
        if (start == Libc.MapFailed)
            throw new KvmException("mmap of guest memory", Libc.LastError);
        _start = (byte*)start;
        GuestAddress = guestAddress;
        Size = size;
    }

    /// <summary>Guest-physical address of the first byte.</summary>
    public ulong GuestAddress { get; }

    /// <summary>Bytes.</summary>
    public ulong Size { get; }

    /// <summary>Where this process sees the first byte.</summary>
    public ulong HostAddress => (ulong)_start;

    /// <summary>A view of <paramref name="length"/> bytes at a guest-physical address.</summary>
    public Span<byte> Slice(ulong address, int length)
    {
        ObjectDisposedException.ThrowIf(_start == null, this);
        ulong offset = address - GuestAddress;
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, Size, nameof(address));
        ArgumentOutOfRangeException.ThrowIfGreaterThan((ulong)length, Size - offset, nameof(length));
        return new Span<byte>(_start + offset, length);
    }

    /// <summary>Reads a value at a guest-physical address.</summary>
    public T Read<T>(ulong address) where T : unmanaged => Unsafe.ReadUnaligned<T>(ref Slice(address, sizeof(T))[0]);

    /// <summary>Writes a value at a guest-physical address.</summary>
    public void Write<T>(ulong address, T value) where T : unmanaged =>
        Unsafe.WriteUnaligned(ref Slice(address, sizeof(T))[0], value);

    /// <summary>Copies bytes to a guest-physical address.</summary>
    public void Write(ulong address, ReadOnlySpan<byte> bytes) => bytes.CopyTo(Slice(address, bytes.Length));

    /// <summary>Unmaps the memory; a guest that still has it in a slot faults from then on.</summary>
    public void Dispose()
    {
        if (_start == null)
            return;
        _ = Libc.MemoryUnmap((nint)_start, (nuint)Size);
        _start = null;
    }
}
