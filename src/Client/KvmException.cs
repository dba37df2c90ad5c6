// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Client;

/// <summary>A system call on a KVM file descriptor was refused.</summary>
public sealed class KvmException(string operation, Errno errno)
    : Exception($"{operation}: {(Enum.IsDefined(errno) ? errno.ToString() : $"errno {(int)errno}")}")
{
    /// <summary>What the kernel answered.</summary>
    public Errno Errno { get; } = errno;
}
