// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Host;

/// <summary>What the physical CPUs can do.</summary>
internal static unsafe class HostCpu
{
    private const ulong AmxComponents = 3 << 17;

    /// <summary>False when the MSR does not exist (#GP).</summary>
    [KernelImport("sk_read_msr")] public static extern bool TryReadMsr(uint index, out ulong value);

    /// <summary>Writes an MSR that is known to exist; anything else is a trap of the core.</summary>
    public static void WriteMsr(uint index, ulong value) => X86.Wrmsr(index, value);

    public static ulong Tsc() => X86.Rdtsc();

    /// <summary>CLOCK_MONOTONIC: what timers are armed by.</summary>
    [KernelImport("ktime_get")] public static extern ulong Nanoseconds();

    /// <summary>CLOCK_REALTIME: the time of day, since 1970.</summary>
    public static ulong RealNanoseconds() => NanosecondsOf(RealClock);

    /// <summary>TK_OFFS_REAL.</summary>
    private const int RealClock = 0;
    [KernelImport("ktime_get_with_offset")] private static extern ulong NanosecondsOf(int clock);

    /// <summary>Whether the kernel trusts the time-stamp counters to be the same on all CPUs.</summary>
    public static bool TscIsStable() => IsTscUnstable() == 0;
    [KernelImport("check_tsc_unstable")] private static extern int IsTscUnstable();

    /// <summary>Rate of the time-stamp counter in kHz.</summary>
    [KernelImport("sk_tsc_khz")] public static extern uint TscKhz();

    /// <summary>XCR0 bits that the kernel's guest-FPU code can save; 0 without XSAVE.</summary>
    // Linux asks for permission before it saves the state of AMX.
    public static ulong SupportedXcr0() =>
        (X86.ReadCr4() & Cr4.Osxsave) != 0 ? X86.Xgetbv(0) & ~AmxComponents : 0;

    /// <summary>Indirect branch prediction barrier.</summary>
    public static void FlushPredictors() => X86.Wrmsr(Msr.PredCmd, 1);

    /// <summary>Begins VMX operation on this CPU, with interrupts off. False: it refuses.</summary>
    public static bool TryEnterVmx(Hpa region)
    {
        ulong address = region.Value;
        ChangeCr4(Cr4.Vmxe, 0);
        if (X86.Vmxon(&address))
            return true;
        ChangeCr4(0, Cr4.Vmxe);
        return false;
    }

    [KernelImport("cr4_update_irqsoff")] private static extern void ChangeCr4(ulong set, ulong clear);
    [KernelImport("sk_vmx_off")] public static extern void LeaveVmx();

    /// <summary>A field of the VMCS that is loaded; 0 when there is no such field.</summary>
    [MethodImpl(AggressiveInlining)] public static ulong ReadVmcs(uint field) => X86.Vmread(field);

    [MethodImpl(AggressiveInlining)] public static void WriteVmcs(uint field, ulong value) => X86.Vmwrite(field, value);

    /// <summary>
    /// Ends what this CPU knows of a guest's memory: by its extended page tables and, unless it is 0, under its VPID.
    /// </summary>
    public static void FlushGuest(ulong tables, ulong vpid)
    {
        const ulong OneContext = 1;
        InlineArray2<ulong> descriptor = default;
        descriptor[0] = tables;
        X86.Invept(OneContext, &descriptor);
        descriptor[0] = vpid;
        if (vpid != 0)
            X86.Invvpid(OneContext, &descriptor);
    }

    public static ulong ReadCr0() => X86.ReadCr0();
    public static ulong ReadCr4() => X86.ReadCr4();
}

/// <summary>Module parameters that the core asks for.</summary>
internal static class Parameters
{
    /// <summary>Unknown MSRs read as zero and swallow writes instead of #GP.</summary>
    public static bool IgnoreMsrs() => (long)All() < 0;

    /// <summary>The longest that a vCPU polls before it sleeps in a halt.</summary>
    public static ulong HaltPollNanoseconds() => (uint)All();

    /// <summary>Nested paging is to be used where the CPU has it.</summary>
    public static bool NestedPaging() => (All() & 1UL << 61) != 0;

    /// <summary>Whether the kernel has a handler for <see cref="Posted.Vector"/>.</summary>
    public static bool HasPostedVector() => (All() & 1UL << 60) != 0;

    /// <summary>Whether large pages that are executable put the host at risk (X86_BUG_ITLB_MULTIHIT).</summary>
    public static bool HasMultihitBug() => (All() & 1UL << 62) != 0;

    /// <summary>All of them in one word.</summary>
    [KernelImport("sk_parameters")] private static extern ulong All();
}
