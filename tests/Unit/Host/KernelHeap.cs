// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Tests.Host;

namespace Kernel;

/// <summary>In place of the kernel's: that of the simulated host.</summary>
internal static class KernelHeap
{
    public static nint Allocate(nuint bytes) => SimulatedHost.Current.AllocateBlock(bytes);

    public static void Free(nint address) => SimulatedHost.Current.FreeBlock(address);
}
