// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>Linux's source, from Debian's package <c>linux-source</c>.</summary>
internal static class LinuxSource
{
    private const string Folder = "/usr/src", Pattern = "linux-source-*.tar.xz";

    /// <summary>The archive of the newest version that is installed.</summary>
    /// <param name="option">That of <c>tools/setup</c> which installs it for the caller.</param>
    /// <exception cref="LabException">There is none.</exception>
    public static FileInfo Archive(string option) =>
        new DirectoryInfo(Folder).GetFiles(Pattern).MaxBy(file => file.Name, StringComparer.Ordinal)
        ?? throw new LabException($"no {Pattern} in {Folder}: run tools/setup {option}");

    /// <summary>The name of the package, and of the folder that everything in the archive lies in.</summary>
    public static string NameOf(FileInfo archive) => archive.Name[..^".tar.xz".Length];
}
