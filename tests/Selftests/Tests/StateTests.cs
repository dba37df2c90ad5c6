// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>Each piece of a CPU's state: set, get back, run, observe; and states that no CPU can be in.</summary>
static class StateTests
{
    const int Rounds = 40;

    public static IEnumerable<TestCase> All =>
    [
        new("state/reset_values", ResetValues),
        new("state/regs_random", RegsRandom),
        new("state/regs_guest_observes", RegsGuestObserves),
        new("state/regs_guest_changes", RegsGuestChanges),
        new("state/rflags_fixed_bit", RflagsFixedBit),
        new("state/sregs_round_trip", SregsRoundTrip),
        new("state/sregs_random_segments", SregsRandomSegments),
        new("state/sregs_guest_observes", SregsGuestObserves),
        new("state/sregs_refused", SregsRefused),
        new("state/sregs_mode_changes", SregsModeChanges),
        new("state/sregs_pending_interrupt", SregsPendingInterrupt),
        new("state/sregs2_round_trip", Sregs2RoundTrip),
        new("state/sregs2_pdptrs", Sregs2Pdptrs),
        new("state/sregs2_bad_flags", Sregs2BadFlags),
        new("state/fpu_random", FpuRandom),
        new("state/fpu_guest_observes", FpuGuestObserves),
        new("state/xsave_round_trip", XsaveRoundTrip),
        new("state/xsave_guest_observes", XsaveGuestObserves),
        new("state/xsave_refused", XsaveRefused),
        new("state/xsave2_same", Xsave2Same),
        new("state/xsave_fpu_agree", XsaveFpuAgree),
        new("state/xcrs_round_trip", XcrsRoundTrip),
        new("state/xcrs_refused", XcrsRefused),
        new("state/debugregs_random", DebugregsRandom),
        new("state/debugregs_guest_observes", DebugregsGuestObserves),
        new("state/debugregs_refused", DebugregsRefused),
        new("state/debugregs_no_stack_bytes", DebugregsNoStackBytes),
        new("state/events_round_trip", EventsRoundTrip),
        new("state/events_refused", EventsRefused),
        new("state/mp_state", MpState),
        new("state/tsc_khz", TscKhz),
        new("state/sync_regs", SyncRegs),
        new("state/structures_zeroed", StructuresZeroed),
        new("state/copy_to_another_vm", CopyToAnotherVm),
    ];

    static ulong NextWord(Random random) => (ulong)random.NextInt64() ^ ((ulong)random.NextInt64() << 1);

    static ulong NextCanonical(Random random) => (ulong)((long)(NextWord(random) << 16) >> 16);

