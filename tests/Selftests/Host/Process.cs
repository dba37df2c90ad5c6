// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>System calls that tests make on their own process.</summary>
static unsafe partial class Process
{
    public const int SigUsr1 = 10, SigUsr2 = 12, SigAlrm = 14, SigKill = 9;
    const int BlockSignals = 0, UnblockSignals = 1;

    /// <summary>Whether a byte can be read, asked without faulting.</summary>
    public static bool CanRead(nint address)
    {
        int* pipe = stackalloc int[2];
        if (Pipe(pipe) != 0)
            throw new KvmException("pipe", Libc.LastError);
        bool good = Libc.Write(pipe[1], (void*)address, 1) == 1;
        _ = Libc.Close(pipe[0]);
        _ = Libc.Close(pipe[1]);
        return good;
    }

    public static int CurrentThread => ThreadSignals.CurrentThread;

    /// <summary>Sends a signal to one thread of this process.</summary>
    public static void Signal(int thread, int signal) => ThreadSignals.Send(thread, signal);

    /// <summary>Lets a signal interrupt system calls and do nothing else.</summary>
    public static void IgnoreByHandler(int signal) => ThreadSignals.IgnoreByHandler(signal);

    /// <summary>Blocks or unblocks a signal in this thread.</summary>
    public static void Mask(int signal, bool blocked)
    {
        ulong* set = stackalloc ulong[16];
        new Span<ulong>(set, 16).Clear();
        set[0] = 1UL << (signal - 1);
        _ = PthreadSigmask(blocked ? BlockSignals : UnblockSignals, set, null);
    }

    /// <summary>Whether a signal waits for this thread.</summary>
    public static bool IsPending(int signal)
    {
        ulong* set = stackalloc ulong[16];
        _ = SigPending(set);
        return (set[0] >> (signal - 1) & 1) != 0;
    }

    public static void Kill(int process, int signal) => _ = KillProcess(process, signal);

    [LibraryImport("libc", EntryPoint = "pipe", SetLastError = true)]
    private static partial int Pipe(int* ends);

    [LibraryImport("libc", EntryPoint = "kill")]
    private static partial int KillProcess(int process, int signal);

    [LibraryImport("libc", EntryPoint = "pthread_sigmask")]
    private static partial int PthreadSigmask(int how, ulong* set, ulong* old);

    [LibraryImport("libc", EntryPoint = "sigpending")]
    private static partial int SigPending(ulong* set);

    [LibraryImport("libc", EntryPoint = "waitpid", SetLastError = true)]
    public static partial int WaitPid(int process, out int status, int options);

    [LibraryImport("libc", EntryPoint = "madvise", SetLastError = true)]
    public static partial int Advise(nint address, nuint length, int advice);

    [LibraryImport("libc", EntryPoint = "mprotect", SetLastError = true)]
    public static partial int Protect(nint address, nuint length, int protection);
}
