// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Guests that change the CPU's mode themselves, segmentation, task switches, address translation.</summary>
static class ModeTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("mode/real_to_protected_and_back", RealToProtectedAndBack),
        new("mode/protected_to_long", ProtectedToLong),
        new("mode/long_to_compatibility", LongToCompatibility),
        new("mode/paging_switched_on_and_off", PagingSwitchedOnAndOff),
        new("mode/pae_switched_on", PaeSwitchedOn),
        new("mode/pae_pdptr_reload", PaePdptrReload),
        new("mode/real_segments", RealSegments),
        new("mode/real_mode_reset_vector", ResetVector),
        new("mode/unreal", UnrealMode),
        new("mode/real_interrupt", RealModeInterrupt),
        new("mode/real_32_bit_operands", RealMode32BitOperands),
        new("mode/segment_limit", SegmentLimit),
        new("mode/null_segment", NullSegment),
        new("mode/expand_down", ExpandDown),
        new("mode/far_call_through_gate", FarCallThroughGate),
        new("mode/privilege_change_and_return", PrivilegeChangeAndReturn),
        new("mode/task_switch_jmp", TaskSwitchJmp),
        new("mode/task_switch_call_and_return", TaskSwitchCallAndReturn),
        new("mode/task_gate", TaskGate),
        new("mode/task_gate_exception", TaskGateException),
        new("mode/task_busy", TaskBusy),
        new("mode/virtual_8086", Virtual8086),
        new("mode/wrong_segment_type", WrongSegmentType),
        new("mode/smep_smap_umip", SmepSmapUmip),
        new("mode/write_protect", WriteProtect),
        new("mode/global_pages", GlobalPages),
        new("mode/large_pages", LargePages),
        new("mode/five_hundred_mode_switches", ManyModeSwitches),
        .. GuestModes.All.Select(mode => new TestCase($"mode/translate_{mode.Label()}", () => Translate(mode))),
        new("mode/translate_permissions", TranslatePermissions),
        new("mode/arithmetic_in_each", ArithmeticInEach),
        new("mode/sse_in_guest", SseInGuest),
        new("mode/self_modifying_code", SelfModifyingCode),
    ];

    static void FarJump(Assembler code, int offsetBytes, ushort selector, ulong target)
    {
        code.db(0xEA);
        if (offsetBytes == 2)
            code.dw((ushort)target);
        else
            code.dd((uint)target);
        code.dw(selector);
    }

    static void RealToProtectedAndBack()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.db(0x0F, 0x01, 0x16, 0x00, 0x05); // lgdt [0x500]
            code.mov(eax, cr0);
            code.or(eax, 1);
            code.mov(cr0, eax);
            code.db(0x66);
            FarJump(code, 4, GuestLayout.Code32, 0x3000);
        });
        GuestTables.Write(guest.Memory, GuestMode.Protected);
        guest.Memory.Write<ushort>(0x500, 0x7FF);
        guest.Memory.Write(0x502, (uint)GuestLayout.Gdt);
        guest.Load(0x3000, 32, code =>
        {
            code.mov(ax, GuestLayout.Data32);
            code.mov(ds, ax);
            code.mov(ss, ax);
            code.mov(__dword_ptr[(long)GuestLayout.Data], 0x1234);
            FarJump(code, 4, GuestLayout.Code16, 0x4000);
        });
        guest.Load(0x4000, 16, code =>
        {
            code.mov(ax, GuestLayout.Data16);
            code.mov(ds, ax);
            code.mov(ss, ax);
            code.mov(eax, cr0);
            code.and(eax, -2);
            code.mov(cr0, eax);
            FarJump(code, 2, 0, 0x5000);
        });
        guest.Load(0x5000, 16, code =>
        {
            code.xor(ax, ax);
            code.mov(ds, ax);
            code.mov(ss, ax);
            code.mov(bx, 0x77);
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(0x1234u, guest.Memory.Read<uint>(GuestLayout.Data), "written in protected mode");
        Check.Equal(0x77ul, guest.Vcpu.Regs.Rbx & 0xFFFF, "bx, set back in real mode");
        KvmSregs sregs = guest.Vcpu.Sregs;
        Check.Equal(0ul, sregs.Cr0 & 1, "CR0.PE");
        Check.Equal((0, 0ul), (sregs.Cs.Selector, sregs.Cs.Base), "cs");
    }

    static void ProtectedToLong()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(eax, cr4);
            code.or(eax, 0x20);
            code.mov(cr4, eax);
            code.mov(eax, (uint)GuestLayout.PageTables);
            code.mov(cr3, eax);
            code.mov(ecx, 0xC0000080);
            code.rdmsr();
            code.or(eax, 0x100);
            code.wrmsr();
            code.mov(eax, cr0);
            code.or(eax, 0x80000000);
            code.mov(cr0, eax);
            FarJump(code, 4, GuestLayout.Code64, 0x3000);
        });
        GuestTables.Write(guest.Memory, GuestMode.Long);
        guest.Load(0x3000, 64, code =>
        {
            code.mov(rax, 0x123456789ABCDEF0);
            code.mov(r15, rax);
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(0x123456789ABCDEF0ul, guest.Vcpu.Regs.R15, "r15");
        KvmSregs sregs = guest.Vcpu.Sregs;
        Check.Equal(0x500ul, sregs.Efer & 0x500, "EFER.LME and LMA");
        Check.Equal((1, 0), (sregs.Cs.L, sregs.Cs.Db), "cs: L and D");
    }

    static void LongToCompatibility()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.push(GuestLayout.Code32);
            code.push(0x3000);
            code.db(0x48, 0xCB); // retf, 64-bit
        });
        guest.Load(0x3000, 32, code =>
        {
            code.mov(eax, 0x80000001);
            code.inc(eax);
            code.db(0x40); // inc eax here, a REX prefix in 64-bit mode
            code.nop();
            FarJump(code, 4, GuestLayout.Code64, 0x4000);
        });
        guest.Load(0x4000, 64, code =>
        {
            code.mov(rbx, 0x1122334455);
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(0x80000003u, (uint)guest.Vcpu.Regs.Rax, "eax");
        Check.Equal(0x1122334455ul, guest.Vcpu.Regs.Rbx, "rbx, back in 64-bit mode");
    }

    static void PagingSwitchedOnAndOff()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(eax, cr4);
            code.or(eax, 0x10);
            code.mov(cr4, eax);
            code.mov(eax, (uint)GuestLayout.PageTables);
            code.mov(cr3, eax);
            code.mov(eax, cr0);
            code.or(eax, 0x80000000);
            code.mov(cr0, eax);
            code.mov(ebx, __dword_ptr[(long)GuestLayout.Data]);
            code.and(eax, 0x7FFFFFFF);
            code.mov(cr0, eax);
            code.mov(ecx, __dword_ptr[(long)GuestLayout.Data]);
            code.hlt();
        });
        GuestTables.Write(guest.Memory, GuestMode.Paged);
        guest.Memory.Write(GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 4, 0x30007u);
        guest.Memory.Write(0x30000, 0x2222u);
        guest.Memory.Write(GuestLayout.Data, 0x1111u);
        guest.RunToHalt();
        Check.Equal((0x2222ul, 0x1111ul), (guest.Vcpu.Regs.Rbx, guest.Vcpu.Regs.Rcx), "with and without paging");
    }

    static void PaeSwitchedOn()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(eax, cr4);
            code.or(eax, 0x20);
            code.mov(cr4, eax);
            code.mov(eax, (uint)GuestLayout.PageTables + 0x1000);
            code.mov(cr3, eax);
            code.mov(eax, cr0);
            code.or(eax, 0x80000000);
            code.mov(cr0, eax);
            code.mov(ebx, __dword_ptr[(long)GuestLayout.Data]);
            code.hlt();
        });
        GuestTables.Write(guest.Memory, GuestMode.Pae);
        guest.Memory.Write(GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8, 0x30007ul);
        guest.Memory.Write(0x30000, 0x3333u);
        guest.RunToHalt();
        Check.Equal(0x3333ul, guest.Vcpu.Regs.Rbx, "through PAE tables");
    }

    /// <summary>PAE's four entries are loaded with CR3; a bad one refuses the load.</summary>
    static void PaePdptrReload()
    {
        using var guest = new Guest(GuestMode.Pae, code =>
        {
            code.mov(eax, cr3);
            code.mov(__dword_ptr[(long)GuestLayout.PageTables + 0x1000 + 8], 0);
            code.mov(cr3, eax);
            code.mov(ebx, __dword_ptr[0x40000000]);
            code.hlt();
        });
        Trap trap = guest.ExpectTrap(14, "through an entry that is gone");
        Check.Equal(0ul, trap.ErrorCode, "error code");
        Check.Equal(0x40000000ul, guest.Vcpu.Sregs.Cr2, "cr2");
    }

    static void RealSegments()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.mov(ax, 0x2345);
            code.mov(ds, ax);
            code.mov(bx, 0x10);
            code.mov(al, __byte_ptr[bx]);
            code.mov(cx, ds);
            code.hlt();
        });
        guest.Memory.Write<byte>(0x23460, 0x5D);
        guest.RunToHalt();
        Check.Equal(0x5Dul, guest.Vcpu.Regs.Rax & 0xFF, "byte at 2345:0010");
        Check.Equal((0x2345, 0x23450ul), (guest.Vcpu.Sregs.Ds.Selector, guest.Vcpu.Sregs.Ds.Base), "ds");
    }

    /// <summary>A CPU that nobody touched starts at the last sixteen bytes below 4 GiB, as after reset.</summary>
    static void ResetVector()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        GuestMemory rom = vm.AddMemory(0, 0xFFFF0000, 0x10000);
        rom.Write(0xFFFFFFF0, (ReadOnlySpan<byte>)[0xB0, 0x5A, 0xE6, 0x80, 0xF4]); // mov al, 5a; out 80, al; hlt
        Vcpu vcpu = vm.CreateVcpu();
        Check.Equal(KvmExit.Io, vcpu.RunOnce(), "exit reason");
        Check.Equal((0x80, 0x5A), (vcpu.Run.Io.Port, vcpu.IoData[0]), "port and byte");
        Check.Equal(KvmExit.Hlt, vcpu.RunOnce(), "exit reason");
    }

    static void UnrealMode()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.db(0x67, 0x66, 0x8B, 0x03); // mov eax, [ebx]
            code.hlt();
        });
        guest.SetSregs((ref sregs) =>
        {
            sregs.Ds.Limit = 0xFFFFFFFF;
            sregs.Ds.G = 1;
        });
        guest.Memory.Write(0x54320, 0xABCDEF01u);
        guest.SetRegs((ref regs) => regs.Rbx = 0x54320);
        guest.RunToHalt();
        Check.Equal(0xABCDEF01ul, guest.Vcpu.Regs.Rax, "beyond 64 KiB in real mode");
    }

    static void RealModeInterrupt()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.mov(ax, 1);
            code.@int(0x21);
            code.hlt();
        });
        guest.Handle(0x21, 0x3000, code =>
        {
            code.add(ax, 0x10);
            code.iret();
        });
        guest.RunToHalt();
        Check.Equal(0x11ul, guest.Vcpu.Regs.Rax, "ax");
        Check.Equal(GuestLayout.StackTop, guest.Vcpu.Regs.Rsp, "sp");
    }

    static void RealMode32BitOperands()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.mov(eax, 0x80000000);
            code.add(eax, eax);
            code.adc(ebx, 0);
            code.pushfd();
            code.popfd();
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal((0ul, 1ul), (guest.Vcpu.Regs.Rax, guest.Vcpu.Regs.Rbx), "eax and ebx");
    }

    static void SetDescriptor(Guest guest, ushort selector, ulong descriptor) =>
        guest.Memory.Write(GuestLayout.Gdt + (ulong)(selector & ~7), descriptor);

    /// <summary>QEMU's emulated CPU does not check segments when it accesses memory.</summary>
    static Trap ExpectSegmentFault(Guest guest, string what)
    {
        Check.Needs(!HostCpu.IsEmulatedByTcg, "segment checks");
        return guest.ExpectTrap(13, what);
    }

    static void SegmentLimit()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(eax, GuestLayout.SpareGate);
            code.mov(es, eax);
            code.db(0x26, 0xA0, 0xFF, 0x0F, 0, 0); // mov al, es:[0xfff]
            code.db(0x26, 0xA1, 0xFE, 0x0F, 0, 0); // mov eax, es:[0xffe]
            code.hlt();
        });
        SetDescriptor(guest, GuestLayout.SpareGate, GuestTables.Descriptor((uint)GuestLayout.Data, 0xFFF, 0x93, 0x4));
        Trap trap = ExpectSegmentFault(guest, "access across the limit");
        Check.Equal(0ul, trap.ErrorCode, "error code");
        Check.Equal(GuestLayout.Code + 13, trap.Rip, "rip");
    }

    static void NullSegment()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.xor(eax, eax);
            code.mov(es, eax);
            code.db(0x26, 0xA1, 0, 0x20, 0, 0); // mov eax, es:[0x2000]
            code.hlt();
        });
        using var stack = new Guest(GuestMode.Protected, code =>
        {
            code.xor(eax, eax);
            code.mov(ss, eax);
            code.hlt();
        });
        Check.Equal(0ul, stack.ExpectTrap(13, "null selector into SS").ErrorCode, "error code");
        Trap trap = ExpectSegmentFault(guest, "access through a null segment");
        Check.Equal(GuestLayout.Code + 4, trap.Rip, "rip");
    }

    static void ExpandDown()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(eax, GuestLayout.SpareGate);
            code.mov(es, eax);
            code.db(0x26, 0xA1, 0x00, 0x10, 0, 0); // mov eax, es:[0x1000], above the limit: inside
            code.db(0x26, 0xA1, 0x00, 0x08, 0, 0); // mov eax, es:[0x800]: outside
            code.hlt();
        });
        SetDescriptor(guest, GuestLayout.SpareGate, GuestTables.Descriptor((uint)GuestLayout.Data, 0xFFF, 0x97, 0x4));
        Trap trap = ExpectSegmentFault(guest, "below the limit of an expand-down segment");
        Check.Equal(GuestLayout.Code + 13, trap.Rip, "rip");
    }

    static void FarCallThroughGate()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.db(0x9A); // call far selector:offset
            code.dd(0);
            code.dw(GuestLayout.SpareGate);
            code.hlt();
        });
        // Call gate, 32 bits, DPL 0, to code32:0x3000.
        SetDescriptor(guest, GuestLayout.SpareGate, 0x00008C0000080000ul | 0x3000);
        guest.Load(0x3000, 32, code =>
        {
            code.mov(ebx, 0x99);
            code.retf();
        });
        guest.RunToHalt();
        Check.Equal(0x99ul, guest.Vcpu.Regs.Rbx, "ebx");
        Check.Equal(GuestLayout.StackTop, guest.Vcpu.Regs.Rsp, "esp");
    }

    static void PrivilegeChangeAndReturn()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.push(GuestLayout.UserData);
            code.push((int)GuestLayout.UserStackTop);
            code.push(2);
            code.push(GuestLayout.UserCode32);
            code.push(0x3000);
            code.iretd();
        });
        guest.Load(0x3000, 32, code =>
        {
            code.mov(ecx, cs);
            code.@int(0x80);
        });
        Trap trap = guest.ExpectTrap(0x80);
        Check.Equal((ulong)GuestLayout.UserCode32, guest.Vcpu.Regs.Rcx, "cs in user mode");
        Check.Equal((ulong)GuestLayout.UserCode32, trap.Cs, "cs on the stack");
        Check.Equal(0x10, guest.Vcpu.Sregs.Ss.Selector, "ss from the TSS");
    }

    static void WriteSpareTask(Guest guest, uint eip)
    {
        const uint Tss = 0x6000;
        SetDescriptor(guest, GuestLayout.SpareTss, GuestTables.Descriptor(Tss, 0x67, 0x89, 0));
        guest.Memory.Write(Tss + 0x20, eip);
        guest.Memory.Write(Tss + 0x24, 2u);
        guest.Memory.Write(Tss + 0x38, 0x5800u);
        guest.Memory.Write(Tss + 0x34, 0xBEEFu); // ebx
        // es, cs, ss, ds, fs, gs
        for (uint offset = 0x48; offset <= 0x5C; offset += 4)
            guest.Memory.Write(Tss + offset, (uint)(offset == 0x4C ? GuestLayout.Code32 : GuestLayout.Data32));
        guest.Load(eip, 32, code => code.hlt());
    }

    static void TaskSwitchJmp()
    {
        using var guest = new Guest(GuestMode.Protected, code => FarJump(code, 4, GuestLayout.SpareTss, 0));
        WriteSpareTask(guest, 0x3000);
        guest.RunToHalt();
        Check.Equal(0x3001ul, guest.Vcpu.Regs.Rip, "rip in the new task");
        Check.Equal(0xBEEFul, guest.Vcpu.Regs.Rbx, "ebx from the new TSS");
        Check.Equal(GuestLayout.SpareTss, guest.Vcpu.Sregs.Tr.Selector, "tr");
        Check.Equal(8ul, guest.Vcpu.Sregs.Cr0 & 8, "CR0.TS");
    }

    static void TaskGate()
    {
        using var guest = new Guest(GuestMode.Protected, code => code.@int(0x50));
        WriteSpareTask(guest, 0x3000);
        guest.Memory.Write(GuestLayout.Idt + 0x50 * 8, ((ulong)GuestLayout.SpareTss << 16) | (0x85ul << 40));
        guest.RunToHalt();
        Check.Equal(0x3001ul, guest.Vcpu.Regs.Rip, "rip in the new task");
        Check.Equal((uint)GuestLayout.TssSelector, guest.Memory.Read<ushort>(0x6000), "link to the old task");
    }

    /// <summary>CALL of a task that counts and returns, again and again: it goes on behind its IRET.</summary>
    static void TaskSwitchCallAndReturn()
    {
        const int Calls = 3;
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(esi, 0x1234);
            for (int call = 0; call < Calls; call++)
            {
                code.db(0x9A);
                code.dd(0);
                code.dw(GuestLayout.SpareTss);
            }
            code.hlt();
        });
        WriteSpareTask(guest, 0x3000);
        guest.Load(0x3000, 32, code =>
        {
            Label again = code.CreateLabel();
            code.Label(ref again);
            code.inc(ebx);
            code.inc(__dword_ptr[(long)GuestLayout.Data]);
            code.mov(esi, 0);
            code.iretd();
            code.jmp(again);
        });
        guest.RunToHalt();
        Check.Equal((uint)Calls, guest.Memory.Read<uint>(GuestLayout.Data), "turns of the called task");
        Check.Equal(0xBEEFu + Calls, guest.Memory.Read<uint>(0x6034), "ebx in its TSS");
        Check.Equal(0x1234ul, guest.Vcpu.Regs.Rsi, "esi, back in the first task");
        Check.Equal(GuestLayout.TssSelector, guest.Vcpu.Sregs.Tr.Selector, "tr");
        Check.Equal(0x89, guest.Memory.Read<byte>(GuestLayout.Gdt + GuestLayout.SpareTss + 5), "not busy any more");
    }

    /// <summary>An exception with an error code that is a task: the code is on its stack.</summary>
    static void TaskGateException()
    {
        Check.Needs(!HostCpu.IsEmulatedByTcg, "exceptions with an error code that are tasks");
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(eax, 0x7F8);
            code.mov(ds, eax);
        });
        WriteSpareTask(guest, 0x3000);
        guest.Load(0x3000, 32, code =>
        {
            code.pop(ecx);
            code.hlt();
        });
        guest.Memory.Write(GuestLayout.Idt + 13 * 8, ((ulong)GuestLayout.SpareTss << 16) | (0x85ul << 40));
        guest.RunToHalt();
        Check.Equal(0x7F8ul, guest.Vcpu.Regs.Rcx, "the error code");
        Check.Equal((uint)GuestLayout.TssSelector, guest.Memory.Read<ushort>(0x6000), "link to the old task");
    }

    static void TaskBusy()
    {
        using var guest = new Guest(GuestMode.Protected, code => FarJump(code, 4, GuestLayout.TssSelector, 0));
        Check.Equal((ulong)GuestLayout.TssSelector, guest.ExpectTrap(13, "JMP to a busy task").ErrorCode, "error code");
    }

    static void Virtual8086()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            // IRET with VM set: gs, fs, ds, es, ss, esp, eflags, cs, eip.
            foreach (int value in (int[])[0, 0, 0x2000, 0, 0x500, 0x1000, 0x20002, 0x300, 0])
                code.push(value);
            code.iretd();
        });
        guest.Load(0x3000, 16, code =>
        {
            code.mov(al, __byte_ptr[0x10]);
            code.hlt();
        });
        guest.Memory.Write<byte>(0x20010, 0x4D);
        Trap trap = guest.ExpectTrap(13, "HLT in virtual-8086 mode");
        Check.Equal(0x4Dul, guest.Vcpu.Regs.Rax & 0xFF, "al read through ds = 2000");
        Check.Equal(0x20000ul, trap.Flags & 0x20000, "VM in the flags on the stack");
    }

    static void WrongSegmentType()
    {
        foreach ((string what, byte access, Action<Assembler> code, int vector) in new (string, byte,
            Action<Assembler>, int)[]
            {
                ("read-only data into SS", 0x91, c => c.mov(ss, eax), 13),
                    ("code into SS", 0x9B, c => c.mov(ss, eax), 13),
                ("execute-only code into DS", 0x99, c => c.mov(ds, eax), 13),
                    ("absent data into DS", 0x13, c => c.mov(ds, eax), 11),
                ("absent stack into SS", 0x13, c => c.mov(ss, eax), 12),
                    ("a TSS into DS", 0x89, c => c.mov(ds, eax), 13),
            })
        {
            using var guest = new Guest(GuestMode.Protected, assembler =>
            {
                assembler.mov(eax, GuestLayout.SpareGate);
                code(assembler);
                assembler.hlt();
            });
            SetDescriptor(guest, GuestLayout.SpareGate, GuestTables.Descriptor(0, 0xFFFFF, access, 0xC));
            Check.Equal((ulong)GuestLayout.SpareGate, guest.ExpectTrap(vector, what).ErrorCode, $"{what}: error code");
        }
    }

    static void SmepSmapUmip()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, cr4);
            code.or(rax, 1 << 20 | 1 << 21);
            code.mov(cr4, rax);
            code.stac();
            code.mov(eax, __dword_ptr[(long)GuestLayout.Data]);
            code.clac();
            code.mov(ecx, __dword_ptr[(long)GuestLayout.Data]);
            code.hlt();
        });
        KvmCpuidEntry2 leaf = guest.Kvm.GetSupportedCpuid().FirstOrDefault(entry => entry.Function == 7);
        Check.Needs((leaf.Ebx & 1 << 20) != 0 && (leaf.Ebx & 1 << 7) != 0, "SMEP and SMAP");
        // Code and stack have to be the supervisor's now; the data page stays the user's.
        for (ulong page = 0; page < 0x20; page++)
            guest.Memory.Write(GuestLayout.LowPageTable + page * 8, (page << 12) | 3);
        guest.Memory.Write(GuestLayout.Data, 0x77u);
        Trap trap = guest.ExpectTrap(14, "user page without STAC");
        Check.Equal(1ul, trap.ErrorCode, "error code");
        Check.Equal(0x77ul, guest.Vcpu.Regs.Rax, "with STAC");
    }

    static void WriteProtect()
    {
        foreach (bool protect in (bool[])[false, true])
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.mov(__dword_ptr[(long)GuestLayout.Data], 5);
                code.hlt();
            });
            guest.Memory.Write(GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8, GuestLayout.Data | 1);
            if (!protect)
                guest.SetSregs((ref sregs) => sregs.Cr0 &= ~0x10000ul);
            if (protect)
                guest.ExpectTrap(14, "CR0.WP set");
            else
                guest.RunToHalt("CR0.WP clear");
        }
    }

    static void GlobalPages()
    {
        ulong entry = GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8;
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, cr4);
            code.or(rax, 0x80);
            code.mov(cr4, rax);
            code.mov(eax, __dword_ptr[(long)GuestLayout.Data]);
            code.mov(rdx, 0x30000 | 0x107);
            code.mov(__qword_ptr[(long)entry], rdx);
            code.mov(rcx, cr4);
            code.and(rcx, ~0x80);
            code.mov(cr4, rcx);
            code.mov(ebx, __dword_ptr[(long)GuestLayout.Data]);
            code.hlt();
        });
        guest.Memory.Write(entry, GuestLayout.Data | 0x107);
        guest.Memory.Write(GuestLayout.Data, 1u);
        guest.Memory.Write(0x30000, 2u);
        guest.RunToHalt();
        Check.Equal((1ul, 2ul), (guest.Vcpu.Regs.Rax, guest.Vcpu.Regs.Rbx), "before and after a change of CR4.PGE");
    }

    static void LargePages()
    {
        const ulong Base = 0x40000000, Size = 4 << 20;
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, Base + 0x234560);
            code.mov(__dword_ptr[rbx], 0x4321);
            code.hlt();
        });
        GuestMemory memory = guest.Vm.AddMemory(1, Base, Size);
        guest.RunToHalt();
        Check.Equal(0x4321u, memory.Read<uint>(Base + 0x234560), "through a 2 MiB page of the guest");
    }

    static void ManyModeSwitches()
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            Label again = code.CreateLabel();
            code.mov(ecx, 500);
            code.mov(eax, cr0);
            code.mov(ebx, eax);
            code.or(ebx, 0x80000000);
            code.Label(ref again);
            code.mov(cr0, ebx);
            code.mov(cr0, eax);
            code.dec(ecx);
            code.jnz(again);
            code.hlt();
        });
        GuestTables.Write(guest.Memory, GuestMode.Paged);
        guest.SetSregs((ref sregs) =>
        {
            sregs.Cr3 = GuestLayout.PageTables;
            sregs.Cr4 |= 0x10;
        });
        guest.RunToHalt();
    }

    static void Translate(GuestMode mode)
    {
        using var guest = new Guest(mode, code => code.hlt());
        KvmTranslation at = guest.Vcpu.Translate(GuestLayout.Data + 0x123);
        Check.Equal((1, GuestLayout.Data + 0x123), (at.Valid, at.PhysicalAddress), "identity");
        if (!mode.HasPaging())
            return;
        if (mode == GuestMode.Paged)
            guest.Memory.Write(GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 4, 0x54007u);
        else
            guest.Memory.Write(GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8, 0x54007ul);
        Check.Equal(0x54123ul, guest.Vcpu.Translate(GuestLayout.Data + 0x123).PhysicalAddress, "page that was moved");
        Check.Equal(0x3FFFF123ul, guest.Vcpu.Translate(0x3FFFF123).PhysicalAddress, "in a large page");
    }

    static void TranslatePermissions()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        guest.Memory.Write(GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8, 0ul);
        Check.Equal(0, guest.Vcpu.Translate(GuestLayout.Data).Valid, "page that is not present");
        Check.Equal(0, guest.Vcpu.Translate(0x7FFF_0000_0000).Valid, "address that no table covers");
        guest.RunToHalt();
    }

    static void ArithmeticInEach()
    {
        foreach (GuestMode mode in GuestModes.All)
        {
            using var guest = new Guest(mode, code =>
            {
                Label again = code.CreateLabel();
                code.mov(ax, 0);
                code.mov(cx, 100);
                code.Label(ref again);
                code.add(ax, cx);
                code.dec(cx);
                code.jnz(again);
                code.hlt();
            });
            guest.RunToHalt(mode.Label());
            Check.Equal(5050ul, guest.Vcpu.Regs.Rax & 0xFFFF, $"{mode.Label()}: sum");
        }
    }

    static void SseInGuest()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 3);
            code.cvtsi2sd(xmm0, eax);
            code.mulsd(xmm0, xmm0);
            code.sqrtsd(xmm1, xmm0);
            code.cvttsd2si(ebx, xmm1);
            code.fldpi();
            code.fadd(st0, st0);
            code.fistp(__dword_ptr[(long)GuestLayout.Data]);
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(3ul, guest.Vcpu.Regs.Rbx, "sqrt(3 * 3)");
        Check.Equal(6u, guest.Memory.Read<uint>(GuestLayout.Data), "2 pi, rounded");
    }

    static void SelfModifyingCode()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(__byte_ptr[0x3001], 0x42);
            code.mov(eax, 0x3000);
            code.jmp(rax);
        });
        guest.Memory.Write(0x3000, (ReadOnlySpan<byte>)[0xB3, 0x00, 0xF4]); // mov bl, 0; hlt
        guest.RunToHalt();
        Check.Equal(0x42ul, guest.Vcpu.Regs.Rbx, "bl");
    }
}
