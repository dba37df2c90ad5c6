// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Selftests;

/// <summary>Waiting for another thread or the guest, never for ever.</summary>
static class Wait
{
    public static void Until(Func<bool> condition, string what, int seconds = 20)
    {
        long start = Stopwatch.GetTimestamp();
        while (!condition())
        {
            if (Stopwatch.GetElapsedTime(start).TotalSeconds > seconds)
                throw new TestFailure($"waited {seconds} s for {what}");
            Thread.Sleep(1);
        }
    }
}
