// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;

namespace SharpKvm.Selftests;

/// <summary>Instructions other than plain moves whose operand is MMIO: each is interpreted by the hypervisor.</summary>
static class EmulatorTests
{
    const ulong Mmio = GuestLayout.Mmio;
    const ulong Cf = 1, Pf = 4, Af = 0x10, Zf = 0x40, Sf = 0x80, Of = 0x800;
    const ulong StatusFlags = Cf | Pf | Af | Zf | Sf | Of;

    public static IEnumerable<TestCase> All =>
    [
        new("emulator/movzx_movsx", MoveExtended),
        new("emulator/movbe", MoveBigEndian),
        .. ReadModifyWrite.Select(row => new TestCase($"emulator/rmw_{row.Name}", () => RunReadModifyWrite(row))),
        .. ReadOnly.Select(row => new TestCase($"emulator/read_{row.Name}", () => RunReadOnly(row))),
        new("emulator/rmw_each_size", RmwEachSize),
        new("emulator/locked", Locked),
        new("emulator/xchg", Exchange),
        new("emulator/xadd", ExchangeAdd),
        new("emulator/cmpxchg_equal", () => CompareExchange(true)),
        new("emulator/cmpxchg_different", () => CompareExchange(false)),
        new("emulator/cmpxchg8b", CompareExchange8B),
        new("emulator/push_from_mmio", PushFromMmio),
        new("emulator/pop_to_mmio", PopToMmio),
        new("emulator/call_through_mmio", CallThroughMmio),
        new("emulator/jmp_through_mmio", JumpThroughMmio),
        new("emulator/rep_movs_to_mmio", RepMovsToMmio),
        new("emulator/rep_movs_from_mmio", RepMovsFromMmio),
        new("emulator/rep_stos_to_mmio", RepStosToMmio),
        new("emulator/lods_from_mmio", LodsFromMmio),
        new("emulator/scas_mmio", ScasMmio),
        new("emulator/cmps_mmio", CmpsMmio),
        new("emulator/rep_movs_backward", RepMovsBackward),
        new("emulator/mul_div", MultiplyDivide),
        new("emulator/imul_forms", ImulForms),
        new("emulator/divide_error", DivideError),
        new("emulator/mov_segment_from_mmio", MoveSegmentFromMmio),
        new("emulator/stack_in_mmio", StackInMmio),
        new("emulator/bit_string_index", BitStringIndex),
        new("emulator/setcc_cmovcc", SetccCmovcc),
        new("emulator/unsupported_reports_bytes", UnsupportedReportsBytes),
        new("emulator/fetch_from_mmio", FetchFromMmio),
        new("emulator/instruction_across_pages", InstructionAcrossPages),
        new("emulator/write_fault_before_mmio", ReadOnlyPageFault),
        new("emulator/single_step_over_mmio", SingleStepOverMmio),
    ];

    sealed record Row(string Name, Action<Assembler> Code, uint Before, uint After, ulong Flags,
        ulong Mask = StatusFlags);

