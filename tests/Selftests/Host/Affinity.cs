// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>Takes the calling thread from CPU to CPU, until it is disposed of.</summary>
sealed partial class Affinity : IDisposable
{
    const int Bytes = 128;

    readonly byte[] _all = new byte[Bytes];
    int _last = -1;

    public Affinity() => _ = Get(0, Bytes, _all);

    /// <summary>To the next CPU that the thread was allowed, in a circle.</summary>
    public void MoveOn()
    {
        do
            _last = (_last + 1) % (Bytes * 8);
        while ((_all[_last / 8] >> (_last % 8) & 1) == 0);
        byte[] one = new byte[Bytes];
        one[_last / 8] = (byte)(1 << (_last % 8));
        _ = Set(0, Bytes, one);
    }

    public void Dispose() => _ = Set(0, Bytes, _all);

    [LibraryImport("libc", EntryPoint = "sched_getaffinity")]
    private static partial int Get(int thread, nint bytes, [Out] byte[] mask);
    [LibraryImport("libc", EntryPoint = "sched_setaffinity")]
    private static partial int Set(int thread, nint bytes, byte[] mask);
}
