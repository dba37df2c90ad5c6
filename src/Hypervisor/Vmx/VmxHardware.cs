// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vmx;

/// <summary>What all VMX guests share: the CPU's capabilities, the controls that follow, the MSR bitmap.</summary>
internal static class VmxHardware
{
    private const uint MsrFeatureControl = 0x3a, MsrBasic = 0x480, MsrMisc = 0x485, MsrCr0Fixed0 = 0x486,
        MsrCr4Fixed0 = 0x488, MsrSecondary = 0x48b, MsrEptVpid = 0x48c, MsrTrueOffset = 0xc;
    private const ulong TrueControls = 1ul << 55, FeatureLock = 1 << 0, FeatureVmx = 1 << 2;
    /// <summary>Of EPT_VPID_CAP: four levels, write-back tables, 2 MiB pages, INVEPT by context.</summary>
    private const ulong EptNeeded = 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20 | 1 << 25;
    private const ulong EptHuge = 1 << 17, EptAccessedDirty = 1 << 21, Invvpid = 1ul << 32, InvvpidSingle = 1ul << 41;

    public static PinControls Pin;
    public static PrimaryControls Primary;
    public static SecondaryControls Secondary;
    public static ExitControls Exit;
    public static EntryControls Entry;
    /// <summary>Bits that hardware wants set in CR0 and CR4 while a guest runs.</summary>
    public static ulong Cr0Fixed, Cr4Fixed;
    /// <summary>
    /// MSR bitmaps (4 KiB each): what guests access without an exit. Odd ones: an x2APIC's registers, too, which the
    /// CPU has; the last two: in long mode, when KERNEL_GS_BASE is the guest's (<see cref="EntryFlags.Syscalls"/>).
    /// </summary>
    public static InlineArray4<Hpa> MsrBitmaps;
    /// <summary>Ticks of the TSC, as a power of two, in one of the preemption timer's; -1: it has none.</summary>
    public static int TimerShift;

    /// <summary>Guests run without paging and in real mode, too.</summary>
    public static bool IsUnrestricted => (Secondary & SecondaryControls.UnrestrictedGuest) != 0;

    /// <summary>Otherwise they have shadow tables.</summary>
    public static bool HasEpt => (Secondary & SecondaryControls.Ept) != 0;

    /// <summary>
    /// The CPU delivers the interrupts of local APICs, and has their registers. The emulator of real mode delivers them
    /// itself.
    /// </summary>
    public static bool DeliversInterrupts => (Secondary & SecondaryControls.InterruptDelivery) != 0;

    /// <summary>Also those that others send while the guest runs.</summary>
    public static bool Posts => (Pin & PinControls.PostedInterrupts) != 0;

    private static uint s_revision;
    /// <summary>The first of the capability MSRs of controls.</summary>
    private static uint s_controls;

    /// <summary>At load: 0, ENODEV when the CPU or firmware has no usable VMX, ENOMEM.</summary>
    public static int Probe()
    {
        if (!IsAllowed(out ulong control))
        {
            Log.Error("VMX is disabled by the firmware: enable it in the BIOS setup; FEATURE_CONTROL\0"u8, control);
            return Errno.ENODEV;
        }
        if ((HostCpu.ReadCr4() & Cr4.Vmxe) != 0)
        {
            Log.Error("another hypervisor uses VMX on this CPU; CR4\0"u8, HostCpu.ReadCr4());
            return Errno.EBUSY;
        }
        ulong basic = Capability(MsrBasic);
        s_revision = (uint)basic & ~(1u << 31);
        ulong ept = Parameters.NestedPaging() ? Capability(MsrEptVpid) : 0;
        if ((ept & EptNeeded) != EptNeeded)
            ept = 0;
        if (!TryChooseControls((basic & TrueControls) != 0, ept != 0))
            return Errno.ENODEV;
        Ept.LargestLevel = (ept & EptHuge) != 0 ? 3 : 2;
        Ept.HasAccessedDirty = (ept & EptAccessedDirty) != 0;
        if (!Ept.HasAccessedDirty)
            Secondary &= ~SecondaryControls.Pml;
        Ept.LogsWrites = (Secondary & SecondaryControls.Pml) != 0;
        Ept.ExecutesSmallOnly = Parameters.HasMultihitBug();
        if ((ept & Invvpid) == 0 || (ept & InvvpidSingle) == 0)
            Secondary &= ~SecondaryControls.Vpid;
        AddressSpaces.Count = (Secondary & SecondaryControls.Vpid) != 0 ? 1u << 16 : 0;
        // On some CPUs before those that have the flags the timer counts at another rate than it says.
        bool timer = (Pin & PinControls.PreemptionTimer) != 0 && HostCpu.TscIsStable() && Ept.HasAccessedDirty;
        TimerShift = timer ? (int)Capability(MsrMisc) & 0x1f : -1;
        // It is on while there is a deadline.
        Pin &= ~PinControls.PreemptionTimer;
        // Unrestricted guests choose PE and PG themselves.
        Cr0Fixed = Capability(MsrCr0Fixed0) & ~(IsUnrestricted ? Cr0.Pe | Cr0.Pg : 0);
        Cr4Fixed = Capability(MsrCr4Fixed0);
        const ulong ApicWrites = 1ul << ApicRegister.Tpr | 1ul << ApicRegister.Eoi | 1ul << ApicRegister.SelfIpi;
        // The CPU reads ICR's upper half from elsewhere, and does not count.
        const ulong ApicReads =
            ApicRegister.ReadableMsrs & ~(1ul << ApicRegister.Icr | 1ul << ApicRegister.CurrentCount);
        for (int i = 0; i < 4; i++)
        {
            bool hasApic = i % 2 != 0;
            MsrBitmaps[i] = MakeBitmap(i >= 2, hasApic ? ApicReads : 0, hasApic ? ApicWrites : 0);
            if (MsrBitmaps[i].IsNull)
                return Errno.ENOMEM;
        }
        return Errno.Ok;
    }

