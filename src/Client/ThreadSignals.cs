// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>Signals that get a thread out of a system call and do nothing else.</summary>
public static unsafe class ThreadSignals
{
    /// <summary>SIGUSR1, for <see cref="VcpuThread"/>.</summary>
    public const int Kick = 10;

    // A signal handler must not be managed code. This one is a single 'ret'.
    static readonly nint Handler = LoadReturn();

    /// <summary>The calling thread, for <see cref="Send"/>.</summary>
    public static int CurrentThread => Libc.GetTid();

    /// <summary>Lets a signal interrupt system calls and do nothing else.</summary>
    public static void IgnoreByHandler(int signal)
    {
        // struct sigaction of the C library: handler, 128 bytes of mask, flags, restorer.
        byte* action = stackalloc byte[152];
        new Span<byte>(action, 152).Clear();
        *(nint*)action = Handler;
        if (Libc.SigAction(signal, action, null) != 0)
            throw new KvmException("sigaction", Libc.LastError);
    }

    /// <summary>Sends a signal to one thread of this process; nothing happens when it has ended.</summary>
    public static void Send(int thread, int signal) => _ = Libc.TgKill(Libc.GetPid(), thread, signal);

    static nint LoadReturn()
    {
        nint page = Libc.MemoryMap(0, 4096, Libc.ProtRead | Libc.ProtWrite | Libc.ProtExec,
            Libc.MapPrivate | Libc.MapAnonymous, -1, 0);
        if (page == Libc.MapFailed)
            throw new KvmException("mmap of code", Libc.LastError);
        *(byte*)page = 0xC3;
        return page;
    }
}
