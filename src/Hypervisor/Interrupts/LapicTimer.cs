// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>The local APIC's timer (SDM vol. 3, 11.5.4). Its bus runs at 1 GHz: a count, undivided, is 1 ns.</summary>
internal struct LapicTimer
{
    public const uint Periodic = 1 << 17, TscDeadline = 1 << 18;

    /// <summary>When the host's timer is to expire, by <see cref="HostCpu.Nanoseconds"/>; 0: not armed.</summary>
    public ulong Target;
    /// <summary>What IA32_TSC_DEADLINE reads; 0 in the other modes.</summary>
    public ulong Deadline;
    /// <summary>
    /// The LVT entry and the divide configuration that it runs by: the CPU may have written the registers already.
    /// </summary>
    public uint Lvt, Divide;
}

/// <summary>The timer's registers and what they do. By the vCPU's own thread only.</summary>
internal static class ApicTimer<TVendor> where TVendor : struct, IVendor
{
    /// <summary>
    /// 200 us: a guest's shorter period is served at this one, because every tick interrupts the host, whether the
    /// guest gets to handle it or not.
    /// </summary>
    private const ulong MinPeriod = 200_000;
    /// <summary>In ticks of the TSC. Of a farther deadline only so much is waited for at once.</summary>
    private const ulong MaxWait = 1ul << 44;

    /// <summary>The host's timer has expired, or may have: posts the interrupt if it is due.</summary>
    public static void Expired(ref Vcpu vcpu)
    {
        ref LapicTimer timer = ref vcpu.Apic.Timer;
        if (timer.Target == 0)
            return;
        ulong now = HostCpu.Nanoseconds();
        // The two clocks of the host drift apart, and the guest may have moved its own.
        if (timer.Deadline != 0)
            timer.Target = TargetOfDeadline(ref vcpu, now);
        if (now < timer.Target)
        {
            TVendor.SetTimer(ref vcpu, timer.Target, now, halts: false);
            return;
        }
        ulong target = timer.Target, period = Period(ref vcpu);
        timer.Deadline = 0;
        Start(ref vcpu, IsPeriodic(ref vcpu) ? target + ((now - target) / period + 1) * period : 0, now);
        ApicBus.SendLocal(ref vcpu, ApicRegister.LvtTimer, own: true);
    }

    /// <summary>What the current-count register reads.</summary>
    public static uint CurrentCount(ref Vcpu vcpu)
    {
        ulong target = vcpu.Apic.Timer.Target, now = HostCpu.Nanoseconds();
        if (target == 0 || IsDeadline(ref vcpu))
            return 0;
        ulong left = now < target ? target - now : 0;
        if (left == 0 && IsPeriodic(ref vcpu))
            left = Period(ref vcpu) - (now - target) % Period(ref vcpu);
        int shift = DivideShift(ref vcpu);
        return (uint)Math.Min(left + (1ul << shift) - 1 >> shift, vcpu.Apic.Registers[ApicRegister.InitialCount]);
    }

    public static void SetInitialCount(ref Vcpu vcpu, uint count)
    {
        vcpu.Apic.Registers[ApicRegister.InitialCount] = IsDeadline(ref vcpu) ? 0 : count;
        ulong now = HostCpu.Nanoseconds();
        if (!IsDeadline(ref vcpu))
            Start(ref vcpu, count == 0 ? 0 : now + Period(ref vcpu), now);
    }

    /// <summary>The count goes on from where it is, at the new rate.</summary>
    public static void SetDivide(ref Vcpu vcpu, uint value)
    {
        uint count = CurrentCount(ref vcpu);
        vcpu.Apic.Registers[ApicRegister.Divide] = vcpu.Apic.Timer.Divide = value;
        if (vcpu.Apic.Timer.Target != 0 && !IsDeadline(ref vcpu))
            Continue(ref vcpu, count);
    }

