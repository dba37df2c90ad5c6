// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>What plays the L1 machine: an emulator, and the way in and out of it.</summary>
internal abstract class L1Hardware : IDisposable
{
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

    /// <summary>The hardware of a run's lane.</summary>
    public static L1Hardware For(L1Options options) =>
        options.Lane.BochsModel is null ? new QemuHardware(options) : new BochsHardware(options);

    /// <summary>The emulator, for people.</summary>
    public abstract string Name { get; }

    /// <summary>What the job's script begins with.</summary>
    public virtual string Placement => "";

    /// <summary>What Linux must be told of this machine.</summary>
    public abstract string KernelParameters { get; }

    /// <summary>Puts into the job's folder what the machine boots from, and starts it.</summary>
    /// <param name="kernel">L1's kernel.</param>
    /// <param name="folder">The job's folder, which holds <c>script.sh</c>.</param>
    /// <param name="parameters">All of the kernel's command line.</param>
    public abstract Process Start(L1Kernel kernel, string folder, string parameters);

    /// <summary>All that comes out of a running machine.</summary>
    public abstract IEnumerable<(L1Source Source, Task<StreamReader?> Lines)> Outputs(Process process);

    /// <summary>Has a machine that hangs say where its CPUs are; what it says through its outputs comes there.</summary>
    public abstract void ExplainHang(Process process, string folder, Action<string> say);

    /// <summary>Removes what the machine booted from, and adds what the emulator has to say about its end.</summary>
    public abstract void Clean(string folder, Action<string> say);

    /// <inheritdoc/>
    public abstract void Dispose();

    /// <summary>Starts a program on the leash, its outputs ready to be read.</summary>
    protected static Process StartOnLeash(string[] command, params (string Name, string? Value)[] environment)
    {
        var start = new ProcessStartInfo("/bin/bash", ["-c", Leash, command[0], .. command])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            StandardOutputEncoding = Encoding.UTF8,
            StandardErrorEncoding = Encoding.UTF8,
        };
        foreach ((string name, string? value) in environment.Where(variable => variable.Value is not null))
        {
            start.Environment[name] = value;
        }

        return Process.Start(start)!;
    }
}
