// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>What runs the guests in L1.</summary>
/// <param name="Name">For log names and people.</param>
/// <param name="Module">The module to load; stock kvm-amd when null.</param>
public sealed record Hypervisor(string Name, string? Module)
{
    /// <summary>The project's module.</summary>
    public static Hypervisor SharpKvm { get; } = new("sharpkvm", L1Kernel.Default.ModuleBuilt("sharpkvm"));

    /// <summary>Linux's own: the reference.</summary>
    public static Hypervisor Stock { get; } = new("stock", Module: null);

    /// <summary>Shell command that loads it for a QEMU: as <c>/dev/kvm</c> for one that knows no other.</summary>
    public string LoadFor(Emulator qemu) =>
        Module is not null && qemu.CanNameDevice ? $"insmod '{Module}'" : LoadAsKvm;

    /// <summary>Shell command that loads it as <c>/dev/kvm</c>.</summary>
    public string LoadAsKvm => Module is null ? "modprobe kvm-amd" : $"insmod '{Module}' devname=kvm";

    /// <summary>The shell command that takes it out again.</summary>
    public string Unload => $"rmmod '{(Module is null ? "kvm-amd" : Path.GetFileNameWithoutExtension(Module))}'";

    /// <summary>What QEMU's option <c>-accel</c> says after <see cref="LoadFor"/>.</summary>
    public string AcceleratorFor(Emulator qemu) =>
        Module is not null && qemu.CanNameDevice ? "kvm,device=/dev/sharpkvm" : "kvm";
}
