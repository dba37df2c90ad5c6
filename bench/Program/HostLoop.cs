// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Selftests;

namespace SharpKvm.Bench;

/// <summary>A system call: its number and arguments as the kernel takes them.</summary>
readonly record struct SystemCall(ulong Number, ulong First, ulong Second, ulong Third)
{
    public static SystemCall Read(int fd, nint buffer, int count) => new(0, (ulong)fd, (ulong)buffer, (ulong)count);

    public static SystemCall Write(int fd, nint buffer, int count) => new(1, (ulong)fd, (ulong)buffer, (ulong)count);

    public static SystemCall Ioctl(int fd, uint request, nint argument) => new(16, (ulong)fd, request, (ulong)argument);
}

/// <summary>Bare system calls in a loop of machine code, with the time stamp counter read before and after.</summary>
static unsafe class HostLoop
{
    /// <summary>What the loop is told and tells; the code below knows the offsets.</summary>
    struct Request
    {
        public ulong Count, LastResult, Ticks;
        public SystemCall First, Second;
    }

    const int CountAt = 0, LastResultAt = 8, TicksAt = 16, CallsAt = 24, CallSize = 32;

    static readonly nint OneCall = Load(1), TwoCalls = Load(2);

    static readonly nint TimeStamp = HostCode.Load(code =>
    {
        ReadTimeStamp(code);
        code.ret();
    });

    /// <summary>The time stamp counter.</summary>
    public static ulong Ticks() => HostCode.Call(TimeStamp, null);

    /// <summary>KVM_RUN so many times; the last result has to be as expected. Returns the ticks it took.</summary>
    public static ulong Run(Vcpu vcpu, int count, int expectedResult = 0)
    {
        var request = new Request { Count = (ulong)count, First = SystemCall.Ioctl(vcpu.Fd, KvmIoctl.Run, 0) };
        HostCode.Call(OneCall, &request);
        Check.Equal(expectedResult, (int)request.LastResult, "result of KVM_RUN");
        return request.Ticks;
    }

    /// <summary>Two system calls so many times, one after the other; the second one's last result has to be as
    /// expected. Returns the ticks it took.</summary>
    public static ulong Run(SystemCall first, SystemCall second, int count, int expectedResult)
    {
        var request = new Request { Count = (ulong)count, First = first, Second = second };
        HostCode.Call(TwoCalls, &request);
        Check.Equal(expectedResult, (int)request.LastResult, "result of the second system call");
        return request.Ticks;
    }

    static nint Load(int calls) => HostCode.Load(code =>
    {
        Label again = code.CreateLabel();
        code.push(rbx);
        code.push(r12);
        code.mov(rbx, rdi);
        code.mov(r12, __qword_ptr[rbx + CountAt]);
        ReadTimeStamp(code);
        code.mov(__qword_ptr[rbx + TicksAt], rax);
        code.Label(ref again);
        for (int i = 0; i < calls; i++)
        {
            int call = CallsAt + i * CallSize;
            code.mov(rax, __qword_ptr[rbx + call]);
            code.mov(rdi, __qword_ptr[rbx + call + 8]);
            code.mov(rsi, __qword_ptr[rbx + call + 16]);
            code.mov(rdx, __qword_ptr[rbx + call + 24]);
            code.syscall();
        }
        code.dec(r12);
        code.jnz(again);
        code.mov(__qword_ptr[rbx + LastResultAt], rax);
        ReadTimeStamp(code);
        code.sub(rax, __qword_ptr[rbx + TicksAt]);
        code.mov(__qword_ptr[rbx + TicksAt], rax);
        code.pop(r12);
        code.pop(rbx);
        code.ret();
    });

    static void ReadTimeStamp(Assembler code)
    {
        code.rdtsc();
        code.shl(rdx, 32);
        code.or(rax, rdx);
    }
}
