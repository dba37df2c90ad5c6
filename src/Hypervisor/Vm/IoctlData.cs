// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// The structure that an ioctl's argument points to, of the size that the command's number says: a copy, which user
/// space cannot change any more, and of which no byte is uninitialised.
/// </summary>
internal ref struct IoctlData
{
    /// <summary>Words of the largest, struct kvm_lapic_state.</summary>
    private const int Words = 1024 / sizeof(ulong);

    [InlineArray(Words)] private struct Buffer { private ulong _first; }

    /// <summary>As the ioctl has them.</summary>
    public uint Command;
    public ulong Argument;
    private Buffer _buffer;
    private bool _failed, _answers;

    /// <summary>For a handler that copies it itself.</summary>
    public readonly Hva Pointer => new(Argument);
    /// <summary>Where the elements lie that follow the structure.</summary>
    public readonly Hva Elements => Pointer + Size;

    private readonly uint Size => Command >> 16 & 0x3fff;

    [UnscopedRef] private Span<byte> Bytes => MemoryMarshal.AsBytes((Span<ulong>)_buffer);
    [UnscopedRef] private Span<byte> Structure => Bytes[..(int)Size];

    /// <summary>Copies the structure from user space. False: <see cref="Finish"/> returns EFAULT.</summary>
    public bool Read()
    {
        _failed = !UserMemory.Read(Pointer, Structure);
        return !_failed;
    }

    /// <summary>What was read, or zeros.</summary>
    [UnscopedRef] public ref T As<T>() where T : unmanaged => ref MemoryMarshal.AsRef<T>(Bytes);

    /// <summary>The same, which goes to user space if the handler succeeds.</summary>
    [UnscopedRef] public ref T Out<T>() where T : unmanaged
    {
        _answers = true;
        return ref As<T>();
    }

    public int Answer<T>(T value) where T : unmanaged
    {
        Out<T>() = value;
        return Errno.Ok;
    }

    /// <summary>
    /// Gives the elements of a list, in front of which user space has written how many it has room for. How many there
    /// are always goes back; E2BIG, and no elements, when they do not fit.
    /// </summary>
    public int AnswerList<T>(ReadOnlySpan<T> list) where T : unmanaged
    {
        bool fits = As<uint>() >= (uint)list.Length;
        As<uint>() = (uint)list.Length;
        if (!UserMemory.Write(Pointer, Structure) || fits && !UserMemory.Write(Elements, MemoryMarshal.AsBytes(list)))
            return Errno.EFAULT;
        return fits ? Errno.Ok : Errno.E2BIG;
    }

    /// <summary>What the ioctl returns, by what its handler has.</summary>
    public long Finish(long result) =>
        _failed || _answers && result >= 0 && !UserMemory.Write(Pointer, Structure) ? Errno.EFAULT : result;
}
