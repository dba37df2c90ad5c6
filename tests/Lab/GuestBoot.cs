// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>The board that QEMU builds around a guest.</summary>
public enum GuestBoard
{
    /// <summary>PCI Express, of 2009.</summary>
    Q35,

    /// <summary>PCI, of 1996.</summary>
    Pc,
}

/// <summary>Where a guest's interrupt controllers are.</summary>
public enum IrqChip
{
    /// <summary>All in the kernel: QEMU's default.</summary>
    On,

    /// <summary>The local APICs in the kernel; IOAPIC, PIC and PIT in QEMU.</summary>
    Split,

    /// <summary>All in QEMU.</summary>
    Off,
}

/// <summary>Which QEMU runs a guest.</summary>
public enum GuestQemu
{
    /// <summary><see cref="Emulator.Installed"/>.</summary>
    Installed,

    /// <summary><see cref="Emulator.Backports"/>.</summary>
    Backports,
}

/// <summary>
/// The real thing: inside L1, Debian's unmodified QEMU boots Debian's unmodified kernel as the L2 guest, through
/// SeaBIOS. The guest says what it sees, uses its devices and powers off.
/// </summary>
public sealed record GuestBoot
{
    /// <summary>The first line of the guest's user space.</summary>
    public const string FirstWord = "Hello from the guest's user space.";

    /// <summary>The last line of the guest's user space.</summary>
    public const string LastWord = "Guest done.";

    private static readonly Lazy<string> InitialFiles = new(WriteInitialFiles);

    /// <summary>The guest's board.</summary>
    public GuestBoard Board { get; init; } = GuestBoard.Q35;

    /// <summary>Where its interrupt controllers are.</summary>
    public IrqChip IrqChip { get; init; } = IrqChip.On;

    /// <summary>Its CPUs.</summary>
    public int Cpus { get; init; } = 2;

    /// <summary>The QEMU that runs it.</summary>
    public GuestQemu Qemu { get; init; } = GuestQemu.Installed;

    /// <summary>Gives it a disk, a network of QEMU's and one of the kernel's, and random numbers, all virtio.</summary>
    public bool Devices { get; init; }

    /// <summary>
    /// Has each of its CPUs fill so many blocks of <see cref="GuestLoad.BlockBytes"/> and check them without end,
    /// instead of booting to its end.
    /// </summary>
    public int LoadBlocks { get; init; }

    /// <summary>Its memory in MiB.</summary>
    public int MemoryMib { get; init; } = 512;

    /// <summary>What its console shows: each character costs exits to QEMU, few messages are worth it.</summary>
    public int LogLevel { get; init; } = 5;

    /// <summary>The time for QEMU from start to end.</summary>
    public TimeSpan Limit { get; init; } = TimeSpan.FromMinutes(4);

    /// <summary>Like <c>pc-split-2-backports</c>.</summary>
    public string Name => $"{Board}-{IrqChip}-{Cpus}-{Qemu}".ToLowerInvariant();

    /// <summary>The program for <see cref="Qemu"/>.</summary>
    public Emulator Emulator => Qemu == GuestQemu.Installed ? Emulator.Installed : Emulator.Backports;

    /// <summary>The kernel and what it boots from. One that unpacks itself takes minutes in Bochs.</summary>
    public IReadOnlyList<string> Files(Hypervisor hypervisor) =>
        [hypervisor.Lane.IsAlone ? L1Kernel.Debian.BootImage() : L1Kernel.Debian.Image, InitialFiles.Value];

    /// <summary>The command that runs QEMU in L1, the guest's console being its standard output.</summary>
    public string Command(Hypervisor hypervisor)
    {
        // Stock KVM refuses the asynchronous page-fault MSR that QEMU 7.2 writes when its irqchip is in user space.
        string cpu = hypervisor.Module is null && IrqChip == IrqChip.Off ? "host,kvm-asyncpf-int=off" : "host";
        string irqchip = IrqChip.ToString().ToLowerInvariant();
        string init = LoadBlocks > 0 ? $"rdinit=/load blocks={LoadBlocks} printk.devkmsg=on " : "";
        IReadOnlyList<string> files = Files(hypervisor);
        string devices = Devices ? GuestDevices.QemuArguments(Name) : "";
        return $"""
            {Emulator.Command} \
                -accel {hypervisor.AcceleratorFor(Emulator)},kernel-irqchip={irqchip} \
                -machine {Board.ToString().ToLowerInvariant()} -cpu {cpu} -smp {Cpus} -m {MemoryMib} \
                -nodefaults -no-user-config -display none -no-reboot -serial stdio \
                -kernel '{files[0]}' -initrd '{files[1]}' \
                -append '{init}console=ttyS0 panic=-1 loglevel={LogLevel}' {devices}
            """;
    }

    private static string WriteInitialFiles()
    {
        string path = Path.Combine(Repository.Folder("lab"), $"l2-{L1Kernel.Debian.Version}.cpio");
        CacheLock.WriteWhole(path, Initramfs.ForL2(L1Kernel.Debian));
        return path;
    }
}
