// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Cpu;

/// <summary>
/// The vCPU ioctls that get and set state: each takes the ioctl's argument and returns what the ioctl returns. The
/// caller holds the vCPU's lock, and the SRCU section of the memory slots. All of an argument is copied once, then
/// checked, then used; a call that fails changes nothing.
/// </summary>
internal static class StateIoctls<TVendor> where TVendor : struct, IVendor
{
    public const ushort InitialFcw = 0x37f;
    private const ulong PdptrReserved = 0x1e6;

    /// <summary>
    /// KVM_CAP_SYNC_REGS: takes sets of registers from the run page, one after the other as by their ioctls, whose
    /// errors are the result.
    /// </summary>
    public static int LoadFromRun(ref Vcpu vcpu, ulong sets)
    {
        kvm_sync_regs given = vcpu.Run.regs;
        if ((sets & kvm_run.KVM_SYNC_X86_REGS) != 0)
            SetRegs(ref vcpu, in given.regs);
        int error = (sets & kvm_run.KVM_SYNC_X86_SREGS) != 0 ? SetSregs(ref vcpu, ref given.sregs) : 0;
        return error != 0 || (sets & kvm_run.KVM_SYNC_X86_EVENTS) == 0
            ? error : Exceptions<TVendor>.Set(ref vcpu, in given.events);
    }

    /// <summary>KVM_CAP_SYNC_REGS: leaves sets of registers in the run page.</summary>
    public static void StoreToRun(ref Vcpu vcpu, ulong sets)
    {
        ref kvm_sync_regs target = ref vcpu.Run.regs;
        if ((sets & kvm_run.KVM_SYNC_X86_REGS) != 0)
            target.regs = kvm_regs.Of(ref vcpu.Registers);
        if ((sets & kvm_run.KVM_SYNC_X86_SREGS) != 0)
            GetSregs(ref vcpu, out target.sregs);
        if ((sets & kvm_run.KVM_SYNC_X86_EVENTS) != 0)
            Exceptions<TVendor>.Get(ref vcpu, out target.events);
    }

    /// <summary>Also drops an exception that has not begun: it belonged to the old state.</summary>
    public static int SetRegs(ref Vcpu vcpu, in kvm_regs regs)
    {
        vcpu.Registers = regs.ToRegisters();
        vcpu.Events.Exception.Pending = false;
        return 0;
    }

    public static int GetSregs(ref Vcpu vcpu, out kvm_sregs sregs)
    {
        sregs = default;
        LoadCommon(ref vcpu, ref sregs.common);
        QueuedInterrupt interrupt = vcpu.Events.Interrupt;
        if (interrupt.Injected && !interrupt.Soft)
            sregs.interrupt_bitmap[interrupt.Vector.Value >> 6] = 1ul << (interrupt.Vector.Value & 63);
        return 0;
    }

    /// <summary>EINVAL for a state that no CPU can be in. The lowest interrupt in the bitmap is queued.</summary>
    public static int SetSregs(ref Vcpu vcpu, ref kvm_sregs sregs)
    {
        if (StoreCommon(ref vcpu, ref sregs.common) is int error and not 0)
            return error;
        int word = 0;
        while (word < 3 && sregs.interrupt_bitmap[word] == 0)
            word++;
        int vector = word * 64 + BitOperations.TrailingZeroCount(sregs.interrupt_bitmap[word]);
        if (sregs.interrupt_bitmap[word] != 0)
            vcpu.Events.ReinjectInterrupt(new Vector((byte)vector));
        return 0;
    }

    /// <summary>With PAE paging the PDPTEs too, as in memory: with nested tables hardware keeps no others.</summary>
    public static int GetSregs2(ref Vcpu vcpu, out kvm_sregs2 sregs)
    {
        sregs = default;
        LoadCommon(ref vcpu, ref sregs.common);
        if (UsesPdptrs(in sregs.common)
            && GuestMemory.TryRead(ref vcpu.Vm, new Gpa(sregs.common.cr3 & 0xffffffe0), out sregs.pdptrs))
            sregs.flags = kvm_sregs2.KVM_SREGS2_FLAGS_PDPTRS_VALID;
        // Emulated processors set the accessed flag, whose place is reserved here.
        for (int i = 0; i < 4; i++)
            sregs.pdptrs[i] &= ~PdptrReserved;
        return 0;
    }

    /// <summary>EINVAL for PDPTEs without PAE paging; with it hardware fetches them from memory again.</summary>
    public static int SetSregs2(ref Vcpu vcpu, ref kvm_sregs2 sregs)
    {
        if (sregs.flags is not (0 or kvm_sregs2.KVM_SREGS2_FLAGS_PDPTRS_VALID)
            || sregs.flags != 0 && !UsesPdptrs(in sregs.common))
            return Errno.EINVAL;
        return StoreCommon(ref vcpu, ref sregs.common);
    }

