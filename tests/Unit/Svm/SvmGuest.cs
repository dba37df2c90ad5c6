// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Svm;
using SharpKvm.Tests.Cpu;
using SharpKvm.Tests.Host;

namespace SharpKvm.Tests.Svm;

/// <summary>A vCPU of an SVM host.</summary>
internal sealed class SvmGuest : ScriptedGuest<SvmVendor, Turn, Vmcb>
{
    private readonly SvmProcessor _processor;

    /// <param name="nextRip">Whether hardware tells where intercepted instructions end.</param>
    /// <param name="id">The vCPU's; 0 is the boot processor.</param>
    /// <param name="mode">Other than none: its local APIC is enabled by software.</param>
    /// <param name="shadow">Without nested paging.</param>
    public SvmGuest(bool nextRip = true, uint id = 0, IrqchipMode mode = IrqchipMode.None, bool shadow = false)
        : base(SvmHost(nextRip), SvmHardware.Probe(), id, mode, shadow)
    {
        _processor = new SvmProcessor(Host.Thread);
        Host.Thread.Guest = _ => _processor.Enter(ref Vmcb, ref Vcpu.Registers);
    }

    public override ScriptedProcessor<Turn, Vmcb> Processor => _processor;
    public ref Vmcb Vmcb => ref SvmVendor.Control(ref Vcpu);

    protected override void ReleaseHardware() => SvmHardware.Release();

    /// <summary>A host whose CPU is an AMD EPYC.</summary>
    public static SimulatedHost SvmHost(bool nextRip = true)
    {
        const uint NextRip = 1 << 3;
        SimulatedHost host = new();
        TestVcpu.FillCpuid(host.Cpu);
        if (!nextRip)
        {
            host.Cpu.Cpuid[(0x8000000a, 0)] = host.Cpu.Cpuid[(0x8000000a, 0)] with
            {
                Edx = host.Cpu.Cpuid[(0x8000000a, 0)].Edx & ~NextRip,
            };
        }
        host.Cpu.Msrs[Msr.Efer] = Efer.Sce | Efer.Lme | Efer.Lma | Efer.Nxe;
        host.Cpu.Msrs[Msr.VmCr] = 0;
        return host;
    }
}
