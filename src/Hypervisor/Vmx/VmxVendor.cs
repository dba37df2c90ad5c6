// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Vmx;

/// <summary>
/// Intel VMX: the guest's state in its VMCS, which is loaded while any of this is called. Entry and exits are in
/// <see cref="VmxExits"/>.
/// </summary>
internal readonly struct VmxVendor : IVendor
{
    private const ulong Cr0Cacheability = Cr0.Cd | Cr0.Nw;
    /// <summary>
    /// Bits of CR4 that the guest changes without an exit, if its CPUID has them: of no consequence to anyone else.
    /// When PGE changes, hardware flushes by itself, but not shadow tables.
    /// </summary>
    private static ulong OwnedCr4 => Cr4.Pvi | Cr4.Tsd | Cr4.De | (VmxHardware.HasEpt ? Cr4.Pge : 0) | Cr4.Pce
        | Cr4.Osfxsr | Cr4.Osxmmexcpt | Cr4.Fsgsbase;
    private const uint Unusable = 1 << 16, BusyTss = 0xb, LongCode = 1 << 13;
    private const int EferPlace = 4;
    /// <summary>Pointer to the extended page tables: write-back, four levels (SDM vol. 3, 25.6.11).</summary>
    private const ulong EptWriteBack = 6, EptLevels = 3 << 3, EptAccessedDirty = 1 << 6;

    /// <summary>Fields that stay 0, or are written only when they change from that.</summary>
    private static ReadOnlySpan<VmcsField> Unused =>
    [
        VmcsField.GuestDebugCtl, VmcsField.PageFaultMask, VmcsField.PageFaultMatch, VmcsField.Cr3TargetCount,
        VmcsField.ExitStoreCount, VmcsField.ExitLoadCount, VmcsField.EntryLoadCount, VmcsField.EntryInterruption,
        VmcsField.EntryErrorCode, VmcsField.EntryInstructionLength, VmcsField.Interruptibility, VmcsField.Activity,
        VmcsField.PendingDebug, VmcsField.Rip, VmcsField.Rsp, VmcsField.Rflags, VmcsField.TprThreshold,
        VmcsField.SecondaryControls, VmcsField.InterruptStatus,
    ];

    public static int CreateVcpu(ref Vcpu vcpu)
    {
        Hpa page = KernelPages.Allocate();
        if (page.IsNull)
            return Errno.ENOMEM;
        ref VmxVcpu vmx = ref vcpu.Vmx;
        VmxHardware.Mark(page);
        vmx.VmcsPage = page;
        vmx.Asid = AddressSpaces.Allocate();
        if (vcpu.Vm.Memory.LogBit == NestedTables.Written)
        {
            vmx.Pml = KernelPages.Allocate();
            if (vmx.Pml.IsNull)
                return Errno.ENOMEM;
        }
        vmx.Primary = VmxHardware.Primary & ~PrimaryControls.TprShadow;
        if (vmx.Primary != VmxHardware.Primary && vcpu.HasApic)
        {
            bool hasPage = (VmxHardware.Secondary & SecondaryControls.ApicAccesses) != 0;
            if (hasPage && !vcpu.Vm.Memory.ApicAccess.TryCreate())
                return Errno.ENOMEM;
            vmx.Primary = VmxHardware.Primary & ~(PrimaryControls.Cr8Load | PrimaryControls.Cr8Store);
            vcpu.Apic.IsVirtual = VmxHardware.DeliversInterrupts;
            vcpu.Apic.IsPosted = VmxHardware.Posts;
        }
        vmx.Pin = VmxHardware.Pin & ~(vcpu.Apic.IsPosted ? 0 : PinControls.PostedInterrupts);
        vmx.Entry = VmxHardware.Entry;
        vcpu.Shared.ControlBlock = page.Value;
        vmx.EptPointer = vcpu.Vm.Memory.Root.Value | EptWriteBack | EptLevels
            | (Ept.HasAccessedDirty ? EptAccessedDirty : 0);
        vcpu.Shared.SyscallMsrs[EferPlace] = VmxHardware.Capability(Msr.Efer);
        vcpu.Shared.Host.Reload();
        WriteHostState();

        // What is in memory is no promise: every field that an entry looks at is written (SDM vol. 3, 25.11.3).
        foreach (VmcsField field in Unused)
            Vmcs.Write(field, 0);
        Vmcs.Write(VmcsField.PinControls, (uint)vmx.Pin);
        Vmcs.Write(VmcsField.PrimaryControls, (uint)vmx.Primary);
        Vmcs.Write(VmcsField.ExitControls, (uint)VmxHardware.Exit);
        Vmcs.Write(VmcsField.EntryControls, (uint)vmx.Entry);
        Vmcs.Write(VmcsField.VirtualApic, vcpu.Apic.Page.Value);
        Vmcs.Write(VmcsField.ApicAccess, vcpu.Vm.Memory.ApicAccess.Page.Value);
        Vmcs.Write(VmcsField.PostedDescriptor, vcpu.Apic.Page.Value + ApicPage.PostedOffset);
        Vmcs.Write(VmcsField.PostedVector, (uint)Posted.Vector);
        Vmcs.Write(VmcsField.PmlAddress, vmx.Pml.Value);
        Vmcs.Write(VmcsField.PmlIndex, VmxExits.LastLogged);
        Vmcs.Write(VmcsField.EptPointer, vmx.EptPointer);
        Vmcs.Write(VmcsField.Vpid, vmx.Vpid);
        // There is no VMCS for a guest's guests.
        Vmcs.Write(VmcsField.LinkPointer, ulong.MaxValue);
        // Changes of all other bits of CR0 and CR4 exit; reads find what the guest believes. See ApplyCpuid.
        Vmcs.Write(VmcsField.Cr0Mask, ~Cr0.Ts);
        Vmcs.Write(VmcsField.Cr4Mask, ulong.MaxValue);
        UpdateMsrFilter(ref vcpu);
        FlushTlb(ref vcpu);
        return VmxHardware.HasEpt ? Errno.Ok : vcpu.Shadow.Create();
    }

    /// <summary>What the host gets back at each exit, as far as it is the same on all CPUs and always.</summary>
    private static void WriteHostState()
    {
        // Linux's selectors of ES, CS, SS, DS, FS, GS and TR.
        ReadOnlySpan<byte> selectors = [0, 0x10, 0x18, 0, 0, 0, 0x40];
        for (int i = 0; i < selectors.Length; i++)
            Vmcs.Write(VmcsField.HostSelector + 2 * (uint)i, selectors[i]);
        Vmcs.Write(VmcsField.HostCr0, HostCpu.ReadCr0() & ~Cr0.Ts);
        Vmcs.Write(VmcsField.HostPat, VmxHardware.Capability(Msr.Pat));
        Vmcs.Write(VmcsField.HostEfer, VmxHardware.Capability(Msr.Efer));
        Vmcs.Write(VmcsField.HostSysenterCs, VmxHardware.Capability(Msr.SysenterCs));
        Vmcs.Write(VmcsField.HostSysenterEip, VmxHardware.Capability(Msr.SysenterEip));
    }

    public static void DestroyVcpu(ref Vcpu vcpu)
    {
        AddressSpaces.Free(vcpu.Vmx.Asid);
        if (!vcpu.Vmx.VmcsPage.IsNull)
        {
            vcpu.Shared.Host.ForgetVmcs();
            vcpu.Shared.ControlBlock = 0;
            KernelPages.Free(vcpu.Vmx.VmcsPage);
        }
        KernelPages.Free(vcpu.Vmx.Pml);
        vcpu.Vmx = default;
    }

    /// <summary>Access rights have descriptor bits 52-55 four places higher than <see cref="Segment"/> has.</summary>
    public static Segment GetSegment(ref Vcpu vcpu, SegmentName name)
    {
        uint rights = (uint)Vmcs.Read(Vmcs.Of(VmcsField.AccessRights, name));
        uint attributes = rights & 0xff | rights >> 4 & 0xf00;
        if ((rights & Unusable) != 0)
            attributes &= ~(uint)Segment.PresentBit;
        return new()
        {
            Selector = (ushort)Vmcs.Read(Vmcs.Of(VmcsField.Selector, name)),
            Attributes = (ushort)attributes,
            Limit = (uint)Vmcs.Read(Vmcs.Of(VmcsField.Limit, name)),
            Base = Vmcs.Read(Vmcs.Of(VmcsField.Base, name)),
        };
    }

    public static void SetSegment(ref Vcpu vcpu, SegmentName name, in Segment segment)
    {
        uint rights = segment.Attributes & 0xffu | (segment.Attributes & 0xf00u) << 4;
        vcpu.Vmx.StateUnchecked = true;
        Vmcs.Write(Vmcs.Of(VmcsField.Selector, name), segment.Selector);
        Vmcs.Write(Vmcs.Of(VmcsField.AccessRights, name), segment.Present ? rights : rights | Unusable);
        Vmcs.Write(Vmcs.Of(VmcsField.Limit, name), segment.Limit);
        Vmcs.Write(Vmcs.Of(VmcsField.Base, name), segment.Base);
    }

    public static DescriptorTable GetTable(ref Vcpu vcpu, SegmentName name) => new()
    {
        Base = Vmcs.Read(Vmcs.Of(VmcsField.Base, name)), Limit = (ushort)Vmcs.Read(Vmcs.Of(VmcsField.Limit, name)),
    };

    public static void SetTable(ref Vcpu vcpu, SegmentName name, DescriptorTable table)
    {
        Vmcs.Write(Vmcs.Of(VmcsField.Base, name), table.Base);
        Vmcs.Write(Vmcs.Of(VmcsField.Limit, name), table.Limit);
    }

    public static bool Is64Bit(ref Vcpu vcpu) => (vcpu.Vmx.Entry & EntryControls.LongMode) != 0
        && (Vmcs.Read(Vmcs.Of(VmcsField.AccessRights, SegmentName.Cs)) & LongCode) != 0;

    private static VmcsField StackRights => Vmcs.Of(VmcsField.AccessRights, SegmentName.Ss);

    /// <summary>The CPL is SS's DPL, also when SS is not usable (SDM vol. 3, 25.4.1).</summary>
    public static int GetCpl(ref Vcpu vcpu) => (int)(Vmcs.Read(StackRights) >> Segment.DplShift) & 3;

    public static void SetCpl(ref Vcpu vcpu, int cpl) => Vmcs.Write(StackRights,
        Vmcs.Read(StackRights) & ~(3ul << Segment.DplShift) | (ulong)cpl << Segment.DplShift);

    public static ulong GetCr0(ref Vcpu vcpu) =>
        vcpu.Vmx.Cr0 & ~Cr0.Ts | Vmcs.Read(VmcsField.Cr0) & Cr0.Ts;

    public static void SetCr0(ref Vcpu vcpu, ulong value)
    {
        vcpu.Vmx.Cr0 = value;
        vcpu.Vmx.StateUnchecked = true;
        Vmcs.Write(VmcsField.Cr0Shadow, value);
        Vmcs.Write(VmcsField.Cr0, value);
        ModeChanged(ref vcpu);
    }

    public static ref ulong Cr2(ref Vcpu vcpu) => ref vcpu.Shared.Cr2;
    public static ulong GetCr3(ref Vcpu vcpu) => VmxHardware.HasEpt ? Vmcs.Read(VmcsField.Cr3) : vcpu.Vmx.Cr3;

    public static void SetCr3(ref Vcpu vcpu, ulong value)
    {
        vcpu.Vmx.Cr3 = value;
        Vmcs.Write(VmcsField.Cr3, value);
        PagingChanged(ref vcpu);
    }

    public static ulong GetCr4(ref Vcpu vcpu) => vcpu.Vmx.Cr4 & ~OwnedCr4 | Vmcs.Read(VmcsField.Cr4) & OwnedCr4;

    public static void SetCr4(ref Vcpu vcpu, ulong value)
    {
        vcpu.Vmx.Cr4 = value;
        Vmcs.Write(VmcsField.Cr4Shadow, value);
        Vmcs.Write(VmcsField.Cr4, value);
        ModeChanged(ref vcpu);
    }

    public static void SetEfer(ref Vcpu vcpu, ulong value)
    {
        ref VmxVcpu vmx = ref vcpu.Vmx;
        vcpu.Efer = value;
        EntryControls others = vmx.Entry & ~EntryControls.LongMode;
        vmx.Entry = (value & Efer.Lma) != 0 ? others | EntryControls.LongMode : others;
        Vmcs.Write(VmcsField.EntryControls, (uint)vmx.Entry);
        vcpu.Shared.Host.Reload();
        vcpu.Shared.Set(EntryFlags.Syscalls, (value & Efer.Lma) != 0);
        ChooseMsrBitmap(ref vcpu);
        // In long mode an entry takes no other task than a busy one of 64 bits, and a guest may have loaded none.
        VmcsField task = Vmcs.Of(VmcsField.AccessRights, SegmentName.Tr);
        if ((value & Efer.Lma) != 0)
            Vmcs.Write(task, Vmcs.Read(task) | BusyTss);
        if (!VmxHardware.HasEpt)
        {
            ref ulong real = ref SyscallMsr(ref vcpu, EferPlace);
            real = real & ~Efer.Sce | value & Efer.Sce;
        }
        ModeChanged(ref vcpu);
    }

    /// <summary>Hardware gets its control registers.</summary>
    private static void ModeChanged(ref Vcpu vcpu)
    {
        // Without MCE a machine check of the host, taken in the guest, would be a shutdown.
        ulong cr0 = GetCr0(ref vcpu) & ~Cr0Cacheability, cr4 = GetCr4(ref vcpu) | Cr4.Mce, efer = vcpu.Efer;
        if (!VmxHardware.HasEpt)
            ShadowVcpu.Adapt(ref cr0, ref cr4, ref efer);
        Vmcs.Write(VmcsField.Cr0, cr0 | VmxHardware.Cr0Fixed);
        Vmcs.Write(VmcsField.Cr4, cr4 | VmxHardware.Cr4Fixed);
        Vmcs.Write(VmcsField.GuestEfer, efer);
        PagingChanged(ref vcpu);
    }

    private static void PagingChanged(ref Vcpu vcpu)
    {
        vcpu.Vmx.PdptesStale = vcpu.Shadow.IsStale = true;
        FlushTlb(ref vcpu);
    }

    /// <summary>
    /// Reads the PDPTEs of PAE paging as a MOV to CR3 does (SDM vol. 3, 4.4.1). An entry with reserved bits, which the
    /// CPU would refuse, counts as absent.
    /// </summary>
    public static void LoadPdptes(ref Vcpu vcpu)
    {
        const ulong Present = 1, Reserved = 0x1e6, Aligned = 0xffff_ffe0;
        ref VmxVcpu vmx = ref vcpu.Vmx;
        vmx.PdptesStale = false;
        if ((vmx.Cr0 & Cr0.Pg) == 0 || (vmx.Cr4 & Cr4.Pae) == 0 || (vcpu.Efer & Efer.Lma) != 0)
            return;
        for (uint i = 0; i < 4; i++)
        {
            Gpa address = new((GetCr3(ref vcpu) & Aligned) + 8 * i);
            bool read = GuestMemory.TryRead(ref vcpu.Vm, address, out ulong entry);
            bool valid = read && (entry & Present) != 0 && (entry & (Reserved | vcpu.Cpuid.ReservedGpa)) == 0;
            Vmcs.Write(VmcsField.GuestPdpte + 2 * i, valid ? entry : 0);
        }
    }

    public static ulong GetDr7(ref Vcpu vcpu) => Vmcs.Read(VmcsField.Dr7);
    public static void SetDr7(ref Vcpu vcpu, ulong value) => Vmcs.Write(VmcsField.Dr7, value);

    public static void UpdateDebug(ref Vcpu vcpu) => Vmcs.Write(VmcsField.ExceptionBitmap,
        vcpu.Debug.InterceptedExceptions | (VmxHardware.HasEpt ? 0 : 1u << Vector.PageFault.Value));

    // Without a bitmap every access exits.
    public static void UpdateMsrFilter(ref Vcpu vcpu) =>
        SetControl(ref vcpu, PrimaryControls.MsrBitmap, !vcpu.Vm.MsrFilter.IsActive);

    private static void ChooseMsrBitmap(ref Vcpu vcpu) => Vmcs.Write(VmcsField.MsrBitmap, VmxHardware.MsrBitmaps[
        (vcpu.Apic.HasVirtualMsrs ? 1 : 0)
        + ((vcpu.Shared.Flags & EntryFlags.Syscalls) != 0 ? 2 : 0)].Value);

    public static bool TryGetMsr(ref Vcpu vcpu, uint index, out ulong value)
    {
        VmcsField field = FieldOf(index);
        if (field != default)
            value = Vmcs.Read(field);
        else if (index is Msr.Cstar or Msr.Pat)
            value = index == Msr.Cstar ? vcpu.Vmx.Cstar : vcpu.Vmx.Pat;
        else if (TryFindSyscallMsr(index, out int place))
            value = SyscallMsr(ref vcpu, place);
        else
        {
            value = 0;
            return false;
        }
        return true;
    }

    public static bool TrySetMsr(ref Vcpu vcpu, uint index, ulong value)
    {
        VmcsField field = FieldOf(index);
        if (field != default)
            Vmcs.Write(field, value);
        else if (index == Msr.Cstar)
            vcpu.Vmx.Cstar = value;
        else if (index == Msr.Pat)
            Vmcs.Write(VmcsField.GuestPat, vcpu.Vmx.Pat = value);
        else if (TryFindSyscallMsr(index, out int place))
            SyscallMsr(ref vcpu, place) = value;
        else
            return false;
        return true;
    }

    private static VmcsField FieldOf(uint msr) => msr switch
    {
        Msr.SysenterCs => VmcsField.SysenterCs,
        Msr.SysenterEsp => VmcsField.SysenterEsp,
        Msr.SysenterEip => VmcsField.SysenterEip,
        Msr.FsBase => Vmcs.Of(VmcsField.Base, SegmentName.Fs),
        Msr.GsBase => Vmcs.Of(VmcsField.Base, SegmentName.Gs),
        _ => default,
    };

    private static bool TryFindSyscallMsr(uint msr, out int place)
    {
        place = msr switch { Msr.Star => 0, Msr.Lstar => 1, Msr.Sfmask => 2, Msr.KernelGsBase => 3, _ => -1 };
        return place >= 0;
    }

    /// <summary>
    /// It is on the CPU while the guest runs, so it is fetched first, and goes back with the next entry.
    /// </summary>
    private static ref ulong SyscallMsr(ref Vcpu vcpu, int place)
    {
        vcpu.Shared.Host.Reload();
        return ref vcpu.Shared.SyscallMsrs[place];
    }

    public static void ApplyCpuid(ref Vcpu vcpu)
    {
        UpdateApic(ref vcpu);
        Vmcs.Write(VmcsField.Cr4Mask, ~(OwnedCr4 & vcpu.Cpuid.Cr4Allowed));
    }

    /// <summary>
    /// Of the two ways to the virtual-APIC page one is on at most: by the APIC-access page or by MSRs. The end of an
    /// interrupt exits if the chips wait for it, or if it was level-triggered.
    /// </summary>
    public static void UpdateApic(ref Vcpu vcpu)
    {
        const SecondaryControls Virtual = SecondaryControls.ApicRegisters | SecondaryControls.InterruptDelivery;
        ref Lapic apic = ref vcpu.Apic;
        if (vcpu.HasApic && (apic.Mode != ApicMode.Xapic || !vcpu.OwnsApicPage(ApicAccess.Address)))
            ApicAccess.End(ref vcpu.Vm);
        ChooseMsrBitmap(ref vcpu);
        for (int i = 0; apic.IsVirtual && i < VectorSet.Words; i++)
            Vmcs.Write(VmcsField.EoiExits + 2 * (uint)i, vcpu.Vm.Irqchip.EoiVectors[i] | apic.Levels(i));
        SecondaryControls absent = (vcpu.Vmx.Asid.IsOwn ? 0 : SecondaryControls.Vpid)
            | (apic.HasVirtualMsrs ? 0 : SecondaryControls.X2apic) | (apic.IsVirtual ? 0 : Virtual)
            | (vcpu.Vmx.HasTpr && apic.Mode == ApicMode.Xapic ? 0 : SecondaryControls.ApicAccesses)
            | (vcpu.Vmx.Pml.IsNull ? SecondaryControls.Pml : 0)
            | (vcpu.Cpuid.HasTscAux ? 0 : SecondaryControls.Rdtscp)
            | (vcpu.Cpuid.Has(Feature.Invpcid) ? 0 : SecondaryControls.Invpcid);
        SecondaryControls wanted = VmxHardware.Secondary & ~absent;
        if (wanted == vcpu.Vmx.Secondary)
            return;
        Vmcs.Write(VmcsField.SecondaryControls, (uint)(vcpu.Vmx.Secondary = wanted));
        // Translations say whether a page is the APIC-access page.
        FlushTlb(ref vcpu);
    }

    public static void UpdateTscOffset(ref Vcpu vcpu) => Vmcs.Write(VmcsField.TscOffset, vcpu.TscOffset);

    /// <summary>
    /// The preemption timer ends the guest's turn, which spares the host an interrupt; it counts while the guest runs,
    /// so that a vCPU that halts needs the host's.
    /// </summary>
    public static void SetTimer(ref Vcpu vcpu, ulong target, ulong now, bool halts)
    {
        ref VmxVcpu vmx = ref vcpu.Vmx;
        bool counted = vmx.Deadline != 0;
        if (halts && !counted)
            return;
        vmx.Deadline = 0;
        if (!halts && target != 0 && VmxHardware.TimerShift >= 0)
        {
            const ulong Longest = 1_000_000_000;
            ulong left = target > now ? Math.Min(target - now, Longest) : 0;
            vmx.Deadline = HostCpu.Tsc() + left * HostCpu.TscKhz() / 1_000_000 + 1;
        }
        if (counted != (vmx.Deadline != 0))
            Vmcs.Write(VmcsField.PinControls,
                (uint)(vmx.Deadline != 0 ? vmx.Pin | PinControls.PreemptionTimer : vmx.Pin));
        bool host = vmx.Deadline == 0 && target != 0;
        if (host || vmx.HostTimer)
            vcpu.Shared.Host.SetTimer(host ? target : 0);
        vmx.HostTimer = host;
    }

    /// <summary>The two causes stand the other way round in KVM_X86_SHADOW_INT_*.</summary>
    public static int GetInterruptShadow(ref Vcpu vcpu)
    {
        ulong state = Vmcs.Read(VmcsField.Interruptibility);
        return ((state & Interruptibility.Sti) != 0 ? InterruptShadow.Sti : 0)
            | ((state & Interruptibility.MovSs) != 0 ? InterruptShadow.MovSs : 0);
    }

    /// <summary>
    /// Both at once is no state of the CPU: STI stands for them, as the weaker promise, unless IF rules it out.
    /// </summary>
    [MethodImpl(AggressiveInlining)] public static void SetInterruptShadow(ref Vcpu vcpu, int shadow)
    {
        bool sti = (shadow & InterruptShadow.Sti) != 0 && (vcpu.Registers.Rflags & Rflags.If) != 0;
        SetInterruptibility(Interruptibility.Sti | Interruptibility.MovSs,
            sti ? Interruptibility.Sti : shadow != InterruptShadow.None ? Interruptibility.MovSs : 0);
    }

    public static bool GetNmiMasked(ref Vcpu vcpu) =>
        (Vmcs.Read(VmcsField.Interruptibility) & Interruptibility.Nmi) != 0;

    public static void SetNmiMasked(ref Vcpu vcpu, bool masked) =>
        SetInterruptibility(Interruptibility.Nmi, masked ? Interruptibility.Nmi : 0);

    [MethodImpl(AggressiveInlining)] private static void SetInterruptibility(ulong mask, ulong bits)
    {
        ulong old = Vmcs.Read(VmcsField.Interruptibility), state = old & ~mask | bits;
        if (state != old)
            Vmcs.Write(VmcsField.Interruptibility, state);
    }

    public static void FlushTlb(ref Vcpu vcpu) => vcpu.Shared.Flags |= EntryFlags.Flushes;

    public static void OpenInterruptWindow(ref Vcpu vcpu) =>
        SetControl(ref vcpu, PrimaryControls.InterruptWindow, true);

    public static void OpenNmiWindow(ref Vcpu vcpu) => SetControl(ref vcpu, PrimaryControls.NmiWindow, true);

    public static void SetControl(ref Vcpu vcpu, PrimaryControls control, bool on)
    {
        ref PrimaryControls primary = ref vcpu.Vmx.Primary;
        PrimaryControls wanted = on ? primary | control : primary & ~control;
        if (wanted == primary)
            return;
        primary = wanted;
        Vmcs.Write(VmcsField.PrimaryControls, (uint)wanted);
    }

    public static uint Hypercall => Opcode.Vmcall;

    public static bool TryFindEnd(ref Vcpu vcpu, uint opcode, out ulong end)
    {
        end = FindEnd(ref vcpu);
        return true;
    }

    /// <summary>RIP behind the instruction that has exited.</summary>
    [MethodImpl(AggressiveInlining)] public static ulong FindEnd(ref Vcpu vcpu)
    {
        ulong start = vcpu.Registers.Rip, end = start + Vmcs.Read(VmcsField.InstructionLength);
        // Only 64-bit code goes on beyond 4 GiB; other code wraps.
        return (end ^ start) >> 32 == 0 || Is64Bit(ref vcpu) ? end : (uint)end;
    }

    [MethodImpl(AggressiveInlining)] public static bool CanRun(ref Vcpu vcpu) =>
        VmxHardware.IsUnrestricted || !vcpu.Vmx.StateUnchecked || CheckState(ref vcpu);

    private static bool CheckState(ref Vcpu vcpu)
    {
        bool enterable = GuestState.IsEnterable(ref vcpu);
        vcpu.Vmx.StateUnchecked = !enterable;
        return enterable;
    }

    [MethodImpl(AggressiveInlining)] public static VcpuAction Step(ref Vcpu vcpu) => VmxExits.Step(ref vcpu);
}
