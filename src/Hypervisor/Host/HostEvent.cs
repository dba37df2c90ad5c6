// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>A reference to an eventfd, which its owner closes.</summary>
internal readonly partial struct HostEvent(nint handle)
{
    private readonly nint _handle = handle;

    /// <summary>0, EBADF when the descriptor is closed, EINVAL when it is no eventfd.</summary>
    public static partial int TryOpen(int descriptor, out HostEvent @event);

    /// <summary>Adds 1 to its counter and wakes who waits. From any context that holds no irqchip lock.</summary>
    public partial void Signal();

    public partial void Close();

    public bool IsSame(HostEvent other) => _handle == other._handle;
}
