// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Memory of this process that begins at a multiple of 2 MiB, so that Linux can give it huge pages.</summary>
sealed class HugeMemory : IDisposable
{
    public const ulong Huge = 2 << 20;
    const int AdviseDontNeed = 4, AdviseHuge = 14, AdviseNoHuge = 15, AdviseCollapse = 25;

    readonly GuestMemory _memory;
    readonly ulong _offset;

    /// <param name="size">Bytes.</param>
    /// <param name="huge">Whether Linux gives huge pages from the start, or only when it is told to.</param>
    public HugeMemory(ulong size, bool huge)
    {
        _memory = new GuestMemory(0, size + Huge);
        _offset = (Huge - _memory.HostAddress % Huge) % Huge;
        Size = size;
        Check.Equal(0, Process.Advise((nint)Address, (nuint)size, huge ? AdviseHuge : AdviseNoHuge), "madvise");
    }

    public ulong Address => _memory.HostAddress + _offset;
    public ulong Size { get; }

    public T Read<T>(ulong at) where T : unmanaged => _memory.Read<T>(_offset + at);
    public void Write<T>(ulong at, T value) where T : unmanaged => _memory.Write(_offset + at, value);
    public Span<byte> Bytes(ulong at, int length) => _memory.Slice(_offset + at, length);

    /// <summary>Makes huge pages of small ones now; false when Linux has none.</summary>
    public bool Collapse()
    {
        _ = Process.Advise((nint)Address, (nuint)Size, AdviseHuge);
        return Process.Advise((nint)Address, (nuint)Size, AdviseCollapse) == 0;
    }

    /// <summary>Gives one small page back to Linux, which makes no huge pages here any more.</summary>
    public void TakeAway(ulong at)
    {
        Check.Equal(0, Process.Advise((nint)(Address + at), 4096, AdviseDontNeed), "madvise(MADV_DONTNEED)");
        Check.Equal(0, Process.Advise((nint)Address, (nuint)Size, AdviseNoHuge), "madvise(MADV_NOHUGEPAGE)");
    }

    /// <summary>Huge pages of this process now, in bytes, as Linux counts them.</summary>
    public static ulong HugeBytes => ulong.Parse(File.ReadLines("/proc/self/smaps_rollup")
        .First(line => line.StartsWith("AnonHugePages:", StringComparison.Ordinal))
        .Split(' ', StringSplitOptions.RemoveEmptyEntries)[1]) << 10;

    public void Dispose() => _memory.Dispose();
}
