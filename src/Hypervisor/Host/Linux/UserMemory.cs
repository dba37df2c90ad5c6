// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>
/// Memory of the calling process, guest memory included. Copies may sleep and fail (the page may be gone); a failure
/// is EFAULT towards user space. Only in the context of the VM's own process.
/// </summary>
internal static partial class UserMemory
{
    public static bool Read(Hva source, Span<byte> destination) =>
        CopyFrom(ref MemoryMarshal.GetReference(destination), source, (nuint)destination.Length) == 0;

    public static bool Write(Hva destination, ReadOnlySpan<byte> source) =>
        CopyTo(destination, in MemoryMarshal.GetReference(source), (nuint)source.Length) == 0;

    /// <summary>8 to 16 bytes by two loads: the cheap path for instruction bytes.</summary>
    public static bool ReadWords(Hva source, Span<byte> destination)
    {
        int tail = destination.Length - sizeof(ulong);
        bool read = TryReadUInt64(source, out ulong first) & TryReadUInt64(source + (uint)tail, out ulong last);
        BinaryPrimitives.WriteUInt64LittleEndian(destination, first);
        BinaryPrimitives.WriteUInt64LittleEndian(destination[tail..], last);
        return read;
    }

    /// <summary>One load of 8 bytes, the cheap path; atomic when aligned, as page-table entries are.</summary>
    [KernelImport("sk_user_read_u64")] public static extern bool TryReadUInt64(Hva source, out ulong value);

    /// <summary>As <see cref="Read"/> if the memory is present: sleeps never, also under a lock that spins.</summary>
    public static bool TryReadPresent(Hva source, Span<byte> destination) =>
        CopyPresent(ref MemoryMarshal.GetReference(destination), source, (nuint)destination.Length) == 0;

    /// <summary>Atomic compare and exchange of 1, 2, 4 or 8 naturally aligned bytes.</summary>
    [KernelImport("sk_user_exchange")]
    public static extern Exchange CompareExchange(Hva address, int size, ulong expected, ulong replacement);

    /// <summary>Whether [start, start + bytes) lies in the user half (access_ok).</summary>
    public static bool IsUserRange(Hva start, ulong bytes)
    {
        ulong end = (1ul << ((X86.ReadCr4() & Cr4.La57) != 0 ? 56 : 47)) - Page.Size;
        return bytes <= end && start.Value <= end - bytes;
    }

    [KernelImport("_copy_from_user")] private static extern nuint CopyFrom(ref byte to, Hva source, nuint bytes);
    [KernelImport("copy_from_user_nofault")]
    private static extern long CopyPresent(ref byte to, Hva source, nuint bytes);
    [KernelImport("_copy_to_user")] private static extern nuint CopyTo(Hva destination, in byte from, nuint bytes);
}
