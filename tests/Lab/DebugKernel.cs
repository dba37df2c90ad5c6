// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using System.Security.Cryptography;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>
/// A Linux for L1 that checks itself (<c>Kernel/debug.config</c>), from Debian's <c>linux-source</c>. It is built once
/// per version of the source, of the configuration and of the compiler, into <c>build/cache/debug-kernel/KEY</c>:
/// folders <c>source</c>, <c>build</c> (modules are built against it) and <c>lib</c>, and last the file
/// <c>complete</c>, which holds the version.
/// </summary>
public static class DebugKernel
{
    /// <summary>Compiled files from one word of progress to the next.</summary>
    private const int ProgressStep = 250;

    /// <summary>Another process may be building it.</summary>
    private static readonly TimeSpan Patience = TimeSpan.FromHours(3);

    private static readonly Lazy<L1Kernel> Kernel = new(Find);

    /// <summary>The kernel; the first call builds it, and says on standard error how far it is.</summary>
    /// <exception cref="LabException">There is no source, or it does not build.</exception>
    public static L1Kernel Built => Kernel.Value;

    /// <summary>What its modules are built against: <c>KDIR</c>.</summary>
    public static string BuildFolder => Path.Combine(Built.Modules, "build");

    private static L1Kernel Find()
    {
        FileInfo archive = LinuxSource.Archive("--debug-kernel");
        string config = Initramfs.Script("debug.config");
        string version = Tool.Require("dpkg-query", ["-W", "-f", "${Version}", LinuxSource.NameOf(archive)]);
        string compiler = Tool.Require("gcc", ["--version"]).Split('\n')[0];
        byte[] hash = SHA256.HashData(Encoding.UTF8.GetBytes(config + compiler));
        string folder = Path.Combine(
            Repository.Folder("cache", "debug-kernel"), $"{version}-{Convert.ToHexStringLower(hash)[..8]}");
        string complete = Path.Combine(folder, "complete");
        CacheLock.MakeOnce(
            complete, () => Build(folder, archive.FullName, config, complete), "debug-kernel.lock", Patience);
        return new L1Kernel(
            File.ReadAllText(complete), Path.Combine(folder, "build/arch/x86/boot/bzImage"), folder) { IsDebug = true };
    }

    private static void Build(string folder, string archive, string config, string complete)
    {
        string logPath = Path.Combine(Repository.Logs, "debug-kernel.log");
        using StreamWriter log = File.CreateText(logPath);
        Say($"building {Path.GetFileName(folder)}, once: half an hour on two CPUs (log: {logPath})");
        if (Directory.Exists(folder))
        {
            // Somebody gave up.
            Directory.Delete(folder, recursive: true);
        }

        string source = Directory.CreateDirectory(Path.Combine(folder, "source")).FullName;
        string build = Directory.CreateDirectory(Path.Combine(folder, "build")).FullName;
        Say("unpacking the source");
        Step("tar", ["-xf", archive, "-C", source, "--strip-components=1"]);
        string wanted = Path.Combine(folder, "debug.config");
        File.WriteAllText(wanted, config);
        string[] make = ["-C", source, $"O={build}"];
        Step("make", [.. make, $"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"]);
        RequireOptions(config, File.ReadAllLines(Path.Combine(build, ".config")));
        Say("compiling");
        Step("make", [.. make, $"-j{Environment.ProcessorCount}", "bzImage", "modules"]);
        Step("make", [.. make, $"INSTALL_MOD_PATH={folder}", "modules_install"]);
        string version = Tool.Require("make", ["-s", .. make, "kernelrelease"]).Trim();
        CacheLock.WriteWhole(complete, Encoding.UTF8.GetBytes(version));
        Say($"Linux {version} is built");

        void Step(string program, string[] arguments) => Run(program, arguments, log, logPath);
    }

    /// <summary>An option that the kernel's own rules drop would be a check that nobody makes.</summary>
    private static void RequireOptions(string config, string[] result)
    {
        string[] lost = [.. config.Split('\n').Where(line => line.StartsWith("CONFIG_", StringComparison.Ordinal))
            .Except(result)];
        if (lost.Length > 0)
        {
            throw new LabException($"the kernel's configuration lost {string.Join(", ", lost)}");
        }
    }

    private static void Run(string program, string[] arguments, StreamWriter log, string logPath)
    {
        string path = Tool.Find(program) ?? throw new LabException($"the program '{program}' is missing");
        var start = new ProcessStartInfo(path, arguments)
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        int compiled = 0;
        using Process process = Process.Start(start)!;
        process.OutputDataReceived += (_, line) => Take(line.Data);
        process.ErrorDataReceived += (_, line) => Take(line.Data);
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
        process.WaitForExit();
        if (process.ExitCode != 0)
        {
            throw new LabException($"{program} ended with {process.ExitCode}: see {logPath}");
        }

        void Take(string? line)
        {
            lock (log)
            {
                log.WriteLine(line);
                if (line?.StartsWith("  CC ", StringComparison.Ordinal) == true && ++compiled % ProgressStep == 0)
                {
                    Say($"{compiled} files compiled");
                }
            }
        }
    }

    private static void Say(string text) => Console.Error.WriteLine($"debug kernel: {text}");
}
