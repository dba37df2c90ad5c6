// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>struct hrtimer, which a structure of C contains and has set up.</summary>
internal static class HrTimer
{
    /// <summary>HRTIMER_MODE_ABS_HARD, HRTIMER_MODE_ABS_PINNED_HARD.</summary>
    public const uint AbsoluteHard = 1 << 3, AbsolutePinnedHard = 1 << 1 | 1 << 3;
    /// <summary>KTIME_MAX.</summary>
    public const ulong Never = long.MaxValue;

    [KernelImport("hrtimer_start_range_ns")]
    public static extern void Start(nint timer, ulong deadline, ulong slack, uint mode);

    /// <summary>Waits for a handler that runs.</summary>
    [KernelImport("hrtimer_cancel")] public static extern int Cancel(nint timer);
    [KernelImport("hrtimer_try_to_cancel")] public static extern int TryCancel(nint timer);
}
