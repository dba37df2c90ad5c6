// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;

namespace SharpKvm.Lab;

/// <summary>
/// What it costs to boot Linux: from QEMU's start to the first word of the guest's user space, with a silent console
/// and QEMU's default interrupt controllers.
/// </summary>
public static class BootCost
{
    /// <summary>The first boot reads all files; the smallest of the others counts.</summary>
    private const int Boots = 4;

    /// <summary>Where the emulator counts instructions, every second guest of stock KVM falls silent half way.</summary>
    private const int SparesOfStock = 4;

    private const string Answer = "microseconds ";

    /// <summary>
    /// Instructions that L1's only CPU executes for a guest with one CPU: QEMU's, the hypervisor's and the guest's own.
    /// Waiting counts, too, since the idle CPU polls.
    /// </summary>
    /// <exception cref="LabException">L1 or the guest did not do it.</exception>
    public static double Instructions(Hypervisor hypervisor)
    {
        const double InstructionsPerMicrosecond = 1000;
        return InstructionsPerMicrosecond * Measure(hypervisor, new L1Options
        {
            Name = $"boot-count-{hypervisor.Name}",
            Script = Script(hypervisor, cpus: 1),
            Timeout = TimeSpan.FromMinutes(15),
            Cpus = 1,
            CountInstructions = true,
            // An idle CPU would let the counted time jump to the next timer.
            KernelParameters = "idle=poll",
        });
    }

    /// <summary>The time by the clock, in an L1 with two CPUs: to look at, it varies.</summary>
    /// <exception cref="LabException">L1 or the guest did not do it.</exception>
    public static TimeSpan Time(Hypervisor hypervisor, int cpus) => TimeSpan.FromMicroseconds(
        Measure(hypervisor, new L1Options
        {
            Name = $"boot-time-{hypervisor.Name}-{cpus}",
            Script = Script(hypervisor, cpus),
            Timeout = TimeSpan.FromMinutes(10),
        }));

    private static double Measure(Hypervisor hypervisor, L1Options options)
    {
        L1Result result = L1Machine.Run(options).Require();
        double[] found =
        [
            .. result.Output.Where(line => line.StartsWith(Answer, StringComparison.Ordinal))
                .Select(line => double.Parse(line[Answer.Length..], CultureInfo.InvariantCulture)),
        ];
        return found.Length >= (hypervisor.Module is null ? 2 : Boots)
            ? found[1..].Min()
            : throw new LabException($"a guest on {hypervisor.Name} did not boot: {result.Describe()}");
    }

    private static string Script(Hypervisor hypervisor, int cpus)
    {
        var guest = new GuestBoot { Cpus = cpus, LogLevel = 0 };
        IEnumerable<string> boots = Enumerable.Repeat(
            $"stopwatch \"{GuestBoot.FirstWord}\" {guest.Command(hypervisor)}",
            hypervisor.Module is null ? Boots + SparesOfStock : Boots);
        return string.Join('\n',
            [Initramfs.Script("l1-guests.sh"), $"{hypervisor.LoadFor(guest.Emulator)} || exit 125", .. boots,
                hypervisor.Unload]);
    }
}
