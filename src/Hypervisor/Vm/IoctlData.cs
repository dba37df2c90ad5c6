// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>
/// The structure that an ioctl's argument points to, of the size that the command's number says: a copy, which user
/// space cannot change any more, and of which no byte is uninitialised.
/// </summary>
internal ref struct IoctlData(uint command, ulong argument)
{
    /// <summary>Words of the largest, struct kvm_lapic_state.</summary>
    private const int Words = 1024 / sizeof(ulong);

    [InlineArray(Words)]
    private struct Buffer
    {
        private ulong _first;
    }

    private Buffer _buffer;
    private bool _failed, _answers;

    /// <summary>For what is more than one structure: the handler copies it.</summary>
    public readonly Hva Pointer => new(argument);

    [UnscopedRef]
    private Span<byte> Bytes => MemoryMarshal.AsBytes((Span<ulong>)_buffer);
    [UnscopedRef]
    private Span<byte> Structure => Bytes[..(int)(command >> 16 & 0x3fff)];

    /// <summary>Copies the structure from user space. False: <see cref="Finish"/> returns EFAULT.</summary>
    public bool Read()
    {
        _failed = !UserMemory.Read(Pointer, Structure);
        return !_failed;
    }

    /// <summary>What was read, or zeros.</summary>
    [UnscopedRef]
    public ref T As<T>() where T : unmanaged => ref MemoryMarshal.AsRef<T>(Bytes);

    /// <summary>The same, which goes to user space if the handler succeeds.</summary>
    [UnscopedRef]
    public ref T Out<T>() where T : unmanaged
    {
        _answers = true;
        return ref As<T>();
    }

    public int Answer<T>(T value) where T : unmanaged
    {
        Out<T>() = value;
        return Errno.Ok;
    }

    /// <summary>What the ioctl returns, by what its handler has.</summary>
    public long Finish(long result) =>
        _failed || _answers && result >= 0 && !UserMemory.Write(Pointer, Structure) ? Errno.EFAULT : result;
}
