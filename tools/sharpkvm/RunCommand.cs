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
        Description = "run the guest on the kernel's own KVM instead, for comparison",
    };

    private static readonly Option<string> LaneName = LaneOption.Create();

    private static readonly Option<FileInfo> Module = new("--module")
    {
        Description = "the module to load",
        DefaultValueFactory = _ => new FileInfo(Repository.PathOf("kmod", "sharpkvm.ko")),
    };

    private static readonly Option<GuestBoard> Board = new("--machine")
    {
        Description = "the guest's board",
        DefaultValueFactory = _ => GuestBoard.Q35,
    };

    private static readonly Option<IrqChip> Irqchip = new("--irqchip")
    {
        Description = "where the guest's interrupt controllers are: in the kernel, split, or in QEMU (off)",
        DefaultValueFactory = _ => IrqChip.On,
    };

    private static readonly Option<int> Cpus = new("--cpus")
    {
        Description = "the guest's CPUs",
        DefaultValueFactory = _ => 2,
    };

    private static readonly Option<GuestQemu> Qemu = new("--qemu")
    {
        Description = "Debian's installed QEMU (7.2 on Debian 12) or the one from backports (10.0)",
        DefaultValueFactory = _ => GuestQemu.Installed,
    };

    private static readonly Option<bool> Devices = new("--devices")
    {
        Description = "give the guest virtio devices, and have it use them",
    };

    private static readonly Option<int> Timeout = new("--timeout")
    {
        Description = "seconds for the guest",
        DefaultValueFactory = _ => 240,
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
    private readonly GuestBoot guest;
    private bool inGuest;

    private RunCommand(ParseResult arguments)
    {
        verbose = arguments.GetRequiredValue(Verbose);
        guest = new GuestBoot
        {
            Board = arguments.GetRequiredValue(Board),
            IrqChip = arguments.GetRequiredValue(Irqchip),
            Cpus = arguments.GetRequiredValue(Cpus),
            Qemu = arguments.GetRequiredValue(Qemu),
            Devices = arguments.GetRequiredValue(Devices),
            MemoryMib = arguments.GetRequiredValue(Memory),
            Limit = TimeSpan.FromSeconds(arguments.GetRequiredValue(Timeout)),
            LogLevel = 7,
        };
    }

    public static Command Create()
    {
        var command = new Command("run", "Boot a Linux guest on the module, inside the throw-away machine.")
        {
            Stock, Module, LaneName, Board, Irqchip, Cpus, Qemu, Devices, Memory, Timeout, Verbose,
        };
        command.SetAction(arguments => new RunCommand(arguments).Run(arguments));
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

        Lane lane = Lane.Named(arguments.GetRequiredValue(LaneName));
        Hypervisor hypervisor = stock
            ? Hypervisor.StockOn(lane)
            : Hypervisor.SharpKvmOn(lane) with { Module = module.FullName };
        string name = hypervisor.Title;
        Step($"Guest: Linux {L1Kernel.Debian.Version} on {name}; machine, kernel-irqchip, CPUs, QEMU: {guest.Name}");
        Step($"By unmodified {guest.Emulator.Name}");
        Step($"Machine for it: {lane.Title}");
        GuestResult result = GuestRun.Boot(lane.LogName(stock ? "run-stock" : "run"), hypervisor, [guest], Show)[guest];
        if (result.Uname is null || !result.Machine.Succeeded)
        {
            AnsiConsole.MarkupLine("[red]The guest did not come to its end, or the machine around it is not well.[/]");
            Console.WriteLine(result.Uname is null ? result.Describe() : result.Machine.Describe());
            return 1;
        }

        Console.WriteLine(result.Uname);
        string log = Path.GetRelativePath(Environment.CurrentDirectory, result.LogPath);
        Console.WriteLine($"The guest ran on {name} and powered off; all of it took "
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
            case (L1Source.Job, _) when line == L1Result.SectionMark + guest.Name:
                Step("The module is loaded; starting QEMU. The guest's console:");
                inGuest = true;
                break;
            case (L1Source.Job, _) when line == L1Result.SectionMark + guest.Name + GuestRun.EndSuffix:
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
