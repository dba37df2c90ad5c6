// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>
/// A reference to an eventfd, which its owner closes. A module that uses it lists eventfd.o in its Kbuild, and
/// eventfd_ctx_fdget and eventfd_ctx_put in its IMPORTS.
/// </summary>
internal readonly struct EventFd(nint handle)
{
    private readonly nint _handle = handle;

    public bool IsSame(EventFd other) => _handle == other._handle;

    /// <summary>0, EBADF when the descriptor is closed, EINVAL when it is no eventfd.</summary>
    public static int TryOpen(int descriptor, out EventFd @event)
    {
        @event = EventFds.Open(descriptor);
        // The kernel returns small negative numbers in place of a pointer (ERR_PTR).
        return @event._handle is < 0 and >= -4095 and nint error ? (int)error : Errno.Ok;
    }
}

/// <summary>What C does with an eventfd.</summary>
internal static class EventFds
{
    [KernelImport("eventfd_ctx_fdget")] public static extern EventFd Open(int descriptor);

    /// <summary>Adds 1 to its counter and wakes who waits. From any context that holds no lock of a waiter's.</summary>
    [KernelImport("cs_eventfd_signal")] public static extern void Signal(this EventFd @event);
    [KernelImport("eventfd_ctx_put")] public static extern void Close(this EventFd @event);
}
