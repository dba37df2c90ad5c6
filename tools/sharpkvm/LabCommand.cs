// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using System.Text;
using SharpKvm.Lab;

namespace SharpKvm.Tool;

/// <summary><c>sharpkvm lab</c>: one L1 run for a person at a terminal.</summary>
internal static class LabCommand
{
    private static readonly Argument<string[]> Words = new("command")
    {
        Description = "a shell command to run in L1, in the clone's folder (after --)",
        Arity = ArgumentArity.ZeroOrMore,
    };

    private static readonly Option<FileInfo?> Script = new("--script") { Description = "a bash script to run in L1" };

    private static readonly Option<FileInfo[]> Module = new("--module")
    {
        Description = "a module to insmod first (repeatable)",
    };

    private static readonly Option<string> ModuleParameters = new("--parameters")
    {
        Description = "parameters for the modules, like devname=kvm",
        DefaultValueFactory = _ => "",
    };

    private static readonly Option<bool> Stock = new("--stock") { Description = "modprobe the stock hypervisor first" };

    private static readonly Option<string> LaneName = LaneOption.Create();

    private static readonly Option<FileInfo[]> Files = new("--file")
    {
        Description = "a file that L1 needs on a lane where it cannot see this machine's (repeatable)",
    };

    private static readonly Option<int> Timeout = new("--timeout")
    {
        Description = "seconds for the whole run",
        DefaultValueFactory = _ => 120,
    };

    private static readonly Option<int> Cpus = new("--cpus")
    {
        Description = "CPUs of L1",
        DefaultValueFactory = _ => 2,
    };

    private static readonly Option<int> Memory = new("--memory")
    {
        Description = "memory of L1 in MiB",
        DefaultValueFactory = _ => 3072,
    };

    private static readonly Option<bool> Count = new("--icount")
    {
        Description = "one CPU, virtual nanoseconds are instructions",
    };

    private static readonly Option<bool> NoNpt = new("--no-npt") { Description = "an L1 CPU without nested paging" };

    private static readonly Option<bool> OnDebugKernel = new("--debug-kernel")
    {
        Description = "an L1 whose kernel checks itself (built the first time)",
    };

    private static readonly Option<string> Append = new("--append")
    {
        Description = "more for L1's kernel command line",
        DefaultValueFactory = _ => "",
    };

    private static readonly Option<string> Name = new("--name")
    {
        Description = "names the log build/logs/NAME.log",
        DefaultValueFactory = _ => "lab",
    };

    public static Command Create()
    {
        var command = new Command("lab", "Boot L1, run a command or script in it, and show what it says.")
        {
            Words, Script, Module, ModuleParameters, Stock, LaneName, Files, Timeout, Cpus, Memory, Count, NoNpt,
            OnDebugKernel, Append, Name,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult arguments)
    {
        Lane lane = Lane.Named(arguments.GetRequiredValue(LaneName));
        L1Result result = L1Machine.Run(new L1Options
        {
            Name = arguments.GetRequiredValue(Name),
            Script = BuildScript(arguments, lane),
            Lane = lane,
            Files = FilesFor(arguments),
            Timeout = TimeSpan.FromSeconds(arguments.GetRequiredValue(Timeout)),
            Cpus = arguments.GetRequiredValue(Cpus),
            MemoryMib = arguments.GetRequiredValue(Memory),
            CountInstructions = arguments.GetRequiredValue(Count),
            CpuFeatures = arguments.GetRequiredValue(NoNpt) ? ["-npt"] : [],
            Kernel = arguments.GetRequiredValue(OnDebugKernel) ? DebugKernel.Built : null,
            KernelParameters = arguments.GetRequiredValue(Append),
            Live = (source, text) => Console.WriteLine(source switch
            {
                L1Source.Kernel => $"[kernel] {text}",
                L1Source.Lab => $"[lab] {text}",
                _ => text,
            }),
        });
        foreach (KernelReport report in result.Reports)
        {
            Console.WriteLine($"[lab] in the kernel log: {report.Title}");
        }

        string log = Path.GetRelativePath(Environment.CurrentDirectory, result.LogPath);
        Console.WriteLine($"[lab] {result.End}, status {result.ExitStatus?.ToString() ?? "none"}, "
            + $"{result.Duration.TotalSeconds:0.0} s, log {log}");
        return result.Succeeded ? 0 : result.ExitStatus is int status and not 0 ? status : 1;
    }

    /// <summary>Those that were named, the modules, and the selftests where they are built.</summary>
    private static string[] FilesFor(ParseResult arguments) =>
    [
        .. (arguments.GetValue(Files) ?? []).Concat(arguments.GetValue(Module) ?? []).Select(file => file.FullName),
        .. File.Exists(SelftestRun.Program) ? (string[])[SelftestRun.Program] : [],
    ];

    private static string BuildScript(ParseResult arguments, Lane lane)
    {
        var script = new StringBuilder();
        if (arguments.GetRequiredValue(Stock))
        {
            script.Append($"modprobe {lane.StockModule} || exit 125\n");
        }

        foreach (FileInfo module in arguments.GetValue(Module) ?? [])
        {
            script.Append($"insmod '{module.FullName}' {arguments.GetRequiredValue(ModuleParameters)} || exit 125\n");
        }

        if (arguments.GetValue(Script) is FileInfo file)
        {
            script.Append(File.ReadAllText(file.FullName)).Append('\n');
        }

        script.AppendJoin(' ', arguments.GetValue(Words) ?? []);
        return script.ToString();
    }
}
