// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Lab;

namespace SharpKvm.Bench;

/// <summary>Linux boots by QEMU, as rows: instructions with one CPU, seconds with one and two.</summary>
internal static class BootRows
{
    /// <summary>Rows whose names end so are in seconds by the clock: to look at, they vary.</summary>
    public const string Time = "_time";

    public static IReadOnlyList<BenchRow> Measure(Hypervisor hypervisor) =>
    [
        Row("boot_linux_1", () => BootCost.Instructions(hypervisor)),
        Row("boot_linux_1" + Time, () => BootCost.Time(hypervisor, cpus: 1).TotalSeconds),
        Row("boot_linux_2" + Time, () => BootCost.Time(hypervisor, cpus: 2).TotalSeconds),
    ];

    private static BenchRow Row(string name, Func<double> measure)
    {
        try
        {
            return new BenchRow(name, measure(), null, null, null, null);
        }
        catch (LabException error)
        {
            return new BenchRow(name, null, null, null, error.Message.Split('\n')[0], null);
        }
    }
}
