// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>
/// The real thing: inside L1, Debian's unmodified QEMU boots Debian's unmodified kernel as the L2 guest, through
/// SeaBIOS, with interrupt controllers in QEMU. The guest says what it sees and powers off.
/// </summary>
public sealed record GuestBoot
{
    /// <summary>The section of the output that is the guest's console: the module is in, QEMU starts.</summary>
    public const string GuestSection = "guest";

    /// <summary>The section after it: QEMU has ended.</summary>
    public const string EndSection = "end";

    /// <summary>The last line of the guest's user space.</summary>
    public const string LastWord = "Guest done.";

    /// <summary>The module to load as <c>/dev/kvm</c>; stock kvm-amd when null.</summary>
    public required string? Module { get; init; }

    /// <summary>The time for L1, QEMU and guest together.</summary>
    public TimeSpan Timeout { get; init; } = TimeSpan.FromMinutes(4);

    /// <summary>The guest's memory in MiB.</summary>
    public int GuestMemoryMib { get; init; } = 512;

    /// <summary>More arguments for QEMU.</summary>
    public string QemuArguments { get; init; } = "";

    /// <summary>More for the guest's kernel command line.</summary>
    public string KernelParameters { get; init; } = "";

    /// <summary>Names the log.</summary>
    public string Name { get; init; } = "guest";

    /// <summary>The command that runs QEMU in L1, the guest's console being its standard output.</summary>
    public string QemuCommand()
    {
        L1Kernel kernel = L1Kernel.Default;
        string initramfs = Path.Combine(Repository.Folder("lab"), $"l2-{kernel.Version}.cpio");
        CacheLock.WriteWhole(initramfs, Initramfs.ForL2(kernel));
        // Stock KVM refuses the asynchronous page-fault MSR that QEMU 7.2 writes when its irqchip is in user space.
        string cpu = Module is null ? "host,kvm-asyncpf-int=off" : "host";
        return $"""
            qemu-system-x86_64 -accel kvm,kernel-irqchip=off -machine q35 -cpu {cpu} -m {GuestMemoryMib} \
                -nodefaults -no-user-config -display none -no-reboot -serial stdio \
                -kernel '{kernel.Image}' -initrd '{initramfs}' \
                -append 'console=ttyS0 panic=-1 {KernelParameters}' {QemuArguments}
            """;
    }

    /// <summary>The L1 run that does it.</summary>
    public L1Options ToOptions(Action<L1Source, string>? live = null)
    {
        string load = Module is null ? "modprobe kvm-amd" : $"insmod '{Module}' devname=kvm";
        string unload = Module is null ? "rmmod kvm-amd" : $"rmmod '{Path.GetFileNameWithoutExtension(Module)}'";
        return new L1Options
        {
            Name = Name,
            Timeout = Timeout,
            Live = live,
            Script = $"""
                {load} || exit 125
                ls -l /dev/kvm || exit 125
                echo ::{GuestSection}
                {QemuCommand()} </dev/null 2>/job/qemu.txt
                status=$?
                echo ::{EndSection}
                cat /job/qemu.txt
                {unload} || exit 126
                exit $status
                """,
        };
    }

    /// <summary>The guest's console, as QEMU printed it.</summary>
    public static IReadOnlyList<string> GuestConsole(L1Result result) => result.Section(GuestSection) ?? [];

    /// <summary>What <c>uname -a</c> said in the guest; null when the guest did not come to its end.</summary>
    public static string? GuestUname(L1Result result)
    {
        IReadOnlyList<string> console = GuestConsole(result);
        return console.Any(line => line.Contains(LastWord, StringComparison.Ordinal))
            ? console.LastOrDefault(line => line.StartsWith("Linux ", StringComparison.Ordinal))
            : null;
    }
}
