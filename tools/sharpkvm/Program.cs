// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using SharpKvm.Lab;
using SharpKvm.Tool;

var root = new RootCommand("SharpKVM for developers: boots the throw-away machine that loads the module, and a guest in it.")
{
    LabCommand.Create(),
};

try
{
    return root.Parse(args).Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
}
catch (LabException problem)
{
    Console.Error.WriteLine($"sharpkvm: {problem.Message}");
    return 2;
}
