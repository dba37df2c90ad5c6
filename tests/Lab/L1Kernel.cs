// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>A Linux kernel for L1 or L2: an image and, where it has any, its modules.</summary>
/// <param name="Version">As <c>uname -r</c> says it.</param>
/// <param name="Image">The kernel as its package installs it.</param>
/// <param name="ModulesRoot">The folder that holds <c>lib/modules/VERSION</c>.</param>
public sealed partial record L1Kernel(string Version, string Image, string ModulesRoot)
{
    private static readonly Lazy<L1Kernel> Chosen = new(Choose);

    /// <summary>
    /// L1's kernel unless a run asks for another: Debian's, or with <c>LAB_KERNEL=debug</c> in the environment the one
    /// that checks itself.
    /// </summary>
    public static L1Kernel Default =>
        Environment.GetEnvironmentVariable("LAB_KERNEL") == "debug" ? DebugKernel.Built : Debian;

    /// <summary>
    /// The kernel whose headers the build uses (<c>KDIR</c>) where it is installed, else the newest installed one that
    /// has headers, else Debian's, unpacked into the cache.
    /// </summary>
    public static L1Kernel Debian => Chosen.Value;

    /// <summary>It checks itself: slowly, and what it finds is in its log.</summary>
    public bool IsDebug { get; init; }

    /// <summary>How much longer things take than on Debian's kernel, at worst.</summary>
    public int TimeFactor => IsDebug ? 6 : 1;

    /// <summary>The modules' folder.</summary>
    public string Modules => Path.Combine(ModulesRoot, "lib/modules", Version);

    /// <summary>Where the build leaves a module for this kernel, whether or not it was built.</summary>
    /// <param name="name">The name without an ending: <c>sharpkvm</c>.</param>
    public string ModuleBuilt(string name) => Repository.PathOf("build", "modules", name, Version, $"{name}.ko");

    /// <summary>
    /// An image that boots without unpacking itself, which takes seconds in an emulated machine: the ELF file inside
    /// the bzImage, unpacked once. The bzImage itself where that does not work.
    /// </summary>
    public string BootImage()
    {
        var source = new FileInfo(Image);
        string unpacked = Path.Combine(
            Repository.Folder("cache", "kernel"), $"vmlinux-{Version}-{source.Length}-{source.LastWriteTimeUtc.Ticks}");
        try
        {
            CacheLock.MakeOnce(unpacked, () => CacheLock.WriteWhole(unpacked, Unpack(File.ReadAllBytes(Image))));
            return unpacked;
        }
        catch (LabException)
        {
            return Image;
        }
    }

    /// <summary>
    /// The files to load, in order, for some modules and all that they need; a module that this kernel has built in
    /// adds nothing.
    /// </summary>
    public IReadOnlyList<string> FilesFor(IEnumerable<string> modules)
    {
        string list = Path.Combine(Modules, "modules.dep");
        Dictionary<string, string[]> rules = !File.Exists(list) ? [] : File.ReadLines(list)
            .Select(line => line.Split([':', ' '], StringSplitOptions.RemoveEmptyEntries))
            .ToDictionary(words => ModuleName(words[0]));
        // Each rule names the module and then what it needs, what is needed first standing last.
        return [.. modules.SelectMany(module => rules.GetValueOrDefault(module, []).Reverse()).Distinct()
            .Select(file => Path.Combine(Modules, file))];
    }

    private static string ModuleName(string file) => Path.GetFileName(file).Split('.')[0].Replace('-', '_');

    private static L1Kernel Choose()
    {
        string? headers = Environment.GetEnvironmentVariable("KDIR");
        L1Kernel? installed = (Directory.Exists("/boot") ? Directory.GetFiles("/boot", "vmlinuz-*") : [])
            .Select(image => new L1Kernel(Path.GetFileName(image)["vmlinuz-".Length..], image, "/"))
            .Where(kernel => Directory.Exists(Path.Combine(kernel.Modules, "build")))
            .MaxBy(kernel => (Path.Combine(kernel.Modules, "build") == headers, SortKey(kernel.Version)));
        return installed ?? FromPackage();
    }

    private static L1Kernel FromPackage()
    {
        string folder = Repository.Folder("cache", "kernel", "debian");
        string stamp = Path.Combine(folder, "complete");
        CacheLock.MakeOnce(stamp, () =>
        {
            var apt = new AptCache();
            string package = apt.DependencyOf("linux-image-amd64", "linux-image-");
            apt.Unpack(folder, package);
            string version = package["linux-image-".Length..];
            Tool.Require("depmod", ["-b", folder, version]);
            CacheLock.WriteWhole(stamp, System.Text.Encoding.UTF8.GetBytes(version));
        });
        string found = File.ReadAllText(stamp);
        return new L1Kernel(found, Path.Combine(folder, "boot", $"vmlinuz-{found}"), folder);
    }

    /// <summary>Versions in order of their numbers: 6.1.0-9 before 6.1.0-56.</summary>
    private static string SortKey(string version) => Digits().Replace(version, digits => digits.Value.PadLeft(8, '0'));

    /// <summary>
    /// The payload of a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, _length).
    /// </summary>
    private static byte[] Unpack(byte[] image)
    {
        const int SetupSectors = 0x1f1, PayloadOffset = 0x248, PayloadLength = 0x24c;
        int start = ((image[SetupSectors] == 0 ? 4 : image[SetupSectors]) + 1) * 512
            + BinaryPrimitives.ReadInt32LittleEndian(image.AsSpan(PayloadOffset));
        // The unpacked size stands behind the compressed stream.
        int length = BinaryPrimitives.ReadInt32LittleEndian(image.AsSpan(PayloadLength)) - sizeof(int);
        byte[] payload = image.AsSpan(start, length).ToArray();
        byte[] kernel = Decompress(payload);
        return kernel.AsSpan().StartsWith("\u007fELF"u8)
            ? kernel
            : throw new LabException("the kernel image holds no ELF file");
    }

    /// <summary>Unpacks a file by its first bytes; bytes of no known format come back as they are.</summary>
    internal static byte[] Decompress(byte[] data)
    {
        string? program = data switch
        {
            [0xfd, (byte)'7', (byte)'z', ..] => "xz",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
            [0x1f, 0x8b, ..] => "gzip",
            _ => null,
        };
        return program is null ? data : Tool.RunForBytes(program, ["-dc"], data);
    }

    [GeneratedRegex(@"\d+")]
    private static partial Regex Digits();
}
