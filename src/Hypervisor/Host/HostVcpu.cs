// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Why a vCPU sleeps no longer.</summary>
internal enum HaltEnd : byte
{
    /// <summary>A request was set while the thread still polled.</summary>
    Polled,
    /// <summary>A request was set while the thread slept.</summary>
    Woken,
    /// <summary>A signal or other work of the thread.</summary>
    Interrupted,
}

/// <summary>The shim's part of a vCPU; the kernel keeps the guest's FPU state (struct fpu_guest) in it.</summary>
internal readonly partial struct HostVcpu(nint handle)
{
    public const int FxsaveSize = 512, XsaveHeaderSize = 64;
    /// <summary>Of struct kvm_xsave.</summary>
    public const uint XsaveRegionSize = 4096;

    private readonly nint _handle = handle;
}
