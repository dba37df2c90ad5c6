// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>HLT, shutdown, hypercalls, CPUID and the instructions that hardware lets a hypervisor see.</summary>
static class ExitTests
{
    const uint KvmSignatureLeaf = 0x40000000, KvmFeaturesLeaf = 0x40000001;

    public static IEnumerable<TestCase> All =>
    [
        .. GuestModes.All.Select(mode => new TestCase($"exit/hlt_{mode.Label()}", () => Halt(mode))),
        new("exit/hlt_again", HaltAgain),
        .. GuestModes.All.Where(mode => mode != GuestMode.Real)
            .Select(mode => new TestCase($"exit/triple_fault_{mode.Label()}", () => TripleFault(mode))),
        new("exit/triple_fault_real_mode", TripleFaultRealMode),
        new("exit/hypercall_unknown", HypercallUnknown),
        new("exit/hypercall_user_mode", HypercallUserMode),
        new("exit/hypercall_high_bits", HypercallHighBits),
        new("exit/vmcall_instruction", VmcallInstruction),
        new("exit/svm_instructions_refused", SvmInstructionsRefused),
        new("exit/invalid_opcode", InvalidOpcode),
        new("exit/invd_wbinvd", InvalidateCaches),
        new("exit/monitor_mwait", MonitorMwait),
        new("exit/rdpmc", ReadPmc),
        new("exit/pause", Pause),
        new("exit/invlpg", InvalidatePage),
        new("exit/cpuid_supported_sane", SupportedCpuidSane),
        new("exit/cpuid_honoured", CpuidHonoured),
        new("exit/cpuid_index", CpuidIndex),
        new("exit/cpuid_beyond_basic", CpuidBeyondBasic),
        new("exit/cpuid_dynamic_bits", CpuidDynamicBits),
        new("exit/cpuid_kvm_leaf", CpuidKvmLeaf),
        new("exit/cpuid_user_mode", CpuidUserMode),
        new("exit/cpuid_get_back", CpuidGetBack),
        new("exit/cpuid_after_run", CpuidAfterRun),
        new("exit/xsetbv", Xsetbv),
        new("exit/xsetbv_invalid", XsetbvInvalid),
        new("exit/rdtsc_advances", RdtscAdvances),
        new("exit/smsw_lmsw_clts", MachineStatusWord),
        new("exit/cr_access", ControlRegisters),
        new("exit/cr_invalid", ControlRegistersInvalid),
        new("exit/dr_access", DebugRegisters),
        new("exit/cr8", TaskPriority),
    ];

    static void Halt(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.nop();
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(GuestLayout.Code + 2, guest.Vcpu.Regs.Rip, "rip");
    }

