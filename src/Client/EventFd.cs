// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>A counter in the kernel that <c>KVM_IRQFD</c> listens to and <c>KVM_IOEVENTFD</c> adds to.</summary>
public sealed unsafe class EventFd : IDisposable
{
    const int NonBlocking = 0x800, CloseOnExec = 0x80000;

    /// <summary>Makes one. Reading a blocking one waits until its counter is not 0.</summary>
    public EventFd(bool nonBlocking = true)
    {
        Fd = Libc.EventFd(0, CloseOnExec | (nonBlocking ? NonBlocking : 0));
        if (Fd < 0)
            throw new KvmException("eventfd", Libc.LastError);
    }

    /// <summary>The file descriptor, owned by this object; -1 after <see cref="Dispose"/>.</summary>
    public int Fd { get; private set; }

    /// <summary>Adds to the counter.</summary>
    public void Signal(ulong count = 1)
    {
        if (Libc.Write(Fd, &count, sizeof(ulong)) != sizeof(ulong))
            throw new KvmException("write to an eventfd", Libc.LastError);
    }

    /// <summary>What was added since the last call; 0 when nothing was.</summary>
    public ulong Take()
    {
        ulong count = 0;
        if (Libc.Read(Fd, &count, sizeof(ulong)) != sizeof(ulong) && Libc.LastError != Errno.EAGAIN)
            throw new KvmException("read of an eventfd", Libc.LastError);
        return count;
    }

    /// <summary>Waits until the counter is not 0; false when the time was over before.</summary>
    public bool Wait(int milliseconds)
    {
        var poll = new PollFd { Fd = Fd, Events = PollFd.In };
        return Libc.Poll(&poll, 1, milliseconds) == 1;
    }

    public void Dispose()
    {
        if (Fd >= 0)
            Libc.Close(Fd);
        Fd = -1;
    }
}
