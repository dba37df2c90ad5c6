// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using System.Net.Sockets;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>The emulated machine with SVM that loads the module: boots, runs one job, and always ends.</summary>
public sealed class L1Machine : IDisposable
{
    private const string Mark = "@@lab:";

    /// <summary>A CPU with SVM, less what the emulator does not have and would warn about.</summary>
    private const string Cpu = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";

    /// <summary>Runs the emulator and kills it when standard input closes: when we are gone, for any reason.</summary>
    private const string Leash = """
        exec 3<&0
        "$@" </dev/null 3<&- &
        emulator=$!
        (cat <&3; kill -9 $emulator) >/dev/null 2>&1 &
        exec 3<&-
        wait $emulator
        status=$?
        kill $! 2>/dev/null
        exit $status
        """;

    /// <summary>How long L1 may take from the job's end to its own, on Debian's kernel.</summary>
    private static readonly TimeSpan PowerOffTime = TimeSpan.FromSeconds(30);

    /// <summary>What L1 needs from the emulator's start to the job's, on Debian's kernel, when it does not hang.</summary>
    private static readonly TimeSpan BootTime = TimeSpan.FromSeconds(90);

    /// <summary>How often L1 is started to come up.</summary>
    private const int Starts = 3;

    private readonly L1Options options;
    private readonly L1Kernel kernel;
    private readonly Emulator emulator = Emulator.Best;
    /// <summary>CPUs for the job; where there are several, L1 has one more.</summary>
    private readonly int cpus;
    private readonly TimeSpan timeout;
    private readonly string jobFolder;
    private readonly string logPath;
    private readonly StreamWriter log;
    private readonly UnixServer jobPort = new("job");
    private readonly UnixServer monitorPort = new("monitor");
    private readonly List<string> output = [];
    private readonly List<string> console = [];
    private readonly TaskCompletionSource isUp = new();
    private readonly TaskCompletionSource jobEnded = new();
    private int? exitStatus;

    private L1Machine(L1Options options)
    {
        this.options = options;
        kernel = options.Kernel ?? L1Kernel.Default;
        cpus = options.CountInstructions ? 1 : Math.Min(options.Cpus, emulator.MaximumCpus);
        timeout = options.Timeout * kernel.TimeFactor;
        jobFolder = Repository.Folder("lab", $"{options.Name}-{Environment.ProcessId}");
        Directory.Delete(jobFolder, recursive: true);
        Directory.CreateDirectory(jobFolder);
        logPath = Path.Combine(Repository.Logs, $"{options.Name}.log");
        log = new StreamWriter(logPath) { AutoFlush = true };
    }

    /// <summary>
    /// Boots L1, runs the job and waits for the end. A machine that hangs before the job begins, which is the emulator's
    /// doing, is started again.
    /// </summary>
    public static L1Result Run(L1Options options)
    {
        for (int start = 1; ; start++)
        {
            using var machine = new L1Machine(options);
            L1Result result = machine.Run();
            if (start == Starts || result.End != L1End.TimedOut || machine.isUp.Task.IsCompleted)
            {
                return result;
            }

            machine.Line(L1Source.Lab, "L1 did not come up; once more");
            File.Copy(result.LogPath, Path.ChangeExtension(result.LogPath, $".no-boot-{start}.log"), overwrite: true);
        }
    }

    /// <summary>
    /// Keeps the job, and so each thread that enters a guest, away from CPU 0: the emulator writes to that one's SVM
    /// state when another CPU loads its FPU (docs/testing.md).
    /// </summary>
    private string Placement => cpus == 1 ? "" : $"taskset -pc 1-{cpus} $$ >/dev/null || exit 125";

    private TimeSpan BootLimit => BootTime * kernel.TimeFactor;

    /// <inheritdoc/>
    public void Dispose()
    {
        jobPort.Dispose();
        monitorPort.Dispose();
        log.Dispose();
    }

