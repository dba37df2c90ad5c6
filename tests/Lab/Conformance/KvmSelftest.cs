// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab.Conformance;

/// <summary>One program of Linux's KVM selftests with one set of arguments.</summary>
/// <param name="Command">The program's path in their folder and its arguments: its name, too.</param>
/// <param name="Seconds">One that takes longer hangs.</param>
public sealed record KvmSelftest(string Command, int Seconds = 60)
{
    /// <summary>What the module lacks on purpose, where that makes the program skip itself or fail.</summary>
    public string? Lacks { get; init; }

    /// <summary>The path in the selftests' folder.</summary>
    public string Program => Command.Split(' ')[0];
}
