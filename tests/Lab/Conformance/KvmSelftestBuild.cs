// SPDX-License-Identifier: GPL-2.0-only
using System.Security.Cryptography;
using System.Text;

namespace SharpKvm.Lab.Conformance;

/// <summary>Linux's KVM selftests, built from Debian's package of its source.</summary>
public static class KvmSelftestBuild
{
    /// <summary>
    /// Two of the programs of 6.1 do not compile as they are: dirty_log_test says ASSERT_EQ by a name of later
    /// versions, and steal_time includes asm/kvm.h without what that needs.
    /// </summary>
    private const string CompilerFlags = "-DTEST_ASSERT_EQ=ASSERT_EQ -include linux/stddef.h";

    /// <summary>What of the source the build reads; the system's own headers describe the ABI.</summary>
    private static readonly string[] Parts =
    [
        "scripts/subarch.include", "tools/arch/x86", "tools/build", "tools/include", "tools/lib",
        "tools/testing/selftests",
    ];

    private static readonly Lazy<string> Built = new(Build);

    /// <summary>The folder with the programs, built into the cache at the first call.</summary>
    /// <exception cref="LabException">The package is not installed, or its programs do not compile.</exception>
    public static string Folder => Built.Value;

    /// <summary>The programs in it, as paths below it.</summary>
    public static IReadOnlyList<string> Programs =>
    [
        .. Directory.EnumerateFiles(Folder, "*", SearchOption.AllDirectories)
            .Where(file => Path.GetExtension(file) == "")
            .Select(file => Path.GetRelativePath(Folder, file)).Order(StringComparer.Ordinal),
    ];

    private static string Build()
    {
        FileInfo archive = LinuxSource.Archive("--conformance");
        string key = $"{archive.Name} {archive.Length} {archive.LastWriteTimeUtc.Ticks} {CompilerFlags}";
        string hash = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(key)))[..8];
        string folder = Repository.Folder("cache", "conformance", hash);
        string programs = Path.Combine(folder, "programs"), stamp = Path.Combine(folder, "complete");
        CacheLock.MakeOnce(stamp, () =>
        {
            string source = Path.Combine(folder, "source"), root = LinuxSource.NameOf(archive);
            Directory.CreateDirectory(source);
            Tool.Require("tar",
            [
                "-xJf", archive.FullName, "-C", source, "--strip-components=1",
                .. Parts.Select(part => $"{root}/{part}"),
            ]);
            Tool.Require("make",
            [
                "-s", $"-j{Environment.ProcessorCount}", "-C", Path.Combine(source, "tools/testing/selftests/kvm"),
                $"OUTPUT={programs}", $"EXTRA_CFLAGS={CompilerFlags}",
            ]);
            CacheLock.WriteWhole(stamp, []);
        });
        return programs;
    }
}
