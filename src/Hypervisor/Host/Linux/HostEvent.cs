// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>A reference to an eventfd, which its owner closes.</summary>
internal readonly struct HostEvent(nint handle)
{
    private readonly nint _handle = handle;

    public bool IsSame(HostEvent other) => _handle == other._handle;

    /// <summary>0, EBADF when the descriptor is closed, EINVAL when it is no eventfd.</summary>
    public static int TryOpen(int descriptor, out HostEvent @event)
    {
        @event = HostEvents.Open(descriptor);
        // The kernel returns small negative numbers in place of a pointer (ERR_PTR).
        return @event._handle is < 0 and >= -4095 and nint error ? (int)error : Errno.Ok;
    }
}

internal static class HostEvents
{
    [KernelImport("eventfd_ctx_fdget")] public static extern HostEvent Open(int descriptor);

    /// <summary>Adds 1 to its counter and wakes who waits. From any context that holds no irqchip lock.</summary>
    [KernelImport("sk_eventfd_signal")] public static extern void Signal(this HostEvent @event);
    [KernelImport("eventfd_ctx_put")] public static extern void Close(this HostEvent @event);
}
