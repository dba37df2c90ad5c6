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

    private const string Disk = "disk.img", Settings = "bochsrc", Commands = "commands", Log = "bochs.log",
        Answers = "answers", ProcessId = "pid";

    /// <summary>
    /// For Bochs's debugger, which waits for orders: to run, and when it is interrupted to say where the processor is,
    /// three times in different moments.
    /// </summary>
    private const string DebuggerCommands = """
        c
        regs
        s 1000003
        s 1000003
        q

        """;

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

    /// <summary>Bochs's configuration file.</summary>
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
        display_library: term
        sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
        clock: sync=none
        panic: action=fatal
        error: action=ignore
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
        File.WriteAllText(Path.Combine(folder, Commands), DebuggerCommands);
        // It wants a terminal, on which it shows the screen. Its serial ports write to our two pipes.
        string command = $"echo $$ >{ProcessId}; "
            + $"exec '{bochs.Program}' -q -f {Settings} -rc {Commands} -dbglog {Answers}";
        return StartOnLeash(
            ["/bin/bash", "-c", $"cd '{folder}' && exec script -qfc \"$0\" /dev/null 4>&1 5>&2 >/dev/null 2>&1", command],
            bochs.Environment);
    }

    /// <inheritdoc/>
    public override IEnumerable<(L1Source Source, Task<StreamReader?> Lines)> Outputs(Process process) =>
    [
        (L1Source.Kernel, Task.FromResult<StreamReader?>(process.StandardOutput)),
        (L1Source.Job, Task.FromResult<StreamReader?>(process.StandardError)),
    ];

    /// <summary>Interrupts the machine: its debugger says where the processor is, and ends it.</summary>
    public override void ExplainHang(Process process, string folder, Action<string> say)
    {
        Tool.Run("/bin/bash", ["-c", $"kill -INT $(cat '{Path.Combine(folder, ProcessId)}')"]);
        process.WaitForExit(TimeSpan.FromSeconds(10));
        foreach (string line in LinesOf(folder, Answers).SkipWhile(line => !line.StartsWith("rax:", StringComparison.Ordinal)))
        {
            say(line);
        }
    }

    /// <inheritdoc/>
    public override void Clean(string folder, Action<string> say)
    {
        File.Delete(Path.Combine(folder, Disk));
        foreach (string line in LinesOf(folder, Log).Where(line => line.Contains(">>PANIC<<") && !line.Contains("soft power off")))
        {
            say(line);
        }
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
    }

    private static IEnumerable<string> LinesOf(string folder, string name) =>
        Path.Combine(folder, name) is var path && File.Exists(path) ? File.ReadLines(path) : [];
}
