// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;

namespace SharpKvm.Lab;

/// <summary>QEMU's instruction emulator, with SVM. L1 sees the host's files.</summary>
internal sealed class QemuHardware(L1Options options) : L1Hardware
{
    /// <summary>A CPU with SVM, less what the emulator does not have and would warn about.</summary>
    private const string Cpu = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";

    private readonly Emulator emulator = Emulator.Best;
    private readonly UnixServer jobPort = new("job");
    private readonly UnixServer monitorPort = new("monitor");

    /// <inheritdoc/>
    public override string Name => emulator.Name;

    /// <summary>
    /// Keeps the job, and so each thread that enters a guest, away from CPU 0: the emulator writes to that one's SVM
    /// state when another CPU loads its FPU (docs/testing.md).
    /// </summary>
    public override string Placement => Cpus == 1 ? "" : $"taskset -pc 1-{Cpus} $$ >/dev/null || exit 125";

    /// <inheritdoc/>
    public override string KernelParameters =>
        "console=ttyS0 tsc=reliable panic=-1" + (options.CountInstructions ? " norandmaps" : "");

    /// <summary>CPUs for the job; where there are several, L1 has one more.</summary>
    private int Cpus => options.CountInstructions ? 1 : Math.Min(options.Cpus, emulator.MaximumCpus);

    /// <inheritdoc/>
    public override Process Start(L1Kernel kernel, string folder, string parameters)
    {
        File.WriteAllBytes(InitramfsIn(folder), Initramfs.ForL1(kernel));
        if (kernel.ModulesRoot != "/")
        {
            // L1 binds this over /lib/modules, so that modprobe finds the modules of a kernel that is not installed.
            string target = Directory.CreateDirectory(Path.Combine(folder, "modules")).FullName;
            Tool.Require("cp", ["-al", kernel.Modules, target]);
        }

        string[] timing = options.CountInstructions
            ? ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off",
                "-rtc", "base=2026-01-01,clock=vm", "-seed", "1"]
            : ["-accel", "tcg,thread=multi"];
        string[] command =
        [
            emulator.Program,
            .. emulator.DataFolders.SelectMany(data => (string[])["-L", data]),
            .. timing,
            "-machine", "q35", "-cpu", string.Join(',', [Cpu, .. options.Lane.CpuFeatures, .. options.CpuFeatures]),
            "-smp", $"{(Cpus == 1 ? 1 : Cpus + 1)}", "-m", $"{options.MemoryMib}",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-serial", "stdio",
            "-chardev", $"socket,id=job,path={jobPort.Path}", "-serial", "chardev:job",
            "-chardev", $"socket,id=monitor,path={monitorPort.Path}", "-mon", "chardev=monitor,mode=readline",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", $"local,path={folder},mount_tag=job,security_model=none",
            .. options.Wire?.QemuArguments ?? [],
            "-kernel", kernel.BootImage(), "-initrd", InitramfsIn(folder), "-append", parameters,
        ];
        return StartOnLeash(command, ("QEMU_MODULE_DIR", emulator.ModuleFolder));
    }

    /// <inheritdoc/>
    public override IEnumerable<(L1Source Source, Task<StreamReader?> Lines)> Outputs(Process process) =>
    [
        (L1Source.Kernel, Task.FromResult<StreamReader?>(process.StandardOutput)),
        (L1Source.Lab, Task.FromResult<StreamReader?>(process.StandardError)),
        (L1Source.Job, jobPort.Accept()),
    ];

    /// <summary>
    /// Has L1's kernel print where its CPUs and its blocked tasks are, the way a person would at its keyboard, and the
    /// emulator where the CPUs are, should the kernel no longer listen.
    /// </summary>
    public override void ExplainHang(Process process, string folder, Action<string> say)
    {
        Task answers = ReadAnswers(say);
        foreach (string command in (string[])["info registers -a", "sendkey alt-sysrq-l", "sendkey alt-sysrq-w"])
        {
            monitorPort.Send($"{command}\n");
            answers.Wait(TimeSpan.FromSeconds(2));
        }
    }

    /// <inheritdoc/>
    public override void Clean(string folder, Action<string> say)
    {
        File.Delete(InitramfsIn(folder));
        if (options.Wire is not null)
        {
            File.Delete(options.Wire.Own);
        }
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
        jobPort.Dispose();
        monitorPort.Dispose();
    }

    private static string InitramfsIn(string folder) => Path.Combine(folder, "initramfs");

    private async Task ReadAnswers(Action<string> say)
    {
        if (await monitorPort.Accept() is StreamReader reader)
        {
            await L1Machine.ReadLines(reader, line =>
            {
                if (line.Contains("CPU#") || line.Contains("RIP="))
                {
                    say(line);
                }
            });
        }
    }
}
