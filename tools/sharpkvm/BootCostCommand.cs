// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using System.Globalization;
using SharpKvm.Lab;

namespace SharpKvm.Tool;

/// <summary><c>sharpkvm boot-cost</c>: what a Linux boot costs on one hypervisor.</summary>
internal static class BootCostCommand
{
    private static readonly Option<bool> Stock = new("--stock") { Description = "on the kernel's own kvm-amd" };

    public static Command Create()
    {
        var command = new Command("boot-cost", "Measure Linux boots: instructions with 1 CPU, seconds with 1 and 2.")
        {
            Stock,
        };
        command.SetAction(Run);
        return command;
    }

    private static void Run(ParseResult arguments)
    {
        Hypervisor hypervisor = arguments.GetRequiredValue(Stock) ? Hypervisor.Stock : Hypervisor.SharpKvm;
        Say($"1 CPU: {BootCost.Instructions(hypervisor) / 1e6:N1} million instructions");
        foreach (int cpus in (int[])[1, 2])
        {
            Say($"{cpus} CPU{(cpus > 1 ? "s" : "")}: {BootCost.Time(hypervisor, cpus).TotalSeconds:0.0} s");
        }
    }

    private static void Say(FormattableString text) => Console.WriteLine(text.ToString(CultureInfo.InvariantCulture));
}
