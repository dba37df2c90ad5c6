// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>Negative errno values, as an ioctl returns them (UAPI asm-generic/errno-base.h and errno.h).</summary>
internal static class Errno
{
    public const int
        Ok = 0, ENOENT = -2, EINTR = -4, EIO = -5, ENXIO = -6, E2BIG = -7, ENOMEM = -12, EFAULT = -14, EBUSY = -16,
        EEXIST = -17, ENODEV = -19, EINVAL = -22, ENOTTY = -25, ENOSPC = -28;
}
