// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

namespace SharpKvm.Selftests;

/// <summary>
/// Has the kernel refuse one allocation, or one access of user memory, that this thread's next system call asks for
/// (Linux's Documentation/fault-injection). The test is skipped on a kernel that cannot do it.
/// </summary>
sealed unsafe partial class FaultInjection : IDisposable
{
    /// <summary>A call that asks for more is not looked through to its end.</summary>
    const int Limit = 1000;

    const string Switch = "/proc/thread-self/fail-nth";
    const string Attributes = "/sys/kernel/debug";

    readonly int _fd;

    public FaultInjection()
    {
        Check.Needs(File.Exists(Switch), "fault injection");
        foreach (string kind in (string[])["failslab", "fail_page_alloc", "fail_usercopy"])
            File.WriteAllText($"{Attributes}/{kind}/verbose", "0");
        // Also those that may wait for memory, which are nearly all, and single pages.
        File.WriteAllText($"{Attributes}/failslab/ignore-gfp-wait", "N");
        File.WriteAllText($"{Attributes}/fail_page_alloc/ignore-gfp-wait", "N");
        File.WriteAllText($"{Attributes}/fail_page_alloc/min-order", "0");
        _fd = Libc.Open(Switch, Libc.OpenReadWrite | Libc.OpenCloseOnExec);
        if (_fd < 0)
            throw new KvmException($"open {Switch}", Libc.LastError);
    }

    /// <summary>
    /// Makes a call as often as it asks the kernel for something, each time with the next of these refused, and then
    /// without. Each call must succeed or answer ENOMEM or EFAULT.
    /// </summary>
    /// <param name="what">Names the call.</param>
    /// <param name="call">One system call, whose arguments are ready: its result, or the negated error number.</param>
    /// <param name="refused">Looks whether all is as before, after each call that failed.</param>
    /// <param name="undo">Takes the effect back after each call that succeeded, by its result.</param>
    public void FailEach(string what, Func<int> call, Action? refused = null, Action<int>? undo = null)
    {
        int failures = 0;
        for (int nth = 1; nth < Limit; nth++)
        {
            (int result, bool injected) = Fail(nth, call);
            string which = $"{what}, failure {nth}";
            if (result >= 0)
            {
                undo?.Invoke(result);
                if (injected)
                    continue;
                Check.That(failures > 0, $"{what}: nothing could be refused");
                return;
            }
            Check.That(injected, $"{which}: {(Errno)(-result)} although nothing was refused");
            Check.That(-result is (int)Errno.ENOMEM or (int)Errno.EFAULT, $"{which}: {(Errno)(-result)}");
            failures++;
            try
            {
                refused?.Invoke();
            }
            catch (Exception failure)
            {
                throw new TestFailure($"{which}: afterwards: {failure.Message}");
            }
        }
        throw new TestFailure($"{what}: asks for more than {Limit} things");
    }

    public void Dispose() => Libc.Close(_fd);

    /// <returns>The call's result; whether it came as far as the failure.</returns>
    (int Result, bool Injected) Fail(int nth, Func<int> call)
    {
        ReadOnlySpan<byte> number = Encoding.ASCII.GetBytes(nth.ToString(CultureInfo.InvariantCulture));
        byte* left = stackalloc byte[16];
        int result;
        fixed (byte* text = number)
        {
            if (Write(_fd, text, (nuint)number.Length, 0) != number.Length)
                throw new KvmException($"write to {Switch}", Libc.LastError);
            result = call();
        }
        // Reading the number down to its end, and setting it, are accesses of user memory, too: they can meet it.
        bool injected = Read(_fd, left, 16, 0) > 0 && *left == '0';
        *left = (byte)'0';
        Write(_fd, left, 1, 0);
        return (result, injected);
    }

    [LibraryImport("libc", EntryPoint = "pread", SetLastError = true)]
    private static partial nint Read(int fd, void* buffer, nuint count, long offset);

    [LibraryImport("libc", EntryPoint = "pwrite", SetLastError = true)]
    private static partial nint Write(int fd, void* buffer, nuint count, long offset);
}
