// SPDX-License-Identifier: GPL-2.0-only
using System.Security.Cryptography;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>
/// The emulator Bochs, which has VMX: version 3.0 of Debian 13, compiled once into <c>build/cache/bochs/KEY</c>.
/// Debian's own programs (2.7 and 3.0) do not serve: a guest that is entered with interrupts off keeps the host's
/// interrupts from ending it, for ever.
/// </summary>
/// <param name="Folder">Holds the program <c>bochs</c> and, below <c>usr</c>, its BIOS files.</param>
internal sealed record Bochs(string Folder)
{
    private const string Suite = "trixie";

    /// <summary>Where VMLAUNCH and VMRESUME enter the guest, and what is to happen there.</summary>
    private const string EntryFile = "cpu/vmx.cc", Entry = "  BX_CPU_THIS_PTR in_vmx_guest = true;\n",
        AfterEntry = "  handleInterruptMaskChange();\n";

    /// <summary>No display and no debugger: nothing that slows it down or wants libraries.</summary>
    private static readonly string[] Configuration =
    [
        "--with-nogui", "--without-x11", "--disable-plugins", "--disable-usb", "--disable-ne2000", "--disable-docbook",
        "--enable-cpu-level=6", "--enable-x86-64", "--enable-vmx=2", "--enable-svm", "--enable-fpu", "--enable-avx",
        "--enable-evex", "--enable-amx", "--enable-cet", "--enable-uintr", "--enable-protection-keys",
        "--enable-monitor-mwait", "--enable-perfmon", "--enable-memtype", "--enable-x86-debugger",
        "--enable-long-phy-address", "--enable-a20-pin", "--enable-pci", "--enable-large-ramfile",
        "--enable-all-optimizations", "CFLAGS=-O2", "CXXFLAGS=-O2",
    ];

    /// <summary>Another process may be compiling it.</summary>
    private static readonly TimeSpan Patience = TimeSpan.FromHours(1);

    private static readonly Lazy<Bochs> Compiled = new(Find);

    /// <summary>The one in the cache; the first call compiles it.</summary>
    /// <exception cref="LabException">Its source cannot be had, or does not compile.</exception>
    public static Bochs Best => Compiled.Value;

    /// <summary>The program.</summary>
    public string Program => Path.Combine(Folder, "bochs");

    /// <summary>The BIOS of the machine.</summary>
    public string Bios => Path.Combine(Folder, "usr/share/bochs/BIOS-bochs-latest");

    /// <summary>The BIOS of its display.</summary>
    public string DisplayBios => Path.Combine(Folder, "usr/share/vgabios/vgabios.bin");

    private static Bochs Find()
    {
        byte[] recipe = Encoding.UTF8.GetBytes(string.Join(' ', [Suite, AfterEntry, .. Configuration]));
        var bochs = new Bochs(
            Repository.Folder("cache", "bochs", Convert.ToHexStringLower(SHA256.HashData(recipe))[..8]));
        string complete = Path.Combine(bochs.Folder, "complete");
        CacheLock.MakeOnce(complete, () =>
        {
            bochs.Build();
            CacheLock.WriteWhole(complete, []);
        }, "bochs.lock", Patience);
        return bochs;
    }

    private void Build()
    {
        Console.Error.WriteLine("Bochs: compiling it, once: some minutes");
        var apt = new AptCache(Suite);
        string source = Path.Combine(Folder, "source");
        if (Directory.Exists(source))
        {
            // Somebody gave up.
            Directory.Delete(source, recursive: true);
        }

        Directory.CreateDirectory(source);
        Tool.Require("tar", ["-xf", apt.Source("bochs"), "-C", source, "--strip-components=1"]);
        string file = Path.Combine(source, EntryFile), text = File.ReadAllText(file);
        if (text.Split(Entry).Length != 2)
        {
            throw new LabException($"{EntryFile} of Bochs enters a guest in another way than was expected");
        }

        File.WriteAllText(file, text.Replace(Entry, Entry + AfterEntry));
        Tool.Require("/bin/sh", ["./configure", .. Configuration], source);
        Tool.Require("make", [$"-j{Environment.ProcessorCount}", "bochs"], source);
        File.Copy(Path.Combine(source, "bochs"), Program, overwrite: true);
        apt.Unpack(Folder, "bochsbios", "vgabios");
        Directory.Delete(source, recursive: true);
    }
}
