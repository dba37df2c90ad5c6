// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>The module around the interface: its device file and its stay in the kernel.</summary>
static partial class ModuleTests
{
    const int DeleteModule = 176, NonBlocking = 0x800;

    public static IEnumerable<TestCase> All =>
    [
        new("module/device_is_private", DeviceIsPrivate),
        new("module/unload_refused_while_in_use", UnloadRefused),
        new("module/description", Description),
    ];

    static void NeedsModule() => Check.Needs(TestEnvironment.IsSharpKvm, "SharpKVM's module");

    static void DeviceIsPrivate()
    {
        NeedsModule();
        UnixFileMode mode = File.GetUnixFileMode(TestEnvironment.Device);
        Check.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, mode, "mode of the device");
    }

    static void UnloadRefused()
    {
        NeedsModule();
        using var guest = new Guest(GuestMode.Long, [0xF4]);
        Check.Equal(-1L, SystemCall(DeleteModule, "sharpkvm", NonBlocking), "delete_module");
        Check.Equal(Errno.EAGAIN, Libc.LastError, "its error");
        guest.RunToHalt();
    }

    static void Description()
    {
        NeedsModule();
        string version = File.ReadAllText("/sys/module/sharpkvm/version").Trim();
        Check.That(version.Length > 0, "the module tells its version");
    }

    [LibraryImport("libc", EntryPoint = "syscall", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial long SystemCall(long number, string name, long flags);
}