    private L1Result Run()
    {
        string initramfs = Path.Combine(jobFolder, "initramfs");
        File.WriteAllBytes(initramfs, Initramfs.ForL1(kernel));
        File.WriteAllText(Path.Combine(jobFolder, "script.sh"),
            $"""
            {Placement}
            cd '{Repository.Root}' || exit 125
            export LAB_ROOT='{Repository.Root}' LAB_JOB=/job LAB_TIME_FACTOR={kernel.TimeFactor}
            {Initramfs.Script("check-leaks.sh")}
            {options.Script}

            """);
        if (kernel.ModulesRoot != "/")
        {
            // L1 binds this over /lib/modules, so that modprobe finds the modules of a kernel that is not installed.
            CopyModules();
        }

        Line(L1Source.Lab, $"{emulator.Name}, Linux {kernel.Version}");
        var clock = Stopwatch.StartNew();
        using Process process = Start(initramfs);
        Task reading = Task.WhenAll(
            ReadLines(process.StandardOutput, L1Source.Kernel),
            ReadLines(process.StandardError, L1Source.Lab),
            ReadPort(jobPort, L1Source.Job));
        bool inTime = WaitFor(process);
        clock.Stop();
        jobPort.Dispose();
        monitorPort.Dispose();
        reading.Wait(TimeSpan.FromSeconds(5));

        string[] kernelLog = ReadKernelLog();
        // The backtraces that a hang is asked for are no report.
        string[] ownLog = [.. kernelLog.TakeWhile(line => inTime || !line.Contains("sysrq: Show backtrace"))];
        var result = new L1Result
        {
            End = !inTime ? L1End.TimedOut : exitStatus is null ? L1End.Died : L1End.Completed,
            ExitStatus = exitStatus,
            Output = output,
            KernelLog = kernelLog,
            Reports = KernelLog.Scan(ownLog, options.ExpectedReports),
            LogPath = logPath,
            JobFolder = jobFolder,
            Duration = clock.Elapsed,
        };
        File.Delete(initramfs);
        if (options.Wire is not null)
        {
            File.Delete(options.Wire.Own);
        }

        return result;
    }

    private Process Start(string initramfs)
    {
        string[] timing = options.CountInstructions
            ? ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off",
                "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"]
            : ["-accel", "tcg,thread=multi"];
        string parameters = "console=ttyS0 loglevel=5 log_buf_len=2M tsc=reliable no_timer_check panic=-1 "
            + "sysrq_always_enabled printk.devkmsg=on "
            + (options.CountInstructions ? "norandmaps " : "") + options.KernelParameters;
        string[] arguments =
        [
            "-c", Leash, emulator.Program, emulator.Program,
            .. emulator.DataFolders.SelectMany(folder => (string[])["-L", folder]),
            .. timing,
            "-machine", "q35", "-cpu", string.Join(',', [Cpu, .. options.CpuFeatures]),
            "-smp", $"{(cpus == 1 ? 1 : cpus + 1)}", "-m", $"{options.MemoryMib}",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", "stdio",
            "-chardev", $"socket,id=job,path={jobPort.Path}", "-serial", "chardev:job",
            "-chardev", $"socket,id=monitor,path={monitorPort.Path}", "-mon", "chardev=monitor,mode=readline",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", $"local,path={jobFolder},mount_tag=job,security_model=none",
            .. options.Wire?.QemuArguments ?? [],
            "-kernel", kernel.BootImage(), "-initrd", initramfs, "-append", parameters,
        ];
        var start = new ProcessStartInfo("/bin/bash", arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        if (emulator.ModuleFolder is not null)
        {
            start.Environment["QEMU_MODULE_DIR"] = emulator.ModuleFolder;
        }

        return Process.Start(start)!;
    }

    private bool WaitFor(Process process)
    {
        Task exited = process.WaitForExitAsync();
        Task.WhenAny(exited, isUp.Task).Wait(BootLimit);
        if ((isUp.Task.IsCompleted || exited.IsCompleted)
            && Task.WhenAny(exited, jobEnded.Task).Wait(timeout) && exited.Wait(PowerOffTime * kernel.TimeFactor))
        {
            return true;
        }

        Line(L1Source.Lab, exitStatus is null
            ? $"killed after {(isUp.Task.IsCompleted ? timeout : BootLimit).TotalSeconds:0} s; what its CPUs were doing:"
            : "did not power off after the job; what its CPUs were doing:");
        AskForBacktraces();
        process.Kill(entireProcessTree: true);
        exited.Wait();
        return false;
    }

