// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>IN, OUT, INS and OUTS to ports that nothing in the kernel owns.</summary>
static class PortIoTests
{
    const ushort Port = 0x3456;

    public static IEnumerable<TestCase> All =>
    [
        .. GuestModes.All.Select(mode => new TestCase($"portio/out_{mode.Label()}", () => OutEachSize(mode))),
        .. GuestModes.All.Select(mode => new TestCase($"portio/in_{mode.Label()}", () => InEachSize(mode))),
        new("portio/immediate_port", ImmediatePort),
        new("portio/rep_outs", RepOuts),
        new("portio/rep_ins", RepIns),
        new("portio/rep_ins_backward", RepInsBackward),
        new("portio/rep_outs_page_crossing", RepOutsPageCrossing),
        new("portio/rep_count_zero", RepCountZero),
        new("portio/string_real_mode_segment", RealModeSegmentOverride),
        new("portio/user_mode_denied", UserModeDenied),
    ];

    static void OutEachSize(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.mov(dx, Port);
            code.mov(eax, 0x12345678);
            code.@out(dx, al);
            code.@out(dx, ax);
            code.@out(dx, eax);
            code.hlt();
        });
        Check.Bytes([0x78], guest.ExpectPort(KvmRunIo.Out, Port, 1), "byte");
        Check.Bytes([0x78, 0x56], guest.ExpectPort(KvmRunIo.Out, Port, 2), "word");
        Check.Bytes([0x78, 0x56, 0x34, 0x12], guest.ExpectPort(KvmRunIo.Out, Port, 4), "doubleword");
        guest.RunToHalt();
    }

    static void InEachSize(GuestMode mode)
    {
        using var guest = new Guest(mode, code =>
        {
            code.mov(dx, Port);
            code.mov(eax, -1);
            code.@in(al, dx);
            code.mov(ebx, eax);
            code.mov(eax, -1);
            code.@in(ax, dx);
            code.mov(ecx, eax);
            code.@in(eax, dx);
            code.hlt();
        });
        ((ReadOnlySpan<byte>)[0x11]).CopyTo(guest.ExpectPort(KvmRunIo.In, Port, 1));
        ((ReadOnlySpan<byte>)[0x22, 0x33]).CopyTo(guest.ExpectPort(KvmRunIo.In, Port, 2));
        ((ReadOnlySpan<byte>)[0x44, 0x55, 0x66, 0x77]).CopyTo(guest.ExpectPort(KvmRunIo.In, Port, 4));
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0xFFFFFF11u, (uint)regs.Rbx, "byte merges into eax");
        Check.Equal(0xFFFF3322u, (uint)regs.Rcx, "word merges into eax");
        Check.Equal(0x77665544ul, regs.Rax, "doubleword fills rax");
    }

    static void ImmediatePort()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(al, 0x5A);
            code.@out(0xE1, al);
            code.@in(eax, 0xE2);
            code.hlt();
        });
        Check.Bytes([0x5A], guest.ExpectPort(KvmRunIo.Out, 0xE1, 1), "byte");
        guest.ExpectPort(KvmRunIo.In, 0xE2, 4).Fill(0xC3);
        guest.RunToHalt();
        Check.Equal(0xC3C3C3C3ul, guest.Vcpu.Regs.Rax, "rax");
    }

    /// <summary>The kernel may hand a string over in pieces; only the sequence of bytes is promised.</summary>
    static byte[] CollectOuts(Guest guest, int size, int total)
    {
        var bytes = new List<byte>();
        while (bytes.Count < total)
        {
            guest.RunTo(KvmExit.Io, "string output");
            Check.Equal(KvmRunIo.Out, guest.Run.Io.Direction, "direction");
            Check.Equal(size, guest.Run.Io.Size, "size");
            Check.Equal(Port, guest.Run.Io.Port, "port");
            bytes.AddRange(guest.Vcpu.IoData);
        }
        return [.. bytes];
    }

    static void RepOuts()
    {
        foreach ((byte opcode, bool word, int size) in new[] { ((byte)0x6E, false, 1), ((byte)0x6F, true, 2),
            ((byte)0x6F, false, 4) })
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.mov(dx, Port);
                code.mov(rsi, GuestLayout.Data);
                code.mov(ecx, 7);
                code.cld();
                if (word)
                    code.db(0x66);
                code.db(0xF3, opcode);
                code.hlt();
            });
            byte[] expected = Pattern(7 * size);
            guest.Memory.Write(GuestLayout.Data, expected);
            Check.Bytes(expected, CollectOuts(guest, size, 7 * size), $"bytes of rep outs, size {size}");
            guest.RunToHalt();
            Check.Equal(0ul, guest.Vcpu.Regs.Rcx, "rcx");
            Check.Equal(GuestLayout.Data + 7ul * (ulong)size, guest.Vcpu.Regs.Rsi, "rsi");
        }
    }

    static void RepIns()
    {
        foreach ((byte opcode, bool word, int size) in new[] { ((byte)0x6C, false, 1), ((byte)0x6D, true, 2),
            ((byte)0x6D, false, 4) })
        {
            using var guest = new Guest(GuestMode.Long, code =>
            {
                code.mov(dx, Port);
                code.mov(rdi, GuestLayout.Data);
                code.mov(ecx, 9);
                code.cld();
                if (word)
                    code.db(0x66);
                code.db(0xF3, opcode);
                code.hlt();
            });
            byte[] expected = Pattern(9 * size);
            FeedIns(guest, size, expected);
            guest.RunToHalt();
            Check.Bytes(expected, guest.Memory.Slice(GuestLayout.Data, expected.Length),
                $"memory after rep ins, size {size}");
            Check.Equal(0, guest.Memory.Read<byte>(GuestLayout.Data + (ulong)expected.Length), "byte behind");
            Check.Equal(0ul, guest.Vcpu.Regs.Rcx, "rcx");
            Check.Equal(GuestLayout.Data + 9ul * (ulong)size, guest.Vcpu.Regs.Rdi, "rdi");
        }
    }

    static void FeedIns(Guest guest, int size, ReadOnlySpan<byte> bytes)
    {
        while (bytes.Length > 0)
        {
            guest.RunTo(KvmExit.Io, "string input");
            Check.Equal(KvmRunIo.In, guest.Run.Io.Direction, "direction");
            Check.Equal(size, guest.Run.Io.Size, "size");
            Span<byte> wanted = guest.Vcpu.IoData;
            Check.That(wanted.Length <= bytes.Length, "more bytes asked for than the guest's count");
            bytes[..wanted.Length].CopyTo(wanted);
            bytes = bytes[wanted.Length..];
        }
    }

    static void RepInsBackward()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(dx, Port);
            code.mov(rdi, GuestLayout.Data + 8);
            code.mov(ecx, 3);
            code.std();
            code.rep.insd();
            code.hlt();
        });
        FeedIns(guest, 4, [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        guest.RunToHalt();
        Check.Bytes([3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0], guest.Memory.Slice(GuestLayout.Data, 12), "memory");
        Check.Equal(GuestLayout.Data - 4, guest.Vcpu.Regs.Rdi, "rdi");
    }

    static void RepOutsPageCrossing()
    {
        using var guest = new Guest(GuestMode.Paged, code =>
        {
            code.mov(dx, Port);
            code.mov(esi, (uint)GuestLayout.Data + 0xFFE);
            code.mov(ecx, 600);
            code.cld();
            code.rep.outsd();
            code.hlt();
        });
        // The page behind the boundary is another one physically.
        guest.Memory.Write(GuestLayout.LowPageTable + 0x21 * 4, 0x30000u | 7);
        byte[] expected = Pattern(2400);
        guest.Memory.Write(GuestLayout.Data + 0xFFE, expected.AsSpan(0, 2));
        guest.Memory.Write(0x30000, expected.AsSpan(2));
        Check.Bytes(expected, CollectOuts(guest, 4, 2400), "bytes");
        guest.RunToHalt();
    }

    static void RepCountZero()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(dx, Port);
            code.mov(rdi, GuestLayout.Data);
            code.xor(ecx, ecx);
            code.rep.insb();
            code.rep.outsb();
            code.hlt();
        });
        guest.RunToHalt();
        Check.Equal(GuestLayout.Data, guest.Vcpu.Regs.Rdi, "rdi");
    }

    static void RealModeSegmentOverride()
    {
        using var guest = new Guest(GuestMode.Real, code =>
        {
            code.mov(ax, 0x2000);
            code.mov(fs, ax);
            code.mov(ax, 0x3000);
            code.mov(es, ax);
            code.mov(dx, Port);
            code.mov(si, 0x10);
            code.mov(di, 0x20);
            code.cld();
            code.db(0x64, 0x6E); // outsb from fs:si
            code.insb();
            code.hlt();
        });
        guest.Memory.Write<byte>(0x20010, 0xA7);
        Check.Bytes([0xA7], guest.ExpectPort(KvmRunIo.Out, Port, 1), "byte from fs:si");
        guest.ExpectPort(KvmRunIo.In, Port, 1)[0] = 0x7A;
        guest.RunToHalt();
        Check.Equal(0x7A, guest.Memory.Read<byte>(0x30020), "byte at es:di");
    }

    static void UserModeDenied()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(dx, Port);
            code.@out(dx, al);
        });
        guest.EnterUserMode();
        Trap trap = guest.ExpectTrap(13, "OUT at CPL 3 with IOPL 0");
        Check.Equal(0ul, trap.ErrorCode, "error code");
        Check.Equal(GuestLayout.Code + 4, trap.Rip, "rip of the OUT");
    }

    static byte[] Pattern(int length) => [.. Enumerable.Range(0, length).Select(i => (byte)(i * 7 + 1))];
}
