// SPDX-License-Identifier: GPL-2.0-only
using System.Security.Cryptography;
using System.Text;

namespace SharpKvm.Lab;

/// <summary>
/// The emulator Bochs, which has VMX: version 3.0 of Debian 13, compiled once into <c>build/cache/bochs/KEY</c>.
/// Debian's own programs (2.7 and 3.0) do not serve: a guest that is entered with interrupts off keeps the host's
/// interrupts from ending it, for ever, and posted interrupts cannot be used.
/// </summary>
/// <param name="Folder">Holds the program <c>bochs</c> and, below <c>usr</c>, its BIOS files.</param>
internal sealed record Bochs(string Folder)
{
    private const string Suite = "trixie";

    /// <summary>
    /// What is wrong in how it enters and leaves a guest, each text once in its file, and what is right.
    /// </summary>
    private static readonly (string File, string Wrong, string Right)[] Corrections =
    [
        // With external-interrupt exiting, the guest's IF masks nothing (SDM 27.6.1); whether it does was decided
        // before the processor knew that it is in a guest.
        (
            "cpu/vmx.cc",
            "  BX_CPU_THIS_PTR in_vmx_guest = true;\n",
            "  BX_CPU_THIS_PTR in_vmx_guest = true;\n  handleInterruptMaskChange();\n"
        ),
        // The posted-interrupt descriptor is aligned to 64 bytes (SDM 28.2.1.1), not to a page.
        (
            "cpu/vmx.cc",
            "if (! IsValidPageAlignedPhyAddr(vm->pid_addr)) {",
            "if (! IsValidPhyAddr(vm->pid_addr) || (vm->pid_addr & 63)) {"
        ),
        // A virtual interrupt waits for the guest's IF (SDM 30.2.2), also when one of the host's ends the turn.
        (
            "cpu/event.cc",
            "if (is_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR)) {",
            "if (is_unmasked_event_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR)) {"
        ),
        // An exit in the course of its delivery says so (SDM 28.2.4).
        (
            "cpu/vapic.cc",
            "    interrupt(vector, BX_EXTERNAL_INTERRUPT, 0, 0);\n",
            "    vm->idt_vector_error_code = 0;\n    vm->idt_vector_info = vector | (BX_EXTERNAL_INTERRUPT << 8);\n"
                + "    interrupt(vector, BX_EXTERNAL_INTERRUPT, 0, 0);\n"
        ),
        // With V_INTR_MASKING the guest's IF masks nothing of the host's (APM vol. 2, 15.21.1).
        (
            "cpu/svm.cc",
            "  BX_CPU_THIS_PTR in_svm_guest = true;\n",
            "  BX_CPU_THIS_PTR in_svm_guest = true;\n  if (SVM_V_INTR_MASKING && SVM_HOST_IF)\n"
                + "    unmask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR);\n"
        ),
        // A guest in virtual-8086 mode leaves its EFLAGS.VM to a host in long mode, where that is a panic.
        (
            "cpu/svm.cc",
            "  setEFlags(host->eflags & ~EFlagsVMMask);",
            "  BX_CPU_THIS_PTR eflags &= ~EFlagsVMMask;\n  setEFlags(host->eflags & ~EFlagsVMMask);"
        ),
    ];

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
    /// <exception cref="LaneMissingException">Its source cannot be had.</exception>
    /// <exception cref="LabException">It does not compile.</exception>
    public static Bochs Best => Compiled.Value;

    /// <summary>The program.</summary>
    public string Program => Path.Combine(Folder, "bochs");

    /// <summary>The BIOS of the machine.</summary>
    public string Bios => Path.Combine(Folder, "usr/share/bochs/BIOS-bochs-latest");

    /// <summary>The BIOS of its display.</summary>
    public string DisplayBios => Path.Combine(Folder, "usr/share/vgabios/vgabios.bin");

    private static Bochs Find()
    {
        IEnumerable<string> corrections = Corrections.Select(correction => correction.Right);
        byte[] recipe = Encoding.UTF8.GetBytes(string.Join(' ', [Suite, .. corrections, .. Configuration]));
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

    private static string Fetch(AptCache apt)
    {
        try
        {
            return apt.Source("bochs");
        }
        catch (LabException error)
        {
            throw new LaneMissingException($"the source of Bochs cannot be had: {error.Message}", error);
        }
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
        Tool.Require("tar", ["-xf", Fetch(apt), "-C", source, "--strip-components=1"]);
        foreach ((string file, string wrong, string right) in Corrections)
        {
            string path = Path.Combine(source, file), text = File.ReadAllText(path);
            File.WriteAllText(path, text.Split(wrong).Length == 2
                ? text.Replace(wrong, right)
                : throw new LabException($"Bochs's {file} is not what was expected: '{wrong.Trim()}'"));
        }

        Tool.Require("/bin/sh", ["./configure", .. Configuration], source);
        Tool.Require("make", [$"-j{Environment.ProcessorCount}", "bochs"], source);
        File.Copy(Path.Combine(source, "bochs"), Program, overwrite: true);
        apt.Unpack(Folder, "bochsbios", "vgabios");
        Directory.Delete(source, recursive: true);
    }
}
