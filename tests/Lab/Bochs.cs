// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>The emulator Bochs, which has VMX: the installed one, else Debian's, unpacked into the cache.</summary>
/// <param name="Root">The folder that holds <c>usr</c>.</param>
internal sealed record Bochs(string Root)
{
    private const string Libraries = "usr/lib/x86_64-linux-gnu";

    private static readonly Lazy<Bochs> Found = new(Find);

    /// <summary>The one that there is.</summary>
    /// <exception cref="LabException">There is none, and Debian's cannot be had.</exception>
    public static Bochs Best => Found.Value;

    /// <summary>The program itself, not the script that asks for a configuration.</summary>
    public string Program => PathOf("usr/bin/bochs-bin");

    /// <summary>The BIOS of the machine, and of its display.</summary>
    public string Bios => PathOf("usr/share/bochs/BIOS-bochs-latest");

    /// <inheritdoc cref="Bios"/>
    public string DisplayBios => PathOf("usr/share/vgabios/vgabios.bin");

    /// <summary>What makes it run from where it lies.</summary>
    public (string Name, string? Value)[] Environment =>
    [
        ("LD_LIBRARY_PATH", Root == "/" ? null : PathOf(Libraries)),
        ("LTDL_LIBRARY_PATH", PathOf(Libraries, "bochs/plugins")),
        ("TERM", "vt100"),
    ];

    private string PathOf(params string[] parts) => Path.Combine([Root, .. parts]);

    private static Bochs Find()
    {
        var installed = new Bochs("/");
        if (File.Exists(installed.Program))
        {
            return installed;
        }

        string folder = Repository.Folder("cache", "bochs");
        string stamp = Path.Combine(folder, "complete");
        CacheLock.MakeOnce(stamp, () =>
        {
            new AptCache().UnpackWithDependencies(folder, "bochs", "bochs-term", "bochsbios", "vgabios");
            CacheLock.WriteWhole(stamp, []);
        });
        return new Bochs(folder);
    }
}
