// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Model-specific registers, from the guest and from outside.</summary>
static class MsrTests
{
    const uint Tsc = 0x10, ApicBase = 0x1B, SysenterCs = 0x174, SysenterEsp = 0x175, SysenterEip = 0x176,
        MiscEnable = 0x1A0, Pat = 0x277, MtrrDefType = 0x2FF, Efer = 0xC0000080, Star = 0xC0000081,
        Lstar = 0xC0000082, Cstar = 0xC0000083, Fmask = 0xC0000084, FsBase = 0xC0000100, GsBase = 0xC0000101,
        KernelGsBase = 0xC0000102, TscAux = 0xC0000103, AsyncPageFaultInterrupt = 0x4B564D06, MtrrFixed64K = 0x250,
            MtrrPhysBase0 = 0x200;

    const uint Unknown = 0x12345678;

    public static IEnumerable<TestCase> All =>
    [
        new("msr/index_list_contents", IndexListContents),
        new("msr/index_list_gettable", IndexListGettable),
        new("msr/index_list_settable", IndexListSettable),
        new("msr/feature_list_gettable", FeatureListGettable),
        new("msr/round_trip", RoundTrip),
        new("msr/set_reports_number_processed", SetReportsNumberProcessed),
        new("msr/get_reports_number_processed", GetReportsNumberProcessed),
        new("msr/guest_sees_value_set", GuestSeesValueSet),
        new("msr/host_sees_value_written", HostSeesValueWritten),
        new("msr/unknown_read_faults", () => Faults(Unknown, null)),
        new("msr/unknown_write_faults", () => Faults(Unknown, 1)),
        new("msr/non_canonical_write", NonCanonicalWrite),
        new("msr/reserved_bits_fault", ReservedBitsFault),
        new("msr/user_mode_faults", UserModeFaults),
        new("msr/refused_from_outside", RefusedFromOutside),
        new("msr/efer", EferFromGuest),
        new("msr/apic_base", ApicBaseDefault),
        new("msr/tsc_write", TscWrite),
        new("msr/mtrr", Mtrr),
        new("msr/microcode_and_quirks", QuirkMsrs),
        new("msr/machine_check_setup", MachineCheckSetup),
        new("msr/machine_check_refused", MachineCheckRefused),
    ];

    static Guest MsrGuest(bool write)
    {
        var guest = new Guest(GuestMode.Long, code =>
        {
            if (write)
                code.wrmsr();
            else
                code.rdmsr();
            code.hlt();
        });
        return guest;
    }

    static ulong GuestRead(Guest guest, uint index)
    {
        guest.Memory.Write(GuestLayout.Code, [0x0F, 0x32, 0xF4]);
        guest.SetRegs((ref regs) => regs = new()
        {
            Rip = GuestLayout.Code, Rsp = GuestLayout.StackTop, Rflags = 2, Rcx = index,
            Rax = ulong.MaxValue, Rdx = ulong.MaxValue,
        });
        guest.RunToHalt($"RDMSR {index:x}");
        KvmRegs regs = guest.Vcpu.Regs;
        return regs.Rax | (regs.Rdx << 32);
    }

    static void GuestWrite(Guest guest, uint index, ulong value)
    {
        StartWrite(guest, index, value);
        guest.RunToHalt($"WRMSR {index:x}");
    }

    static void StartWrite(Guest guest, uint index, ulong value)
    {
        guest.Memory.Write(GuestLayout.Code, [0x0F, 0x30, 0xF4]);
        guest.SetRegs((ref regs) => regs = new()
        {
            Rip = GuestLayout.Code, Rsp = GuestLayout.StackTop, Rflags = 2, Rcx = index,
            Rax = (uint)value, Rdx = value >> 32,
        });
    }