    /// <summary>Whether the firmware has left VMX to us, or has locked it on (SDM vol. 3, 24.7).</summary>
    private static bool IsAllowed(out ulong control) => HostCpu.TryReadMsr(MsrFeatureControl, out control)
        && (control & (FeatureLock | FeatureVmx)) != FeatureLock;

    /// <summary>At unload.</summary>
    public static void Release()
    {
        for (int i = 0; i < 4; i++)
            KernelPages.Free(MsrBitmaps[i]);
        MsrBitmaps = default;
    }

    /// <summary>On the calling CPU, with interrupts off. EBUSY when someone else is in VMX operation.</summary>
    public static int Enable(Hpa region)
    {
        if ((HostCpu.ReadCr4() & Cr4.Vmxe) != 0)
            return Errno.EBUSY;
        if (!IsAllowed(out ulong control))
            return Errno.EIO;
        if ((control & FeatureLock) == 0)
            HostCpu.WriteMsr(MsrFeatureControl, control | FeatureVmx | FeatureLock);
        Mark(region);
        return HostCpu.TryEnterVmx(region) ? Errno.Ok : Errno.EIO;
    }

    /// <summary>Gives a page the revision that a VMCS and the VMXON region begin with (SDM vol. 3, 25.2).</summary>
    public static void Mark(Hpa page) => BinaryPrimitives.WriteUInt32LittleEndian(KernelPages.Bytes(page), s_revision);

    public static ulong Capability(uint msr) => HostCpu.TryReadMsr(msr, out ulong value) ? value : 0;

    /// <summary>Whether the CPU takes a field of controls. Kinds 0 to 3: pin-based, primary, exit, entry.</summary>
    public static bool Allows(uint kind, VmcsField field)
    {
        ulong capability = Capability(s_controls + kind);
        uint value = (uint)Vmcs.Read(field);
        return (value & ~(uint)(capability >> 32)) == 0 && (~value & (uint)capability) == 0;
    }

    /// <summary>The kind that the secondary controls are.</summary>
    public static uint Secondaries => MsrSecondary - s_controls;

