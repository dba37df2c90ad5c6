// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>What all tests share.</summary>
static class TestEnvironment
{
    /// <summary>The device under test.</summary>
    public static string Device { get; set; } = Kvm.DefaultDevice;

    /// <summary>This project's module is loaded; else it is stock KVM that the tests are tried on.</summary>
    public static bool IsSharpKvm => Directory.Exists("/sys/module/sharpkvm");

    /// <summary>Random numbers that are the same in every run.</summary>
    public static Random FixedRandom => new(20260101);

    public static Kvm OpenKvm() => new(Device);
}
