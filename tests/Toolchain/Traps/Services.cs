// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Runtime;
using Kernel;

namespace Traps;

/// <summary>What the library has of the kernel's services; main.c says what must come of each.</summary>
internal static unsafe class Services
{
    /// <summary>
    /// A bit for each access to 8 bytes of user memory that comes out right; an exchange puts back what was there.
    /// </summary>
    [RuntimeExport("trap_user")]
    private static ulong AccessUser(ulong address, ulong there)
    {
        UserAddress at = new(address);
        ulong present = 0;
        bool copied = UserMemory.TryRead(at, out ulong copy) && copy == there;
        bool loaded = UserMemory.TryReadUInt64(at, out ulong word) && word == there;
        bool isPresent = UserMemory.TryReadPresent(at, new Span<byte>(&present, sizeof(ulong))) && present == there;
        bool differs = UserMemory.CompareExchange(at, sizeof(ulong), there + 1, 0) == Exchange.Different;
        bool swapped = UserMemory.CompareExchange(at, sizeof(ulong), there, there) == Exchange.Swapped;
        return (copied ? 1u : 0) | (loaded ? 2u : 0) | (isPresent ? 4u : 0) | (differs ? 8u : 0) | (swapped ? 16u : 0)
            | (UserMemory.IsUserRange(at, sizeof(ulong)) ? 32u : 0);
    }

    [RuntimeExport("trap_eventfd")]
    private static int OpenEvent(int descriptor) => EventFd.TryOpen(descriptor, out _);

    [RuntimeExport("trap_log")]
    private static int Report(ulong value)
    {
        Log.Error("a line of the core's\0"u8, value);
        return 0;
    }
}
