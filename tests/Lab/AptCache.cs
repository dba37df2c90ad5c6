// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>
/// Fetches Debian packages into the build folder and unpacks them there, with a private package list made from the
/// machine's own sources. The system's packages, lists and caches stay as they are.
/// </summary>
public sealed partial class AptCache
{
    private readonly string folder;
    private readonly string[] options;

    /// <param name="suite">A suite to ask instead of the machine's own, like <c>bookworm-backports</c>.</param>
    public AptCache(string? suite = null)
    {
        folder = Repository.Folder("cache", "apt", suite ?? "system");
        string parts = MakeFolder("parts");
        WriteSources(parts, suite);
        options =
        [
            "-q", "-o", "Dir::Etc::SourceList=/dev/null", "-o", $"Dir::Etc::SourceParts={parts}",
            "-o", $"Dir::State::Lists={MakeFolder("lists")}", "-o", $"Dir::Cache={MakeFolder("archives")}",
            "-o", "APT::Update::Post-Invoke-Success::=", "-o", "Acquire::Retries=2", "-o", "APT::Sandbox::User=root",
        ];
    }

    /// <summary>The release name of this Debian, like <c>bookworm</c>.</summary>
    public static string Release { get; } = File.ReadLines("/etc/os-release")
        .FirstOrDefault(line => line.StartsWith("VERSION_CODENAME=", StringComparison.Ordinal))?.Split('=')[1] ?? "";

    /// <summary>Downloads packages and unpacks them below <paramref name="target"/>.</summary>
    public void Unpack(string target, params string[] packages)
    {
        string downloads = MakeFolder("downloads");
        Tool.Require("apt-get", [.. options, "update"]);
        Tool.Require("apt-get", [.. options, "download", .. packages], downloads);
        foreach (string package in Directory.GetFiles(downloads, "*.deb"))
        {
            Tool.Require("dpkg", ["-x", package, target]);
            File.Delete(package);
        }
    }

    /// <summary>Downloads the source of a package as its authors published it, and returns the archive's path.</summary>
    public string Source(string package)
    {
        string parts = MakeFolder("source-parts"), downloads = MakeFolder("sources");
        foreach (string file in Directory.GetFiles(Path.Combine(folder, "parts")))
        {
            string text = File.ReadAllText(file).Replace("Types: deb\n", "Types: deb-src\n");
            File.WriteAllText(Path.Combine(parts, Path.GetFileName(file)), Lines().Replace(text, "deb-src "));
        }

        string[] ofSources = [.. options, "-o", $"Dir::Etc::SourceParts={parts}"];
        Tool.Require("apt-get", [.. ofSources, "update"]);
        // What Debian adds is not needed, and a mirror need not have it.
        string said = Tool.Run("apt-get", [.. ofSources, "--download-only", "source", package], downloads).Errors;
        return Directory.GetFiles(downloads, $"{package}_*.orig.tar.*").SingleOrDefault(file => !file.EndsWith(".asc"))
            ?? throw new LabException($"no source of {package}: {said.Trim()}");
    }

    /// <summary>The package that a meta package stands for, like linux-image-amd64's newest kernel.</summary>
    public string DependencyOf(string package, string prefix)
    {
        Tool.Require("apt-get", [.. options, "update"]);
        string answer = Tool.Require("apt-cache", [.. options, "depends", package]);
        return answer.Split('\n').Select(line => line.Replace("Depends:", "").Trim())
            .FirstOrDefault(name => name.StartsWith(prefix, StringComparison.Ordinal))
            ?? throw new LabException($"the package {package} names no package that begins with {prefix}");
    }

    private string MakeFolder(string name) => Directory.CreateDirectory(Path.Combine(folder, name)).FullName;

    /// <summary>Copies the machine's deb822 and one-line sources, with another suite where one is wanted.</summary>
    private static void WriteSources(string parts, string? suite)
    {
        IEnumerable<string> files = new[] { "/etc/apt/sources.list" }
            .Concat(Directory.Exists("/etc/apt/sources.list.d") ? Directory.GetFiles("/etc/apt/sources.list.d") : [])
            .Where(File.Exists);
        foreach (string file in files)
        {
            string text = Path.GetExtension(file) switch
            {
                ".sources" => RewriteParagraphs(File.ReadAllText(file), suite),
                ".list" => RewriteLines(File.ReadAllLines(file), suite),
                _ => "",
            };
            if (text.Length > 0)
            {
                File.WriteAllText(Path.Combine(parts, Path.GetFileName(file)), text);
            }
        }
    }

    private static string RewriteParagraphs(string text, string? suite)
    {
        if (suite is null)
        {
            return text;
        }

        IEnumerable<string> kept = text.Split("\n\n").Where(paragraph => HasWord(paragraph, "Suites:", Release));
        return string.Join("\n\n", kept.Select(paragraph => string.Join('\n', paragraph.Split('\n')
            .Where(line => !line.StartsWith('#'))
            .Select(line => line.StartsWith("Suites:", StringComparison.Ordinal) ? $"Suites: {suite}" : line))));
    }

    private static string RewriteLines(string[] lines, string? suite)
    {
        if (suite is null)
        {
            return string.Join('\n', lines) + "\n";
        }

        IEnumerable<string> kept = lines.Where(line => HasWord(line, "deb ", Release));
        return string.Concat(kept.Select(line => line.Replace($" {Release} ", $" {suite} ") + "\n"));
    }

    private static bool HasWord(string text, string lineStart, string word) => text.Split('\n')
        .Any(line => line.StartsWith(lineStart, StringComparison.Ordinal) && line.Split(' ', '\t').Contains(word));

    [GeneratedRegex("^deb ", RegexOptions.Multiline)]
    private static partial Regex Lines();
}