    /// <summary>The state after reset: SDM volume 3, table 10-1; APM volume 2, 14.1.3.</summary>
    static void ResetValues()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Vcpu vcpu = vm.CreateVcpu();
        KvmRegs regs = vcpu.Regs;
        KvmSregs sregs = vcpu.Sregs;
        Check.Equal(0xFFF0ul, regs.Rip, "rip");
        Check.Equal(2ul, regs.Rflags, "rflags");
        Check.Equal(0ul, regs.Rax | regs.Rbx | regs.Rcx | regs.Rsp | regs.R15, "general registers");
        Check.Equal(0xF000, sregs.Cs.Selector, "cs");
        Check.Equal(0xFFFF0000ul, sregs.Cs.Base, "cs base");
        Check.Equal(0xFFFFu, sregs.Cs.Limit, "cs limit");
        Check.Equal(0, sregs.Ds.Selector, "ds");
        Check.Equal(0ul, sregs.Ds.Base, "ds base");
        Check.Equal(0x60000010ul, sregs.Cr0, "cr0");
        Check.Equal(0ul, sregs.Cr2 | sregs.Cr3 | sregs.Cr4 | sregs.Cr8 | sregs.Efer, "cr2, cr3, cr4, cr8, efer");
        Check.Equal(0xFFFF, sregs.Gdt.Limit, "gdt limit");
        Check.Equal(0xFFFF, sregs.Idt.Limit, "idt limit");
        Check.Equal(0xFEE00900ul, sregs.ApicBase & 0xFFFFFFFFFFFFFDFF | 0x900, "apic base of the boot CPU");
        KvmDebugregs debug = vcpu.Debugregs;
        Check.Equal(0xFFFF0FF0ul, debug.Dr6, "dr6");
        Check.Equal(0x400ul, debug.Dr7, "dr7");
        Check.Equal(0x37F, vcpu.Fpu.Fcw, "fcw as Linux initialises it");
        Check.Equal(1ul, vcpu.Xcrs.Xcrs[0].Value, "xcr0");
        Check.Equal(KvmMpState.Runnable, vcpu.MpState, "mp_state");
    }

    static KvmRegs RandomRegs(Random random)
    {
        KvmRegs regs = default;
        foreach (ref ulong register in MemoryMarshal.Cast<KvmRegs, ulong>(new Span<KvmRegs>(ref regs)))
            register = NextWord(random);
        regs.Rip = NextCanonical(random);
        // All defined flags except VM, VIP, VIF and RF; bit 1 is always set.
        regs.Rflags = (regs.Rflags & 0x247FD5) | 2;
        return regs;
    }

    static void RegsRandom()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Random random = TestEnvironment.FixedRandom;
        for (int i = 0; i < Rounds; i++)
        {
            KvmRegs regs = RandomRegs(random);
            guest.Vcpu.Regs = regs;
            Check.Same(regs, guest.Vcpu.Regs, $"round {i}");
        }
    }

    static void RegsGuestObserves()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            AssemblerRegister64[] all = [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
            for (int i = 0; i < all.Length; i++)
            {
                // Absolute addresses below 2 GiB need no register.
                code.mov(__qword_ptr[(long)GuestLayout.Data + i * 8], all[i]);
            }
            code.hlt();
        });
        KvmRegs regs = RandomRegs(TestEnvironment.FixedRandom);
        (regs.Rip, regs.Rflags) = (GuestLayout.Code, 2);
        guest.Vcpu.Regs = regs;
        guest.RunToHalt();
        Check.Bytes(MemoryMarshal.AsBytes(new ReadOnlySpan<KvmRegs>(in regs))[..128],
            guest.Memory.Slice(GuestLayout.Data, 128), "registers stored by the guest");
    }

    static void RegsGuestChanges()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            AssemblerRegister64[] all = [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
            for (int i = 0; i < all.Length; i++)
                code.mov(all[i], 0x1122334455667700 + i);
            code.hlt();
        });
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        ReadOnlySpan<ulong> values = MemoryMarshal.Cast<KvmRegs, ulong>(new ReadOnlySpan<KvmRegs>(in regs));
        for (int i = 0; i < 16; i++)
            Check.Equal(0x1122334455667700ul + (ulong)i, values[i], $"register {i} of struct kvm_regs");
    }

    static void RflagsFixedBit()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.SetRegs((ref regs) => regs.Rflags = 0);
        Check.Equal(2ul, guest.Vcpu.Regs.Rflags, "bit 1 is always set");
        guest.RunToHalt();
    }

    static void SregsRoundTrip()
    {
        foreach (GuestMode mode in GuestModes.All)
        {
            using var guest = new Guest(mode, code => code.hlt());
            KvmSregs before = guest.Vcpu.Sregs;
            guest.Vcpu.Sregs = before;
            Check.Same(before, guest.Vcpu.Sregs, $"{mode.Label()}: set what was got");
            guest.RunToHalt(mode.Label());
        }
    }

    static void SregsRandomSegments()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Random random = TestEnvironment.FixedRandom;
        for (int i = 0; i < Rounds; i++)
        {
            KvmSregs sregs = guest.Vcpu.Sregs;
            sregs.Fs.Base = NextCanonical(random);
            sregs.Gs.Base = NextCanonical(random);
            sregs.Gdt.Base = NextCanonical(random);
            sregs.Idt.Base = NextCanonical(random);
            sregs.Tr.Base = NextCanonical(random);
            sregs.Gdt.Limit = (ushort)random.Next();
            sregs.Idt.Limit = (ushort)random.Next();
            sregs.Cr2 = NextWord(random);
            sregs.Cr8 = (ulong)random.Next(16);
            sregs.Ds = RandomData(random);
            sregs.Es = RandomData(random);
            sregs.Fs = RandomData(random) with { Base = sregs.Fs.Base };
            sregs.Ldt = new() { Base = (uint)random.Next(), Limit = (uint)random.Next(0x10000), Selector = 0x28,
                Type = 2, Present = 1 };
            guest.Vcpu.Sregs = sregs;
            Check.Same(sregs, guest.Vcpu.Sregs, $"round {i}");
        }
    }

    static KvmSegment RandomData(Random random) => new()
    {
        Base = (uint)random.Next(),
        Limit = ((uint)random.Next() << 12) | 0xFFF,
        Selector = (ushort)random.Next(0x10000),
        Type = (byte)(random.Next(2) * 2 + 1),
        Present = 1,
        Dpl = 3,
        Db = (byte)random.Next(2),
        S = 1,
        G = 1,
        Avl = (byte)random.Next(2),
    };

    static void SregsGuestObserves()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, ds);
            code.mov(ecx, fs);
            code.str(edx);
            code.sldt(esi);
            code.sgdt(__[(long)GuestLayout.Data]);
            code.sidt(__[(long)GuestLayout.Data + 16]);
            code.mov(r8, cr2);
            code.mov(r9, cr3);
            code.db(0x64, 0x8B, 0x1C, 0x25, 8, 0, 0, 0); // mov ebx, fs:[8]
            code.hlt();
        });
        guest.Memory.Write(0x30008, 0xFEEDFACEu);
        guest.SetSregs((ref sregs) =>
        {
            // Levels as a CPU has them with these selectors: an entry on Intel's first takes no others.
            sregs.Ds.Selector = 0x13;
            sregs.Ds.Dpl = 3;
            sregs.Fs.Selector = 0x53;
            sregs.Fs.Dpl = 3;
            sregs.Fs.Base = 0x30000;
            sregs.Ldt = new() { Selector = 0x28, Limit = 0xFF, Base = 0x5000, Type = 2, Present = 1 };
            sregs.Gdt = new() { Base = 0xFFFF800000123450, Limit = 0x1234 };
            sregs.Idt = new() { Base = 0xFFFF800000543210, Limit = 0x4321 };
            sregs.Cr2 = 0x123456789ABC;
        });
        guest.RunTo(KvmExit.Hlt);
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal((0x13ul, 0x53ul, (ulong)GuestLayout.TssSelector, 0x28ul), (regs.Rax, regs.Rcx, regs.Rdx, regs.Rsi),
            "ds, fs, tr, ldtr");
        Check.Equal(0xFEEDFACEul, regs.Rbx, "through fs");
        Check.Equal(0x123456789ABCul, regs.R8, "cr2");
        Check.Equal(GuestLayout.PageTables, regs.R9, "cr3");
        Check.Equal((0x1234, 0xFFFF800000123450ul), (guest.Memory.Read<ushort>(GuestLayout.Data),
            guest.Memory.Read<ulong>(GuestLayout.Data + 2)), "gdt");
        Check.Equal((0x4321, 0xFFFF800000543210ul), (guest.Memory.Read<ushort>(GuestLayout.Data + 16),
            guest.Memory.Read<ulong>(GuestLayout.Data + 18)), "idt");
    }

    static void SregsRefused()
    {
        foreach ((string what, RefAction<KvmSregs> change) in new (string, RefAction<KvmSregs>)[]
            {
                ("a reserved bit of CR4", (ref s) => s.Cr4 |= 1 << 15),
                ("CR4 above 32 bits", (ref s) => s.Cr4 |= 1UL << 40),
                ("CR0 above 32 bits", (ref s) => s.Cr0 |= 1UL << 40),
                ("CR0.PG without PE", (ref s) => s.Cr0 &= ~1ul),
                ("CR0.NW without CD", (ref s) => s.Cr0 |= 0x20000000),
                ("paging in long mode without PAE", (ref s) => s.Cr4 &= ~0x20ul),
                ("LME and PG without LMA", (ref s) => s.Efer &= ~0x400ul),
                ("CR3 beyond the physical addresses", (ref s) => s.Cr3 = 1UL << 55),
            })
        {
            using var guest = new Guest(GuestMode.Long, code => code.hlt());
            KvmSregs before = guest.Vcpu.Sregs, wrong = before;
            change(ref wrong);
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetSregs, ref wrong), what);
            Check.Same(before, guest.Vcpu.Sregs, $"{what}: state afterwards");
            guest.RunToHalt(what);
        }
        using var plain = new Guest(GuestMode.Protected, code => code.hlt());
        KvmSregs sregs = plain.Vcpu.Sregs;
        sregs.Cs.L = 1;
        Check.Fails(Errno.EINVAL, plain.Vcpu.TryCall(KvmIoctl.SetSregs, ref sregs),
            "64-bit code segment outside of long mode");
    }

    /// <summary>One CPU is put from any mode into any other.</summary>
    static void SregsModeChanges()
    {
        foreach (GuestMode from in GuestModes.All)
        {
            using var guest = new Guest(from, code => code.hlt());
            guest.RunToHalt(from.Label());
            foreach (GuestMode to in GuestModes.All)
            {
                using var pattern = new Guest(to, code => code.hlt());
                GuestTables.Write(guest.Memory, to);
                guest.Vcpu.Sregs = pattern.Vcpu.Sregs;
                guest.Vcpu.Regs = pattern.Vcpu.Regs;
                guest.RunTo(KvmExit.Hlt, $"{from.Label()} to {to.Label()}");
                Check.Equal(GuestLayout.Code + 1, guest.Vcpu.Regs.Rip, $"{from.Label()} to {to.Label()}: rip");
            }
        }
    }

    static void SregsPendingInterrupt()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.nop();
            code.hlt();
        });
        guest.SetRegs((ref regs) => regs.Rflags = 0x202);
        guest.SetSregs((ref sregs) => sregs.InterruptBitmap[0x55 / 64] = 1UL << (0x55 % 64));
        Check.Equal(1UL << (0x55 % 64), guest.Vcpu.Sregs.InterruptBitmap[0x55 / 64], "interrupt_bitmap got back");
        Trap trap = guest.ExpectTrap(0x55);
        Check.Equal(GuestLayout.Code, trap.Rip, "rip");
    }

    static void Sregs2RoundTrip()
    {
        foreach (GuestMode mode in GuestModes.All)
        {
            using var guest = new Guest(mode, code => code.hlt());
            KvmSregs2 before = guest.Vcpu.Sregs2;
            KvmSregs plain = guest.Vcpu.Sregs;
            Check.Same(plain.Cs, before.Cs, "cs in both");
            Check.Equal(plain.Cr3, before.Cr3, "cr3 in both");
            guest.Vcpu.Sregs2 = before;
            Check.Same(before, guest.Vcpu.Sregs2, $"{mode.Label()}: set what was got");
            guest.RunToHalt(mode.Label());
        }
    }

    static void Sregs2Pdptrs()
    {
        using var guest = new Guest(GuestMode.Pae, code => code.hlt());
        guest.RunToHalt();
        KvmSregs2 sregs = guest.Vcpu.Sregs2;
        Check.Equal(KvmSregs2.FlagsPdptrsValid, sregs.Flags & KvmSregs2.FlagsPdptrsValid, "flags in PAE mode");
        for (int i = 0; i < 4; i++)
            Check.Equal((GuestLayout.PageTables + 0x2000 + (ulong)i * 0x1000) | 1, sregs.Pdptrs[i], $"pdptr {i}");
        using var other = new Guest(GuestMode.Long, code => code.hlt());
        Check.Equal(0ul, other.Vcpu.Sregs2.Flags & KvmSregs2.FlagsPdptrsValid, "flags in long mode");
    }

    static void Sregs2BadFlags()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmSregs2 sregs = guest.Vcpu.Sregs2;
        sregs.Flags = 2;
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetSregs2, ref sregs), "unknown flag");
        sregs.Flags = KvmSregs2.FlagsPdptrsValid;
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetSregs2, ref sregs), "PDPTRs in long mode");
        guest.RunToHalt();
    }

    static KvmFpu RandomFpu(Random random)
    {
        KvmFpu fpu = default;
        for (int i = 0; i < 8; i++)
            fpu.Fpr[i] = new() { Low = NextWord(random) | 1UL << 63, High = (ulong)random.Next(0x10000) };
        for (int i = 0; i < 16; i++)
            fpu.Xmm[i] = new() { Low = NextWord(random), High = NextWord(random) };
        fpu.Fcw = (ushort)(0x37F & (random.Next() | 0x7F));
        fpu.Ftwx = 0xFF;
        fpu.Mxcsr = 0x1F80 | (uint)random.Next(64);
        return fpu;
    }

    static void FpuRandom()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Random random = TestEnvironment.FixedRandom;
        for (int i = 0; i < Rounds; i++)
        {
            KvmFpu fpu = RandomFpu(random);
            guest.Vcpu.Fpu = fpu;
            KvmFpu got = guest.Vcpu.Fpu;
            got.LastIp = got.LastDp = got.LastOpcode = 0;
            // KVM_SET_FPU takes no MXCSR on some kernels; that it is sane must hold everywhere.
            Check.That((got.Mxcsr & ~0xFFFFu) == 0, $"round {i}: mxcsr {got.Mxcsr:x}");
            (fpu.Mxcsr, got.Mxcsr) = (0, 0);
            Check.Same(fpu, got, $"round {i}");
        }
    }

    /// <summary>Stock KVM_SET_FPU sets registers, but does not take them out of their initial state.</summary>
    static void UseFpu(Assembler code)
    {
        code.pcmpeqb(xmm0, xmm0);
        code.fld1();
        code.hlt();
    }

    static void FpuGuestObserves()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            UseFpu(code);
            code.movups(__xmmword_ptr[(long)GuestLayout.Data], xmm0);
            code.movups(__xmmword_ptr[(long)GuestLayout.Data + 16], xmm15);
            code.fstp(__tbyte_ptr[(long)GuestLayout.Data + 32]);
            code.pcmpeqb(xmm1, xmm1);
            code.fldpi();
            code.hlt();
        });
        guest.RunToHalt();
        KvmFpu fpu = RandomFpu(TestEnvironment.FixedRandom);
        guest.Vcpu.Fpu = fpu;
        guest.RunToHalt();
        Check.Equal(fpu.Xmm[0].Low, guest.Memory.Read<ulong>(GuestLayout.Data), "xmm0");
        Check.Equal(fpu.Xmm[15].High, guest.Memory.Read<ulong>(GuestLayout.Data + 24), "xmm15");
        Check.Equal(fpu.Fpr[0].Low, guest.Memory.Read<ulong>(GuestLayout.Data + 32), "st0");
        KvmFpu after = guest.Vcpu.Fpu;
        Check.Equal(ulong.MaxValue, after.Xmm[1].High, "xmm1 set by the guest");
        Check.Equal(0xC90FDAA22168C235ul, after.Fpr[0].Low, "pi pushed by the guest");
    }

    static Span<byte> RegionBytes(ref KvmXsave xsave) =>
        MemoryMarshal.AsBytes(new Span<KvmXsave>(ref xsave));

    static void XsaveRoundTrip()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.Vcpu.Fpu = RandomFpu(TestEnvironment.FixedRandom);
        KvmXsave before = guest.Vcpu.Xsave;
        guest.Vcpu.Xsave = before;
        KvmXsave after = guest.Vcpu.Xsave;
        Check.Bytes(RegionBytes(ref before), RegionBytes(ref after), "xsave area");
    }

    static void XsaveGuestObserves()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.xor(ecx, ecx);
            code.mov(eax, 7);
            code.xor(edx, edx);
            code.xsetbv();
            code.vmovups(__ymmword_ptr[(long)GuestLayout.Data], ymm3);
            code.vpcmpeqd(ymm4, ymm4, ymm4);
            code.hlt();
        });
        Check.Needs(guest.Kvm.GetSupportedCpuid().Any(leaf => leaf is { Function: 0xD, Index: 2 }), "AVX");
        guest.SetSregs((ref sregs) => sregs.Cr4 |= 1 << 18);
        SetXcr0(guest, 7);
        KvmXsave xsave = guest.Vcpu.Xsave;
        Span<byte> area = RegionBytes(ref xsave);
        area[512] |= 6; // XSTATE_BV: SSE and AVX
        area.Slice(160 + 3 * 16, 16).Fill(0x3C);
        area.Slice(576 + 3 * 16, 16).Fill(0xC3);
        guest.Vcpu.Xsave = xsave;
        guest.RunToHalt();
        Check.That(!guest.Memory.Slice(GuestLayout.Data, 16).ContainsAnyExcept((byte)0x3C), "low half of ymm3");
        Check.That(!guest.Memory.Slice(GuestLayout.Data + 16, 16).ContainsAnyExcept((byte)0xC3), "high half of ymm3");
        KvmXsave after = guest.Vcpu.Xsave;
        Check.That(!RegionBytes(ref after).Slice(576 + 4 * 16, 16).ContainsAnyExcept((byte)0xFF),
            "ymm4 set by the guest");
    }

    static void SetXcr0(Guest guest, ulong value)
    {
        var xcrs = new KvmXcrs { NrXcrs = 1 };
        xcrs.Xcrs[0].Value = value;
        guest.Vcpu.Xcrs = xcrs;
    }

    static void XsaveRefused()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmXsave before = guest.Vcpu.Xsave;
        KvmXsave wrong = before;
        RegionBytes(ref wrong)[512 + 7] = 0x40; // an unknown component
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetXsave, ref wrong), "unknown state component");
        wrong = before;
        RegionBytes(ref wrong)[512] |= 2;
        RegionBytes(ref wrong)[24 + 3] = 0x80; // MXCSR bit 31
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetXsave, ref wrong), "reserved bit of MXCSR");
        KvmXsave after = guest.Vcpu.Xsave;
        Check.Bytes(RegionBytes(ref before), RegionBytes(ref after), "state afterwards");
        guest.RunToHalt();
    }

    static void Xsave2Same()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.Vcpu.Fpu = RandomFpu(TestEnvironment.FixedRandom);
        int size = guest.Vm.CheckExtension(KvmCap.Xsave2);
        byte[] area = new byte[size + 64];
        area.AsSpan(size).Fill(0xA5);
        guest.Vcpu.Call(KvmIoctl.GetXsave2, area);
        KvmXsave plain = guest.Vcpu.Xsave;
        Check.Bytes(RegionBytes(ref plain), area.AsSpan(0, 4096), "first 4096 bytes");
        Check.That(!area.AsSpan(size).ContainsAnyExcept((byte)0xA5), "bytes behind the area");
    }

    static void XsaveFpuAgree()
    {
        using var guest = new Guest(GuestMode.Long, UseFpu);
        guest.RunToHalt();
        KvmFpu fpu = RandomFpu(TestEnvironment.FixedRandom);
        guest.Vcpu.Fpu = fpu;
        KvmXsave xsave = guest.Vcpu.Xsave;
        ReadOnlySpan<byte> area = RegionBytes(ref xsave);
        Check.Equal(fpu.Xmm[2].Low, MemoryMarshal.Read<ulong>(area[(160 + 32)..]), "xmm2");
        Check.Equal(fpu.Fcw, MemoryMarshal.Read<ushort>(area), "fcw");
        Check.Equal(3, area[512] & 3, "x87 and SSE are in XSTATE_BV");
    }

    static void XcrsRoundTrip()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.xor(ecx, ecx);
            code.xgetbv();
            code.hlt();
        });
        guest.SetSregs((ref sregs) => sregs.Cr4 |= 1 << 18);
        Check.Equal(1u, guest.Vcpu.Xcrs.NrXcrs, "nr_xcrs");
        SetXcr0(guest, 3);
        Check.Equal(3ul, guest.Vcpu.Xcrs.Xcrs[0].Value, "got back");
        guest.RunToHalt();
        Check.Equal(3ul, guest.Vcpu.Regs.Rax, "XGETBV in the guest");
    }

    static void XcrsRefused()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        foreach ((uint count, uint flags, uint index, ulong value) in new[]
            {
                (17u, 0u, 0u, 1ul), (uint.MaxValue, 0u, 0u, 1ul), (1u, 1u, 0u, 1ul), (1u, 0u, 0u, 0ul),
                    (1u, 0u, 0u, 2ul),
                (1u, 0u, 0u, 5ul), (1u, 0u, 0u, 1ul << 62 | 1),
            })
        {
            var xcrs = new KvmXcrs { NrXcrs = count, Flags = flags };
            xcrs.Xcrs[0] = new() { Xcr = index, Value = value };
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetXcrs, ref xcrs),
                $"nr {count} flags {flags} xcr{index} = {value:x}");
        }
        Check.Equal(1ul, guest.Vcpu.Xcrs.Xcrs[0].Value, "XCR0 afterwards");
    }

    static void DebugregsRandom()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Random random = TestEnvironment.FixedRandom;
        for (int i = 0; i < Rounds; i++)
        {
            KvmDebugregs debug = default;
            for (int j = 0; j < 4; j++)
                debug.Db[j] = NextCanonical(random);
            debug.Dr6 = 0xFFFF0FF0 | (uint)(random.Next() & 0xE00F);
            debug.Dr7 = 0x400 | (uint)(random.Next() & 0x3FF);
            guest.Vcpu.Debugregs = debug;
            Check.Same(debug, guest.Vcpu.Debugregs, $"round {i}");
        }
    }

    static void DebugregsGuestObserves()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, dr0);
            code.mov(rbx, dr3);
            code.mov(rcx, dr6);
            code.mov(rdx, dr7);
            code.hlt();
        });
        KvmDebugregs debug = default;
        (debug.Db[0], debug.Db[3], debug.Dr6, debug.Dr7) = (0x1111, 0xFFFF800000003333, 0xFFFF0FF1, 0x400);
        guest.Vcpu.Debugregs = debug;
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal((0x1111ul, 0xFFFF800000003333ul, 0xFFFF0FF1ul, 0x400ul), (regs.Rax, regs.Rbx, regs.Rcx, regs.Rdx),
            "dr0, dr3, dr6, dr7");
    }

    static void DebugregsRefused()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmDebugregs good = guest.Vcpu.Debugregs;
        foreach ((string what, RefAction<KvmDebugregs> change) in new (string, RefAction<KvmDebugregs>)[]
            {
                ("unknown flags", (ref d) => d.Flags = 1), ("DR6 above 32 bits", (ref d) => d.Dr6 |= 1UL << 32),
                ("DR7 above 32 bits", (ref d) => d.Dr7 |= 1UL << 32),
            })
        {
            KvmDebugregs wrong = good;
            change(ref wrong);
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetDebugregs, ref wrong), what);
        }
        Check.Same(good, guest.Vcpu.Debugregs, "state afterwards");
    }

    /// <summary>The reserved part is zero, not what lay on the kernel's stack (CVE-2023-1513).</summary>
    static void DebugregsNoStackBytes()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmDebugregs debug = default;
        MemoryMarshal.AsBytes(new Span<KvmDebugregs>(ref debug)).Fill(0xA5);
        guest.Vcpu.Call(KvmIoctl.GetDebugregs, ref debug);
        foreach (ulong word in debug.Reserved)
            Check.Equal(0ul, word, "reserved");
        Check.Equal(0ul, debug.Flags, "flags");
    }

    static void EventsRoundTrip()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmVcpuEvents events = guest.Vcpu.Events;
        Check.Equal(0,
            events.Exception.Injected + events.Interrupt.Injected + events.Nmi.Injected + events.Nmi.Pending,
            "nothing at first");
        events.Exception = new() { Injected = 1, Nr = 13, HasErrorCode = 1, ErrorCode = 0x1234 };
        guest.Vcpu.Events = events;
        KvmVcpuEvents got = guest.Vcpu.Events;
        Check.Same(events.Exception, got.Exception, "exception");
        events.Exception = default;
        events.Interrupt = new() { Injected = 1, Nr = 0x44 };
        events.Nmi = new() { Masked = 1, Pending = 1 };
        events.Flags = KvmVcpuEvents.ValidNmiPending;
        guest.Vcpu.Events = events;
        got = guest.Vcpu.Events;
        Check.Equal(0, got.Exception.Injected, "exception taken back");
        Check.Equal((1, 0x44), (got.Interrupt.Injected, got.Interrupt.Nr), "interrupt");
        Check.Equal((1, 1), (got.Nmi.Masked, got.Nmi.Pending), "NMI");
        events.Interrupt = default;
        events.Nmi = default;
        guest.Vcpu.Events = events;
        guest.RunToHalt();
    }

    static void EventsRefused()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        foreach ((string what, RefAction<KvmVcpuEvents> change) in new (string, RefAction<KvmVcpuEvents>)[]
            {
                ("unknown flags", (ref e) => e.Flags = 0x8000_0000),
                    ("exception number 32", (ref e) => e.Exception = new() { Injected = 1, Nr = 32 }),
                ("exception number 255", (ref e) => e.Exception = new() { Injected = 1, Nr = 255 }),
                ("NMI as an exception", (ref e) => e.Exception = new() { Injected = 1, Nr = 2 }),
            })
        {
            KvmVcpuEvents events = guest.Vcpu.Events;
            change(ref events);
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetVcpuEvents, ref events), what);
        }
        guest.RunToHalt();
    }

    static void MpState()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.Vcpu.MpState = KvmMpState.Runnable;
        Check.Equal(KvmMpState.Runnable, guest.Vcpu.MpState, "state");
        guest.RunToHalt();
        Check.Equal(KvmMpState.Runnable, guest.Vcpu.MpState, "state after HLT, which is user space's to handle");
    }

    static void TscKhz()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        int frequency = guest.Vcpu.TscKhz;
        Check.That(frequency > 1000, $"{frequency} kHz");
        guest.Vcpu.TscKhz = frequency;
        Check.Equal(frequency, guest.Vcpu.TscKhz, "the host's own frequency is always possible");
        Check.Equal(frequency, guest.Vm.TryCall(KvmIoctl.GetTscKhz) is > 0 and int machine
            ? machine : frequency, "on the VM");
    }

    static void SyncRegs()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.inc(rbx);
            code.hlt();
        });
        int supported = guest.Kvm.CheckExtension(KvmCap.SyncRegs);
        Check.Needs(supported == 7, "KVM_CAP_SYNC_REGS, which this interface does not need");
        guest.Run.KvmValidRegs = 1;
        guest.RunToHalt();
        Check.Equal(1ul, guest.Run.SyncRegs.Rbx, "rbx in the run page");
        KvmRegs regs = guest.Vcpu.Regs;
        regs.Rip = GuestLayout.Code;
        regs.Rbx = 41;
        guest.Run.SyncRegs = regs;
        guest.Run.KvmDirtyRegs = 1;
        guest.RunToHalt();
        Check.Equal(42ul, guest.Vcpu.Regs.Rbx, "rbx given through the run page");
        guest.Run.KvmValidRegs = 0x80;
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryRun(), "unknown set of registers");
    }

    /// <summary>Padding that comes out is zero.</summary>
    static void StructuresZeroed()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmSregs sregs = default;
        MemoryMarshal.AsBytes(new Span<KvmSregs>(ref sregs)).Fill(0xA5);
        guest.Vcpu.Call(KvmIoctl.GetSregs, ref sregs);
        Check.Equal(0, sregs.Cs.Padding | sregs.Ss.Padding | sregs.Tr.Padding, "padding of segments");
        Check.Equal(0, sregs.Gdt.Padding0 | sregs.Gdt.Padding1 | sregs.Gdt.Padding2
            | sregs.Idt.Padding0, "padding of tables");
        KvmVcpuEvents events = default;
        MemoryMarshal.AsBytes(new Span<KvmVcpuEvents>(ref events)).Fill(0xA5);
        guest.Vcpu.Call(KvmIoctl.GetVcpuEvents, ref events);
        foreach (byte value in events.Reserved)
            Check.Equal(0, value, "reserved bytes of the events");
        KvmXcrs xcrs = default;
        MemoryMarshal.AsBytes(new Span<KvmXcrs>(ref xcrs)).Fill(0xA5);
        guest.Vcpu.Call(KvmIoctl.GetXcrs, ref xcrs);
        foreach (ulong value in xcrs.Padding)
            Check.Equal(0ul, value, "padding of the XCRs");
    }

    /// <summary>Save and restore: a machine stopped in the middle goes on in another one.</summary>
    static void CopyToAnotherVm()
    {
        Action<Assembler> program = code =>
        {
            code.mov(rax, 0x1234567890);
            code.movq(xmm7, rax);
            code.hlt();
            code.movq(rbx, xmm7);
            code.push(rbx);
            code.pop(rcx);
            code.hlt();
        };
        using var source = new Guest(GuestMode.Long, program);
        source.RunToHalt();
        using var target = new Guest(GuestMode.Real, [0xF4]);
        source.Memory.Slice(0, (int)GuestLayout.RamSize).CopyTo(target.Memory.Slice(0, (int)GuestLayout.RamSize));
        target.Vcpu.Sregs2 = source.Vcpu.Sregs2;
        target.Vcpu.Regs = source.Vcpu.Regs;
        target.Vcpu.Xcrs = source.Vcpu.Xcrs;
        target.Vcpu.Xsave = source.Vcpu.Xsave;
        target.Vcpu.Debugregs = source.Vcpu.Debugregs;
        target.Vcpu.Events = source.Vcpu.Events;
        target.RunTo(KvmExit.Hlt);
        Check.Equal(0x1234567890ul, target.Vcpu.Regs.Rcx, "value that travelled in xmm7");
    }
}
