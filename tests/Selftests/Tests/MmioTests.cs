// SPDX-License-Identifier: GPL-2.0-only
using System.Buffers.Binary;

namespace SharpKvm.Selftests;

/// <summary>Accesses to guest-physical addresses without memory: each width, direction and addressing mode.</summary>
static class MmioTests
{
    const ulong Mmio = GuestLayout.Mmio;

    public static IEnumerable<TestCase> All =>
    [
        .. GuestModes.All.Select(mode => new TestCase($"mmio/write_{mode.Label()}", () => WriteEachWidth(mode))),
        .. GuestModes.All.Select(mode => new TestCase($"mmio/read_{mode.Label()}", () => ReadEachWidth(mode))),
        new("mmio/quadword", Quadword),
        new("mmio/immediate", Immediate),
        new("mmio/high_byte_registers", HighByteRegisters),
        new("mmio/extended_registers", ExtendedRegisters),
        new("mmio/addressing_modes", AddressingModes),
        new("mmio/rip_relative", RipRelative),
        new("mmio/moffs", AbsoluteOffset),
        new("mmio/segment_base", SegmentBase),
        new("mmio/address_size_override", AddressSizeOverride),
        new("mmio/write_crossing_page", WriteCrossingPage),
        new("mmio/read_crossing_page", ReadCrossingPage),
        new("mmio/crossing_into_ram", CrossingIntoRam),
        new("mmio/xmm_registers", XmmRegisters),
        new("mmio/xmm_misaligned", XmmMisaligned),
        new("mmio/high_address", HighAddress),
        new("mmio/completes_on_next_run", CompletesOnNextRun),
        new("mmio/state_during_exit", StateDuringExit),
        new("mmio/user_mode", UserMode),
    ];

    static Guest Make(GuestMode mode, Action<Assembler> code)
    {
        var guest = new Guest(mode, code);
        if (mode.CodeBits() != 16)
            guest.SetRegs((ref regs) => regs.Rbx = Mmio);
        else
        {
            // 16-bit addresses: the data segment starts at the device.
            guest.SetSregs((ref sregs) => sregs.Ds.Base = Mmio);
        }
        return guest;
    }

