// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using System.Diagnostics;
using SharpKvm.Lab;
using Spectre.Console;

namespace SharpKvm.Tool;

/// <summary><c>sharpkvm run</c>: boots a Linux guest on the module, inside L1, and shows its console.</summary>
internal sealed class RunCommand
{
    private static readonly Option<bool> Stock = new("--stock")
    {
        Description = "run the guest on the kernel's own kvm-amd instead, for comparison",
    };

    private static readonly Option<FileInfo> Module = new("--module")
    {
        Description = "the module to load",
        DefaultValueFactory = _ => new FileInfo(Repository.PathOf("kmod", "sharpkvm.ko")),
    };

    private static readonly Option<int> Timeout = new("--timeout")
    {
        Description = "seconds for everything",
        DefaultValueFactory = _ => 300,
    };

    private static readonly Option<int> Memory = new("--memory")
    {
        Description = "the guest's memory in MiB",
        DefaultValueFactory = _ => 512,
    };

    private static readonly Option<bool> Verbose = new("--verbose", "-v")
    {
        Description = "show also what L1's kernel says",
    };

    private readonly Stopwatch clock = Stopwatch.StartNew();
    private readonly bool verbose;
    private bool inGuest;

    private RunCommand(bool verbose) => this.verbose = verbose;

    public static Command Create()
    {
        var command = new Command("run", "Boot a Linux guest on the module, inside the throw-away machine.")
        {
            Stock, Module, Timeout, Memory, Verbose,
        };
        command.SetAction(arguments => new RunCommand(arguments.GetRequiredValue(Verbose)).Run(arguments));
        return command;
    }

    private int Run(ParseResult arguments)
    {
        bool stock = arguments.GetRequiredValue(Stock);
        FileInfo module = arguments.GetRequiredValue(Module);
        if (!stock && !module.Exists)
        {
            throw new LabException($"{module.FullName} is missing: run 'make' first, or try --stock");
        }

        string hypervisor = stock ? "stock kvm-amd" : module.Name;
        Step($"Guest: Linux {L1Kernel.Default.Version}, by unmodified QEMU, on {hypervisor}");
        Step($"Machine for it: emulated AMD processor with SVM ({Emulator.Best.Name})");
        L1Result result = L1Machine.Run(new GuestBoot
        {
            Name = stock ? "run-stock" : "run",
            Module = stock ? null : module.FullName,
            Timeout = TimeSpan.FromSeconds(arguments.GetRequiredValue(Timeout)),
            GuestMemoryMib = arguments.GetRequiredValue(Memory),
        }.ToOptions(Show));

        string? uname = GuestBoot.GuestUname(result);
        if (uname is null || !result.Succeeded)
        {
            AnsiConsole.MarkupLine("[red]The guest did not come to its end.[/]");
            Console.WriteLine(result.Describe());
            return 1;
        }

        Console.WriteLine(uname);
        string log = Path.GetRelativePath(Environment.CurrentDirectory, result.LogPath);
        Console.WriteLine($"The guest ran on {hypervisor} and powered off; all of it took "
            + $"{clock.Elapsed.TotalSeconds:0.0} s (log: {log})");
        return 0;
    }

    private void Show(L1Source source, string line)
    {
        switch (source, line)
        {
            case (L1Source.Lab, _) when line.StartsWith("@@lab:up", StringComparison.Ordinal):
                Step("The machine is up; loading the module");
                break;
            case (L1Source.Job, L1Result.SectionMark + GuestBoot.GuestSection):
                Step("The module is loaded; starting QEMU. The guest's console:");
                inGuest = true;
                break;
            case (L1Source.Job, L1Result.SectionMark + GuestBoot.EndSection):
                inGuest = false;
                Step("QEMU has ended; unloading the module");
                break;
            case (L1Source.Job, _) when inGuest:
                AnsiConsole.MarkupLineInterpolated($"[grey]│[/] {line}");
                break;
            case (L1Source.Job, _):
                AnsiConsole.MarkupLineInterpolated($"  {line}");
                break;
            case (L1Source.Kernel, _) when verbose:
                AnsiConsole.MarkupLineInterpolated($"[grey]  L1: {line}[/]");
                break;
        }
    }

    private void Step(string text) =>
        AnsiConsole.MarkupLineInterpolated($"[green]{clock.Elapsed.TotalSeconds,6:0.0} s[/]  [bold]{text}[/]");
}