    static void IndexListContents()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        uint[] list = kvm.GetMsrIndexList();
        foreach (uint index in (uint[])[Tsc, SysenterCs, SysenterEsp, SysenterEip, Pat, Star, Lstar, Cstar, Fmask,
            KernelGsBase, MiscEnable])
            Check.That(list.Contains(index), $"MSR {index:x} is in the list");
        Check.Equal(list.Length, list.Distinct().Count(), "distinct entries");
    }

    static void IndexListGettable()
    {
        using Guest guest = MsrGuest(write: false);
        foreach (uint index in guest.Kvm.GetMsrIndexList())
        {
            KvmMsrEntry[] entry = [new(index, 0, 0)];
            Check.Equal(1, MsrList.TryGet(guest.Vcpu, entry), $"GET_MSRS of 0x{index:x}");
        }
    }

    /// <summary>What was read can be written back: how QEMU restores a machine.</summary>
    static void IndexListSettable()
    {
        using Guest guest = MsrGuest(write: false);
        foreach (uint index in guest.Kvm.GetMsrIndexList())
        {
            ulong value = guest.Vcpu.GetMsr(index);
            // Those of Hyper-V, and stock KVM's that it takes only with its own interrupt controller, may be refused.
            int result = guest.Vcpu.TrySetMsrs([new(index, 0, value)]);
            if (index is (< 0x40000000 or >= 0x40001000) and not AsyncPageFaultInterrupt)
                Check.Equal(1, result, $"SET_MSRS of 0x{index:x} = 0x{value:x}");
        }
    }

    static void FeatureListGettable()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Needs(kvm.CheckExtension(KvmCap.GetMsrFeatures) > 0, "KVM_CAP_GET_MSR_FEATURES");
        foreach (uint index in kvm.GetMsrFeatureIndexList())
        {
            KvmMsrEntry[] entry = [new(index, 0, 0)];
            Check.Equal(1, MsrList.TryGet(kvm, entry), $"feature MSR 0x{index:x}");
        }
    }

    static readonly (uint Index, ulong Value)[] RoundTripValues =
    [
        (SysenterCs, 0x10), (SysenterEsp, 0x12345678), (SysenterEip, 0x87654321),
        (Pat, 0x0007010600070106), (Star, 0x0013000800000000), (Lstar, 0xFFFFFFFF81000000),
        (Cstar, 0xFFFFFFFF82000000), (Fmask, 0x47700), (FsBase, 0x123456000), (GsBase, 0xFFFF888000001000),
        (KernelGsBase, 0x00007F0000001000), (MtrrDefType, 0xC06), (MtrrFixed64K, 0x0606060606060606),
        (MtrrPhysBase0, 0x80000006), (MtrrPhysBase0 + 1, 0xFF80000800),
    ];

    static void RoundTrip()
    {
        using Guest guest = MsrGuest(write: false);
        foreach ((uint index, ulong value) in RoundTripValues)
            guest.Vcpu.SetMsr(index, value);
        foreach ((uint index, ulong value) in RoundTripValues)
            Check.Equal(value, guest.Vcpu.GetMsr(index), $"MSR 0x{index:x}");
    }

    static void SetReportsNumberProcessed()
    {
        using Guest guest = MsrGuest(write: false);
        KvmMsrEntry[] entries = [new(SysenterEsp, 0, 0x1000), new(SysenterEip, 0, 0x2000), new(Unknown, 0, 1),
            new(SysenterCs, 0, 0x33)];
        Check.Equal(2, guest.Vcpu.TrySetMsrs(entries), "entries processed");
        Check.Equal(0x2000ul, guest.Vcpu.GetMsr(SysenterEip), "the one before");
        Check.Equal(0ul, guest.Vcpu.GetMsr(SysenterCs), "the one behind");
    }

    static void GetReportsNumberProcessed()
    {
        using Guest guest = MsrGuest(write: false);
        guest.Vcpu.SetMsr(SysenterEsp, 0x77);
        KvmMsrEntry[] entries = [new(SysenterEsp, 0, 0), new(Unknown, 0, 0xABCD), new(SysenterEsp, 0, 0xABCD)];
        Check.Equal(1, MsrList.TryGet(guest.Vcpu, entries), "entries processed");
        Check.Equal(0x77ul, entries[0].Data, "first");
        Check.Equal(0xABCDul, entries[2].Data, "third, untouched");
    }

    static void GuestSeesValueSet()
    {
        using Guest guest = MsrGuest(write: false);
        foreach ((uint index, ulong value) in RoundTripValues)
        {
            guest.Vcpu.SetMsr(index, value);
            Check.Equal(value, GuestRead(guest, index), $"MSR 0x{index:x} in the guest");
        }
    }

    static void HostSeesValueWritten()
    {
        using Guest guest = MsrGuest(write: true);
        foreach ((uint index, ulong value) in RoundTripValues)
        {
            GuestWrite(guest, index, value);
            Check.Equal(value, guest.Vcpu.GetMsr(index), $"MSR 0x{index:x}");
        }
    }

    static void Faults(uint index, ulong? write)
    {
        using Guest guest = MsrGuest(write != null);
        guest.SetRegs((ref regs) => (regs.Rcx, regs.Rax, regs.Rdx) = (index, write ?? 0, 0));
        Trap trap = guest.ExpectTrap(13, $"MSR 0x{index:x}");
        Check.Equal(0ul, trap.ErrorCode, "error code");
        Check.Equal(GuestLayout.Code, trap.Rip, "rip");
    }

    /// <summary>The CPU faults. An emulated CPU may not; whatever it does, host and guest go on.</summary>
    static void NonCanonicalWrite()
    {
        foreach (uint index in (uint[])[Lstar, Cstar, FsBase, GsBase, KernelGsBase])
        {
            using Guest guest = MsrGuest(write: true);
            StartWrite(guest, index, 0x8000_0000_0000_0000);
            guest.RunTo(KvmExit.Hlt, $"non-canonical write to 0x{index:x}");
            if (guest.Vcpu.Regs.Rip != GuestLayout.Code + 3)
            {
                guest.ReadTrap(13, $"non-canonical write to 0x{index:x}");
                Check.Equal(0ul, guest.Vcpu.GetMsr(index), $"MSR 0x{index:x} afterwards");
            }
            GuestWrite(guest, index, 0x1000);
            Check.Equal(0x1000ul, guest.Vcpu.GetMsr(index), $"MSR 0x{index:x} written again");
        }
    }

    static void ReservedBitsFault()
    {
        foreach ((uint index, ulong value) in new[] { (Efer, 1ul << 63), (Pat, 0x0202020202020202ul),
            (MtrrDefType, 0xFFul), (MtrrFixed64K, 0x02ul) })
        {
            using Guest guest = MsrGuest(write: true);
            StartWrite(guest, index, value);
            guest.ExpectTrap(13, $"0x{value:x} to 0x{index:x}");
        }
    }

    static void UserModeFaults()
    {
        foreach (bool write in (bool[])[false, true])
        {
            using Guest guest = MsrGuest(write);
            guest.SetRegs((ref regs) => (regs.Rcx, regs.Rax, regs.Rdx) = (Star, 0, 0));
            guest.EnterUserMode();
            Trap trap = guest.ExpectTrap(13, "at CPL 3");
            Check.Equal(GuestLayout.Code, trap.Rip, "rip");
        }
    }

    static void RefusedFromOutside()
    {
        using Guest guest = MsrGuest(write: false);
        foreach ((uint index, ulong value) in new[]
            {
                (Unknown, 0ul), (Lstar, 0x8000_0000_0000_0000), (Pat, 0x0202020202020202ul), (KernelGsBase, 1ul << 62),
                (MtrrDefType, 0xFFul), (FsBase, 0x8000_0000_0000_0000),
            })
        {
            Check.Equal(0, guest.Vcpu.TrySetMsrs([new(index, 0, value)]), $"0x{value:x} to 0x{index:x}");
        }
    }

    static void EferFromGuest()
    {
        using Guest guest = MsrGuest(write: false);
        ulong efer = GuestRead(guest, Efer);
        Check.Equal(0xD01ul, efer, "EFER: NXE, LMA, LME, SCE");
        GuestWrite(guest, Efer, efer & ~1ul);
        Check.Equal(0xD00ul, GuestRead(guest, Efer), "EFER without SCE");
        Check.Equal(0xD00ul, guest.Vcpu.Sregs.Efer, "EFER as the host sees it");
        StartWrite(guest, Efer, 0xC01);
        guest.ExpectTrap(13, "clearing LME while paging");
    }

    static void ApicBaseDefault()
    {
        using Guest guest = MsrGuest(write: false);
        ulong apicBase = guest.Vcpu.Sregs.ApicBase;
        Check.Equal(apicBase, guest.Vcpu.GetMsr(ApicBase), "by GET_MSRS");
        Check.Equal(apicBase, GuestRead(guest, ApicBase), "in the guest");
        Check.Equal(apicBase, guest.Run.ApicBase, "in the run page");
    }

    static void TscWrite()
    {
        using Guest guest = MsrGuest(write: false);
        const ulong Start = 1UL << 60;
        guest.Vcpu.SetMsr(Tsc, Start);
        ulong now = GuestRead(guest, Tsc);
        Check.That(now >= Start && now < Start + (1UL << 40), $"counter goes on from where it was set: {now:x}");
        GuestWrite(guest, Tsc, 1UL << 50);
        now = guest.Vcpu.GetMsr(Tsc);
        Check.That(now >= 1UL << 50 && now < (1UL << 50) + (1UL << 40), $"counter the guest set: {now:x}");
    }

    static void Mtrr()
    {
        using Guest guest = MsrGuest(write: false);
        ulong capabilities = GuestRead(guest, 0xFE);
        Check.That((capabilities & 0xFF) >= 8, $"at least 8 variable ranges: {capabilities:x}");
        foreach (uint index in (uint[])[0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F])
        {
            GuestWrite(guest, index, 0x0506000105060001);
            Check.Equal(0x0506000105060001ul, GuestRead(guest, index), $"MSR 0x{index:x}");
        }
        // The type in an address range that is not one: 0x2F8 is no MTRR (CVE-2016-3713).
        StartWrite(guest, 0x2F8, 0);
        guest.ExpectTrap(13, "MSR 0x2f8");
    }

    static ulong SupportedMachineChecks(Kvm kvm)
    {
        ulong capabilities = 0;
        kvm.Call(KvmIoctl.X86GetMceCapSupported, ref capabilities);
        return capabilities;
    }

    /// <summary>As QEMU does for each CPU: ten banks, and what the kernel supports of the rest.</summary>
    static void MachineCheckSetup()
    {
        using Guest guest = MsrGuest(write: false);
        const uint GlobalCapabilities = 0x179, Bank0Control = 0x400, Banks = 10;
        ulong wanted = (SupportedMachineChecks(guest.Kvm) & 0x0100_0000) | Banks;
        guest.Vcpu.Call(KvmIoctl.X86SetupMce, ref wanted);
        // On AMD the bits above the ninth are reserved.
        Check.Equal(wanted & 0x1FF, GuestRead(guest, GlobalCapabilities) & 0x1FF, "MCG_CAP in the guest");
        for (uint bank = 0; bank < Banks; bank++)
            Check.Equal(ulong.MaxValue, GuestRead(guest, Bank0Control + bank * 4), $"control of bank {bank}");
        GuestWrite(guest, Bank0Control, 0);
        Check.Equal(0ul, guest.Vcpu.GetMsr(Bank0Control), "control of bank 0, written by the guest");
        StartWrite(guest, Bank0Control + Banks * 4, 0);
        guest.ExpectTrap(13, "a bank that is not there");
    }

    static void MachineCheckRefused()
    {
        using Guest guest = MsrGuest(write: false);
        foreach (ulong wrong in (ulong[])[0, 33, 255, 1ul << 40 | 10])
        {
            ulong argument = wrong;
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.X86SetupMce, ref argument), $"SETUP_MCE {wrong:x}");
        }
    }

    /// <summary>MSRs that Linux guests on AMD read at boot and that have to be there.</summary>
    static void QuirkMsrs()
    {
        using Guest guest = MsrGuest(write: false);
        foreach (uint index in (uint[])[0x8B, 0xC0010015, 0xC0010055, 0xC001001F])
        {
            KvmMsrEntry[] entry = [new(index, 0, 0)];
            Check.Equal(1, MsrList.TryGet(guest.Vcpu, entry), $"GET_MSRS of 0x{index:x}");
        }
    }
}
