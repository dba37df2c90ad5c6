// SPDX-License-Identifier: GPL-2.0-only
using System;

namespace Kernel;

/// <summary>
/// The kernel log, and files of which the kernel shows lines. A module that uses it lists log.o in its Kbuild (for
/// <see cref="Error"/>), and of _printk and seq_printf in its IMPORTS what it calls.
/// </summary>
internal static class Log
{
    /// <summary>An error line with the module's name; <paramref name="text"/> is a zero-ended u8 literal.</summary>
    public static void Error(ReadOnlySpan<byte> text, ulong value) => Print(in text[0], value);

    /// <summary>A line of a file (struct seq_file); <paramref name="format"/> is a zero-ended u8 literal.</summary>
    public static void Line(nint file, ReadOnlySpan<byte> format, uint a, ulong b, uint c, ulong d, ulong e, ulong f) =>
        Print(file, in format[0], a, b, c, d, e, f);

    /// <summary>A line of the log; <paramref name="format"/>, a zero-terminated u8 literal, has its level.</summary>
    public static void Values(ReadOnlySpan<byte> format, ulong a, ulong b, ulong c, ulong d, ulong e) =>
        Print(in format[0], a, b, c, d, e);

    [KernelImport("cs_log_error")] private static extern void Print(in byte text, ulong value);

    // That the functions are variadic makes no difference while they get no floating point.
    [KernelImport("_printk")]
    private static extern int Print(in byte format, ulong a, ulong b, ulong c, ulong d, ulong e);
    [KernelImport("seq_printf")]
    private static extern void Print(nint file, in byte format, uint a, ulong b, uint c, ulong d, ulong e, ulong f);
}