    private static bool UsesPdptrs(in kvm_sregs_common sregs) =>
        (sregs.cr0 & Cr0.Pg) != 0 && (sregs.cr4 & Cr4.Pae) != 0 && (sregs.efer & Efer.Lma) == 0;

    private static void LoadCommon(ref Vcpu vcpu, ref kvm_sregs_common sregs)
    {
        for (int i = 0; i < kvm_sregs_common.Names.Length; i++)
            sregs.Segments[i] = kvm_segment.Of(TVendor.GetSegment(ref vcpu, kvm_sregs_common.Names[i]));
        sregs.gdt = kvm_dtable.Of(TVendor.GetTable(ref vcpu, SegmentName.Gdtr));
        sregs.idt = kvm_dtable.Of(TVendor.GetTable(ref vcpu, SegmentName.Idtr));
        sregs.cr0 = TVendor.GetCr0(ref vcpu);
        sregs.cr2 = TVendor.Cr2(ref vcpu);
        sregs.cr3 = TVendor.GetCr3(ref vcpu);
        sregs.cr4 = TVendor.GetCr4(ref vcpu);
        sregs.cr8 = vcpu.Events.Cr8;
        sregs.efer = vcpu.Efer;
        sregs.apic_base = vcpu.Msrs.ApicBase;
    }

    private static int StoreCommon(ref Vcpu vcpu, ref kvm_sregs_common sregs)
    {
        if (!ControlRegisters<TVendor>.IsValid(ref vcpu, in sregs))
            return Errno.EINVAL;
        // User space may have written other page tables.
        Mmu.ShadowTables.Forget(ref vcpu.Vm, default, new Gfn(ulong.MaxValue));
        TVendor.SetEfer(ref vcpu, sregs.efer);
        TVendor.SetCr4(ref vcpu, sregs.cr4);
        TVendor.SetCr0(ref vcpu, sregs.cr0 & Cr0.Defined | Cr0.Et);
        TVendor.SetCr3(ref vcpu, sregs.cr3);
        TVendor.Cr2(ref vcpu) = sregs.cr2;
        ControlRegisters<TVendor>.TrySetCr8(ref vcpu, sregs.cr8);
        Msrs<TVendor>.TrySet(ref vcpu, Msr.ApicBase, sregs.apic_base, host: true);
        ControlRegisters<TVendor>.UpdateDependents(ref vcpu);
        TVendor.SetTable(ref vcpu, SegmentName.Gdtr, sregs.gdt.ToTable());
        TVendor.SetTable(ref vcpu, SegmentName.Idtr, sregs.idt.ToTable());
        for (int i = 0; i < kvm_sregs_common.Names.Length; i++)
            TVendor.SetSegment(ref vcpu, kvm_sregs_common.Names[i], sregs.Segments[i].ToSegment());
        TVendor.SetCpl(ref vcpu, sregs.ss.dpl & 3);
        return 0;
    }

    /// <summary>The FXSAVE image's fields; components that XSAVE left out are in their initial state.</summary>
    public static int GetFpu(ref Vcpu vcpu, out kvm_fpu fpu)
    {
        ref fxregs_state image = ref MemoryMarshal.AsRef<fxregs_state>(vcpu.Shared.Host.LegacyFpu());
        ulong present = HostCpu.SupportedXcr0() == 0 ? fxregs_state.X87 | fxregs_state.Sse : image.present;
        fpu = new() { x87 = { fcw = InitialFcw }, mxcsr = image.mxcsr };
        if ((present & fxregs_state.X87) != 0)
        {
            fpu.fpr = image.st;
            fpu.x87 = image.x87;
        }
        if ((present & fxregs_state.Sse) != 0)
            fpu.xmm = image.xmm;
        return 0;
    }

    /// <summary>EINVAL for reserved bits of MXCSR, which would fault when loaded.</summary>
    public static int SetFpu(ref Vcpu vcpu, in kvm_fpu fpu)
    {
        if (fpu.mxcsr >> 16 != 0)
            return Errno.EINVAL;
        ref fxregs_state image = ref MemoryMarshal.AsRef<fxregs_state>(vcpu.Shared.Host.LegacyFpu());
        image.st = fpu.fpr;
        image.x87 = fpu.x87 with { pad1 = 0 };
        image.xmm = fpu.xmm;
        image.mxcsr = fpu.mxcsr;
        image.present |= fxregs_state.X87 | fxregs_state.Sse;
        return 0;
    }

    public static int GetXcrs(ref Vcpu vcpu, out kvm_xcrs xcrs)
    {
        bool exists = HostCpu.SupportedXcr0() != 0;
        xcrs = new() { nr_xcrs = Flag.Of(exists) };
        xcrs.xcrs[0].value = exists ? vcpu.Shared.Xcr0 : 0;
        return 0;
    }