    /// <summary>
    /// Has L1's kernel print where its CPUs and its blocked tasks are, the way a person would at its keyboard, and the
    /// emulator where the CPUs are, should the kernel no longer listen.
    /// </summary>
    private void AskForBacktraces()
    {
        Task answers = ReadPort(monitorPort, L1Source.Lab, line => line.Contains("CPU#") || line.Contains("RIP="));
        foreach (string command in (string[])["info registers -a", "sendkey alt-sysrq-l", "sendkey alt-sysrq-w"])
        {
            monitorPort.Send($"{command}\n");
            answers.Wait(TimeSpan.FromSeconds(2));
        }
    }

    private async Task ReadPort(UnixServer port, L1Source source, Func<string, bool>? wanted = null)
    {
        using StreamReader? reader = await port.Accept();
        if (reader is not null)
        {
            await ReadLines(reader, source, wanted);
        }
    }

    private async Task ReadLines(StreamReader reader, L1Source source, Func<string, bool>? wanted = null)
    {
        try
        {
            while (await reader.ReadLineAsync() is string line)
            {
                if (wanted is null || wanted(line))
                {
                    Line(source, line.TrimEnd('\r'));
                }
            }
        }
        catch (IOException)
        {
            // The emulator was killed: what came before counts.
        }
    }

    private void Line(L1Source source, string text)
    {
        lock (log)
        {
            if (source == L1Source.Job && text.StartsWith(Mark, StringComparison.Ordinal))
            {
                source = L1Source.Lab;
                TakeMark(text[Mark.Length..]);
            }

            List<string>? list = source switch
            {
                L1Source.Kernel => console,
                L1Source.Job => output,
                _ => null,
            };
            list?.Add(text);
            log.WriteLine(source == L1Source.Lab ? $"[lab] {text}" : text);
            options.Live?.Invoke(source, text);
        }
    }

    private void TakeMark(string mark)
    {
        switch (mark.Split(' '))
        {
            case ["up", ..]:
                isUp.TrySetResult();
                break;
            case ["exit", string status]:
                exitStatus = int.Parse(status);
                jobEnded.TrySetResult();
                break;
        }
    }

    private string[] ReadKernelLog()
    {
        string saved = Path.Combine(jobFolder, "dmesg.txt");
        if (exitStatus is null || !File.Exists(saved))
        {
            return [.. console];
        }

        File.Copy(saved, Path.ChangeExtension(logPath, ".dmesg"), overwrite: true);
        string[] lines = File.ReadAllLines(saved);
        // What was said after the log was taken, on the way down, is on the console only.
        string? last = lines.LastOrDefault();
        return [.. lines, .. console.SkipWhile(line => line != last).Skip(1)];
    }

    private void CopyModules()
    {
        string target = Directory.CreateDirectory(Path.Combine(jobFolder, "modules")).FullName;
        Tool.Require("cp", ["-al", kernel.Modules, target]);
    }

    /// <summary>A Unix socket that the emulator connects to; its path is short enough for one.</summary>
    private sealed class UnixServer : IDisposable
    {
        private readonly Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        private Socket? peer;

        public UnixServer(string name)
        {
            Path = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"lab-{Guid.NewGuid():N}-{name}");
            listener.Bind(new UnixDomainSocketEndPoint(Path));
            listener.Listen(1);
        }

        public string Path { get; }

        public async Task<StreamReader?> Accept()
        {
            try
            {
                peer = await listener.AcceptAsync();
                return new StreamReader(new NetworkStream(peer), Encoding.UTF8);
            }
            catch (SocketException)
            {
                return null;
            }
        }

        public void Send(string text)
        {
            try
            {
                peer?.Send(Encoding.UTF8.GetBytes(text));
            }
            catch (SocketException)
            {
                // It is gone already.
            }
        }

        public void Dispose()
        {
            listener.Dispose();
            File.Delete(Path);
        }
    }
}
