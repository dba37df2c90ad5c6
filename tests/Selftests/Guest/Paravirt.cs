// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>The paravirtual interface of KVM: CPUID leaf 0x40000001, MSRs, hypercalls (asm/kvm_para.h; the kernel's
/// Documentation/virt/kvm/x86/cpuid.rst, msr.rst and hypercalls.rst).</summary>
static class Paravirt
{
    public const uint SignatureLeaf = 0x40000000, FeatureLeaf = 0x40000001;

    public const uint WallClockOld = 0x11, SystemTimeOld = 0x12, WallClock = 0x4B564D00, SystemTime = 0x4B564D01,
        AsyncPageFault = 0x4B564D02, StealTime = 0x4B564D03, PvEoi = 0x4B564D04, AsyncPageFaultVector = 0x4B564D06,
        AsyncPageFaultAck = 0x4B564D07;

    public const uint KickCpu = 5, SendIpi = 10, SchedYield = 11;

    /// <summary>Offsets in the page of the system time.</summary>
    public const int ClockVersion = 0, ClockTsc = 8, ClockSystemTime = 16, ClockMul = 24, ClockShift = 28,
        ClockFlags = 29;

    public const byte FlagTscStable = 1, FlagGuestStopped = 2;

    public static KvmCpuidEntry2? Leaf(Kvm kvm, uint function)
    {
        foreach (KvmCpuidEntry2 leaf in kvm.GetSupportedCpuid())
        {
            if (leaf.Function == function)
                return leaf;
        }
        return null;
    }

    /// <summary>Skips the test unless the leaf has the bit.</summary>
    public static void Needs(ParavirtFeature feature)
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Needs(((Leaf(kvm, FeatureLeaf)?.Eax ?? 0) >> (int)feature & 1) != 0,
            $"bit {(int)feature} of CPUID leaf 0x40000001 ({feature})");
    }

    /// <summary>VMMCALL; the result is in rax. rbx, rcx, rdx and rsi are overwritten.</summary>
    public static void Hypercall(this Assembler code, uint number, params ReadOnlySpan<ulong> arguments)
    {
        ReadOnlySpan<AssemblerRegister64> registers = [rbx, rcx, rdx, rsi];
        for (int i = 0; i < arguments.Length; i++)
            code.mov(registers[i], arguments[i]);
        code.mov(eax, number);
        code.vmmcall();
    }

    /// <summary>The system time in nanoseconds from the page at rdi, to rax (msr.rst, MSR_KVM_SYSTEM_TIME_NEW).
    /// rcx, rdx and rsi are overwritten.</summary>
    public static void ReadClock(this Assembler code)
    {
        Label again = code.CreateLabel(), right = code.CreateLabel(), scaled = code.CreateLabel();
        code.nop(); // another label may stand here
        code.Label(ref again);
        code.mov(esi, __dword_ptr[rdi + ClockVersion]);
        code.test(esi, 1);
        code.jnz(again);
        code.ReadTsc();
        code.sub(rax, __qword_ptr[rdi + ClockTsc]);
        code.movsx(ecx, __byte_ptr[rdi + ClockShift]);
        code.test(ecx, ecx);
        code.js(right);
        code.shl(rax, cl);
        code.jmp(scaled);
        code.Label(ref right);
        code.neg(ecx);
        code.shr(rax, cl);
        code.Label(ref scaled);
        code.mov(edx, __dword_ptr[rdi + ClockMul]);
        code.mul(rdx);
        code.shrd(rax, rdx, 32);
        code.add(rax, __qword_ptr[rdi + ClockSystemTime]);
        code.cmp(esi, __dword_ptr[rdi + ClockVersion]);
        code.jne(again);
    }
}

/// <summary>Bits of eax in leaf 0x40000001 (<c>KVM_FEATURE_…</c>).</summary>
enum ParavirtFeature
{
    Clocksource = 0,
    NopIoDelay = 1,
    MmuOp = 2,
    Clocksource2 = 3,
    AsyncPf = 4,
    StealTime = 5,
    PvEoi = 6,
    PvUnhalt = 7,
    PvTlbFlush = 9,
    AsyncPfVmexit = 10,
    PvSendIpi = 11,
    PollControl = 12,
    PvSchedYield = 13,
    AsyncPfInt = 14,
    MsiExtDestId = 15,
    HcMapGpaRange = 16,
    MigrationControl = 17,
    ClocksourceStable = 24,
}
