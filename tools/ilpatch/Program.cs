// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using IlPatch;
using IlPatch.Check;
using IlPatch.Il;
using IlPatch.Obj;

var report = new Option<FileInfo?>("--report") { Description = "Write a table here: one line per method or symbol." };

var il = new Command("il", "IL pass: verify the restricted subset, bind imports, lower switches, make line numbers dense.");
var inputAssembly = new Argument<FileInfo>("input") { Description = "The assembly the C# compiler made." };
var outputAssembly = new Argument<FileInfo>("output") { Description = "The assembly for the native compiler." };
il.Add(inputAssembly);
il.Add(outputAssembly);
var header = new Option<FileInfo?>("--header") { Description = "Write what is marked [KernelHeader] here, for C." };
il.Add(report);
il.Add(header);
il.SetAction(parse => Run(() =>
    IlPass.Run(
        parse.GetRequiredValue(inputAssembly).FullName,
        parse.GetRequiredValue(outputAssembly).FullName,
        parse.GetValue(report)?.FullName,
        parse.GetValue(header)?.FullName)));

var obj = new Command("obj", "Object pass: the native compiler's object to kernel-grade assembler source.");
var inputObject = new Argument<FileInfo>("object") { Description = "The object the native compiler made." };
var assembly = new Argument<FileInfo>("assembly") { Description = "The assembly it was made from (for C# names)." };
var outputSource = new Argument<FileInfo>("output") { Description = "The assembler source to write." };
var frameLimit = new Option<int>("--max-frame")
{
    Description = "Largest stack frame of one method, in bytes.",
    DefaultValueFactory = _ => ObjectPass.DefaultFrameLimit,
};
obj.Add(inputObject);
obj.Add(assembly);
obj.Add(outputSource);
obj.Add(frameLimit);
obj.Add(report);
obj.SetAction(parse => Run(() =>
    ObjectPass.Run(
        parse.GetRequiredValue(inputObject).FullName,
        parse.GetRequiredValue(assembly).FullName,
        parse.GetRequiredValue(outputSource).FullName,
        parse.GetValue(frameLimit),
        parse.GetValue(report)?.FullName)));

var check = new Command("check", "Gate on a finished module: no SIMD, no naked branches, the shim's imports only.");
var module = new Argument<FileInfo>("module") { Description = "The .ko file." };
var core = new Option<FileInfo?>("--core")
{
    Description = "The core's object file: its functions and imports are held to the rules. Default: all functions.",
};
var imports = new Option<string[]>("--imports")
{
    Description = "Functions of the kernel that the core calls without the shim.",
    AllowMultipleArgumentsPerToken = true,
};
check.Add(module);
check.Add(core);
check.Add(imports);
check.Add(report);
check.SetAction(parse => Run(() =>
    ModuleGate.Run(
        parse.GetRequiredValue(module).FullName,
        parse.GetValue(core)?.FullName,
        parse.GetValue(imports) ?? [],
        parse.GetValue(report)?.FullName)));

var root = new RootCommand(
    "Makes kernel-grade code of restricted C#. Exit codes: 0 done, 1 violations, 2 cannot work.");
root.Add(il);
root.Add(obj);
root.Add(check);
return root.Parse(args).Invoke();

static int Run(Action action)
{
    try
    {
        action();
        return 0;
    }
    catch (ViolationException violations)
    {
        Console.Error.WriteLine(violations.Message);
        return 1;
    }
    catch (Exception exception)
        when (exception is IOException or UnauthorizedAccessException or BadImageFormatException)
    {
        Console.Error.WriteLine($"ilpatch: {exception.Message}");
        return 2;
    }
}
