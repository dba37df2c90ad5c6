// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>A program that runs guests finds its own CPU state as it left it, whatever the guests did to
/// theirs.</summary>
static unsafe partial class HostStateTests
{
    public static IEnumerable<TestCase> All =>
    [
        new("host/vector_registers", VectorRegisters),
        new("host/x87_state", X87State),
        new("host/segment_bases", () => SegmentBases(Dirty())),
        new("host/segment_bases_32_bit", () => SegmentBases(Dirty32())),
        new("host/tsc_aux", TscAux),
        new("host/syscall_works", SyscallWorks),
        new("host/debug_registers", DebugRegisters, Own: true),
        new("host/protection_keys", ProtectionKeys),
        new("host/xcr0", Xcr0),
        new("host/guest_does_not_see_host_registers", GuestSeesNothing),
        new("host/guest_does_not_see_host_vectors", GuestSeesNoVectors),
        new("host/guest_does_not_see_host_debug", GuestSeesNoDebugRegisters),
        new("host/two_guests_are_apart", TwoGuestsAreApart),
        new("host/flags_after_run", FlagsAfterRun),
    ];

    /// <summary>A guest that overwrites everything it can reach, then makes a short exit, again and again.</summary>
    static Guest Dirty()
    {
        var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.Label(ref again);
            for (int i = 0; i < 16; i++)
            {
                code.mov(rax, 0xBAD0BAD0BAD0BAD0);
                code.movq(new AssemblerRegisterXMM(Register.XMM0 + i), rax);
            }
            code.fldpi();
            code.mov(ax, 0x0F7F);
            code.mov(__word_ptr[(long)GuestLayout.Data], ax);
            code.fldcw(__word_ptr[(long)GuestLayout.Data]);
            code.mov(__dword_ptr[(long)GuestLayout.Data], 0x7F80);
            code.ldmxcsr(__dword_ptr[(long)GuestLayout.Data]);
            foreach (uint msr in (uint[])[0xC0000100, 0xC0000101, 0xC0000102, 0xC0000082, 0xC0000083, 0x175, 0x176])
            {
                code.WriteMsr(msr, 0x6BAD0000);
            }
            code.mov(rax, 0x1000);
            code.mov(dr0, rax);
            code.mov(dr1, rax);
            code.mov(dr2, rax);
            code.mov(dr3, rax);
            code.fninit();
            code.@out(0x10, al);
            code.jmp(again);
        });
        return guest;
    }

    static void VectorRegisters()
    {
        using Guest guest = Dirty();
        // ymm (or xmm) registers are filled, KVM_RUN is called bare, then all are compared.
        byte[] before = new byte[512], after = new byte[512];
        TestEnvironment.FixedRandom.NextBytes(before);
        bool avx = System.Runtime.Intrinsics.X86.Avx.IsSupported;
        nint code = HostCode.Load(c =>
        {
            c.push(rbx);
            c.mov(rbx, rdi);
            for (int i = 0; i < 16; i++)
            {
                if (avx)
                    c.vmovups(new AssemblerRegisterYMM(Register.YMM0 + i), __ymmword_ptr[rbx + 32 + i * 32]);
                else
                    c.movups(new AssemblerRegisterXMM(Register.XMM0 + i), __xmmword_ptr[rbx + 32 + i * 32]);
            }
            c.mov(edi, __dword_ptr[rbx]);
            c.mov(esi, KvmIoctl.Run);
            c.xor(edx, edx);
            c.mov(eax, 16);
            c.syscall();
            c.mov(rcx, __qword_ptr[rbx + 8]);
            for (int i = 0; i < 16; i++)
            {
                if (avx)
                    c.vmovups(__ymmword_ptr[rcx + i * 32], new AssemblerRegisterYMM(Register.YMM0 + i));
                else
                    c.movups(__xmmword_ptr[rcx + i * 32], new AssemblerRegisterXMM(Register.XMM0 + i));
            }
            if (avx)
                c.vzeroupper();
            c.pop(rbx);
            c.ret();
        });
        byte[] request = new byte[32 + 512];
        for (int round = 0; round < 50; round++)
        {
            MemoryMarshal.Write(request, (ulong)guest.Vcpu.Fd);
            before.CopyTo(request, 32);
            fixed (byte* arguments = request, result = after)
            {
                MemoryMarshal.Write(request.AsSpan(8), (ulong)result);
                Check.Equal(0ul, HostCode.Call(code, arguments), "KVM_RUN");
            }
            for (int i = 0; i < 16; i++)
            {
                int width = avx ? 32 : 16;
                Check.Bytes(before.AsSpan(i * 32, width), after.AsSpan(i * 32, width),
                    $"round {round}: vector register {i}");
            }
        }
    }

    static void RunSome(Guest guest, int rounds = 20)
    {
        for (int i = 0; i < rounds; i++)
            guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
    }

    static void X87State()
    {
        nint set = HostCode.Load(code =>
        {
            code.fninit();
            code.fldcw(__word_ptr[rdi]);
            code.ldmxcsr(__dword_ptr[rdi + 4]);
            code.fldl2e();
            code.ret();
        });
        nint get = HostCode.Load(code =>
        {
            code.fnstcw(__word_ptr[rdi]);
            code.stmxcsr(__dword_ptr[rdi + 4]);
            code.fstp(__tbyte_ptr[rdi + 8]);
            code.mov(__dword_ptr[rdi + 24], 0x1F80);
            code.ldmxcsr(__dword_ptr[rdi + 24]);
            code.fninit();
            code.ret();
        });
        using Guest guest = Dirty();
        ulong* state = stackalloc ulong[4];
        state[0] = 0x00001FC0_0000027Ful;
        HostCode.Call(set, state);
        for (int i = 0; i < 20; i++)
            _ = guest.Vcpu.TryCall(KvmIoctl.Run);
        HostCode.Call(get, state);
        Check.Equal(0x27Ful, state[0] & 0xFFFF, "x87 control word");
        Check.Equal(0x1FC0ul, state[0] >> 32 & 0xFFC0, "MXCSR without its status bits");
        Check.Equal(0xB8AA3B295C17F0BCul, state[1], "st0");
    }

    /// <summary>A 32-bit guest, for which MSRs of 64-bit code are not switched.</summary>
    static Guest Dirty32() => new(GuestMode.Protected, code =>
    {
        Label again = code.CreateLabel();
        code.Label(ref again);
        code.WriteMsr(0xC0000102, 0x6BAD0000);
        code.@out(0x10, al);
        code.jmp(again);
    });

    static void SegmentBases(Guest dirty)
    {
        using Guest guest = dirty;
        bool direct = HostCpu.HasLeaf7Bit(1, 0);
        Check.Needs(direct, "FSGSBASE");
        nint read = HostCode.Load(code =>
        {
            code.rdfsbase(rax);
            code.mov(__qword_ptr[rdi], rax);
            code.rdgsbase(rax);
            code.mov(__qword_ptr[rdi + 8], rax);
            code.ret();
        });
        nint writeGs = HostCode.Load(code =>
        {
            code.wrgsbase(rdi);
            code.ret();
        });
        ulong* before = stackalloc ulong[2], after = stackalloc ulong[2];
        HostCode.Call(writeGs, (void*)0x123456789000);
        HostCode.Call(read, before);
        RunSome(guest, 50);
        HostCode.Call(read, after);
        HostCode.Call(writeGs, null);
        Check.Equal(before[0], after[0], "fs base");
        Check.Equal(0x123456789000ul, after[1], "gs base");
    }

    /// <summary>Linux keeps the CPU's number in it; a guest with RDTSCP has its own.</summary>
    static void TscAux()
    {
        nint read = HostCode.Load(code =>
        {
            code.rdtscp();
            code.mov(eax, ecx);
            code.ret();
        });
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.Label(ref again);
            code.WriteMsr(0xC0000103, 0x5A5A5A);
            code.rdtscp();
            code.mov(ebx, ecx);
            code.@out(0x10, al);
            code.jmp(again);
        });
        Check.Needs(guest.Kvm.GetSupportedCpuid().Any(leaf => leaf.Function == 0x80000001
            && (leaf.Edx >> 27 & 1) != 0), "RDTSCP");
        for (int i = 0; i < 50; i++)
        {
            guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
            Check.Equal(0x5A5A5Aul, guest.Vcpu.Regs.Rbx, "TSC_AUX in the guest");
            ulong here = HostCode.Call(read, null);
            Check.That((here & 0xFFF) < 64 && here >> 12 < 64,
                $"the host's TSC_AUX is {here:x}");
        }
    }

    static void SyscallWorks()
    {
        using Guest guest = Dirty();
        RunSome(guest, 50);
        // Through SYSCALL's own MSRs, and through the 32-bit entry, which uses SYSENTER's neighbours.
        Check.That(Process.CurrentThread > 0, "gettid by SYSCALL");
        // A kernel for 64-bit programs only, like the debug kernel, has no such entry.
        if (!File.Exists("/proc/sys/abi/vsyscall32"))
            return;
        nint int80 = HostCode.Load(code =>
        {
            code.push(rbx);
            code.mov(eax, 20);
            code.@int(0x80);
            code.pop(rbx);
            code.ret();
        });
        Check.Equal((ulong)Environment.ProcessId, HostCode.Call(int80, null) & 0xFFFFFFFF, "getpid by INT 80h");
    }

    /// <summary>A traced program with breakpoints set runs a guest that sets its own: the program keeps its.</summary>
    static void DebugRegisters()
    {
        const int PeekUser = 3, PokeUser = 6, Continue = 7, Attach = 16, Detach = 17, AllChildren = 0x40000000,
            Stop = 19;
        const ulong DebugRegister0 = 848; // offsetof(struct user, u_debugreg)
        // The traced program is no child of this one: of its own children .NET takes the stops for ends.
        string program = $"'{Environment.ProcessPath}' --device {TestEnvironment.Device} --run-one helper/dirty";
        using var shell = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo("/bin/sh",
            ["-c", $"{program} & echo $!; wait"])
            { RedirectStandardOutput = true })!;
        int traced = int.Parse(shell.StandardOutput.ReadLine()!);
        Check.Equal("running", shell.StandardOutput.ReadLine(), "the traced program's first line");
        Check.Equal(0L, Ptrace(Attach, traced, 0, 0), "attach");
        Check.Equal(traced, Process.WaitPid(traced, out _, AllChildren), "waitpid");
        for (ulong i = 0; i < 4; i++)
            Check.Equal(0L, Ptrace(PokeUser, traced, (nint)(DebugRegister0 + i * 8), 0x7000_0000 + (nint)i * 8),
                $"set DR{i}");
        Check.Equal(0L, Ptrace(PokeUser, traced, (nint)(DebugRegister0 + 56), 0x55), "set DR7");
        Check.Equal(0L, Ptrace(Continue, traced, 0, 0), "continue");
        Thread.Sleep(300);
        Process.Kill(traced, Stop);
        Check.Equal(traced, Process.WaitPid(traced, out _, AllChildren), "waitpid");
        for (ulong i = 0; i < 4; i++)
        {
            Check.Equal(0x7000_0000L + (long)i * 8, Ptrace(PeekUser, traced, (nint)(DebugRegister0 + i * 8), 0),
                $"DR{i}");
        }
        _ = Ptrace(Detach, traced, 0, 0);
        Process.Kill(traced, Process.SigKill);
        shell.WaitForExit();
    }

    /// <summary>Not a test by itself: the program that <see cref="DebugRegisters"/> traces.</summary>
    public static void RunDirty()
    {
        using Guest guest = Dirty();
        RunSome(guest);
        Console.WriteLine("running");
        Console.Out.Flush();
        // Being stopped by the tracer ends KVM_RUN with EINTR.
        while (true)
            _ = guest.Vcpu.TryRun();
    }

    [LibraryImport("libc", EntryPoint = "ptrace", SetLastError = true)]
    private static partial long Ptrace(int request, int process, nint address, nint data);

    static void ProtectionKeys()
    {
        Check.Needs(HostCpu.HasLeaf7Bit(2, 4), "protection keys (CPUID.7.ECX.OSPKE)");
        nint read = HostCode.Load(code =>
        {
            code.xor(ecx, ecx);
            code.rdpkru();
            code.ret();
        });
        nint write = HostCode.Load(code =>
        {
            code.mov(eax, edi);
            code.xor(ecx, ecx);
            code.xor(edx, edx);
            code.wrpkru();
            code.ret();
        });
        ulong mine = HostCode.Call(read, null);
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.mov(rax, cr4);
            code.bts(rax, 22);
            code.mov(cr4, rax);
            code.Label(ref again);
            code.mov(eax, 0x55555550);
            code.xor(ecx, ecx);
            code.xor(edx, edx);
            code.wrpkru();
            code.@out(0x10, al);
            code.jmp(again);
        });
        HostCode.Call(write, (void*)0x0AAAAAA0);
        RunSome(guest);
        ulong after = HostCode.Call(read, null);
        HostCode.Call(write, (void*)mine);
        Check.Equal(0x0AAAAAA0ul, after, "PKRU");
    }

    static void Xcr0()
    {
        nint read = HostCode.Load(code =>
        {
            code.xor(ecx, ecx);
            code.xgetbv();
            code.ret();
        });
        ulong before = HostCode.Call(read, null);
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.Label(ref again);
            code.@out(0x10, al);
            code.jmp(again);
        });
        guest.SetSregs((ref sregs) => sregs.Cr4 |= 1 << 18);
        RunSome(guest);
        Check.Equal(before, HostCode.Call(read, null), "XCR0");
    }

    /// <summary>The registers of a fresh CPU are zero, not what the host left in them.</summary>
    static void GuestSeesNothing()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        GuestMemory memory = vm.AddMemory(0, 0, 0x10000);
        Vcpu vcpu = vm.CreateVcpu();
        KvmSregs sregs = vcpu.Sregs;
        (sregs.Cs.Base, sregs.Cs.Selector) = (0, 0);
        vcpu.Sregs = sregs;
        KvmRegs regs = vcpu.Regs;
        regs.Rip = 0x1000;
        vcpu.Regs = regs;
        memory.Write(0x1000, MachineCode.Bytes(16, 0x1000, code =>
        {
            AssemblerRegister32[] all = [eax, ebx, ecx, esi, edi, ebp, esp];
            for (int i = 0; i < all.Length; i++)
            {
                code.mov(__dword_ptr[0x2000 + i * 4], all[i]);
            }
            code.hlt();
        }));
        Check.Equal(KvmExit.Hlt, vcpu.RunOnce(), "exit reason");
        Check.That(!memory.Slice(0x2000, 28).ContainsAnyExcept((byte)0),
            $"registers: {Convert.ToHexString(memory.Slice(0x2000, 28))}");
    }

    static void GuestSeesNoVectors()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            for (int i = 0; i < 16; i++)
                code.movups(__xmmword_ptr[(long)GuestLayout.Data + i * 16],
                    new AssemblerRegisterXMM(Register.XMM0 + i));
            code.hlt();
        });
        guest.RunToHalt();
        Check.That(!guest.Memory.Slice(GuestLayout.Data, 256).ContainsAnyExcept((byte)0),
            "xmm registers of a fresh CPU are zero");
    }

    static void GuestSeesNoDebugRegisters()
    {
        using (Guest dirty = Dirty())
            RunSome(dirty, 3);
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rax, dr0);
            code.mov(rbx, dr1);
            code.mov(rcx, dr2);
            code.mov(rdx, dr3);
            code.hlt();
        });
        guest.RunToHalt();
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Equal(0ul, regs.Rax | regs.Rbx | regs.Rcx | regs.Rdx, "debug registers of a fresh CPU");
    }

    static void TwoGuestsAreApart()
    {
        using Guest first = Dirty();
        using var second = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.mov(rax, 0x1122334455667788);
            code.movq(xmm5, rax);
            code.mov(dr0, rax);
            code.WriteMsr(0xC0000102, 0x1234000);
            code.Label(ref again);
            code.@out(0x10, al);
            code.movq(rbx, xmm5);
            code.mov(rsi, dr0);
            code.mov(ecx, 0xC0000102);
            code.rdmsr();
            code.mov(edi, eax);
            code.jmp(again);
        });
        second.ExpectPort(KvmRunIo.Out, 0x10, 1);
        for (int i = 0; i < 20; i++)
        {
            RunSome(first, 2);
            second.ExpectPort(KvmRunIo.Out, 0x10, 1);
            KvmRegs regs = second.Vcpu.Regs;
            Check.Equal((0x1122334455667788ul, 0x1122334455667788ul, 0x1234000ul), (regs.Rbx, regs.Rsi, regs.Rdi),
                "xmm5, dr0, kernel gs base");
        }
    }

    static void FlagsAfterRun()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.std();
            code.stc();
            code.@out(0x10, al);
            code.hlt();
        });
        guest.ExpectPort(KvmRunIo.Out, 0x10, 1);
        nint flags = HostCode.Load(code =>
        {
            code.pushfq();
            code.pop(rax);
            code.ret();
        });
        Check.Equal(0ul, HostCode.Call(flags, null) & 0x400, "direction flag");
        Check.Equal(0x401ul, guest.Vcpu.Regs.Rflags & 0x401, "the guest's flags");
    }
}
