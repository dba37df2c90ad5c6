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
    /// The archive that L1 boots from where it cannot see the host's files. It brings its root: busybox and bash, the
    /// stock hypervisor's modules, some files with the libraries that they need, and the job's folder.
    /// </summary>
    public static byte[] ForL1Alone(L1Kernel kernel, Lane lane, IEnumerable<string> files, string jobFolder)
    {
        CpioArchive archive = Begin(("init", "l1-init.sh"));
        archive.AddFile("modules/list", []);
        var root = new RootFolder(archive, "root");
        foreach (string folder in (string[])["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/root", Repository.Root])
        {
            root.AddFolder(folder);
        }

        root.AddProgram("/bin/bash", Required("bash"));
        foreach (string file in files)
        {
            root.AddProgram(file, file);
        }

        root.AddFile("/bin/busybox", File.ReadAllBytes(Required("busybox")));
        root.AddModules(kernel, [lane.StockModule.Replace('-', '_'), "msr"]);
        foreach (string file in Directory.GetFiles(jobFolder))
        {
            root.AddFile($"/job/{Path.GetFileName(file)}", File.ReadAllBytes(file));
        }

        return archive.ToArray();
    }

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
        CpioArchive archive = Begin(programs);
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

    private static CpioArchive Begin(params (string Name, string Script)[] programs)
    {
        var archive = new CpioArchive();
        foreach (string folder in (string[])["bin", "dev", "proc", "sys", "host", "layer", "root", "modules"])
        {
            archive.AddFolder(folder);
        }

        archive.AddCharacterDevice("dev/console", 5, 1);
        archive.AddFile("bin/busybox", File.ReadAllBytes(Required("busybox")), executable: true);
        foreach ((string name, string script) in programs)
        {
            archive.AddFile(name, Encoding.UTF8.GetBytes(Script(script)), executable: true);
        }

        return archive;
    }

    private static string Required(string program) => Tool.Find(program)
        ?? throw new LabException($"{program} is missing: run tools/setup");
}
