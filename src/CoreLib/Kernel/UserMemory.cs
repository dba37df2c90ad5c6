// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Kernel;

/// <summary>Address in the user half of a process.</summary>
internal readonly struct UserAddress(ulong value)
{
    public readonly ulong Value = value;

    /// <summary>Bytes from the start of its page.</summary>
    public uint Offset => (uint)(Value & Page.OffsetMask);
    public static UserAddress operator +(UserAddress left, ulong bytes) => new(left.Value + bytes);
}

/// <summary>Outcome of an atomic exchange in user memory.</summary>
internal enum Exchange : byte
{
    Swapped,
    Different,
    Fault,
}

internal static partial class UserMemory
{
    public static bool TryRead<T>(UserAddress source, out T value) where T : unmanaged
    {
        Unsafe.SkipInit(out value);
        return Read(source, MemoryMarshal.AsBytes(new Span<T>(ref value)));
    }

    public static bool TryWrite<T>(UserAddress destination, in T value) where T : unmanaged =>
        Write(destination, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value)));

    /// <summary>A copy of an array of user space, for the caller to free: 0, ENOMEM or EFAULT.</summary>
    public static int Copy<T>(UserAddress source, uint length, out KernelArray<T> array) where T : unmanaged
    {
        array = default;
        if (length == 0)
            return Errno.Ok;
        if (!KernelArray<T>.TryAllocate((int)length, out array))
            return Errno.ENOMEM;
        if (Read(source, MemoryMarshal.AsBytes(array.Span)))
            return Errno.Ok;
        array.Free();
        array = default;
        return Errno.EFAULT;
    }
}
