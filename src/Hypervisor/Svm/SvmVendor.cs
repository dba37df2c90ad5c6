// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Svm;

/// <summary>AMD SVM: the guest's state in its VMCB. Entry and exits are in <see cref="SvmExits"/>.</summary>
internal readonly struct SvmVendor : IVendor
{
    private const ulong NestedPaging = 1;
    private const ulong Cr0Cacheability = Cr0.Cd | Cr0.Nw;
    private const uint CrRead = 1, CrWrite = 1 << 16;

    public static ref Vmcb Control(ref Vcpu vcpu) => ref vcpu.Svm.Vmcb.Value;

    public static int CreateVcpu(ref Vcpu vcpu)
    {
        Hpa page = KernelPages.Allocate();
        if (page.IsNull)
            return Errno.ENOMEM;
        vcpu.Svm.VmcbPage = page;
        vcpu.Svm.Vmcb = KernelPages.Reference<Vmcb>(page);
        vcpu.Svm.Asid = AddressSpaces.Allocate();
        vcpu.Shared.ControlBlock = page.Value;

        ref Vmcb vmcb = ref Control(ref vcpu);
        vmcb.InterceptCr = CrWrite << 0 | CrWrite << 4 | CrWrite << 8;
        vmcb.InterceptDr = 0xff00ff | 0xff00ff00;
        UpdateDebug(ref vcpu);
        vmcb.Intercept3 = Intercept3.Intr | Intercept3.Nmi | Intercept3.Smi | Intercept3.Init | Intercept3.Rdpmc
            | Intercept3.Cpuid | Intercept3.Rsm | Intercept3.Invd | Intercept3.Hlt | Intercept3.Invlpga
            | Intercept3.Ioio | Intercept3.Msr | Intercept3.TaskSwitch | Intercept3.Shutdown;
        vmcb.Intercept4 = Intercept4.Vmrun | Intercept4.Vmmcall | Intercept4.Vmload | Intercept4.Vmsave
            | Intercept4.Stgi | Intercept4.Clgi | Intercept4.Skinit | Intercept4.Wbinvd | Intercept4.Monitor
            | Intercept4.Mwait | Intercept4.Xsetbv | Intercept4.Rdpru;
        vmcb.IopmBase = SvmHardware.Iopm.Value;
        UpdateMsrFilter(ref vcpu);
        vmcb.Asid = vcpu.Svm.Asid.Value;
        vmcb.TlbControl = FlushKind;
        vmcb.VirtualInterrupt = VirtualInterrupt.MaskHost;
        vmcb.Efer = Efer.Svme;
        // It collects the causes of the next #DB.
        vmcb.Dr6 = DebugBits.Dr6Fixed;
        if (!HasShadow(ref vcpu))
        {
            vmcb.NestedControl = NestedPaging;
            vmcb.NestedCr3 = vcpu.Vm.Memory.Root.Value;
            return Errno.Ok;
        }
        vmcb.InterceptCr |= CrRead << 3 | CrWrite << 3;
        vmcb.Intercept3 |= Intercept3.Invlpg;
        vmcb.Intercept5 = Intercept5.Invpcid;
        return vcpu.Shadow.Create();
    }

    private static bool HasShadow(ref Vcpu vcpu) => vcpu.Vm.Memory.Shadow.IsActive;

    public static void DestroyVcpu(ref Vcpu vcpu)
    {
        AddressSpaces.Free(vcpu.Svm.Asid);
        KernelPages.Free(vcpu.Svm.VmcbPage);
        vcpu.Svm = default;
    }

    [MethodImpl(AggressiveInlining)]
    public static Segment GetSegment(ref Vcpu vcpu, SegmentName name) => Control(ref vcpu)[name];

    public static void SetSegment(ref Vcpu vcpu, SegmentName name, in Segment segment)
    {
        ref Vmcb vmcb = ref Control(ref vcpu);
        vmcb[name] = segment;
        if (name == SegmentName.Ss)
            vmcb.Cpl = (byte)segment.Dpl;
    }

    public static DescriptorTable GetTable(ref Vcpu vcpu, SegmentName name)
    {
        Segment register = GetSegment(ref vcpu, name);
        return new() { Base = register.Base, Limit = (ushort)register.Limit };
    }

    public static void SetTable(ref Vcpu vcpu, SegmentName name, DescriptorTable table) =>
        SetSegment(ref vcpu, name, new() { Base = table.Base, Limit = table.Limit });

    public static bool Is64Bit(ref Vcpu vcpu) => Control(ref vcpu)[SegmentName.Cs].Long && (vcpu.Efer & Efer.Lma) != 0;

    public static int GetCpl(ref Vcpu vcpu) => Control(ref vcpu).Cpl;
    public static void SetCpl(ref Vcpu vcpu, int cpl) => Control(ref vcpu).Cpl = (byte)cpl;

    // A task switch that hardware carries out sets TS.
    public static ulong GetCr0(ref Vcpu vcpu) => vcpu.Svm.Cr0 & ~Cr0.Ts | Control(ref vcpu).Cr0 & Cr0.Ts;

    public static void SetCr0(ref Vcpu vcpu, ulong value)
    {
        vcpu.Svm.Cr0 = Control(ref vcpu).Cr0 = value;
        PagingChanged(ref vcpu);
    }

    public static ref ulong Cr2(ref Vcpu vcpu) => ref Control(ref vcpu).Cr2;
    public static ulong GetCr3(ref Vcpu vcpu) => HasShadow(ref vcpu) ? vcpu.Svm.Cr3 : Control(ref vcpu).Cr3;

    public static void SetCr3(ref Vcpu vcpu, ulong value)
    {
        vcpu.Svm.Cr3 = Control(ref vcpu).Cr3 = value;
        vcpu.Shadow.IsStale = true;
        FlushTlb(ref vcpu);
    }

    public static ulong GetCr4(ref Vcpu vcpu) => vcpu.Svm.Cr4;

    public static void SetCr4(ref Vcpu vcpu, ulong value)
    {
        vcpu.Svm.Cr4 = value;
        PagingChanged(ref vcpu);
    }

    public static void SetEfer(ref Vcpu vcpu, ulong value)
    {
        vcpu.Efer = value;
        PagingChanged(ref vcpu);
    }

    /// <summary>
    /// Hardware gets its control registers. Reads need no exit while the guest's agree, but with a shadow CR3's do, for
    /// which QEMU's emulation of SVM wants the intercept of CR0's.
    /// </summary>
    private static void PagingChanged(ref Vcpu vcpu)
    {
        ref Vmcb vmcb = ref Control(ref vcpu);
        ref SvmVcpu svm = ref vcpu.Svm;
        ulong guest = GetCr0(ref vcpu), cr0 = guest & ~Cr0Cacheability;
        // Without MCE a machine check of the host, taken in the guest, would be a shutdown.
        ulong cr4 = svm.Cr4 | Cr4.Mce, efer = vcpu.Efer | Efer.Svme;
        if (HasShadow(ref vcpu))
            ShadowVcpu.Adapt(ref cr0, ref cr4, ref efer);
        vmcb.Cr0 = cr0;
        vmcb.Cr4 = cr4;
        vmcb.Efer = efer;
        SetIntercept(ref vmcb.InterceptCr, CrRead << 0, cr0 != guest || HasShadow(ref vcpu));
        SetIntercept(ref vmcb.InterceptCr, CrRead << 4, cr4 != svm.Cr4);
        vcpu.Shadow.IsStale = true;
        FlushTlb(ref vcpu);
    }

    public static ulong GetDr7(ref Vcpu vcpu) => Control(ref vcpu).Dr7;
    public static void SetDr7(ref Vcpu vcpu, ulong value) => Control(ref vcpu).Dr7 = value;

    public static void UpdateDebug(ref Vcpu vcpu) => Control(ref vcpu).InterceptExceptions =
        vcpu.Debug.InterceptedExceptions | (HasShadow(ref vcpu) ? 1u << Vector.PageFault.Value : 0);

    // All bits of the other bitmap are set, and it is larger.
    public static void UpdateMsrFilter(ref Vcpu vcpu) =>
        Control(ref vcpu).MsrpmBase = (vcpu.Vm.MsrFilter.IsActive ? SvmHardware.Iopm : SvmHardware.Msrpm).Value;

    public static bool TryGetMsr(ref Vcpu vcpu, uint index, out ulong value)
    {
        ref ulong register = ref Switched(ref vcpu, index);
        bool exists = !Unsafe.IsNullRef(in register);
        value = exists ? register : 0;
        return exists;
    }

    public static bool TrySetMsr(ref Vcpu vcpu, uint index, ulong value)
    {
        ref ulong register = ref Switched(ref vcpu, index);
        if (Unsafe.IsNullRef(in register))
            return false;
        register = value;
        return true;
    }

    /// <summary>The place of an MSR that hardware switches; null of any other.</summary>
    private static ref ulong Switched(ref Vcpu vcpu, uint index)
    {
        ref Vmcb vmcb = ref Control(ref vcpu);
        switch (index)
        {
            case Msr.SysenterCs: return ref vmcb.SysenterCs;
            case Msr.SysenterEsp: return ref vmcb.SysenterEsp;
            case Msr.SysenterEip: return ref vmcb.SysenterEip;
            case Msr.Star: return ref vmcb.Star;
            case Msr.Lstar: return ref vmcb.Lstar;
            case Msr.Cstar: return ref vmcb.Cstar;
            case Msr.Sfmask: return ref vmcb.Sfmask;
            case Msr.FsBase: return ref vmcb[SegmentName.Fs].Base;
            case Msr.GsBase: return ref vmcb[SegmentName.Gs].Base;
            case Msr.KernelGsBase: return ref vmcb.KernelGsBase;
            case Msr.Pat: return ref vmcb.GuestPat;
            default: return ref Unsafe.NullRef<ulong>();
        }
    }

    public static void ApplyCpuid(ref Vcpu vcpu)
    {
        if (!vcpu.Cpuid.HasTscAux)
            Control(ref vcpu).Intercept4 |= Intercept4.Rdtscp;
    }

    public static void UpdateApic(ref Vcpu vcpu) { }

    public static void SetTimer(ref Vcpu vcpu, ulong target, ulong now, bool halts)
    {
        if (!halts)
            vcpu.Shared.Host.SetTimer(target);
    }

    public static void UpdateTscOffset(ref Vcpu vcpu) => Control(ref vcpu).TscOffset = vcpu.TscOffset;

    /// <summary>SVM has one shadow for both causes; STI stands for it, as the weaker promise.</summary>
    public static int GetInterruptShadow(ref Vcpu vcpu) =>
        (Control(ref vcpu).InterruptShadow & 1) != 0
            ? InterruptShadow.Sti | InterruptShadow.MovSs
            : InterruptShadow.None;

    public static void SetInterruptShadow(ref Vcpu vcpu, int shadow)
    {
        ref ulong state = ref Control(ref vcpu).InterruptShadow;
        state = state & ~1ul | (shadow != 0 ? 1ul : 0);
    }

    public static bool GetNmiMasked(ref Vcpu vcpu) => vcpu.Svm.NmiMasked || vcpu.Svm.IretRunning;

    public static void SetNmiMasked(ref Vcpu vcpu, bool masked)
    {
        vcpu.Svm.NmiMasked = masked;
        vcpu.Svm.IretRunning = false;
        ref Intercept3 intercepts = ref Control(ref vcpu).Intercept3;
        intercepts = masked ? intercepts | Intercept3.Iret : intercepts & ~Intercept3.Iret;
    }

    public static void FlushTlb(ref Vcpu vcpu)
    {
        Control(ref vcpu).TlbControl = FlushKind;
        vcpu.Shared.Flags |= EntryFlags.Flushes;
    }

    public static TlbControl FlushKind => SvmHardware.HasFlushByAsid ? TlbControl.FlushAsid : TlbControl.FlushAll;

    public static void OpenInterruptWindow(ref Vcpu vcpu) => SvmEvents.OpenInterruptWindow(ref Control(ref vcpu));

    /// <summary>Come back after the IRET, or after the instruction in the interrupt shadow.</summary>
    public static void OpenNmiWindow(ref Vcpu vcpu) =>
        vcpu.Svm.StepsOverIret |= vcpu.Svm.IretRunning || !vcpu.Svm.NmiMasked;

    public static uint Hypercall => Opcode.Vmmcall;

    public static bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end)
    {
        if (!SvmHardware.HasNextRip)
            return Instructions<SvmVendor>.TryFindEnd(ref vcpu, opcode, out end);
        end = Control(ref vcpu).NextRip;
        return true;
    }

    public static bool CanRun(ref Vcpu vcpu) => true;

    [MethodImpl(AggressiveInlining)] public static VcpuAction Step(ref Vcpu vcpu) => SvmExits.Step(ref vcpu);

    private static void SetIntercept(ref uint word, uint bits, bool on) => word = on ? word | bits : word & ~bits;
}
