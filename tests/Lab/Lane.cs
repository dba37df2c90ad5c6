// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Lab;

/// <summary>
/// The kind of machine that L1 is: which virtualization its processor has, and so which emulator plays it.
/// </summary>
/// <param name="Name">For command lines and log names.</param>
/// <param name="StockModule">Linux's own hypervisor for such a processor.</param>
public sealed record Lane(string Name, string StockModule)
{
    private const string Variable = "LAB_LANE";

    /// <summary>AMD's, with nested paging, in QEMU.</summary>
    public static Lane SvmNpt { get; } = new("svm-npt", "kvm-amd");

    /// <summary>AMD's first, without nested paging, in QEMU.</summary>
    public static Lane SvmShadow { get; } = new("svm-shadow", "kvm-amd") { CpuFeatures = ["-npt"] };

    /// <summary>AMD's, with nested paging, in Bochs: a second opinion.</summary>
    public static Lane SvmBochs { get; } = new("svm-bochs", "kvm-amd") { BochsModel = "ryzen" };

    /// <summary>Intel's, with extended page tables and unrestricted guests, in Bochs.</summary>
    public static Lane VmxEpt { get; } = new("vmx-ept", "kvm-intel") { BochsModel = "corei7_skylake_x" };

    /// <summary>Intel's whose extended page tables have no flags and no pages of 1 GiB, in Bochs.</summary>
    public static Lane VmxOld { get; } = new("vmx-old", "kvm-intel") { BochsModel = "corei7_sandy_bridge_2600k" };

    /// <summary>Intel's first, without both, in Bochs.</summary>
    public static Lane VmxShadow { get; } = new("vmx-shadow", "kvm-intel") { BochsModel = "core2_penryn_t9600" };

    /// <summary>All that there are.</summary>
    public static IReadOnlyList<Lane> All { get; } = [SvmNpt, SvmShadow, SvmBochs, VmxEpt, VmxOld, VmxShadow];

    /// <summary>The one that a run is on when it does not say: the environment's <c>LAB_LANE</c>, else SVM.</summary>
    public static Lane Default =>
        Environment.GetEnvironmentVariable(Variable) is { Length: > 0 } name ? Named(name) : SvmNpt;

    /// <summary>In what it differs from the processor that QEMU plays by itself.</summary>
    public IReadOnlyList<string> CpuFeatures { get; init; } = [];

    /// <summary>The processor, as Bochs calls it; null on a lane that QEMU plays.</summary>
    public string? BochsModel { get; init; }

    /// <summary>
    /// Why this machine cannot play the lane; null when it can. The first call makes the emulator, which takes minutes.
    /// </summary>
    public string? Missing
    {
        get
        {
            try
            {
                _ = BochsModel is null ? null : Bochs.Best;
                return null;
            }
            catch (LaneMissingException error)
            {
                return error.Message;
            }
        }
    }

    /// <summary>
    /// L1 sees no file of the host's but those that a run names (<see cref="L1Options.Files"/>), and has one CPU.
    /// </summary>
    public bool IsAlone => BochsModel is not null;

    /// <summary>How much longer things take than on the SVM lane, at worst.</summary>
    public int TimeFactor => BochsModel is null ? 1 : 6;

    /// <summary>For people.</summary>
    public string Title => BochsModel is null
        ? $"emulated AMD processor with SVM ({Emulator.Best.Name})"
        : $"emulated processor with virtualization (Bochs, {BochsModel})";

    /// <summary>A name for logs that tells lanes apart.</summary>
    public string LogName(string name) => this == SvmNpt ? name : $"{name}-{Name}";

    /// <summary>The lane of some name.</summary>
    /// <exception cref="LabException">There is none.</exception>
    public static Lane Named(string name) => All.FirstOrDefault(lane => lane.Name == name)
        ?? throw new LabException($"no lane is named '{name}': {string.Join(", ", All.Select(lane => lane.Name))}");
}
