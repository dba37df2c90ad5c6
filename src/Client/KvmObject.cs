// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>An open file descriptor of the KVM interface: the system, a virtual machine or a virtual CPU.</summary>
/// <remarks>Two levels: <see cref="TryCall(uint,nuint)"/> passes anything to the kernel and returns its answer, the
/// typed members of the derived classes throw <see cref="KvmException"/> when a call is refused.</remarks>
public abstract unsafe class KvmObject(int fd) : IDisposable
{
    /// <summary>The file descriptor, owned by this object; -1 after <see cref="Dispose()"/>.</summary>
    public int Fd { get; private set; } = fd;

    /// <summary>One ioctl as it is. Returns the kernel's result, or the negated error number.</summary>
    public int TryCall(uint request, nuint argument = 0)
    {
        int result = Libc.Ioctl(Fd, request, argument);
        return result >= 0 ? result : -(int)Libc.LastError;
    }

    /// <summary>One ioctl whose argument is a pointer to <paramref name="argument"/>, as it is.</summary>
    public int TryCall<T>(uint request, ref T argument) where T : unmanaged
    {
        fixed (T* pointer = &argument)
            return TryCall(request, (nuint)pointer);
    }

    /// <summary>One ioctl whose argument points to the first byte of <paramref name="argument"/>, as it is.</summary>
    public int TryCall(uint request, Span<byte> argument)
    {
        fixed (byte* pointer = argument)
            return TryCall(request, (nuint)pointer);
    }

    /// <summary>One ioctl that has to succeed; returns its result (not negative).</summary>
    public int Call(uint request, nuint argument = 0) => Checked(request, TryCall(request, argument));

    /// <inheritdoc cref="Call(uint,nuint)"/>
    public int Call<T>(uint request, ref T argument) where T : unmanaged =>
        Checked(request, TryCall(request, ref argument));

    /// <inheritdoc cref="Call(uint,nuint)"/>
    public int Call(uint request, Span<byte> argument) => Checked(request, TryCall(request, argument));

    /// <summary>KVM_CHECK_EXTENSION on this descriptor: 0 when absent, else 1 or what the capability defines.</summary>
    public int CheckExtension(KvmCap capability) => Call(KvmIoctl.CheckExtension, (uint)capability);

    /// <summary>KVM_ENABLE_CAP on this descriptor.</summary>
    public void EnableCap(KvmCap capability, ulong argument = 0)
    {
        var request = new KvmEnableCap { Cap = (uint)capability };
        request.Args[0] = argument;
        Call(KvmIoctl.EnableCap, ref request);
    }

    /// <summary>Closes the descriptor.</summary>
    public void Dispose()
    {
        if (Fd < 0)
            return;
        Release();
        Libc.Close(Fd);
        Fd = -1;
        GC.SuppressFinalize(this);
    }

    /// <summary>What a derived class gives back before its descriptor is closed.</summary>
    protected virtual void Release() { }

    /// <summary>Reads a whole structure by a GET request.</summary>
    protected T Get<T>(uint request) where T : unmanaged
    {
        T value = default;
        Call(request, ref value);
        return value;
    }

    static int Checked(uint request, int result) =>
        result >= 0 ? result : throw new KvmException($"ioctl 0x{request:X8}", (Errno)(-result));
}
