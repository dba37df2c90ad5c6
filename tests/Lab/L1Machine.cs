// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using System.Formats.Tar;
using System.IO.Compression;

namespace SharpKvm.Lab;

/// <summary>The emulated machine that loads the module: boots, runs one job, and always ends.</summary>
public sealed class L1Machine : IDisposable
{
    private const string Mark = "@@lab:";

    /// <summary>Behind it stands a part of an archive of the job's folder.</summary>
    private const string FileMark = $"{Mark}file ";

    /// <summary>What Linux is told on any hardware.</summary>
    private const string KernelParameters =
        "loglevel=5 log_buf_len=2M no_timer_check sysrq_always_enabled printk.devkmsg=on";

    /// <summary>How long L1 may take from the job's end to its own, on Debian's kernel.</summary>
    private static readonly TimeSpan PowerOffTime = TimeSpan.FromSeconds(30);

    /// <summary>What L1 needs from the emulator's start to the job's, on Debian's kernel, when it does not hang.</summary>
    private static readonly TimeSpan BootTime = TimeSpan.FromSeconds(90);

    /// <summary>How often L1 is started to come up.</summary>
    private const int Starts = 3;

    private readonly L1Options options;
    private readonly L1Kernel kernel;
    private readonly L1Hardware hardware;
    private readonly int timeFactor;
    private readonly TimeSpan timeout;
    private readonly string jobFolder;
    private readonly string logPath;
    private readonly StreamWriter log;
    private readonly List<string> output = [];
    private readonly List<string> console = [];
    private readonly MemoryStream sentFiles = new();
    private readonly TaskCompletionSource isUp = new();
    private readonly TaskCompletionSource jobEnded = new();
    private int? exitStatus;

    private L1Machine(L1Options options)
    {
        this.options = options;
        kernel = options.Kernel ?? L1Kernel.Default;
        hardware = L1Hardware.For(options);
        timeFactor = kernel.TimeFactor * options.Lane.TimeFactor;
        timeout = options.Timeout * timeFactor;
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

    private TimeSpan BootLimit => BootTime * timeFactor;

    /// <inheritdoc/>
    public void Dispose()
    {
        hardware.Dispose();
        log.Dispose();
    }

    private L1Result Run()
    {
        File.WriteAllText(Path.Combine(jobFolder, "script.sh"),
            $"""
            {hardware.Placement}
            cd '{Repository.Root}' || exit 125
            export LAB_ROOT='{Repository.Root}' LAB_JOB=/job LAB_TIME_FACTOR={timeFactor}
            {Initramfs.Script("check-leaks.sh")}
            {options.Script}

            """);
        Line(L1Source.Lab, $"{hardware.Name}, Linux {kernel.Version}");
        var clock = Stopwatch.StartNew();
        using Process process = hardware.Start(
            kernel, jobFolder, $"{KernelParameters} {hardware.KernelParameters} {options.KernelParameters}");
        Task reading = Task.WhenAll(hardware.Outputs(process).Select(output => Read(output.Lines, output.Source)));
        bool inTime = WaitFor(process);
        clock.Stop();
        hardware.Dispose();
        reading.Wait(TimeSpan.FromSeconds(5));
        hardware.Clean(jobFolder, line => Line(L1Source.Lab, line));

        string[] kernelLog = ReadKernelLog();
        // The backtraces that a hang is asked for are no report.
        string[] ownLog = [.. kernelLog.TakeWhile(line => inTime || !line.Contains("sysrq: Show backtrace"))];
        return new L1Result
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
    }

    private bool WaitFor(Process process)
    {
        Task exited = process.WaitForExitAsync();
        Task.WhenAny(exited, isUp.Task).Wait(BootLimit);
        if ((isUp.Task.IsCompleted || exited.IsCompleted)
            && Task.WhenAny(exited, jobEnded.Task).Wait(timeout) && exited.Wait(PowerOffTime * timeFactor))
        {
            return true;
        }

        Line(L1Source.Lab, exitStatus is null
            ? $"killed after {(isUp.Task.IsCompleted ? timeout : BootLimit).TotalSeconds:0} s; what its CPUs were doing:"
            : "did not power off after the job; what its CPUs were doing:");
        hardware.ExplainHang(process, jobFolder, line => Line(L1Source.Lab, line));
        process.Kill(entireProcessTree: true);
        exited.Wait();
        return false;
    }

    private async Task Read(Task<StreamReader?> output, L1Source source)
    {
        if (await output is StreamReader reader)
        {
            await ReadLines(reader, line => Line(source, line));
        }
    }

    /// <summary>Hands on the lines of an output of the emulator, up to its end.</summary>
    internal static async Task ReadLines(StreamReader reader, Action<string> take)
    {
        try
        {
            while (await reader.ReadLineAsync() is string line)
            {
                take(line.TrimEnd('\r'));
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
            if (source == L1Source.Job && text.StartsWith(FileMark, StringComparison.Ordinal))
            {
                sentFiles.Write(Convert.FromBase64String(text[FileMark.Length..]));
                return;
            }

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
                UnpackSentFiles();
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

    /// <summary>Where L1 does not share the job's folder, it has sent what is in it.</summary>
    private void UnpackSentFiles()
    {
        if (sentFiles.Length > 0)
        {
            sentFiles.Position = 0;
            using var archive = new GZipStream(sentFiles, CompressionMode.Decompress);
            TarFile.ExtractToDirectory(archive, jobFolder, overwriteFiles: true);
        }
    }
}