    /// <summary>ecx is 3, edx 0x80000001; memory at [rbx] before and after; the status flags afterwards.</summary>
    static readonly Row[] ReadModifyWrite =
    [
        new("add", c => c.add(__dword_ptr[rbx], edx), 0x7FFFFFFF, 0x00000000, Cf | Pf | Af | Zf),
        new("or", c => c.or(__dword_ptr[rbx], edx), 0x00000010, 0x80000011, Pf | Sf, StatusFlags & ~Af),
        new("adc", c => { c.stc(); c.adc(__dword_ptr[rbx], ecx); }, 0x7FFFFFFF, 0x80000003, Pf | Af | Sf | Of),
        new("sbb", c => { c.stc(); c.sbb(__dword_ptr[rbx], ecx); }, 3, 0xFFFFFFFF, Cf | Pf | Af | Sf),
        new("and", c => c.and(__dword_ptr[rbx], edx), 0xFFFFFFFF, 0x80000001, Sf, StatusFlags & ~Af),
        new("sub", c => c.sub(__dword_ptr[rbx], ecx), 2, 0xFFFFFFFF, Cf | Pf | Af | Sf),
        new("xor", c => c.xor(__dword_ptr[rbx], edx), 0x80000001, 0, Pf | Zf, StatusFlags & ~Af),
        new("add_imm8", c => c.add(__dword_ptr[rbx], -1), 1, 0, Cf | Pf | Af | Zf),
        new("or_imm32", c => c.or(__dword_ptr[rbx], 0x12345600), 0x78, 0x12345678, Pf, StatusFlags & ~Af),
        new("inc", c => { c.stc(); c.inc(__dword_ptr[rbx]); }, 0x7FFFFFFF, 0x80000000, Cf | Pf | Af | Sf | Of),
        new("dec", c => { c.stc(); c.dec(__dword_ptr[rbx]); }, 1, 0, Cf | Pf | Zf),
        new("not", c => { c.stc(); c.not(__dword_ptr[rbx]); }, 0x0F0F0F0F, 0xF0F0F0F0, Cf, Cf),
        new("neg", c => c.neg(__dword_ptr[rbx]), 1, 0xFFFFFFFF, Cf | Pf | Af | Sf),
        new("shl", c => c.shl(__dword_ptr[rbx], 1), 0xC0000000, 0x80000000, Cf | Pf | Sf, StatusFlags & ~Af),
        new("shr_cl", c => c.shr(__dword_ptr[rbx], cl), 0x0000000C, 1, Cf, Cf | Pf | Zf | Sf),
        new("sar_imm", c => c.sar(__dword_ptr[rbx], 4), 0x80000008, 0xF8000000, Cf | Pf | Sf, Cf | Pf | Zf | Sf),
        new("rol", c => c.rol(__dword_ptr[rbx], 8), 0x12345678, 0x34567812, 0, Cf),
        new("ror_cl", c => c.ror(__dword_ptr[rbx], cl), 0x00000009, 0x20000001, 0, Cf),
        new("rcl", c => { c.stc(); c.rcl(__dword_ptr[rbx], 1); }, 0x80000000, 1, Cf | Of, Cf | Of),
        new("rcr", c => { c.clc(); c.rcr(__dword_ptr[rbx], 1); }, 1, 0, Cf, Cf | Of),
        new("bts", c => c.bts(__dword_ptr[rbx], 4), 0, 0x10, 0, Cf),
        new("btr", c => c.btr(__dword_ptr[rbx], 4), 0x10, 0, Cf, Cf),
        new("btc", c => c.btc(__dword_ptr[rbx], 31), 0x80000000, 0, Cf, Cf),
        new("shld", c => c.shld(__dword_ptr[rbx], edx, 4), 0x12345678, 0x23456788, Cf, Cf),
        new("shrd_cl", c => c.shrd(__dword_ptr[rbx], edx, cl), 0x00000018, 0x20000003, 0, Cf),
    ];

    static void RunReadModifyWrite(Row row)
    {
        using Guest guest = MakeRow(row);
        guest.ExpectMmioRead(Mmio, Bytes(row.Before));
        guest.ExpectMmioWrite(Mmio, Bytes(row.After));
        guest.RunToHalt();
        Check.Equal(row.Flags & row.Mask, guest.Vcpu.Regs.Rflags & row.Mask, "flags");
    }

    /// <summary>As above, but the result goes to eax (0x11111111 before; After is what it becomes).</summary>
    static readonly Row[] ReadOnly =
    [
        new("cmp", c => c.cmp(__dword_ptr[rbx], ecx), 2, 0x11111111, Cf | Pf | Af | Sf),
        new("cmp_reversed", c => c.cmp(ecx, __dword_ptr[rbx]), 2, 0x11111111, 0),
        new("cmp_imm", c => c.cmp(__dword_ptr[rbx], 5), 5, 0x11111111, Pf | Zf),
        new("test", c => c.test(__dword_ptr[rbx], edx), 0x80000000, 0x11111111, Pf | Sf, StatusFlags & ~Af),
        new("test_imm", c => c.test(__dword_ptr[rbx], 0xF0), 0x0F, 0x11111111, Pf | Zf, StatusFlags & ~Af),
        new("bt", c => c.bt(__dword_ptr[rbx], 7), 0x80, 0x11111111, Cf, Cf),
        new("add_to_register", c => c.add(eax, __dword_ptr[rbx]), 0x22222222, 0x33333333, Pf),
        new("and_to_register", c => c.and(eax, __dword_ptr[rbx]), 0x000000FF, 0x11, Pf, StatusFlags & ~Af),
        new("xor_to_register", c => c.xor(eax, __dword_ptr[rbx]), 0x11111111, 0, Pf | Zf, StatusFlags & ~Af),
        new("sub_to_register", c => c.sub(eax, __dword_ptr[rbx]), 0x11111112, 0xFFFFFFFF, Cf | Pf | Af | Sf),
        new("bsf", c => c.bsf(eax, __dword_ptr[rbx]), 0x00000800, 11, 0, Zf),
        new("bsr", c => c.bsr(eax, __dword_ptr[rbx]), 0x00000810, 11, 0, Zf),
    ];