    /// <summary>
    /// With shadow tables CR3 is not the guest's, memory has one type, and of EFER only SCE differs from the host's
    /// (<see cref="VcpuShared.SyscallMsrs"/>); LMA and LME follow from the controls (SDM vol. 3, 27.3.2.1).
    /// </summary>
    private static bool TryChooseControls(bool hasTrue, bool hasEpt)
    {
        uint first = s_controls = MsrBasic + 1 + (hasTrue ? MsrTrueOffset : 0);
        const PinControls PinNeeded = PinControls.ExternalInterrupt | PinControls.Nmi | PinControls.VirtualNmis;
        const PrimaryControls Shadow = PrimaryControls.Cr3Load | PrimaryControls.Cr3Store | PrimaryControls.Invlpg;
        const PrimaryControls PrimaryNeeded = PrimaryControls.TscOffset | PrimaryControls.Hlt | PrimaryControls.Mwait
            | PrimaryControls.Rdpmc | PrimaryControls.Cr8Load | PrimaryControls.Cr8Store | PrimaryControls.MovDr
            | PrimaryControls.AllPorts | PrimaryControls.MsrBitmap | PrimaryControls.Monitor
            | PrimaryControls.Secondary;
        const SecondaryControls SecondaryWanted = SecondaryControls.Rdtscp | SecondaryControls.Vpid
            | SecondaryControls.Wbinvd | SecondaryControls.Invpcid | SecondaryControls.Pml;
        const SecondaryControls Virtual = SecondaryControls.X2apic | SecondaryControls.ApicRegisters
            | SecondaryControls.InterruptDelivery;
        const SecondaryControls EptWanted =
            SecondaryControls.UnrestrictedGuest | SecondaryControls.ApicAccesses | Virtual;
        const PinControls PinWanted = PinControls.PreemptionTimer | PinControls.PostedInterrupts;
        const ExitControls ExitNeeded = ExitControls.SaveDebug | ExitControls.HostLongMode;
        uint ept = hasEpt ? uint.MaxValue : 0;
        bool all = TryChoose(first, (uint)PinNeeded, (uint)PinWanted, out uint pin)
            & TryChoose(first + 1, (uint)PrimaryNeeded | (uint)Shadow & ~ept, (uint)PrimaryControls.TprShadow,
                out uint primary)
            & TryChoose(first + 2, (uint)ExitNeeded | (uint)(ExitControls.LoadPat | ExitControls.LoadEfer) & ept,
                (uint)ExitControls.AcknowledgeInterrupt, out uint exit)
            & TryChoose(first + 3, (uint)EntryControls.LoadDebug
                | (uint)(EntryControls.LoadPat | EntryControls.LoadEfer) & ept, 0, out uint entry)
            & TryChoose(MsrSecondary, (uint)SecondaryControls.Ept & ept,
                (uint)SecondaryWanted | (uint)EptWanted & ept, out uint secondary);
        Pin = (PinControls)pin;
        Primary = (PrimaryControls)primary;
        Exit = (ExitControls)exit;
        Entry = (EntryControls)entry;
        Secondary = (SecondaryControls)secondary;
        if ((Primary & PrimaryControls.TprShadow) == 0)
            Secondary &= ~(Virtual | SecondaryControls.ApicAccesses);
        // All of it or nothing.
        if ((Secondary & Virtual) != Virtual || !IsUnrestricted)
            Secondary &= ~Virtual;
        if (!DeliversInterrupts || (Exit & ExitControls.AcknowledgeInterrupt) == 0 || !Parameters.HasPostedVector())
            Pin &= ~PinControls.PostedInterrupts;
        if (!Posts)
            Exit &= ~ExitControls.AcknowledgeInterrupt;
        return all;
    }

    /// <summary>
    /// The controls that a capability MSR allows (SDM vol. 3, A.3): its low half must be 1, what its high half has not
    /// must be 0.
    /// </summary>
    private static bool TryChoose(uint msr, uint needed, uint wanted, out uint controls)
    {
        ulong capability = Capability(msr);
        uint allowed = (uint)(capability >> 32);
        controls = (needed | wanted) & allowed | (uint)capability;
        uint missing = needed & ~controls;
        if (missing == 0)
            return true;
        Log.Error("this CPU's VMX lacks controls that are needed (capability MSR in bits 32-63)\0"u8,
            (ulong)msr << 32 | missing);
        return false;
    }

    /// <summary>
    /// What guests access without an exit (SDM vol. 3, 25.6.9), and these registers of an x2APIC, a bit each.
    /// </summary>
    private static Hpa MakeBitmap(bool isLong, ulong apicReads, ulong apicWrites)
    {
        const int High = 0x400, Write = 0x800, FirstApicMsr = 0x800, Words = FirstApicMsr / 64;
        Hpa bitmap = KernelPages.AllocateBitmap(0);
        if (bitmap.IsNull)
            return bitmap;
        Span<byte> bytes = KernelPages.Bytes(bitmap);
        ReadOnlySpan<uint> own = [Msr.SysenterCs, Msr.SysenterEsp, Msr.SysenterEip, Msr.FsBase, Msr.GsBase,
            Msr.KernelGsBase];
        foreach (uint msr in isLong ? own : own[..^1])
        {
            int index = (int)(msr & 0x1fff) / 8 + (msr > 0x1fff ? High : 0);
            byte others = (byte)~(1 << (int)(msr % 8));
            bytes[index] &= others;
            bytes[index + Write] &= others;
        }
        Span<ulong> words = KernelPages.Entries(bitmap);
        words[Words] &= ~apicReads;
        words[Words + Write / sizeof(ulong)] &= ~apicWrites;
        return bitmap;
    }
}
