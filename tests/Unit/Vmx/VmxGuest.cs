// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Host;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>A vCPU of a VMX host.</summary>
internal sealed class VmxGuest : ScriptedGuest<VmxVendor, Turn, VmcsImage>
{
    private readonly VmxProcessor _processor;

    /// <param name="change">What the CPU has other than <see cref="Capabilities"/>.</param>
    /// <param name="id">The vCPU's; 0 is the boot processor.</param>
    /// <param name="mode">Other than none: its local APIC is enabled by software.</param>
    /// <param name="shadow">The VM has shadow tables, as that CPU needs them.</param>
    public VmxGuest(Action<SimulatedCpu>? change = null, uint id = 0, IrqchipMode mode = IrqchipMode.None,
        bool shadow = false)
        : base(VmxHost(change), VmxHardware.Probe(), id, mode, shadow)
    {
        _processor = new VmxProcessor(Host.Thread, Vmcs);
        Host.Thread.MsrTakes = 0;
        Host.Thread.Guest = _ => _processor.Enter(ref Vcpu.Shared);
    }

    public override ScriptedProcessor<Turn, VmcsImage> Processor => _processor;
    public VmcsImage Vmcs => new(Host.Cpu.Vmcs);

    protected override void ReleaseHardware() => VmxHardware.Release();

    /// <summary>
    /// A host whose CPU has these capability MSRs (SDM vol. 3, appendix A): a Skylake server's that Bochs emulates.
    /// </summary>
    public static SimulatedHost VmxHost(Action<SimulatedCpu>? change = null)
    {
        SimulatedHost host = new();
        TestVcpu.FillCpuid(host.Cpu);
        foreach ((uint msr, ulong value) in Capabilities)
            host.Cpu.Msrs[msr] = value;
        host.Cpu.Msrs[Msr.Efer] = HostEfer;
        change?.Invoke(host.Cpu);
        return host;
    }

    public const ulong HostEfer = Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe;

    /// <summary>Intel's first: neither EPT nor VPID, and no controls that load PAT or EFER.</summary>
    public static void Penryn(SimulatedCpu cpu)
    {
        (uint Msr, ulong Value)[] others =
        [
            (0x481, 0x0000003f_00000016), (0x482, 0xf7f9fffe_0401e172), (0x483, 0x4003ffff_00036dff),
            (0x484, 0x00003fff_000011ff), (0x48b, 0x00000041_00000000), (0x48d, 0x0000003f_00000016),
            (0x48e, 0xf7f9fffe_04006172), (0x48f, 0x4003ffff_00036dfb), (0x490, 0x00003fff_000011fb),
        ];
        foreach ((uint msr, ulong value) in others)
            cpu.Msrs[msr] = value;
        cpu.Msrs.Remove(0x48c);
    }

    public static readonly IReadOnlyList<(uint Msr, ulong Value)> Capabilities =
    [
        (0x03a, 5), (0x480, 0x00d81000_0000002b), (0x481, 0x000000ff_00000016), (0x482, 0xfff9fffe_0401e172),
        (0x483, 0x407fffff_00036dff), (0x484, 0x0000ffff_000011ff), (0x485, 0x600401e0), (0x486, 0x80000021),
        (0x487, 0xffffffff), (0x488, 0x2000), (0x489, 0x003727ff), (0x48b, 0x02577fff_00000000),
        (0x48c, 0x00000f01_06734141), (0x48d, 0x000000ff_00000016), (0x48e, 0xfff9fffe_04006172),
        (0x48f, 0x407fffff_00036dfb), (0x490, 0x0000ffff_000011fb),
    ];
}