    static void RunReadOnly(Row row)
    {
        using Guest guest = MakeRow(row);
        guest.ExpectMmioRead(Mmio, Bytes(row.Before));
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(row.After, (uint)regs.Rax, "eax");
        Check.Equal(row.Flags & row.Mask, regs.Rflags & row.Mask, "flags");
    }

    static Guest MakeRow(Row row)
    {
        var guest = new Guest(GuestMode.Long, code =>
        {
            row.Code(code);
            code.hlt();
        });
        guest.SetRegs((ref regs) =>
        {
            regs.Rbx = Mmio;
            regs.Rax = 0x11111111;
            regs.Rcx = 3;
            regs.Rdx = 0x80000001;
        });
        return guest;
    }

    static Guest Make(Action<Assembler> code, GuestMode mode = GuestMode.Long)
    {
        var guest = new Guest(mode, code);
        guest.SetRegs((ref regs) => regs.Rbx = Mmio);
        return guest;
    }

    static byte[] Bytes(uint value)
    {
        byte[] bytes = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        return bytes;
    }

    static void MoveExtended()
    {
        using Guest guest = Make(code =>
        {
            code.movzx(eax, __byte_ptr[rbx]);
            code.movsx(rcx, __byte_ptr[rbx]);
            code.movzx(edx, __word_ptr[rbx]);
            code.movsx(esi, __word_ptr[rbx]);
            code.movsxd(rdi, __dword_ptr[rbx]);
            code.movsx(r8w, __byte_ptr[rbx]);
            code.hlt();
        });
        guest.SetRegs((ref regs) => regs.R8 = ulong.MaxValue);
        guest.ExpectMmioRead(Mmio, 0x80);
        guest.ExpectMmioRead(Mmio, 0x80);
        guest.ExpectMmioRead(Mmio, 0x01, 0x80);
        guest.ExpectMmioRead(Mmio, 0x01, 0x80);
        guest.ExpectMmioRead(Mmio, 0x02, 0, 0, 0x80);
        guest.ExpectMmioRead(Mmio, 0x7F);
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0x80ul, regs.Rax, "movzx byte");
        Check.Equal(0xFFFFFFFFFFFFFF80ul, regs.Rcx, "movsx byte to 64");
        Check.Equal(0x8001ul, regs.Rdx, "movzx word");
        Check.Equal(0xFFFF8001ul, regs.Rsi, "movsx word to 32");
        Check.Equal(0xFFFFFFFF80000002ul, regs.Rdi, "movsxd");
        Check.Equal(0xFFFFFFFFFFFF007Ful, regs.R8, "movsx byte to 16");
    }

    static void MoveBigEndian()
    {
        using Guest guest = Make(code =>
        {
            code.movbe(eax, __dword_ptr[rbx]);
            code.movbe(__dword_ptr[rbx], ecx);
            code.hlt();
        });
        Check.Needs(guest.Kvm.GetSupportedCpuid().Any(leaf => leaf.Function == 1 && (leaf.Ecx >> 22 & 1) != 0),
            "MOVBE");
        guest.SetRegs((ref regs) => regs.Rcx = 0x01020304);
        guest.ExpectMmioRead(Mmio, 0x11, 0x22, 0x33, 0x44);
        guest.ExpectMmioWrite(Mmio, 1, 2, 3, 4);
        guest.RunToHalt();
        Check.Equal(0x11223344ul, guest.Vcpu.Regs.Rax, "rax");
    }

    static void RmwEachSize()
    {
        using Guest guest = Make(code =>
        {
            code.add(__byte_ptr[rbx], 1);
            code.add(__word_ptr[rbx], 1);
            code.add(__qword_ptr[rbx], 1);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 0xFF);
        guest.ExpectMmioWrite(Mmio, 0);
        guest.ExpectMmioRead(Mmio, 0xFF, 0);
        guest.ExpectMmioWrite(Mmio, 0, 1);
        guest.ExpectMmioRead(Mmio, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0);
        guest.ExpectMmioWrite(Mmio, 0, 0, 0, 0, 1, 0, 0, 0);
        guest.RunToHalt();
    }

    static void Locked()
    {
        using Guest guest = Make(code =>
        {
            code.@lock.or(__dword_ptr[rbx], 0x10);
            code.@lock.inc(__dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 1, 0, 0, 0);
        guest.ExpectMmioWrite(Mmio, 0x11, 0, 0, 0);
        guest.ExpectMmioRead(Mmio, 0x11, 0, 0, 0);
        guest.ExpectMmioWrite(Mmio, 0x12, 0, 0, 0);
        guest.RunToHalt();
    }

    static void Exchange()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, 0x01020304);
            code.xchg(__dword_ptr[rbx], eax);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 8, 7, 6, 5);
        guest.ExpectMmioWrite(Mmio, 4, 3, 2, 1);
        guest.RunToHalt();
        Check.Equal(0x05060708ul, guest.Vcpu.Regs.Rax, "rax");
    }

    static void ExchangeAdd()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, 5);
            code.xadd(__dword_ptr[rbx], eax);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 7, 0, 0, 0);
        guest.ExpectMmioWrite(Mmio, 12, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(7ul, guest.Vcpu.Regs.Rax, "rax");
    }

    static void CompareExchange(bool equal)
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, 0x55);
            code.mov(ecx, 0x99);
            code.cmpxchg(__dword_ptr[rbx], ecx);
            code.hlt();
        });
        byte memory = (byte)(equal ? 0x55 : 0x56);
        guest.ExpectMmioRead(Mmio, memory, 0, 0, 0);
        // The CPU writes the old value back when the comparison fails; a hypervisor may leave that write out.
        KvmExit exit = guest.Vcpu.RunOnce();
        if (equal || exit == KvmExit.Mmio)
        {
            Check.Equal(KvmExit.Mmio, exit, "exit of the write");
            Check.Equal((byte)(equal ? 0x99 : memory), guest.Run.Mmio.Data[0], "value written");
            guest.RunToHalt();
        }
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal((ulong)memory, regs.Rax, "rax");
        Check.Equal(equal ? Zf : 0, regs.Rflags & Zf, "zero flag");
    }

    static void CompareExchange8B()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rsi, rbx);
            code.mov(eax, 1);
            code.mov(edx, 2);
            code.mov(ebx, 3);
            code.mov(ecx, 4);
            code.cmpxchg8b(__qword_ptr[rsi]);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 1, 0, 0, 0, 2, 0, 0, 0);
        guest.ExpectMmioWrite(Mmio, 3, 0, 0, 0, 4, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(Zf, guest.Vcpu.Regs.Rflags & Zf, "zero flag");
    }

    static void PushFromMmio()
    {
        using Guest guest = Make(code =>
        {
            code.push(__qword_ptr[rbx]);
            code.pop(rax);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 1, 2, 3, 4, 5, 6, 7, 8);
        guest.RunToHalt();
        Check.Equal(0x0807060504030201ul, guest.Vcpu.Regs.Rax, "rax");
        Check.Equal(GuestLayout.StackTop, guest.Vcpu.Regs.Rsp, "rsp");
    }

    static void PopToMmio()
    {
        using Guest guest = Make(code =>
        {
            code.push(0x1234);
            code.pop(__qword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 0x34, 0x12, 0, 0, 0, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(GuestLayout.StackTop, guest.Vcpu.Regs.Rsp, "rsp");
    }

    static void CallThroughMmio()
    {
        using Guest guest = Make(code => code.call(__qword_ptr[rbx]));
        guest.Load(0x3000, code => code.hlt());
        guest.ExpectMmioRead(Mmio, 0x00, 0x30, 0, 0, 0, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(0x3001ul, guest.Vcpu.Regs.Rip, "rip");
        Check.Equal(GuestLayout.Code + 2, guest.Memory.Read<ulong>(GuestLayout.StackTop - 8), "return address");
    }

    static void JumpThroughMmio()
    {
        using Guest guest = Make(code => code.jmp(__qword_ptr[rbx]));
        guest.Load(0x3000, code => code.hlt());
        guest.ExpectMmioRead(Mmio, 0x00, 0x30, 0, 0, 0, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(0x3001ul, guest.Vcpu.Regs.Rip, "rip");
    }

    static void RepMovsToMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(esi, (uint)GuestLayout.Data);
            code.mov(rdi, rbx);
            code.mov(ecx, 3);
            code.cld();
            code.rep.movsd();
            code.hlt();
        });
        guest.Memory.Write<ulong>(GuestLayout.Data, 0x0000000200000001);
        guest.Memory.Write<uint>(GuestLayout.Data + 8, 3);
        for (byte i = 0; i < 3; i++)
            guest.ExpectMmioWrite(Mmio + i * 4u, (byte)(i + 1), 0, 0, 0);
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0ul, regs.Rcx, "rcx");
        Check.Equal(GuestLayout.Data + 12, regs.Rsi, "rsi");
        Check.Equal(Mmio + 12, regs.Rdi, "rdi");
    }

    static void RepMovsFromMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rsi, rbx);
            code.mov(edi, (uint)GuestLayout.Data);
            code.mov(ecx, 4);
            code.cld();
            code.rep.movsb();
            code.hlt();
        });
        for (byte i = 0; i < 4; i++)
            guest.ExpectMmioRead(Mmio + i, (byte)(0x40 + i));
        guest.RunToHalt();
        Check.Bytes([0x40, 0x41, 0x42, 0x43, 0], guest.Memory.Slice(GuestLayout.Data, 5), "memory");
    }

    static void RepStosToMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rdi, rbx);
            code.mov(eax, 0x7766);
            code.mov(ecx, 3);
            code.cld();
            code.rep.stosw();
            code.hlt();
        });
        for (uint i = 0; i < 3; i++)
            guest.ExpectMmioWrite(Mmio + i * 2, 0x66, 0x77);
        guest.RunToHalt();
        Check.Equal(Mmio + 6, guest.Vcpu.Regs.Rdi, "rdi");
    }

    static void LodsFromMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rsi, rbx);
            code.cld();
            code.lodsd();
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 1, 2, 3, 4);
        guest.RunToHalt();
        Check.Equal(0x04030201ul, guest.Vcpu.Regs.Rax, "rax");
        Check.Equal(Mmio + 4, guest.Vcpu.Regs.Rsi, "rsi");
    }

    static void ScasMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rdi, rbx);
            code.mov(al, 0x43);
            code.mov(ecx, 10);
            code.cld();
            code.repne.scasb();
            code.hlt();
        });
        for (byte i = 0; i < 4; i++)
            guest.ExpectMmioRead(Mmio + i, (byte)(0x40 + i));
        guest.RunToHalt();
        Check.Equal(6ul, guest.Vcpu.Regs.Rcx, "rcx");
        Check.Equal(Mmio + 4, guest.Vcpu.Regs.Rdi, "rdi");
        Check.Equal(Zf, guest.Vcpu.Regs.Rflags & Zf, "zero flag");
    }

    static void CmpsMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(rsi, rbx);
            code.mov(edi, (uint)GuestLayout.Data);
            code.mov(ecx, 10);
            code.cld();
            code.repe.cmpsb();
            code.hlt();
        });
        guest.Memory.Write(GuestLayout.Data, [1, 2, 9]);
        for (byte i = 0; i < 3; i++)
            guest.ExpectMmioRead(Mmio + i, (byte)(i + 1));
        guest.RunToHalt();
        Check.Equal(7ul, guest.Vcpu.Regs.Rcx, "rcx");
        Check.Equal(Cf, guest.Vcpu.Regs.Rflags & (Cf | Zf), "3 is below 9");
    }

    static void RepMovsBackward()
    {
        using Guest guest = Make(code =>
        {
            code.mov(esi, (uint)GuestLayout.Data + 2);
            code.lea(rdi, __[rbx + 2]);
            code.mov(ecx, 3);
            code.std();
            code.rep.movsb();
            code.hlt();
        });
        guest.Memory.Write(GuestLayout.Data, [1, 2, 3]);
        guest.ExpectMmioWrite(Mmio + 2, 3);
        guest.ExpectMmioWrite(Mmio + 1, 2);
        guest.ExpectMmioWrite(Mmio, 1);
        guest.RunToHalt();
        Check.Equal(Mmio - 1, guest.Vcpu.Regs.Rdi, "rdi");
    }

    static void MultiplyDivide()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, 0x10000);
            code.mul(__dword_ptr[rbx]);
            code.mov(esi, edx);
            code.mov(edi, eax);
            code.mov(edx, 1);
            code.mov(eax, 7);
            code.div(__dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 0, 0, 2, 0);
        guest.ExpectMmioRead(Mmio, 0, 0, 1, 0);
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(2ul, regs.Rsi, "high half of the product");
        Check.Equal(0ul, regs.Rdi, "low half of the product");
        Check.Equal(0x10000ul, regs.Rax, "quotient");
        Check.Equal(7ul, regs.Rdx, "remainder");
    }

    static void ImulForms()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, -3);
            code.imul(eax, __dword_ptr[rbx]);
            code.imul(ecx, __dword_ptr[rbx], 10);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 5, 0, 0, 0);
        guest.ExpectMmioRead(Mmio, 7, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(0xFFFFFFF1u, (uint)guest.Vcpu.Regs.Rax, "-3 * 5");
        Check.Equal(70ul, guest.Vcpu.Regs.Rcx, "7 * 10");
    }

    static void DivideError()
    {
        using Guest guest = Make(code =>
        {
            code.xor(edx, edx);
            code.mov(eax, 1);
            code.div(__dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 0, 0, 0, 0);
        Trap trap = guest.ExpectTrap(0);
        Check.Equal(GuestLayout.Code + 7, trap.Rip, "rip of the DIV");
    }

    static void MoveSegmentFromMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(es, __word_ptr[ebx]);
            code.mov(__word_ptr[ebx], es);
            code.hlt();
        }, GuestMode.Protected);
        guest.ExpectMmioRead(Mmio, 0x50, 0);
        guest.ExpectMmioWrite(Mmio, 0x50, 0);
        guest.RunToHalt();
        Check.Equal(GuestLayout.Data16, guest.Vcpu.Sregs.Es.Selector, "es");
    }

    static void StackInMmio()
    {
        using Guest guest = Make(code =>
        {
            code.lea(rsp, __[rbx + 0x100]);
            code.mov(eax, 0x77);
            code.push(rax);
            code.pop(rcx);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio + 0xF8, 0x77, 0, 0, 0, 0, 0, 0, 0);
        guest.ExpectMmioRead(Mmio + 0xF8, 0x99, 0, 0, 0, 0, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(0x99ul, guest.Vcpu.Regs.Rcx, "rcx");
        Check.Equal(Mmio + 0x100, guest.Vcpu.Regs.Rsp, "rsp");
    }

    /// <summary>With a register index, bit instructions reach beyond their operand, in both directions.</summary>
    static void BitStringIndex()
    {
        using Guest guest = Make(code =>
        {
            code.mov(ecx, 69);
            code.bts(__dword_ptr[rbx], ecx);
            code.mov(ecx, -1);
            code.bt(__dword_ptr[rbx], ecx);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio + 8, 0, 0, 0, 0);
        guest.ExpectMmioWrite(Mmio + 8, 0x20, 0, 0, 0);
        guest.ExpectMmioRead(Mmio - 4, 0, 0, 0, 0x80);
        guest.RunToHalt();
        Check.Equal(Cf, guest.Vcpu.Regs.Rflags & Cf, "carry flag");
    }

    static void SetccCmovcc()
    {
        using Guest guest = Make(code =>
        {
            code.stc();
            code.setb(__byte_ptr[rbx]);
            code.setae(__byte_ptr[rbx]);
            code.mov(eax, 1);
            code.mov(ecx, 1);
            code.stc();
            code.cmovb(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 1);
        guest.ExpectMmioWrite(Mmio, 0);
        guest.ExpectMmioRead(Mmio, 0x21, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(0x21ul, guest.Vcpu.Regs.Rax, "rax");
    }

    /// <summary>An instruction that no hypervisor interprets on MMIO ends in an error that names its bytes.</summary>
    static void UnsupportedReportsBytes()
    {
        byte[] instruction = [0x0F, 0x38, 0x1C, 0x03]; // pabsb mm0, [rbx]
        using var guest = new Guest(GuestMode.Long, [.. instruction, 0xF4]);
        guest.SetRegs((ref regs) => regs.Rbx = Mmio);
        guest.RunTo(KvmExit.InternalError, "PABSB from MMIO");
        KvmRunEmulationFailure failure = guest.Run.EmulationFailure;
        Check.Equal(KvmInternalError.Emulation, failure.Suberror, "suberror");
        Check.Equal(GuestLayout.Code, guest.Vcpu.Regs.Rip, "rip stays at the instruction");
        Check.That(failure.Ndata >= 3, $"ndata {failure.Ndata}");
        Check.Equal(KvmRunEmulationFailure.FlagInstructionBytes, failure.Flags & 1, "flags");
        Check.That(failure.InsnSize is > 0 and <= 15, $"insn_size {failure.InsnSize}");
        int common = Math.Min((int)failure.InsnSize, instruction.Length);
        Check.Bytes(instruction.AsSpan(0, common), ((ReadOnlySpan<byte>)failure.InsnBytes)[..common], "insn_bytes");
    }

    static void FetchFromMmio()
    {
        using Guest guest = Make(code => code.jmp(rbx));
        guest.RunTo(KvmExit.InternalError, "instruction fetch from MMIO");
        Check.Equal(KvmInternalError.Emulation, guest.Run.Internal.Suberror, "suberror");
        Check.Equal(Mmio, guest.Vcpu.Regs.Rip, "rip");
    }

    static void InstructionAcrossPages()
    {
        using Guest guest = Make(code => code.hlt());
        byte[] code = MachineCode.Bytes(64, 0x2FFD, c =>
        {
            c.mov(__dword_ptr[rbx + 0x11223], 0x55667788);
            c.hlt();
        });
        // The second half lies in a page that is elsewhere physically.
        guest.Memory.Write(GuestLayout.LowPageTable + 3 * 8, 0x40000ul | 7);
        guest.Memory.Write(0x2FFD, code.AsSpan(0, 3));
        guest.Memory.Write(0x40000, code.AsSpan(3));
        guest.SetRegs((ref regs) => regs.Rip = 0x2FFD);
        guest.ExpectMmioWrite(Mmio + 0x11223, 0x88, 0x77, 0x66, 0x55);
        guest.RunToHalt();
    }

    /// <summary>A write to a device page that the guest's tables forbid is a page fault, not a device access.</summary>
    static void ReadOnlyPageFault()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, __dword_ptr[rbx]);
            code.mov(__dword_ptr[rbx], eax);
            code.hlt();
        });
        guest.Memory.Write(GuestLayout.LowPageTable + (Mmio >> 12) * 8, Mmio | 1);
        guest.ExpectMmioRead(Mmio, 1, 0, 0, 0);
        Trap trap = guest.ExpectTrap(14, "write through a read-only page");
        Check.Equal(3ul, trap.ErrorCode, "error code");
        Check.Equal(Mmio, guest.Vcpu.Sregs.Cr2, "cr2");
        Check.Equal(GuestLayout.Code + 2, trap.Rip, "rip");
    }

    static void SingleStepOverMmio()
    {
        using Guest guest = Make(code =>
        {
            code.mov(eax, __dword_ptr[rbx]);
            code.nop();
            code.hlt();
        });
        var step = new KvmGuestDebug { Control = KvmGuestDebugControl.Enable | KvmGuestDebugControl.Singlestep };
        guest.Vcpu.SetGuestDebug(step);
        guest.RunTo(KvmExit.Mmio);
        guest.RunTo(KvmExit.Debug, "step over the MMIO instruction");
        Check.Equal(GuestLayout.Code + 2, guest.Run.Debug.Pc, "pc");
        guest.Vcpu.SetGuestDebug(step);
        guest.RunTo(KvmExit.Debug, "step over NOP");
        Check.Equal(GuestLayout.Code + 3, guest.Run.Debug.Pc, "pc");
    }
}
