// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Outcome of an atomic exchange in user memory.</summary>
internal enum Exchange : byte
{
    Swapped,
    Different,
    Fault,
}

/// <summary>
/// Memory of the calling process, guest memory included. Copies may sleep and fail (the page may be gone); a failure
/// is EFAULT towards user space. Only in the context of the VM's own process.
/// </summary>
internal static partial class UserMemory
{
    public static partial bool Read(Hva source, Span<byte> destination);
    public static partial bool Write(Hva destination, ReadOnlySpan<byte> source);

    /// <summary>One load of 8 bytes, the cheap path; atomic when aligned, as page-table entries are.</summary>
    public static partial bool TryReadUInt64(Hva source, out ulong value);

    /// <summary>8 to 16 bytes by two loads: the cheap path for instruction bytes.</summary>
    public static partial bool ReadWords(Hva source, Span<byte> destination);

    /// <summary>Atomic compare and exchange of 1, 2, 4 or 8 naturally aligned bytes.</summary>
    public static partial Exchange CompareExchange(Hva address, int size, ulong expected, ulong replacement);

    /// <summary>Whether [start, start + bytes) lies in the user half (access_ok).</summary>
    public static partial bool IsUserRange(Hva start, ulong bytes);

    public static bool TryRead<T>(Hva source, out T value) where T : unmanaged
    {
        Unsafe.SkipInit(out value);
        return Read(source, MemoryMarshal.AsBytes(new Span<T>(ref value)));
    }

    public static bool TryWrite<T>(Hva destination, in T value) where T : unmanaged =>
        Write(destination, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value)));
}