    /// <summary>16 bytes are two accesses; registers that take no part keep their values.</summary>
    static void XmmRegisters()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(rax, 0x1122334455667788);
            code.movq(xmm1, rax);
            code.movq(xmm9, rax);
            code.punpcklqdq(xmm9, xmm9);
            code.movups(__xmmword_ptr[rbx], xmm9);
            code.movaps(xmm2, __xmmword_ptr[rbx]);
            code.movntdq(__xmmword_ptr[rbx], xmm2);
            code.movd(xmm3, __dword_ptr[rbx]);
            code.paddq(xmm3, xmm1);
            code.movups(__xmmword_ptr[(long)GuestLayout.Data], xmm3);
            code.hlt();
        });
        byte[] pattern = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        guest.ExpectMmioWrite(Mmio, pattern);
        guest.ExpectMmioWrite(Mmio + 8, pattern);
        guest.ExpectMmioRead(Mmio, 1, 2, 3, 4, 5, 6, 7, 8);
        guest.ExpectMmioRead(Mmio + 8, 9, 10, 11, 12, 13, 14, 15, 16);
        guest.ExpectMmioWrite(Mmio, 1, 2, 3, 4, 5, 6, 7, 8);
        guest.ExpectMmioWrite(Mmio + 8, 9, 10, 11, 12, 13, 14, 15, 16);
        guest.ExpectMmioRead(Mmio, 1, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(0x1122334455667789ul, guest.Memory.Read<ulong>(GuestLayout.Data), "low half");
        Check.Equal(0ul, guest.Memory.Read<ulong>(GuestLayout.Data + 8), "high half, cleared by MOVD");
    }

    static void XmmMisaligned()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.movaps(xmm0, __xmmword_ptr[rbx + 8]);
            code.hlt();
        });
        Check.Equal(0ul, guest.ExpectTrap(13, "MOVAPS").ErrorCode, "error code");
    }

    static void WriteEachWidth(GuestMode mode)
    {
        using Guest guest = Make(mode, code =>
        {
            code.mov(eax, 0x44332211);
            code.db(mode.CodeBits() == 16 ? [0x88, 0x07] : [0x88, 0x03]); // mov [bx or ebx], al
            if (mode.CodeBits() == 16)
            {
                code.mov(__word_ptr[bx], ax);
                code.mov(__dword_ptr[bx], eax);
            }
            else
            {
                code.db(0x66, 0x89, 0x03);
                code.db(0x89, 0x03);
            }
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 0x11);
        guest.ExpectMmioWrite(Mmio, 0x11, 0x22);
        guest.ExpectMmioWrite(Mmio, 0x11, 0x22, 0x33, 0x44);
        guest.RunToHalt();
    }

    static void ReadEachWidth(GuestMode mode)
    {
        using Guest guest = Make(mode, code =>
        {
            byte modrm = (byte)(mode.CodeBits() == 16 ? 0x07 : 0x03);
            code.mov(eax, -1);
            code.db(0x8A, modrm);
            code.mov(ecx, eax);
            code.mov(eax, -1);
            if (mode.CodeBits() == 16)
                code.db(0x8B, modrm);
            else
                code.db(0x66, 0x8B, modrm);
            code.mov(edx, eax);
            if (mode.CodeBits() == 16)
                code.db(0x66, 0x8B, modrm);
            else
                code.db(0x8B, modrm);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 0x11);
        guest.ExpectMmioRead(Mmio, 0x22, 0x33);
        guest.ExpectMmioRead(Mmio, 0x44, 0x55, 0x66, 0x87);
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0xFFFFFF11u, (uint)regs.Rcx, "byte merges");
        Check.Equal(0xFFFF3322u, (uint)regs.Rdx, "word merges");
        Check.Equal(0x87665544ul, regs.Rax, "doubleword fills the register");
    }

    static void Quadword()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(rax, 0x8877665544332211);
            code.mov(__qword_ptr[rbx + 8], rax);
            code.mov(rcx, __qword_ptr[rbx + 16]);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio + 8, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88);
        guest.ExpectMmioRead(Mmio + 16, 1, 2, 3, 4, 5, 6, 7, 8);
        guest.RunToHalt();
        Check.Equal(0x0807060504030201ul, guest.Vcpu.Regs.Rcx, "rcx");
    }

    static void Immediate()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(__byte_ptr[rbx], 0x12);
            code.mov(__word_ptr[rbx], 0x1234);
            code.mov(__dword_ptr[rbx], 0x12345678);
            code.mov(__qword_ptr[rbx], -2);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 0x12);
        guest.ExpectMmioWrite(Mmio, 0x34, 0x12);
        guest.ExpectMmioWrite(Mmio, 0x78, 0x56, 0x34, 0x12);
        guest.ExpectMmioWrite(Mmio, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF);
        guest.RunToHalt();
    }

    static void HighByteRegisters()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(eax, 0xABCD);
            code.mov(__byte_ptr[rbx], ah);
            code.mov(dh, __byte_ptr[rbx]);
            code.mov(esi, 0x77);
            code.mov(__byte_ptr[rbx], sil);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 0xAB);
        guest.ExpectMmioRead(Mmio, 0x5C);
        guest.ExpectMmioWrite(Mmio, 0x77);
        guest.RunToHalt();
        Check.Equal(0x5C00ul, guest.Vcpu.Regs.Rdx, "rdx");
    }

    static void ExtendedRegisters()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(r9, rbx);
            code.mov(r12d, 0x01020304);
            code.mov(__dword_ptr[r9], r12d);
            code.mov(r15, __qword_ptr[r9]);
            code.mov(r13, r9);
            code.mov(__byte_ptr[r13], r12b);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 4, 3, 2, 1);
        guest.ExpectMmioRead(Mmio, 9, 0, 0, 0, 0, 0, 0, 0x80);
        guest.ExpectMmioWrite(Mmio, 4);
        guest.RunToHalt();
        Check.Equal(0x8000000000000009ul, guest.Vcpu.Regs.R15, "r15");
    }

    static void AddressingModes()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(ecx, 0x10);
            code.mov(al, 1);
            code.mov(__byte_ptr[rbx + rcx * 4 + 0x20], al);
            code.mov(__byte_ptr[rbx + rcx - 8], al);
            code.lea(rbp, __[rbx]);
            code.mov(__byte_ptr[rbp], al);
            code.mov(__byte_ptr[rcx * 8 + (long)Mmio], al);
            code.mov(__byte_ptr[(long)Mmio + 0x321], al);
            code.mov(r12, rbx);
            code.mov(__byte_ptr[r12 + 0x12345], al);
            code.hlt();
        });
        foreach (ulong offset in (ulong[])[0x60, 0x8, 0, 0x80, 0x321, 0x12345])
            guest.ExpectMmioWrite(Mmio + offset, 1);
        guest.RunToHalt();
    }

    static void RipRelative()
    {
        // mov dword [rip + distance], imm32: the distance counts from the end, behind the immediate.
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.db(0xC7, 0x05);
            code.dd((uint)(Mmio - (GuestLayout.Code + 10)));
            code.dd(0xCAFEBABE);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 0xBE, 0xBA, 0xFE, 0xCA);
        guest.RunToHalt();
    }

    static void AbsoluteOffset()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 0x5A);
            code.db(0xA2); // mov [moffs64], al
            code.dq(Mmio + 3);
            code.db(0xA1); // mov eax, [moffs64]
            code.dq(Mmio + 4);
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio + 3, 0x5A);
        guest.ExpectMmioRead(Mmio + 4, 1, 2, 3, 4);
        guest.RunToHalt();
        Check.Equal(0x04030201ul, guest.Vcpu.Regs.Rax, "rax");
    }

    static void SegmentBase()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(ecx, 0x18);
            code.mov(al, 0x21);
            code.db(0x65, 0x88, 0x01); // mov gs:[rcx], al
            code.db(0x64, 0x88, 0x01); // mov fs:[rcx], al
            code.hlt();
        });
        guest.SetSregs((ref sregs) =>
        {
            sregs.Gs.Base = Mmio;
            sregs.Fs.Base = Mmio + 0x1000;
        });
        guest.ExpectMmioWrite(Mmio + 0x18, 0x21);
        guest.ExpectMmioWrite(Mmio + 0x1018, 0x21);
        guest.RunToHalt();
    }

    static void AddressSizeOverride()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(rcx, 0xFFFFFFFF00000000 | Mmio);
            code.mov(al, 0x33);
            code.db(0x67, 0x88, 0x01); // mov [ecx], al
            code.hlt();
        });
        guest.ExpectMmioWrite(Mmio, 0x33);
        guest.RunToHalt();
    }

    /// <summary>Whatever pieces the kernel chooses: together they are the bytes, in order, none twice.</summary>
    static void WriteCrossingPage()
    {
        ulong start = Mmio + 0xFFD;
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(rax, 0x8877665544332211);
            code.mov(__qword_ptr[rbx + 0xFFD], rax);
            code.hlt();
        });
        var bytes = new List<byte>();
        while (bytes.Count < 8)
        {
            guest.RunTo(KvmExit.Mmio, "write across pages");
            KvmRunMmio mmio = guest.Run.Mmio;
            Check.Equal(1, mmio.IsWrite, "is_write");
            Check.Equal(start + (ulong)bytes.Count, mmio.PhysAddr, "address of the piece");
            Check.That(mmio.Len is >= 1 and <= 8, $"length {mmio.Len}");
            bytes.AddRange(((ReadOnlySpan<byte>)mmio.Data)[..(int)mmio.Len]);
        }
        Check.Bytes([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88], [.. bytes], "bytes");
        guest.RunToHalt();
    }

    static void ReadCrossingPage()
    {
        ulong start = Mmio + 0xFFE;
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(eax, __dword_ptr[rbx + 0xFFE]);
            code.hlt();
        });
        byte[] answer = [0x10, 0x32, 0x54, 0x76];
        for (int done = 0; done < 4;)
        {
            guest.RunTo(KvmExit.Mmio, "read across pages");
            KvmRunMmio mmio = guest.Run.Mmio;
            Check.Equal(0, mmio.IsWrite, "is_write");
            Check.Equal(start + (ulong)done, mmio.PhysAddr, "address of the piece");
            answer.AsSpan(done, (int)mmio.Len).CopyTo(guest.Run.Mmio.Data);
            done += (int)mmio.Len;
        }
        guest.RunToHalt();
        Check.Equal(0x76543210ul, guest.Vcpu.Regs.Rax, "rax");
    }

    /// <summary>The last two bytes of RAM, the first two of the device behind it.</summary>
    static void CrossingIntoRam()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(eax, 0x44332211);
            code.mov(__dword_ptr[(long)GuestLayout.RamSize - 2], eax);
            code.mov(ecx, __dword_ptr[(long)GuestLayout.RamSize - 2]);
            code.hlt();
        });
        guest.ExpectMmioWrite(GuestLayout.RamSize, 0x33, 0x44);
        guest.ExpectMmioRead(GuestLayout.RamSize, 0x77, 0x88);
        guest.RunToHalt();
        Check.Bytes([0x11, 0x22], guest.Memory.Slice(GuestLayout.RamSize - 2, 2), "RAM part");
        Check.Equal(0x88772211ul, guest.Vcpu.Regs.Rcx, "rcx");
    }

    static void HighAddress()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(ebx, 0xFEE00300);
            code.mov(__dword_ptr[rbx], 0x1234);
            code.mov(ebx, 0xFFFFFFF0);
            code.mov(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioWrite(0xFEE00300, 0x34, 0x12, 0, 0);
        guest.ExpectMmioRead(0xFFFFFFF0, 1, 0, 0, 0);
        guest.RunToHalt();
        Check.Equal(1ul, guest.Vcpu.Regs.Rax, "rax");
    }

    /// <summary>The read's register gets its value when the CPU runs again, even when that run leaves at
    /// once.</summary>
    static void CompletesOnNextRun()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(eax, __dword_ptr[rbx]);
            code.hlt();
        });
        guest.ExpectMmioRead(Mmio, 0x78, 0x56, 0x34, 0x12);
        guest.Run.ImmediateExit = 1;
        Check.Fails(Errno.EINTR, guest.Vcpu.TryRun(), "run with immediate_exit");
        guest.Run.ImmediateExit = 0;
        Check.Equal(0x12345678ul, guest.Vcpu.Regs.Rax, "rax");
        Check.Equal(GuestLayout.Code + 2, guest.Vcpu.Regs.Rip, "rip");
        guest.RunToHalt();
    }

    static void StateDuringExit()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.nop();
            code.mov(__dword_ptr[rbx], eax);
            code.hlt();
        });
        guest.RunTo(KvmExit.Mmio);
        ulong rip = guest.Vcpu.Regs.Rip;
        Check.That(rip == GuestLayout.Code + 1 || rip == GuestLayout.Code + 3, $"rip {rip:x} inside the instruction");
        Check.Equal(0, guest.Run.IfFlag, "if_flag");
        guest.RunToHalt();
        Check.Equal(GuestLayout.Code + 4, guest.Vcpu.Regs.Rip, "rip behind HLT");
    }

    static void UserMode()
    {
        using Guest guest = Make(GuestMode.Long, code =>
        {
            code.mov(__dword_ptr[rbx], 0x55);
            code.int3();
        });
        guest.EnterUserMode();
        guest.ExpectMmioWrite(Mmio, 0x55, 0, 0, 0);
        guest.ExpectTrap(3);
    }
}
