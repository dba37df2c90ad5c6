// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>What runs the guests in L1.</summary>
/// <param name="Name">For log names and people.</param>
/// <param name="Module">The module to load; Linux's own when null.</param>
/// <param name="Lane">The machine that it runs on.</param>
public sealed record Hypervisor(string Name, string? Module, Lane Lane)
{
    /// <summary>The project's module.</summary>
    public static Hypervisor SharpKvm { get; } = SharpKvmOn(Lane.Default);

    /// <summary>The same without the CPU's nested paging.</summary>
    public static Hypervisor SharpKvmWithShadowTables { get; } =
        SharpKvm with { Name = "sharpkvm-shadow", Parameters = "npt=0" };

    /// <summary>Linux's own: the reference.</summary>
    public static Hypervisor Stock { get; } = StockOn(Lane.Default);

    /// <summary>The project's module on a kind of machine.</summary>
    public static Hypervisor SharpKvmOn(Lane lane) =>
        new(lane.LogName("sharpkvm"), L1Kernel.Default.ModuleBuilt("sharpkvm"), lane);

    /// <summary>Linux's own on a kind of machine.</summary>
    public static Hypervisor StockOn(Lane lane) => new(lane.LogName("stock"), Module: null, lane);

    /// <summary>For people.</summary>
    public string Title => Module is null ? $"stock {Lane.StockModule}" : Path.GetFileName(Module);

    /// <summary>The module's parameters.</summary>
    public string Parameters { get; init; } = "";

    /// <summary>Shell command that loads it for a QEMU: as <c>/dev/kvm</c> for one that knows no other.</summary>
    public string LoadFor(Emulator qemu) =>
        Module is not null && qemu.CanNameDevice ? $"insmod '{Module}' {Parameters}" : LoadAsKvm;

    /// <summary>Shell command that loads it as <c>/dev/kvm</c>.</summary>
    public string LoadAsKvm =>
        Module is null ? $"modprobe {Lane.StockModule}" : $"insmod '{Module}' devname=kvm {Parameters}";

    /// <summary>The shell command that takes it out again.</summary>
    public string Unload => $"rmmod '{(Module is null ? Lane.StockModule : Path.GetFileNameWithoutExtension(Module))}'";

    /// <summary>What QEMU's option <c>-accel</c> says after <see cref="LoadFor"/>.</summary>
    public string AcceleratorFor(Emulator qemu) =>
        Module is not null && qemu.CanNameDevice ? "kvm,device=/dev/sharpkvm" : "kvm";
}
