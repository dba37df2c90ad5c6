// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>Where a line of an L1 run came from.</summary>
public enum L1Source
{
    /// <summary>L1's kernel, on its console.</summary>
    Kernel,

    /// <summary>The job that runs in L1.</summary>
    Job,

    /// <summary>The lab itself or the emulator.</summary>
    Lab,
}

/// <summary>What to boot and what to run in it.</summary>
public sealed record L1Options
{
    /// <summary>Names the log files; letters, digits, dots and dashes.</summary>
    public required string Name { get; init; }

    /// <summary>
    /// A bash script. It runs as root in L1, sees the host's root (its own writes are thrown away), starts in the
    /// clone's folder, and finds in <c>/job</c> a folder whose files come back (<see cref="L1Result.JobFolder"/>).
    /// On a lane where L1 cannot see the host's root there are busybox, bash, the stock hypervisor's modules and
    /// <see cref="Files"/>.
    /// </summary>
    public required string Script { get; init; }

    /// <summary>The kind of machine.</summary>
    public Lane Lane { get; init; } = Lane.Default;

    /// <summary>Programs and other files of the host that the script uses, where it cannot see all of them.</summary>
    public IReadOnlyList<string> Files { get; init; } = [];

    /// <summary>
    /// The job must end within this time, times <see cref="L1Kernel.TimeFactor"/> and <see cref="Lane.TimeFactor"/>.
    /// </summary>
    public TimeSpan Timeout { get; init; } = TimeSpan.FromMinutes(2);

    /// <summary>L1's memory in MiB.</summary>
    public int MemoryMib { get; init; } = 3072;

    /// <summary>The job's CPUs; no more than the emulator is dependable with.</summary>
    public int Cpus { get; init; } = 2;

    /// <summary>One CPU, and virtual nanoseconds are instructions: repeatable counts, no wall-clock time.</summary>
    public bool CountInstructions { get; init; }

    /// <summary>Its end of a network of two machines; none when null. The job loads <c>virtio_net</c>.</summary>
    public L1Wire? Wire { get; init; }

    /// <summary>What L1's CPU has beyond the usual or lacks of it, as QEMU says it: <c>-npt</c>, <c>-svm</c>.</summary>
    public IReadOnlyList<string> CpuFeatures { get; init; } = [];

    /// <summary>More for L1's kernel command line.</summary>
    public string KernelParameters { get; init; } = "";

    /// <summary>L1's kernel; <see cref="L1Kernel.Default"/> when null.</summary>
    public L1Kernel? Kernel { get; init; }

    /// <summary>Regular expressions of kernel-log reports that this job means to cause.</summary>
    public IReadOnlyList<string> ExpectedReports { get; init; } = [];

    /// <summary>Called with each line as it comes.</summary>
    public Action<L1Source, string>? Live { get; init; }
}
