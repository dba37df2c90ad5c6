// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Bench;

/// <summary>How Linux shares the CPU between this program's threads (sched(7)).</summary>
static partial class Scheduling
{
    const int Batch = 3;

    /// <summary>
    /// From here on a thread that is woken, and was made after this, does not take the CPU from the one that runs: that
    /// goes on until it sleeps. So a row of two threads measures one order of events, and not a mixture of several that
    /// depends on how long each thread ran before.
    /// </summary>
    public static void TakeTurns()
    {
        int priority = 0;
        if (Set(0, Batch, ref priority) != 0)
            throw new InvalidOperationException($"SCHED_BATCH is refused: errno {Marshal.GetLastPInvokeError()}");
    }

    [LibraryImport("libc", EntryPoint = "sched_setscheduler", SetLastError = true)]
    private static partial int Set(int thread, int policy, ref int priority);
}
