// SPDX-License-Identifier: GPL-2.0-only
using System.Text;
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>A root file system in a folder of an archive: files of the host at the places where they are there.</summary>
/// <param name="archive">The archive.</param>
/// <param name="prefix">The folder, which the archive has.</param>
internal sealed partial class RootFolder(CpioArchive archive, string prefix)
{
    private readonly HashSet<string> known = ["/"];

    /// <summary>Adds a folder, and those that it lies in.</summary>
    public void AddFolder(string path)
    {
        if (!known.Contains(path))
        {
            AddFolder(Path.GetDirectoryName(path)!);
            known.Add(path);
            archive.AddFolder(prefix + path);
        }
    }

    /// <summary>Adds a file that may be executed, once.</summary>
    public void AddFile(string path, byte[] content)
    {
        AddFolder(Path.GetDirectoryName(path)!);
        if (known.Add(path))
        {
            archive.AddFile(prefix + path, content, executable: true);
        }
    }

    /// <summary>Adds a file of the host, and the libraries that it needs if it is a program.</summary>
    public void AddProgram(string path, string source)
    {
        AddFile(path, File.ReadAllBytes(source));
        foreach (Match library in Library().Matches(Tool.Run("ldd", [source]).Output))
        {
            AddFile(library.Value, File.ReadAllBytes(library.Value));
        }
    }

    /// <summary>Adds modules of a kernel with all that they need, where <c>modprobe</c> looks for them.</summary>
    public void AddModules(L1Kernel kernel, string[] modules)
    {
        string folder = $"/lib/modules/{kernel.Version}";
        HashSet<string> files = [.. kernel.FilesFor(modules).Select(path => Path.GetRelativePath(kernel.Modules, path))];
        foreach (string file in files)
        {
            AddFile($"{folder}/{file}", File.ReadAllBytes(Path.Combine(kernel.Modules, file)));
        }

        IEnumerable<string> rules = File.ReadLines(Path.Combine(kernel.Modules, "modules.dep"))
            .Where(line => files.Contains(line.Split(':')[0]));
        AddFile($"{folder}/modules.dep", Encoding.UTF8.GetBytes(string.Concat(rules.Select(line => line + "\n"))));
    }

    [GeneratedRegex(@"(?<=\s)/\S+(?= \(0x)")]
    private static partial Regex Library();
}