    /// <summary>The timer's LVT entry. Between counting and the deadline mode nothing is carried over.</summary>
    public static void SetMode(ref Vcpu vcpu, uint lvt)
    {
        ref LapicTimer timer = ref vcpu.Apic.Timer;
        bool changed = ((lvt ^ timer.Lvt) & LapicTimer.TscDeadline) != 0;
        vcpu.Apic.Registers[ApicRegister.LvtTimer] = timer.Lvt = lvt;
        if (!changed)
            return;
        vcpu.Apic.Registers[ApicRegister.InitialCount] = 0;
        timer.Deadline = 0;
        Start(ref vcpu, 0, 0);
    }

    /// <summary>Writes IA32_TSC_DEADLINE, in the guest's ticks; 0 disarms. Ignored in the other modes.</summary>
    public static void SetDeadline(ref Vcpu vcpu, ulong deadline)
    {
        if (!IsDeadline(ref vcpu))
            return;
        vcpu.Apic.Timer.Deadline = deadline;
        ulong now = HostCpu.Nanoseconds();
        Start(ref vcpu, deadline == 0 ? 0 : TargetOfDeadline(ref vcpu, now), now);
    }

    /// <summary>
    /// Starts from registers that user space has set. Of a current count of 0 with an initial one it cannot be told
    /// whether its interrupt has been posted: one too many rather than one too few.
    /// </summary>
    public static void Restore(ref Vcpu vcpu, uint count)
    {
        vcpu.Apic.Timer.Lvt = vcpu.Apic.Registers[ApicRegister.LvtTimer];
        vcpu.Apic.Timer.Divide = vcpu.Apic.Registers[ApicRegister.Divide];
        if (IsDeadline(ref vcpu))
        {
            SetDeadline(ref vcpu, vcpu.Apic.Timer.Deadline);
            return;
        }
        vcpu.Apic.Timer.Deadline = 0;
        uint initial = vcpu.Apic.Registers[ApicRegister.InitialCount];
        if (initial == 0 || count == 0 && IsPeriodic(ref vcpu))
            SetInitialCount(ref vcpu, initial);
        else
            Continue(ref vcpu, Math.Min(count, initial));
    }

    private static void Continue(ref Vcpu vcpu, uint count)
    {
        ulong now = HostCpu.Nanoseconds();
        Start(ref vcpu, now + ((ulong)count << DivideShift(ref vcpu)), now);
    }

    private static void Start(ref Vcpu vcpu, ulong target, ulong now)
    {
        vcpu.Apic.Timer.Target = target;
        TVendor.SetTimer(ref vcpu, target, now, halts: false);
    }

    /// <summary>Rounded up, so that the guest's counter has reached the deadline then; now when it is past.</summary>
    private static ulong TargetOfDeadline(ref Vcpu vcpu, ulong now)
    {
        ulong tsc = HostCpu.Tsc() + vcpu.TscOffset, deadline = vcpu.Apic.Timer.Deadline;
        ulong khz = Math.Max(HostCpu.TscKhz(), 1);
        // 2^44 times a million is less than 2^64.
        return deadline <= tsc ? now : now + (Math.Min(deadline - tsc, MaxWait) * 1_000_000 + khz - 1) / khz;
    }

    private static ulong Period(ref Vcpu vcpu)
    {
        ulong period = (ulong)vcpu.Apic.Registers[ApicRegister.InitialCount] << DivideShift(ref vcpu);
        return IsPeriodic(ref vcpu) ? Math.Max(period, MinPeriod) : period;
    }

    /// <summary>Divide configuration, bits 3, 1 and 0: 0 divides by 2, 6 by 128, 7 by 1 (SDM vol. 3, 11.5.4).</summary>
    private static int DivideShift(ref Vcpu vcpu)
    {
        uint divide = vcpu.Apic.Timer.Divide;
        return (int)((divide & 3 | divide >> 1 & 4) + 1) & 7;
    }

    private static bool IsPeriodic(ref Vcpu vcpu) =>
        (vcpu.Apic.Timer.Lvt & (LapicTimer.Periodic | LapicTimer.TscDeadline)) == LapicTimer.Periodic;

    private static bool IsDeadline(ref Vcpu vcpu) => (vcpu.Apic.Timer.Lvt & LapicTimer.TscDeadline) != 0;
}
