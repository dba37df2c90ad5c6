// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>The kernels whose headers the modules must build for without a warning.</summary>
internal static class Kernels
{
    /// <summary>What make itself chooses.</summary>
    public const string Installed = "installed";

    /// <summary>The newest kernel of this Debian's backports, headers only, unpacked into the cache.</summary>
    public const string Backports = "backports";

    private static readonly Lazy<string> BackportsFolder = new(FetchBackports);

    /// <summary>Arguments for make.</summary>
    public static string[] Arguments(string kernel) => kernel == Installed ? [] : [$"KDIR={BackportsFolder.Value}"];

    private static string FetchBackports()
    {
        var apt = new AptCache($"{AptCache.Release}-backports");
        string headers = apt.DependencyOf("linux-headers-amd64", "linux-headers-6");
        string version = headers["linux-headers-".Length..];
        string root = Repository.Folder("cache", "headers", version);
        string folder = Path.Combine(root, "usr", "src", headers);
        string makefile = Path.Combine(folder, "Makefile");
        string mark = Path.Combine(root, "complete");
        if (!File.Exists(mark))
        {
            string release = version[..version.LastIndexOf('-')];
            apt.Unpack(root, headers, $"linux-headers-{release}-common", $"linux-kbuild-{release}");
            File.WriteAllText(makefile, File.ReadAllText(makefile).Replace("/usr/src/", $"{root}/usr/src/"));
            File.WriteAllText(mark, "");
        }

        return folder;
    }
}
