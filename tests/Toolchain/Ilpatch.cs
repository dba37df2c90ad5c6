// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>Runs ilpatch as the build does: as a program, judged by exit code, messages and files.</summary>
internal static class Ilpatch
{
    private static readonly string Program = Path.Combine(AppContext.BaseDirectory, "ilpatch.dll");

    public static Tool.Result Run(params string[] arguments) => Tool.Run("dotnet", [Program, .. arguments]);

    /// <summary>A clean folder for one test's files.</summary>
    public static string Folder(string name)
    {
        string folder = Path.Combine(Repository.Folder("toolchain-tests"), name);
        if (Directory.Exists(folder))
        {
            Directory.Delete(folder, recursive: true);
        }

        return Directory.CreateDirectory(folder).FullName;
    }

    /// <summary>Runs make in a folder of the clone.</summary>
    public static Tool.Result Make(string folder, params string[] arguments)
        => Tool.Run("make", ["--no-print-directory", "-C", Repository.PathOf(folder), .. arguments]);

    public static string RequireMake(string folder, params string[] arguments)
    {
        Tool.Result result = Make(folder, arguments);
        Assert.That(result.Succeeded, Is.True, $"make {string.Join(' ', arguments)}\n{result.Output}{result.Errors}");
        return result.Output;
    }
}
