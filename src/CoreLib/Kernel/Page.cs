// SPDX-License-Identifier: GPL-2.0-only
namespace Kernel;

/// <summary>The geometry of x86's smallest pages: 4 KiB.</summary>
internal static class Page
{
    public const int Shift = 12;
    public const int Size = 1 << Shift;
    public const ulong OffsetMask = Size - 1;
}
