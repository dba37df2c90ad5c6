// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Lab;

/// <summary>
/// Bochs, with VMX. L1 sees no file of the host's but those that its initramfs brings (<see cref="L1Options.Files"/>),
/// and sends the job's folder back over the second serial port.
/// </summary>
internal sealed class BochsHardware(L1Options options) : L1Hardware
{
    /// <summary>
    /// Instructions that the emulated machine takes for a second. Bochs does not do much more in a real one; where the
    /// processor is idle, it skips to the next timer.
    /// </summary>
    private const int InstructionsPerSecond = 50_000_000;

    /// <summary>More makes Linux's start longer.</summary>
    private const int MaximumMemoryMib = 1024;

    private const string Disk = "disk.img", Settings = "bochsrc", Log = "bochs.log", ProcessId = "pid";

    /// <summary>How Bochs's log calls an end that is none of its own, and the one that is meant.</summary>
    private const string Panic = ">>PANIC<<", PowerOff = "soft power off";

    private readonly Bochs bochs = Bochs.Best;

    /// <inheritdoc/>
    public override string Name => $"Bochs, {options.Lane.BochsModel}";

    /// <summary>
    /// What is said over the serial port costs time, by its speed. The time stamp counter counts instructions, at
    /// another rate than CPUID says. The size of the compacted XSAVE area is wrong there, too. A restart would boot
    /// again; a triple fault ends the emulator. The rest makes Linux start sooner.
    /// </summary>
    public override string KernelParameters =>
        $"console=ttyS0,115200 tsc=reliable tsc_early_khz={InstructionsPerSecond / 1000} clearcpuid=xsaves,xsavec "
        + "panic=-1 reboot=triple mitigations=off cryptomgr.notests initcall_blacklist=load_system_certificate_list";

    /// <summary>
    /// Bochs's configuration file. It would say each access to a virtual APIC, and the handler of its own timer's signal
    /// waits for ever if it comes in between.
    /// </summary>
    internal static string Configuration(string model, int memoryMib, Bochs bochs) =>
        $"""
        cpu: model={model}, count=1, ips={InstructionsPerSecond}, ignore_bad_msrs=1, reset_on_triple_fault=0
        memory: guest={memoryMib}, host={memoryMib}
        romimage: file={bochs.Bios}
        vgaromimage: file={bochs.DisplayBios}
        ata0-master: type=disk, mode=flat, path={Disk}
        boot: disk
        com1: enabled=1, mode=file, dev=/dev/fd/4
        com2: enabled=1, mode=file, dev=/dev/fd/5
        display_library: nogui
        clock: sync=none
        panic: action=fatal
        error: action=ignore
        info: action=ignore
        log: {Log}

        """;

    /// <inheritdoc/>
    public override Process Start(L1Kernel kernel, string folder, string parameters)
    {
        int memory = Math.Min(options.MemoryMib, MaximumMemoryMib);
        BootDisk.Write(
            Path.Combine(folder, Disk), File.ReadAllBytes(kernel.BootImage()),
            Initramfs.ForL1Alone(kernel, options.Lane, options.Files, folder), parameters);
        File.WriteAllText(Path.Combine(folder, Settings), Configuration(options.Lane.BochsModel!, memory, bochs));
        // Its serial ports write to our two pipes; what it says itself is in its log.
        const string Command = "cd \"$1\" && exec 4>&1 5>&2 >/dev/null 2>&1 && echo $$ >\"$2\" && exec \"$3\" -q -f \"$4\"";
        return StartOnLeash(["/bin/bash", "-c", Command, "bochs", folder, ProcessId, bochs.Program, Settings]);
    }

    /// <inheritdoc/>
    public override IEnumerable<(L1Source Source, Task<StreamReader?> Lines)> Outputs(Process process) =>
    [
        (L1Source.Kernel, Task.FromResult<StreamReader?>(process.StandardOutput)),
        (L1Source.Job, Task.FromResult<StreamReader?>(process.StandardError)),
    ];

    /// <summary>Interrupts the emulator: the last that it does is to log the processor's state.</summary>
    public override void ExplainHang(Process process, string folder, Action<string> say)
    {
        Tool.Run("/bin/bash", ["-c", $"kill -INT $(cat '{Path.Combine(folder, ProcessId)}')"]);
        process.WaitForExit(TimeSpan.FromSeconds(10));
        foreach (string line in LogIn(folder).SkipWhile(line => !line.Contains(Panic)))
        {
            say(line);
        }
    }

    /// <inheritdoc/>
    public override void Clean(string folder, Action<string> say)
    {
        File.Delete(Path.Combine(folder, Disk));
        foreach (string line in LogIn(folder).Where(line => line.Contains(Panic) && !line.Contains(PowerOff)))
        {
            say(line);
        }
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
    }

    private static IEnumerable<string> LogIn(string folder) =>
        Path.Combine(folder, Log) is var path && File.Exists(path) ? File.ReadLines(path) : [];
}
