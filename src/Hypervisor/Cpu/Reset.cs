// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>The state of a CPU after power-up (SDM vol. 3, table 9-1; APM vol. 2, table 14-1).</summary>
internal static class Reset<TVendor> where TVendor : struct, IVendor
{
    private const ushort DataAttributes = 0x93, CodeAttributes = 0x9b, LdtAttributes = 0x82, TssAttributes = 0x8b;
    private const uint Limit = 0xffff;
    private const ulong FamilyAndStepping = 0x600, PatDefault = 0x0007040600070406, NoTracing = 1 << 11 | 1 << 12;
    /// <summary>Lower than any update that Linux would warn about missing.</summary>
    private const ulong Microcode = 0x01000065;

    /// <summary>For a vCPU whose vendor part exists already.</summary>
    public static void PowerOn(ref Vcpu vcpu)
    {
        // Without entries nothing is wrong with them.
        vcpu.Cpuid.Derive();
        ref MsrState msrs = ref vcpu.Msrs;
        bool isBoot = vcpu.Id == vcpu.Vm.BootCpuId;
        msrs.ApicBase = ApicBase.DefaultAddress | ApicBase.Enable | (isBoot ? ApicBase.Bsp : 0);
        if (vcpu.HasApic && !isBoot)
            vcpu.MpState = MpState.Uninitialized;
        msrs.MiscEnable = NoTracing;
        msrs.MicrocodeRevision = Microcode;
        msrs.MtrrCap = MsrState.MtrrCapabilities;
        msrs.McgCap = MsrState.MaxBanks;
        vcpu.Shared.Xcr0 = 1;
        vcpu.Paravirt.PollControl = 1;
        TVendor.TrySetMsr(ref vcpu, Msr.Pat, PatDefault);
        Msrs<TVendor>.TrySet(ref vcpu, Msr.Tsc, 0, host: true);
        SetRegisters(ref vcpu);
        if (vcpu.HasApic)
            Apic<TVendor>.Reset(ref vcpu);
    }

    /// <summary>INIT: MSRs, the FPU, the time-stamp counter and CR0's cache bits stay as they are.</summary>
    public static void Init(ref Vcpu vcpu)
    {
        ulong cacheBits = TVendor.GetCr0(ref vcpu) & (Cr0.Cd | Cr0.Nw);
        vcpu.Registers = default;
        SetRegisters(ref vcpu);
        TVendor.SetCr0(ref vcpu, Cr0.Et | cacheBits);
        Msrs<TVendor>.TrySet(ref vcpu, KvmMsr.AsyncFault, 0, host: true);
        vcpu.Debug.Guest = default;
        Debugging<TVendor>.Apply(ref vcpu);
        vcpu.Events = new() { Cr8 = vcpu.Events.Cr8 };
        vcpu.Pending.Forget();
        TVendor.SetNmiMasked(ref vcpu, false);
        TVendor.SetInterruptShadow(ref vcpu, InterruptShadow.None);
        ControlRegisters<TVendor>.UpdateDependents(ref vcpu);
        Apic<TVendor>.Reset(ref vcpu);
    }

    private static void SetRegisters(ref Vcpu vcpu)
    {
        vcpu.Registers[Gpr.Rdx] = FamilyAndStepping;
        vcpu.Registers.Rip = 0xfff0;
        vcpu.Registers.Rflags = Rflags.Fixed;

        Segment data = new() { Attributes = DataAttributes, Limit = Limit };
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
            TVendor.SetSegment(ref vcpu, name, in data);
        TVendor.SetSegment(ref vcpu, SegmentName.Cs,
            new() { Selector = 0xf000, Base = 0xffff0000, Attributes = CodeAttributes, Limit = Limit });
        TVendor.SetSegment(ref vcpu, SegmentName.Ldtr, new() { Attributes = LdtAttributes, Limit = Limit });
        TVendor.SetSegment(ref vcpu, SegmentName.Tr, new() { Attributes = TssAttributes, Limit = Limit });
        TVendor.SetCpl(ref vcpu, 0);
        DescriptorTable table = new() { Limit = (ushort)Limit };
        TVendor.SetTable(ref vcpu, SegmentName.Gdtr, table);
        TVendor.SetTable(ref vcpu, SegmentName.Idtr, table);

        TVendor.SetEfer(ref vcpu, 0);
        TVendor.SetCr4(ref vcpu, 0);
        TVendor.SetCr3(ref vcpu, 0);
        TVendor.Cr2(ref vcpu) = 0;
        TVendor.SetCr0(ref vcpu, Cr0.Et | Cr0.Cd | Cr0.Nw);
        vcpu.Debug.Dr6 = 0;
        Debugging<TVendor>.SetDr7(ref vcpu, 0);
        Debugging<TVendor>.Apply(ref vcpu);
    }
}
