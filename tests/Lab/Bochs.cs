// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>
/// The emulator Bochs, which has VMX: Debian 13's, unpacked into the cache with all libraries that it needs. Version 2.7,
/// Debian 12's, never lets an interrupt end a guest that it entered with interrupts off.
/// </summary>
/// <param name="Root">The folder that holds <c>usr</c>.</param>
internal sealed record Bochs(string Root)
{
    private const string Suite = "trixie", Libraries = "usr/lib/x86_64-linux-gnu";

    private static readonly Lazy<Bochs> Unpacked = new(Unpack);

    /// <summary>The one in the cache.</summary>
    /// <exception cref="LabException">It cannot be had.</exception>
    public static Bochs Best => Unpacked.Value;

    /// <summary>
    /// The beginning of a shell command that runs it: the program itself, not the script that asks for a configuration,
    /// by the loader that belongs to its libraries.
    /// </summary>
    public string Command =>
        $"'{PathOf("usr/lib64/ld-linux-x86-64.so.2")}' --library-path '{PathOf(Libraries)}' '{PathOf("usr/bin/bochs-bin")}'";

    /// <summary>Where its parts lie that it loads by itself.</summary>
    public string Plugins => PathOf(Libraries, "bochs/plugins");

    /// <summary>The BIOS of the machine.</summary>
    public string Bios => PathOf("usr/share/bochs/BIOS-bochs-latest");

    /// <summary>The BIOS of its display.</summary>
    public string DisplayBios => PathOf("usr/share/vgabios/vgabios.bin");

    private string PathOf(params string[] parts) => Path.Combine([Root, .. parts]);

    private static Bochs Unpack()
    {
        string folder = Repository.Folder("cache", "bochs", Suite);
        string stamp = Path.Combine(folder, "complete");
        CacheLock.MakeOnce(stamp, () =>
        {
            new AptCache(Suite).UnpackWithDependencies(folder, "bochs", "bochs-term", "bochsbios", "vgabios");
            CacheLock.WriteWhole(stamp, []);
        });
        return new Bochs(folder);
    }
}
