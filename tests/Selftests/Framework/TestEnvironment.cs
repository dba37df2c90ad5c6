// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>What all tests share.</summary>
static class TestEnvironment
{
    /// <summary>The device under test.</summary>
    public static string Device { get; set; } = Kvm.DefaultDevice;

    /// <summary>Random numbers that are the same in every run.</summary>
    public static Random FixedRandom => new(20260101);

    public static Kvm OpenKvm() => new(Device);
}
