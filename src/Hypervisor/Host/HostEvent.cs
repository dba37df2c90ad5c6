// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>A reference to an eventfd, which its owner closes.</summary>
internal readonly partial struct HostEvent(nint handle)
{
    private readonly nint _handle = handle;

    public bool IsSame(HostEvent other) => _handle == other._handle;
}
