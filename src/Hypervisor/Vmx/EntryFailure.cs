// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Vmx;

/// <summary>
/// An entry that the CPU refused, for the kernel log: which check of the manual's failed, where that is simple to tell,
/// and the VMCS, but for the host's addresses, which are no one's business. At most once in a second.
/// </summary>
internal static class EntryFailure
{
    private const uint InvalidControls = 7;
    private static ulong s_next;

    /// <param name="vcpu">The vCPU, whose VMCS is loaded.</param>
    /// <param name="reason">The exit reason with bit 31, or the VM-instruction error.</param>
    public static void Report(ref Vcpu vcpu, uint reason)
    {
        ulong now = HostCpu.Nanoseconds();
        if (now < s_next)
            return;
        s_next = now + 1_000_000_000;
        Log.Error((reason & ExitReason.EntryFailure) != 0 ? FailedState(ref vcpu)
            : reason == InvalidControls ? FailedControls()
            : "VM entry failed, neither by its controls nor by the guest's state; VM-instruction error\0"u8, reason);
        Line("\u00013sharpkvm: guest CR0 %llx CR3 %llx CR4 %llx EFER %llx PAT %llx\n\0"u8, VmcsField.Cr0, VmcsField.Cr3,
            VmcsField.Cr4, VmcsField.GuestEfer, VmcsField.GuestPat);
        Line("\u00013sharpkvm: guest RIP %llx RSP %llx RFLAGS %llx DR7 %llx DEBUGCTL %llx\n\0"u8, VmcsField.Rip,
            VmcsField.Rsp, VmcsField.Rflags, VmcsField.Dr7, VmcsField.GuestDebugCtl);
        Line("\u00013sharpkvm: guest blocks %llx activity %llx pending debug %llx link %llx PDPTE0 %llx\n\0"u8,
            VmcsField.Interruptibility, VmcsField.Activity, VmcsField.PendingDebug, VmcsField.LinkPointer,
            VmcsField.GuestPdpte);
        Line("\u00013sharpkvm: guest GDTR %llx limit %llx, IDTR %llx limit %llx, SYSENTER_EIP %llx\n\0"u8,
            VmcsField.GdtrBase, VmcsField.GdtrLimit, VmcsField.IdtrBase, VmcsField.IdtrLimit, VmcsField.SysenterEip);
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Tr; name++)
            Log.Values("\u00013sharpkvm: guest segment %lld: selector %llx base %llx limit %llx rights %llx\n\0"u8,
                (ulong)name, Read(VmcsField.Selector, name), Read(VmcsField.Base, name), Read(VmcsField.Limit, name),
                Read(VmcsField.AccessRights, name));
        Line("\u00013sharpkvm: controls pin %llx primary %llx secondary %llx exit %llx entry %llx\n\0"u8,
            VmcsField.PinControls, VmcsField.PrimaryControls, VmcsField.SecondaryControls, VmcsField.ExitControls,
            VmcsField.EntryControls);
        Line("\u00013sharpkvm: injects %llx error code %llx length %llx; exceptions %llx; VPID %llx\n\0"u8,
            VmcsField.EntryInterruption, VmcsField.EntryErrorCode, VmcsField.EntryInstructionLength,
            VmcsField.ExceptionBitmap, VmcsField.Vpid);
        Line("\u00013sharpkvm: host CR0 %llx CR4 %llx EFER %llx PAT %llx SYSENTER_CS %llx\n\0"u8, VmcsField.HostCr0,
            VmcsField.HostCr4, VmcsField.HostEfer, VmcsField.HostPat, VmcsField.HostSysenterCs);
    }

    private static void Line(
        ReadOnlySpan<byte> format, VmcsField a, VmcsField b, VmcsField c, VmcsField d, VmcsField e) =>
        Log.Values(format, Vmcs.Read(a), Vmcs.Read(b), Vmcs.Read(c), Vmcs.Read(d), Vmcs.Read(e));

    private static ulong Read(VmcsField field, SegmentName name) => Vmcs.Read(Vmcs.Of(field, name));

    /// <summary>Bits that the CPU wants otherwise, by its capability MSRs (SDM vol. 3, 27.2.1).</summary>
    private static ReadOnlySpan<byte> FailedControls() =>
        !VmxHardware.Allows(0, VmcsField.PinControls) ? "VM entry failed: pin-based controls\0"u8
        : !VmxHardware.Allows(1, VmcsField.PrimaryControls) ? "VM entry failed: primary controls\0"u8
        : !VmxHardware.Allows(2, VmcsField.ExitControls) ? "VM entry failed: exit controls\0"u8
        : !VmxHardware.Allows(3, VmcsField.EntryControls) ? "VM entry failed: entry controls\0"u8
        : !VmxHardware.Allows(VmxHardware.Secondaries, VmcsField.SecondaryControls)
            ? "VM entry failed: secondary controls\0"u8
        : "VM entry failed: controls that contradict each other, or the injected event\0"u8;

    /// <summary>The first check of the guest's state that fails (SDM vol. 3, 27.3.1), in the manual's order.</summary>
    private static ReadOnlySpan<byte> FailedState(ref Vcpu vcpu)
    {
        const ulong Shadows = Interruptibility.Sti | Interruptibility.MovSs, Rflags1 = 0xffff_ffff_ffc0_802a;
        ulong cr0 = Vmcs.Read(VmcsField.Cr0), cr4 = Vmcs.Read(VmcsField.Cr4), efer = Vmcs.Read(VmcsField.GuestEfer);
        ulong rflags = Vmcs.Read(VmcsField.Rflags), blocks = Vmcs.Read(VmcsField.Interruptibility);
        ulong rip = Vmcs.Read(VmcsField.Rip), tr = Read(VmcsField.AccessRights, SegmentName.Tr);
        bool longMode = (Vmcs.Read(VmcsField.EntryControls) & (uint)EntryControls.LongMode) != 0;
        bool wide = longMode && (Read(VmcsField.AccessRights, SegmentName.Cs) & 1 << 13) != 0;
        bool masked = (rflags & Rflags.If) == 0;
        EventInjection injected = new((uint)Vmcs.Read(VmcsField.EntryInterruption));
        if ((cr0 & VmxHardware.Cr0Fixed) != VmxHardware.Cr0Fixed || !Cr0.IsValid(cr0 & ~(Cr0.Cd | Cr0.Nw)))
            return "VM entry failed: guest CR0\0"u8;
        if ((cr4 & VmxHardware.Cr4Fixed) != VmxHardware.Cr4Fixed || longMode && (cr4 & Cr4.Pae) == 0)
            return "VM entry failed: guest CR4\0"u8;
        if (!vcpu.Cpuid.IsValidGpa(Vmcs.Read(VmcsField.Cr3) & ~0xffful))
            return "VM entry failed: guest CR3\0"u8;
        if (VmxHardware.HasEpt
            && ((efer & Efer.Lma) != 0 != longMode || (cr0 & Cr0.Pg) != 0 && (efer & Efer.Lme) != 0 != longMode))
            return "VM entry failed: guest EFER\0"u8;
        if ((tr & 0xf) is not (3 or 0xb) || longMode && (tr & 0xf) != 0xb || (tr & (1 << 16 | 1 << 7)) != 1 << 7)
            return "VM entry failed: guest TR\0"u8;
        if (wide ? !Cr4.IsCanonical(cr4, rip) : rip >> 32 != 0)
            return "VM entry failed: guest RIP\0"u8;
        if ((rflags & Rflags1) != Rflags.Fixed || longMode && (rflags & Rflags.Vm) != 0)
            return "VM entry failed: guest RFLAGS\0"u8;
        if (injected is { Valid: true, Type: EventInjection.EventType.Interrupt }
            && (masked || (blocks & Shadows) != 0))
            return "VM entry failed: an interrupt that the guest cannot take\0"u8;
        if ((blocks & Shadows) == Shadows || masked && (blocks & Interruptibility.Sti) != 0)
            return "VM entry failed: guest interruptibility\0"u8;
        return "VM entry failed: segments, descriptor tables, MSRs or another part of the guest's state\0"u8;
    }
}
