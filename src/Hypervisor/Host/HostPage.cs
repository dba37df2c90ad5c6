// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Outcome of making a page of guest memory present.</summary>
internal enum PageLookup : byte
{
    Found,
    /// <summary>No memory is mapped there, or not with the rights asked for: EFAULT to user space.</summary>
    Absent,
    /// <summary>A signal arrived while waiting.</summary>
    Interrupted,
    /// <summary>The page must be fetched, and the caller does not wait.</summary>
    NotYet,
}

/// <summary>
/// A page of the process. It may be used only as <see cref="HostVm.IsInvalidated"/> allows: nothing pins it.
/// </summary>
internal struct HostPage
{
    public Pfn Frame;
    /// <summary>Level of the process's entry that maps it: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.</summary>
    public int Level;
    /// <summary>The host mapping allows writes, so that the nested mapping may.</summary>
    public bool Writable;
}
