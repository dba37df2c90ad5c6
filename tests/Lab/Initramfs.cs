// SPDX-License-Identifier: GPL-2.0-only
using System.Text;

namespace SharpKvm.Lab;

/// <summary>Small root file systems in memory: busybox, an init script and a few modules.</summary>
public static class Initramfs
{
    /// <summary>What L1 needs to see the host's files.</summary>
    private static readonly string[] L1Modules = ["virtio_pci", "9p", "9pnet_virtio", "overlay"];

    /// <summary>What the L2 guest needs for its devices.</summary>
    private static readonly string[] L2Modules =
        ["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon"];

    /// <summary>The archive that L1 boots from.</summary>
    public static byte[] ForL1(L1Kernel kernel) => Build(kernel, L1Modules, ("init", "l1-init.sh"));

    /// <summary>
    /// The archive that the L2 guest boots from: it says what it sees and uses its devices, or with <c>/load</c> as its
    /// first process it fills and checks memory (<see cref="GuestLoad"/>).
    /// </summary>
    public static byte[] ForL2(L1Kernel kernel) =>
        Build(kernel, L2Modules, ("init", "l2-init.sh"), ("load", "l2-load.sh"));

    /// <summary>A script that is part of this library.</summary>
    internal static string Script(string name)
    {
        using Stream stream = typeof(Initramfs).Assembly.GetManifestResourceStream(name)!;
        return new StreamReader(stream).ReadToEnd();
    }

    private static byte[] Build(L1Kernel kernel, string[] modules, params (string Name, string Script)[] programs)
    {
        var archive = new CpioArchive();
        foreach (string folder in (string[])["bin", "dev", "proc", "sys", "host", "layer", "root", "modules"])
        {
            archive.AddFolder(folder);
        }

        archive.AddCharacterDevice("dev/console", 5, 1);
        string busybox = Tool.Find("busybox")
            ?? throw new LabException("busybox is missing: run tools/setup (package busybox-static)");
        archive.AddFile("bin/busybox", File.ReadAllBytes(busybox), executable: true);
        foreach ((string name, string script) in programs)
        {
            archive.AddFile(name, Encoding.UTF8.GetBytes(Script(script)), executable: true);
        }

        var list = new StringBuilder();
        foreach (string path in kernel.FilesFor(modules))
        {
            string name = Path.GetFileName(path).Split('.')[0] + ".ko";
            archive.AddFile($"modules/{name}", L1Kernel.Decompress(File.ReadAllBytes(path)));
            list.Append(name).Append('\n');
        }

        archive.AddFile("modules/list", Encoding.UTF8.GetBytes(list.ToString()));
        return archive.ToArray();
    }
}
