// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>The kernel log.</summary>
internal static partial class Log
{
    /// <summary>An error line; <paramref name="text"/> is a zero-terminated u8 literal.</summary>
    public static partial void Error(ReadOnlySpan<byte> text, ulong value);
}
