// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>Where things lie in the clone that this program was built from.</summary>
public static class Repository
{
    /// <summary>The folder that holds <c>Kernel.sln</c>.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>Downloads and unpacked packages; survives everything but <c>make clean</c>.</summary>
    public static string Cache => Folder("cache");

    /// <summary>One console log per L1 run.</summary>
    public static string Logs => Folder("logs");

    /// <summary>A folder below <c>build/</c>, made when it is missing.</summary>
    public static string Folder(params string[] parts) =>
        Directory.CreateDirectory(Path.Combine([Root, "build", .. parts])).FullName;

    /// <summary>An absolute path for one given relative to the clone.</summary>
    public static string PathOf(params string[] parts) => Path.Combine([Root, .. parts]);

    private static string FindRoot()
    {
        for (string? folder = AppContext.BaseDirectory; folder is not null; folder = Path.GetDirectoryName(folder))
        {
            if (File.Exists(Path.Combine(folder, "Kernel.sln")))
            {
                return folder;
            }
        }

        throw new LabException($"{AppContext.BaseDirectory} is in no clone of this project: no Kernel.sln above it");
    }
}
