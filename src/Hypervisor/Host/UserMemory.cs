// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Outcome of an atomic exchange in user memory.</summary>
internal enum Exchange : byte
{
    Swapped,
    Different,
    Fault,
}

internal static partial class UserMemory
{
    public static bool TryRead<T>(Hva source, out T value) where T : unmanaged
    {
        Unsafe.SkipInit(out value);
        return Read(source, MemoryMarshal.AsBytes(new Span<T>(ref value)));
    }

    public static bool TryWrite<T>(Hva destination, in T value) where T : unmanaged =>
        Write(destination, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value)));
}
