// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using SharpKvm.Lab;

namespace SharpKvm.Tool;

/// <summary><c>sharpkvm debug-kernel</c>: builds the kernel that checks itself, if need be.</summary>
internal static class DebugKernelCommand
{
    public static Command Create()
    {
        var command = new Command("debug-kernel", "Build L1's debug kernel, once, and print the KDIR of its modules.");
        command.SetAction(_ => Console.WriteLine(DebugKernel.BuildFolder));
        return command;
    }
}
