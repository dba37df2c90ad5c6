// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace Kernel;

/// <summary>
/// Memory of the calling process. Copies may sleep and fail (the page may be gone); a failure is EFAULT towards user
/// space. A module that uses it lists user.o in its Kbuild, and in its IMPORTS the functions below that it calls.
/// </summary>
internal static partial class UserMemory
{
    public static bool Read(UserAddress source, Span<byte> destination) =>
        CopyFrom(ref MemoryMarshal.GetReference(destination), source, (nuint)destination.Length) == 0;

    public static bool Write(UserAddress destination, ReadOnlySpan<byte> source) =>
        CopyTo(destination, in MemoryMarshal.GetReference(source), (nuint)source.Length) == 0;

    /// <summary>8 to 16 bytes by two loads: the cheap path for instruction bytes.</summary>
    public static bool ReadWords(UserAddress source, Span<byte> destination)
    {
        int tail = destination.Length - sizeof(ulong);
        bool read = TryReadUInt64(source, out ulong first) & TryReadUInt64(source + (uint)tail, out ulong last);
        BinaryPrimitives.WriteUInt64LittleEndian(destination, first);
        BinaryPrimitives.WriteUInt64LittleEndian(destination[tail..], last);
        return read;
    }

    /// <summary>One load of 8 bytes, the cheap path; atomic when aligned, as page-table entries are.</summary>
    [KernelImport("cs_user_read_u64")] public static extern bool TryReadUInt64(UserAddress source, out ulong value);

    /// <summary>As <see cref="Read"/> if the memory is present: sleeps never, also under a lock that spins.</summary>
    public static bool TryReadPresent(UserAddress source, Span<byte> destination) =>
        CopyPresent(ref MemoryMarshal.GetReference(destination), source, (nuint)destination.Length) == 0;

    /// <summary>Atomic compare and exchange of 1, 2, 4 or 8 naturally aligned bytes.</summary>
    [KernelImport("cs_user_exchange")]
    public static extern Exchange CompareExchange(UserAddress address, int size, ulong expected, ulong replacement);

    /// <summary>Whether [start, start + bytes) lies in the user half (access_ok).</summary>
    public static bool IsUserRange(UserAddress start, ulong bytes)
    {
        const ulong FiveLevels = 1 << 12;
        ulong end = (1ul << ((X86.ReadCr4() & FiveLevels) != 0 ? 56 : 47)) - Page.Size;
        return bytes <= end && start.Value <= end - bytes;
    }

    [KernelImport("_copy_from_user")]
    private static extern nuint CopyFrom(ref byte to, UserAddress source, nuint bytes);
    [KernelImport("copy_from_user_nofault")]
    private static extern long CopyPresent(ref byte to, UserAddress source, nuint bytes);
    [KernelImport("_copy_to_user")]
    private static extern nuint CopyTo(UserAddress destination, in byte from, nuint bytes);
}
