// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>Negative errno values, as an ioctl returns them (UAPI asm-generic/errno-base.h and errno.h).</summary>
internal static class Errno
{
    public const int Ok = 0;
    public const int ENOENT = -2;
    public const int EINTR = -4;
    public const int EIO = -5;
    public const int ENXIO = -6;
    public const int E2BIG = -7;
    public const int ENOMEM = -12;
    public const int EFAULT = -14;
    public const int EBUSY = -16;
    public const int EEXIST = -17;
    public const int ENODEV = -19;
    public const int EINVAL = -22;
    public const int ENOTTY = -25;
    public const int ENOSPC = -28;
}
