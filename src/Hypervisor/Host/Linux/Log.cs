// SPDX-License-Identifier: GPL-2.0-only
using Kernel;

namespace SharpKvm.Host;

/// <summary>The kernel log.</summary>
internal static class Log
{
    /// <summary>An error line; <paramref name="text"/> is a zero-terminated u8 literal.</summary>
    public static void Error(ReadOnlySpan<byte> text, ulong value) =>
        Print(in "\u00013sharpkvm: %s (%#llx)\n\0"u8[0], in text[0], value); // KERN_ERR

    // That the function is variadic makes no difference to one that gets no floating point.
    [KernelImport("_printk")] private static extern int Print(in byte format, in byte text, ulong value);
}