    static void HaltAgain()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.hlt();
            code.hlt();
            code.hlt();
        });
        for (ulong i = 1; i <= 3; i++)
        {
            guest.RunToHalt();
            Check.Equal(GuestLayout.Code + i, guest.Vcpu.Regs.Rip, "rip");
        }
    }

    static void TripleFault(GuestMode mode)
    {
        using var guest = new Guest(mode, code => code.ud2());
        guest.SetSregs((ref sregs) => sregs.Idt = new() { Base = GuestLayout.Idt, Limit = 0 });
        guest.RunTo(KvmExit.Shutdown, "UD2 with an empty IDT");
    }

    static void TripleFaultRealMode()
    {
        using var guest = new Guest(GuestMode.Real, code => code.ud2());
        guest.SetSregs((ref sregs) => sregs.Idt = new() { Base = 0, Limit = 0 });
        guest.RunTo(KvmExit.Shutdown, "UD2 with an empty vector table");
    }

    static void HypercallUnknown()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 9999);
            code.vmmcall();
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(unchecked((ulong)-1000), guest.Vcpu.Regs.Rax, "rax: -KVM_ENOSYS");
        Check.Equal(GuestLayout.Code + 9, guest.Vcpu.Regs.Rip, "rip");
    }

    static void HypercallUserMode()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 1);
            code.vmmcall();
            code.int3();
        });
        guest.EnterUserMode();
        guest.ExpectTrap(3);
        Check.Equal(unchecked((ulong)-1), guest.Vcpu.Regs.Rax, "rax: -KVM_EPERM");
    }

    /// <summary>Outside of 64-bit mode the number and the result are 32 bits wide.</summary>
    static void HypercallHighBits()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.vmmcall();
            code.hlt();
        });
        guest.SetRegs((ref regs) => regs.Rax = 9999);
        guest.RunToHalt();
        Check.Equal(unchecked((uint)-1000), (uint)guest.Vcpu.Regs.Rax, "eax: -KVM_ENOSYS");
    }

    /// <summary>The other vendor's hypercall instruction works as well (KVM patches it), or is an invalid
    /// opcode.</summary>
    static void VmcallInstruction()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 9999);
            code.vmcall();
            code.hlt();
        });
        guest.RunTo(KvmExit.Hlt);
        KvmRegs regs = guest.Vcpu.Regs;
        if (regs.Rip == GuestLayout.Code + 9)
            Check.Equal(unchecked((ulong)-1000), regs.Rax, "rax");
        else
            guest.ReadTrap(6, "VMCALL");
    }

    /// <summary>A guest that was not given SVM finds its instructions invalid, at either privilege level.</summary>
    static void SvmInstructionsRefused()
    {
        foreach (bool user in (bool[])[false, true])
        {
            foreach (byte last in (byte[])[0xD8, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF])
            {
                using var guest = new Guest(GuestMode.Long, [0x0F, 0x01, last, 0xF4]);
                guest.SetRegs((ref regs) => regs.Rax = GuestLayout.Data);
                if (user)
                    guest.EnterUserMode();
                guest.RunTo(KvmExit.Hlt, $"0F 01 {last:X2}");
                int vector = guest.Vcpu.Regs.Rip < GuestTables.StubAddress(7) ? 6 : 13;
                Trap trap = guest.ReadTrap(vector, $"0F 01 {last:X2}");
                Check.Equal(GuestLayout.Code, trap.Rip, "rip");
            }
        }
    }

    static void InvalidOpcode()
    {
        foreach (GuestMode mode in GuestModes.All)
        {
            using var guest = new Guest(mode, code =>
            {
                code.nop();
                code.ud2();
            });
            Trap trap = guest.ExpectTrap(6, mode.Label());
            Check.Equal(GuestLayout.Code + 1, trap.Rip, "rip");
        }
    }

    static void InvalidateCaches()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(__dword_ptr[(long)GuestLayout.Data], 0x12345678);
            code.wbinvd();
            code.invd();
            code.mov(eax, __dword_ptr[(long)GuestLayout.Data]);
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(0x12345678ul, guest.Vcpu.Regs.Rax, "memory behind WBINVD and INVD");
    }

    /// <summary>A guest without the MONITOR feature: KVM's long-standing answer is a NOP; the manual's is
    /// #UD.</summary>
    static void MonitorMwait()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, (uint)GuestLayout.Data);
            code.xor(ecx, ecx);
            code.xor(edx, edx);
            code.monitor();
            code.mwait();
            code.hlt();
        });
        guest.RunTo(KvmExit.Hlt, "MONITOR and MWAIT");
        if (guest.Vcpu.Regs.Rip != GuestLayout.Code + 16)
            guest.ReadTrap(6, "MONITOR without the feature");
    }

    static void ReadPmc()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(ecx, 0x12345);
            code.rdpmc();
            code.hlt();
        });
        Trap trap = guest.ExpectTrap(13, "RDPMC of a counter that is not there");
        Check.Equal(0ul, trap.ErrorCode, "error code");
    }

    static void Pause()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.mov(ecx, 20000);
            code.Label(ref again);
            code.pause();
            code.dec(ecx);
            code.jnz(again);
            code.hlt();
        });
        guest.RunToHalt();
    }

    static void InvalidatePage()
    {
        ulong entry = GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8;
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, GuestLayout.Data);
            code.mov(eax, __dword_ptr[rbx]);
            code.mov(rdx, 0x30000 | 7);
            code.mov(__qword_ptr[(long)entry], rdx);
            code.invlpg(__byte_ptr[rbx]);
            code.mov(ecx, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.Memory.Write(GuestLayout.Data, 0x11u);
        guest.Memory.Write(0x30000, 0x22u);
        guest.RunToHalt();
        Check.Equal(0x11ul, guest.Vcpu.Regs.Rax, "before");
        Check.Equal(0x22ul, guest.Vcpu.Regs.Rcx, "after INVLPG");
    }

    static KvmCpuidEntry2 Leaf(KvmCpuidEntry2[] leaves, uint function, uint index = 0) => leaves.First(leaf =>
        leaf.Function == function && ((leaf.Flags & KvmCpuidEntry2.FlagSignificantIndex) == 0 || leaf.Index == index));

    static void SupportedCpuidSane()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        KvmCpuidEntry2[] leaves = kvm.GetSupportedCpuid();
        Check.That(Leaf(leaves, 0).Eax >= 0xD, "leaf 0 reaches to XSAVE");
        KvmCpuidEntry2 features = Leaf(leaves, 1);
        Check.That((features.Edx & 0x07808111) == 0x07808111,
            $"FPU, TSC, CX8, MMX, FXSR, SSE, SSE2: edx {features.Edx:x}");
        if (TestEnvironment.IsSharpKvm)
            Check.Equal(0u, features.Ecx & 0x20, "VMX is not offered");
        KvmCpuidEntry2 extended = Leaf(leaves, 0x80000001);
        Check.Equal(0x20000000u, extended.Edx & 0x20000000, "long mode");
        int duplicates = leaves.GroupBy(leaf => (leaf.Function, leaf.Index)).Count(group => group.Count() > 1);
        Check.Equal(0, duplicates, "leaves that are given twice");
        foreach (KvmCpuidEntry2 leaf in leaves)
            Check.Equal(0u, leaf.Padding0 | leaf.Padding1 | leaf.Padding2, $"padding of leaf {leaf.Function:x}");
    }

    static Guest CpuidGuest(uint function, uint index = 0)
    {
        var guest = new Guest(GuestMode.Long, code =>
        {
            code.cpuid();
            code.hlt();
        });
        guest.SetRegs((ref regs) =>
        {
            // The upper halves have to be cleared by the instruction.
            regs.Rax = 0xFFFFFFFF00000000 | function;
            regs.Rcx = 0xFFFFFFFF00000000 | index;
            regs.Rbx = regs.Rdx = ulong.MaxValue;
        });
        return guest;
    }

    static (ulong Eax, ulong Ebx, ulong Ecx, ulong Edx) RunCpuid(Guest guest)
    {
        guest.RunToHalt("CPUID");
        KvmRegs regs = guest.Vcpu.Regs;
        return (regs.Rax, regs.Rbx, regs.Rcx, regs.Rdx);
    }

    static void CpuidHonoured()
    {
        using Guest guest = CpuidGuest(0x80000002);
        KvmCpuidEntry2[] leaves = guest.Kvm.GetSupportedCpuid();
        int at = Array.FindIndex(leaves, leaf => leaf.Function == 0x80000002);
        (leaves[at].Eax, leaves[at].Ebx, leaves[at].Ecx, leaves[at].Edx) =
            (0x72616853, 0x4D564B70, 0x12345678, 0x9ABCDEF0);
        guest.Vcpu.Cpuid = leaves;
        Check.Equal((0x72616853ul, 0x4D564B70ul, 0x12345678ul, 0x9ABCDEF0ul), RunCpuid(guest), "CPUID 80000002");
    }

    static void CpuidIndex()
    {
        using Guest guest = CpuidGuest(0xD, 2);
        KvmCpuidEntry2[] leaves = guest.Kvm.GetSupportedCpuid();
        int at = Array.FindIndex(leaves, leaf => leaf is { Function: 0xD, Index: 2 });
        Check.Needs(at >= 0, "AVX state in XSAVE");
        Check.Equal(((ulong)leaves[at].Eax, (ulong)leaves[at].Ebx, (ulong)leaves[at].Ecx, (ulong)leaves[at].Edx),
            RunCpuid(guest), "CPUID D.2");
        guest.SetRegs((ref regs) =>
        {
            regs.Rip = GuestLayout.Code;
            regs.Rax = 0xD;
            regs.Rcx = 63;
        });
        Check.Equal((0ul, 0ul, 0ul, 0ul), RunCpuid(guest), "CPUID D.63, which is not listed");
    }

    /// <summary>AMD: a leaf above the highest is zero.</summary>
    static void CpuidBeyondBasic()
    {
        using Guest guest = CpuidGuest(0x3FFFFFFF);
        KvmCpuidEntry2[] leaves = guest.Kvm.GetSupportedCpuid();
        if (Leaf(leaves, 0).Ebx != 0x68747541)
            throw new TestSkipped("the host is not AMD's");
        Check.Equal((0ul, 0ul, 0ul, 0ul), RunCpuid(guest), "CPUID 3fffffff");
    }

    /// <summary>OSXSAVE mirrors the guest's CR4 whatever the table says.</summary>
    static void CpuidDynamicBits()
    {
        using Guest guest = CpuidGuest(1);
        Check.Equal(0ul, RunCpuid(guest).Ecx & (1 << 27), "OSXSAVE with CR4.OSXSAVE clear");
        guest.SetSregs((ref sregs) => sregs.Cr4 |= 1 << 18);
        guest.SetRegs((ref regs) => (regs.Rip, regs.Rax, regs.Rcx) = (GuestLayout.Code, 1, 0));
        Check.Equal(1ul << 27, RunCpuid(guest).Ecx & (1 << 27), "OSXSAVE with CR4.OSXSAVE set");
    }

    static void CpuidKvmLeaf()
    {
        using Guest guest = CpuidGuest(KvmSignatureLeaf);
        (ulong eax, ulong ebx, ulong ecx, ulong edx) = RunCpuid(guest);
        Check.Equal((0x4B4D564Bul, 0x564B4D56ul, 0x4Dul), (ebx, ecx, edx), "KVMKVMKVM");
        Check.That(eax >= KvmFeaturesLeaf, $"highest leaf {eax:x}");
    }

    static void CpuidUserMode()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, KvmSignatureLeaf);
            code.cpuid();
            code.int3();
        });
        guest.EnterUserMode();
        guest.ExpectTrap(3);
        Check.Equal(0x4B4D564Bul, guest.Vcpu.Regs.Rbx, "ebx");
    }

    static void CpuidGetBack()
    {
        using Guest guest = CpuidGuest(0);
        KvmCpuidEntry2[] set = guest.Kvm.GetSupportedCpuid();
        KvmCpuidEntry2[] got = guest.Vcpu.Cpuid;
        Check.Equal(set.Length, got.Length, "number of leaves");
        for (int i = 0; i < set.Length; i++)
        {
            // Bits that mirror CR4 and enabled state are the guest's, not the table's.
            if (set[i].Function is 1 or 7 or 0xD or KvmFeaturesLeaf)
                continue;
            Check.Same(set[i], got[i], $"leaf {set[i].Function:x}.{set[i].Index:x}");
        }
    }

    /// <summary>A CPU that has run keeps its features; the same again is no change.</summary>
    static void CpuidAfterRun()
    {
        using Guest guest = CpuidGuest(0);
        KvmCpuidEntry2[] leaves = guest.Vcpu.Cpuid;
        guest.RunToHalt();
        Check.Succeeds(guest.Vcpu.TryCall(KvmIoctl.SetCpuid2, CpuidList.Pack(leaves)), "the same table");
        leaves[0].Eax--;
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetCpuid2, CpuidList.Pack(leaves)), "another table");
    }

    static void Xsetbv()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.xor(ecx, ecx);
            code.mov(eax, 3);
            code.xor(edx, edx);
            code.xsetbv();
            code.xgetbv();
            code.hlt();
        });
        guest.SetSregs((ref sregs) => sregs.Cr4 |= 1 << 18);
        guest.RunToHalt();
        Check.Equal(3ul, guest.Vcpu.Regs.Rax, "XCR0 as the guest sees it");
        // An emulated CPU may not know this intercept; then nobody can know what the guest wrote.
        Check.Needs(guest.Vcpu.Xcrs.Xcrs[0].Value != 1, "an intercept of XSETBV");
        Check.Equal(3ul, guest.Vcpu.Xcrs.Xcrs[0].Value, "XCR0 as the host sees it");
    }

    static void XsetbvInvalid()
    {
        foreach ((uint index, uint value) in new[] { (0u, 2u), (0u, 0u), (0u, 5u), (1u, 1u), (0u, 0x80000001u) })
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.mov(ecx, index);
                code.mov(eax, value);
                code.xor(edx, edx);
                code.xsetbv();
                code.hlt();
            });
            guest.SetSregs((ref sregs) => sregs.Cr4 |= 1 << 18);
            Trap trap = guest.ExpectTrap(13, $"XSETBV {index} {value:x}");
            Check.Equal(0ul, trap.ErrorCode, "error code");
        }
    }

    static void RdtscAdvances()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.rdtsc();
            code.shl(rdx, 32);
            code.or(rax, rdx);
            code.mov(rbx, rax);
            code.rdtsc();
            code.shl(rdx, 32);
            code.or(rax, rdx);
            code.hlt();
        });
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.That(regs.Rax > regs.Rbx, $"second reading {regs.Rax} after {regs.Rbx}");
    }

    static void MachineStatusWord()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.smsw(eax);
            code.or(eax, 8);
            code.lmsw(ax);
            code.mov(ecx, cr0);
            code.clts();
            code.mov(edx, cr0);
            code.hlt();
        });
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(8ul, regs.Rcx & 8, "CR0.TS set by LMSW");
        Check.Equal(0ul, regs.Rdx & 8, "CR0.TS cleared by CLTS");
        Check.Equal(regs.Rdx, guest.Vcpu.Sregs.Cr0, "CR0 as the host sees it");
    }

    static void ControlRegisters()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, cr0);
            code.or(rax, 0x40002);
            code.mov(cr0, rax);
            code.mov(rbx, cr0);
            code.mov(rax, 0x123456789);
            code.mov(cr2, rax);
            code.mov(rcx, cr2);
            code.mov(rax, cr4);
            code.or(rax, 0x80);
            code.mov(cr4, rax);
            code.mov(rdx, cr4);
            code.mov(rax, cr3);
            code.mov(cr3, rax);
            code.mov(rsi, cr3);
            code.hlt();
        });
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        KvmSregs sregs = guest.Vcpu.Sregs;
        Check.Equal(0x40002ul, regs.Rbx & 0x40002, "CR0.AM and MP");
        Check.Equal(regs.Rbx, sregs.Cr0, "CR0");
        Check.Equal(0x123456789ul, regs.Rcx, "CR2");
        Check.Equal(regs.Rcx, sregs.Cr2, "CR2 as the host sees it");
        Check.Equal(0x80ul, regs.Rdx & 0x80, "CR4.PGE");
        Check.Equal(regs.Rdx, sregs.Cr4, "CR4");
        Check.Equal(GuestLayout.PageTables, regs.Rsi, "CR3");
    }

    static void ControlRegistersInvalid()
    {
        foreach ((string what, Action<Assembler> code) in new (string, Action<Assembler>)[]
            {
                ("CR0.PG without PE", c => { c.mov(rax, cr0); c.and(rax, -2); c.mov(cr0, rax); }),
                ("CR0.NW without CD", c => { c.mov(rax, cr0); c.or(rax, 0x20000000); c.mov(cr0, rax); }),
                ("CR4.PAE off in long mode", c => { c.mov(rax, cr4); c.and(rax, ~0x20); c.mov(cr4, rax); }),
                ("a reserved bit of CR4", c => { c.mov(rax, cr4); c.bts(rax, 15); c.mov(cr4, rax); }),
                ("CR8 above 15", c => { c.mov(eax, 16); c.mov(cr8, rax); }),
            })
        {
            using var guest = new Guest(GuestMode.Long, assembler =>
            {
                code(assembler);
                assembler.hlt();
            });
            Trap trap = guest.ExpectTrap(13, what);
            Check.Equal(0ul, trap.ErrorCode, $"{what}: error code");
        }
    }

    static void DebugRegisters()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, 0x1234);
            code.mov(dr0, rax);
            code.mov(rax, 0x5678);
            code.mov(dr3, rax);
            code.mov(rbx, dr0);
            code.mov(rcx, dr3);
            code.mov(rdx, dr6);
            code.mov(rsi, dr7);
            code.hlt();
        });
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0x1234ul, regs.Rbx, "dr0");
        Check.Equal(0x5678ul, regs.Rcx, "dr3");
        Check.Equal(0xFFFF0FF0ul, regs.Rdx, "dr6 initially");
        Check.Equal(0x400ul, regs.Rsi, "dr7 initially");
        KvmDebugregs debug = guest.Vcpu.Debugregs;
        Check.Equal(0x1234ul, debug.Db[0], "dr0 as the host sees it");
        Check.Equal(0x5678ul, debug.Db[3], "dr3 as the host sees it");
    }

    static void TaskPriority()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 9);
            code.mov(cr8, rax);
            code.mov(rbx, cr8);
            code.hlt();
            code.mov(rcx, cr8);
            code.hlt();
        });
        // Raising the priority needs nobody's attention; lowering it would (KVM_EXIT_SET_TPR).
        guest.RunToHalt();
        Check.Equal(9ul, guest.Vcpu.Regs.Rbx, "CR8 in the guest");
        Check.Equal(9ul, guest.Run.Cr8, "CR8 in the run page");
        Check.Equal(9ul, guest.Vcpu.Sregs.Cr8, "CR8 in sregs");
        guest.Run.Cr8 = 4;
        guest.RunToHalt();
        Check.Equal(4ul, guest.Vcpu.Regs.Rcx, "CR8 given through the run page");
    }
}
