// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>A QEMU: it plays the L1 machine with AMD SVM in software, and in L1 it runs the L2 guest.</summary>
/// <param name="Name">For people: version and where it is from.</param>
/// <param name="Program">Path of <c>qemu-system-x86_64</c>.</param>
/// <param name="DataFolders">Folders for <c>-L</c>, in order.</param>
/// <param name="ModuleFolder">Where this build's loadable parts lie, or null for the built-in place.</param>
/// <param name="MaximumCpus">How many CPUs are dependable: QEMU 7.2 hangs with two under SVM load.</param>
public sealed partial record Emulator(
    string Name, string Program, string[] DataFolders, string? ModuleFolder, int MaximumCpus)
{
    private const string Binary = "usr/bin/qemu-system-x86_64";

    private static readonly Lazy<Emulator> Own = new(FromSystem);

    private static readonly Lazy<Emulator> Unpacked = new(FromBackports);

    private static readonly Lazy<Emulator> Chosen = new(Choose);

    /// <summary>
    /// The best one this machine can have: from backports, unpacked into the cache, else the installed one. The
    /// environment variable <c>LAB_EMULATOR=installed</c> asks for the latter.
    /// </summary>
    public static Emulator Best => Chosen.Value;

    /// <summary>The one that the machine has: 7.2 on Debian 12.</summary>
    public static Emulator Installed => Own.Value;

    /// <summary>The one from backports, which the cache holds: 10.0 on Debian 12.</summary>
    public static Emulator Backports => Unpacked.Value;

    /// <summary>The beginning of a shell command that runs it.</summary>
    public string Command => string.Join(' ',
    [
        .. ModuleFolder is null ? (string[])[] : ["env", $"QEMU_MODULE_DIR='{ModuleFolder}'"],
        $"'{Program}'",
        .. DataFolders.Select(folder => $"-L '{folder}'"),
    ]);

    /// <summary>What it reads itself to run a guest without a display.</summary>
    public IEnumerable<string> Files =>
    [
        Program,
        .. from file in (string[])["bios-256k.bin", "kvmvapic.bin", "pvh.bin", "linuxboot_dma.bin"]
           let folder = DataFolders.Concat(["/usr/share/qemu", "/usr/share/seabios"])
               .FirstOrDefault(folder => File.Exists(Path.Combine(folder, file)))
           where folder is not null
           select Path.Combine(folder, file),
    ];

    /// <summary>Since version 8.2 KVM's device can be any.</summary>
    public bool CanNameDevice => Version.Parse(Number().Match(Name).Value) >= new Version(8, 2);

    private static Emulator Choose()
    {
        if (Environment.GetEnvironmentVariable("LAB_EMULATOR") == "installed")
        {
            return Installed;
        }

        try
        {
            return Backports;
        }
        catch (LabException)
        {
            return Installed;
        }
    }

    private static Emulator FromSystem()
    {
        string program = Tool.Find("qemu-system-x86_64")
            ?? throw new LabException("QEMU is missing: run tools/setup (package qemu-system-x86)");
        string version = Tool.Require(program, ["--version"]).Split('\n')[0];
        return new Emulator(version, program, [], ModuleFolder: null, MaximumCpus: version.Contains(" 7.") ? 1 : 2);
    }

    private static Emulator FromBackports()
    {
        string suite = $"{AptCache.Release}-backports";
        string folder = Repository.Folder("cache", "qemu", suite);
        string program = Path.Combine(folder, Binary);
        string stamp = Path.Combine(folder, "complete");
        CacheLock.MakeOnce(stamp, () =>
        {
            new AptCache(suite).Unpack(folder, "qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios");
            string version = Tool.Require(program, ["--version"]);
            CacheLock.WriteWhole(stamp, System.Text.Encoding.UTF8.GetBytes(version.Split('\n')[0]));
        });
        return new Emulator(
            File.ReadAllText(stamp), program,
            [
                Path.Combine(folder, "usr/share/qemu"), Path.Combine(folder, "usr/share/seabios"),
                "/usr/share/qemu", "/usr/lib/ipxe/qemu",
            ],
            Path.Combine(folder, "usr/lib/x86_64-linux-gnu/qemu"), MaximumCpus: 2);
    }

    [GeneratedRegex(@"\d+\.\d+")]
    private static partial Regex Number();
}