    /// <summary>EINVAL without XSAVE, for flags, too many registers, or an XCR0 that XSETBV would refuse.</summary>
    public static int SetXcrs(ref Vcpu vcpu, in kvm_xcrs xcrs)
    {
        if (HostCpu.SupportedXcr0() == 0 || xcrs.nr_xcrs > kvm_xcrs.KVM_MAX_XCRS || xcrs.flags != 0)
            return Errno.EINVAL;
        for (int i = 0; i < (int)xcrs.nr_xcrs; i++)
        {
            if (xcrs.xcrs[i].xcr == 0)
                return ControlRegisters<TVendor>.TryAssignXcr0(ref vcpu, xcrs.xcrs[i].value) ? 0 : Errno.EINVAL;
        }
        return 0;
    }

    /// <summary>Reads or writes MSRs until one does not exist or is refused; returns how many were done.</summary>
    public static int EachMsr(ref Vcpu vcpu, Hva elements, uint count, bool write)
    {
        int error = MsrLists.ReadEntries(elements, count, out KernelArray<kvm_msr_entry> entries);
        int done = 0;
        for (; done < entries.Length; done++)
        {
            ref kvm_msr_entry entry = ref entries.Span[done];
            if (!(write ? Msrs<TVendor>.TryWrite(ref vcpu, entry.index, entry.data, host: true)
                : Msrs<TVendor>.TryRead(ref vcpu, entry.index, out entry.data, host: true)))
                break;
        }
        return error != 0 ? error : MsrLists.WriteEntries(elements, entries, done, write: !write);
    }

    /// <summary>
    /// The one attribute that a vCPU has, KVM_VCPU_TSC_OFFSET of KVM_VCPU_TSC_CTRL, both of which are 0: the distance
    /// from the host's time-stamp counter to the guest's. ENXIO for others.
    /// </summary>
    public static int TscOffset(ref Vcpu vcpu, uint command, in kvm_device_attr attribute)
    {
        if (attribute.flags != 0 || attribute.group != 0 || attribute.attr != 0)
            return Errno.ENXIO;
        var address = new Hva(attribute.addr);
        if (command == Ioctl.KVM_GET_DEVICE_ATTR)
            return UserMemory.TryWrite(address, vcpu.TscOffset) ? 0 : Errno.EFAULT;
        if (command == Ioctl.KVM_HAS_DEVICE_ATTR)
            return 0;
        if (!UserMemory.TryRead(address, out ulong offset))
            return Errno.EFAULT;
        vcpu.Vm.Cpu.TscOffset = offset;
        Msrs<TVendor>.SetTscOffset(ref vcpu, offset);
        return 0;
    }

    public static kvm_debugregs GetDebugRegs(ref Vcpu vcpu) => new()
    {
        db = vcpu.Debug.Guest, dr6 = vcpu.Debug.Dr6, dr7 = Debugging<TVendor>.GetDr7(ref vcpu),
    };

    public static int SetDebugRegs(ref Vcpu vcpu, in kvm_debugregs debug)
    {
        if (debug.flags != 0 || debug.dr6 >> 32 != 0 || debug.dr7 >> 32 != 0)
            return Errno.EINVAL;
        vcpu.Debug.Guest = debug.db;
        vcpu.Debug.Dr6 = debug.dr6;
        Debugging<TVendor>.SetDr7(ref vcpu, debug.dr7);
        Debugging<TVendor>.Apply(ref vcpu);
        return 0;
    }

    /// <summary>A supervisor's read of a linear address, as the guest's tables are now.</summary>
    public static int Translate(ref Vcpu vcpu, ref kvm_translation translation)
    {
        PagingState paging = GuestMachine<TVendor>.Paging(ref vcpu) with { Cpl = 0, Pkru = 0, AlignmentCheck = true };
        Translation found = GuestWalker.Translate(ref vcpu.Vm, in paging, new Gva(translation.linear_address),
            PageAccess.Read);
        translation = new() { linear_address = translation.linear_address, writeable = 1 };
        translation.physical_address = found.Succeeded ? found.Address.Value : ~0ul;
        translation.valid = Flag.Of(found.Succeeded);
        return 0;
    }

    /// <summary>
    /// EINVAL beyond vector 255, ENXIO when the PIC is in the kernel, EEXIST while another interrupt still waits to be
    /// delivered.
    /// </summary>
    public static int Interrupt(ref Vcpu vcpu, uint vector)
    {
        if (vector > byte.MaxValue)
            return Errno.EINVAL;
        if (vcpu.Vm.Irqchip.Mode == IrqchipMode.Kernel)
            return Errno.ENXIO;
        if (vcpu.HasApic ? vcpu.Events.HasExternal : vcpu.Events.Interrupt.Injected)
            return Errno.EEXIST;
        vcpu.Events.HasExternal = vcpu.HasApic;
        vcpu.Events.External = new Vector((byte)vector);
        if (!vcpu.HasApic)
            vcpu.Events.ReinjectInterrupt(vcpu.Events.External);
        return 0;
    }

    public static int Nmi(ref Vcpu vcpu)
    {
        vcpu.Events.QueueNmi(TVendor.GetNmiMasked(ref vcpu));
        return 0;
    }
}
