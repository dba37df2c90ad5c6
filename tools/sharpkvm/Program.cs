// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using SharpKvm.Lab;
using SharpKvm.Tool;

var root = new RootCommand("SharpKVM for developers: the throw-away machine that loads the module, and a guest in it.")
{
    RunCommand.Create(),
    LabCommand.Create(),
    BootCostCommand.Create(),
    ConformanceCommand.Create(),
    DebugKernelCommand.Create(),
};

// The terminal wraps long lines itself; nothing else may.
Spectre.Console.AnsiConsole.Profile.Width = 4096;

try
{
    return root.Parse(args).Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
}
catch (LabException problem)
{
    Console.Error.WriteLine($"sharpkvm: {problem.Message}");
    return 2;
}
