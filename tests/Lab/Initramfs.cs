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
        ["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console"];

    /// <summary>The archive that L1 boots from.</summary>
    public static byte[] ForL1(L1Kernel kernel) => Build(kernel, Script("l1-init.sh"), L1Modules);

    /// <summary>The archive that the L2 guest boots from: it says what it sees and uses its devices.</summary>
    public static byte[] ForL2(L1Kernel kernel) => Build(kernel, Script("l2-init.sh"), L2Modules);

    /// <summary>A script that is part of this library.</summary>
    internal static string Script(string name)
    {
        using Stream stream = typeof(Initramfs).Assembly.GetManifestResourceStream(name)!;
        return new StreamReader(stream).ReadToEnd();
    }

    private static byte[] Build(L1Kernel kernel, string init, string[] modules)
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
        archive.AddFile("init", Encoding.UTF8.GetBytes(init), executable: true);

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
