// SPDX-License-Identifier: GPL-2.0-only
using System;

namespace Kernel;

/// <summary>
/// Turns ticks of the time-stamp counter into nanoseconds exactly as whoever reads a clock page (asm/pvclock-abi.h):
/// ticks · 2^<see cref="Shift"/> · <see cref="Multiplier"/> / 2^32, rounded down twice.
/// </summary>
internal readonly struct ClockScale
{
    private const uint NanosecondsPerMillisecond = 1_000_000;

    /// <summary>Its highest bit is set, so that the rounding is as small as it can be.</summary>
    public readonly uint Multiplier;
    public readonly sbyte Shift;

    /// <summary>For a counter's rate in kHz.</summary>
    public ClockScale(uint khz)
    {
        // The ratio of the two in [1/2, 1), and a power of two.
        ulong nanoseconds = NanosecondsPerMillisecond, ticks = Math.Max(khz, 1);
        for (; nanoseconds >= ticks; ticks <<= 1)
            Shift++;
        for (; nanoseconds * 2 < ticks; nanoseconds <<= 1)
            Shift--;
        Multiplier = (uint)((nanoseconds << 32) / ticks);
    }

    public ulong ToNanoseconds(ulong ticks)
    {
        ulong scaled = Shift < 0 ? ticks >> -Shift : ticks << Shift;
        ulong high = Math.BigMul(scaled, Multiplier, out ulong low);
        return high << 32 | low >> 32;
    }
}
