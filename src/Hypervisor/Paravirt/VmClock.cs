// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Paravirt;

/// <summary>A moment: the host's time-stamp counter, and the guest's clock in nanoseconds.</summary>
internal struct ClockPoint
{
    public ulong Tsc, Nanoseconds;
    /// <summary>The clock is a function of the counter, the same on all vCPUs.</summary>
    public bool IsMaster;
}

/// <summary>
/// The clock of a VM: nanoseconds since its creation, or as KVM_SET_CLOCK says. It is a master clock while the host's
/// time-stamp counter is reliable and all vCPUs' counters are the same one: then it runs by the counter alone, and no
/// two vCPUs can see it go backwards. Otherwise it follows the host's monotonic clock, and each vCPU goes on by its own
/// counter from where it last looked. Guarded by the irqchip lock.
/// </summary>
internal struct VmClock
{
    /// <summary>The point that the clock runs from, and the host's clock then.</summary>
    private ClockPoint _start;
    private ulong _hostStart;

    public ClockScale Scale;
    /// <summary>MSR_KVM_WALL_CLOCK.</summary>
    public ulong WallClock;

    public void Start()
    {
        Scale = new(HostCpu.TscKhz());
        Restart(0, HostCpu.TscIsStable());
    }

    /// <summary>What the clock says now, in either mode without a jump to the other.</summary>
    public static ClockPoint Now(ref Vm.Vm vm)
    {
        vm.Host.LockIrq();
        ClockPoint now = vm.Clock.Read();
        vm.Host.UnlockIrq();
        return now;
    }

    /// <summary>
    /// Where a vCPU's page is to start from. Chooses the mode; a change is told to all vCPUs.
    /// <paramref name="matched"/>: all have the same counter.
    /// </summary>
    public static ClockPoint Choose(ref Vm.Vm vm, bool matched)
    {
        bool master = matched && HostCpu.TscIsStable();
        ref VmClock clock = ref vm.Clock;
        vm.Host.LockIrq();
        bool changes = clock._start.IsMaster != master;
        if (changes)
            clock.Restart(clock.Read().Nanoseconds, master);
        ClockPoint start = master ? clock._start : clock.Read();
        vm.Host.UnlockIrq();
        if (changes)
            RequestAll(ref vm);
        return start;
    }

    /// <summary>Every vCPU that uses the clock writes its page before the guest runs on.</summary>
    public static void RequestAll(ref Vm.Vm vm)
    {
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
        {
            if (vcpu.Value.Paravirt.HasClock)
                vcpu.Value.Shared.RequestNow(VcpuRequests.Clock);
        }
    }

    /// <summary>KVM_GET_CLOCK. The host's clocks are told only where the guest's follows from them.</summary>
    public static int Get(ref Vm.Vm vm, out kvm_clock_data data)
    {
        ClockPoint now = Now(ref vm);
        data = new() { clock = now.Nanoseconds };
        if (now.IsMaster)
        {
            data.flags = kvm_clock_data.Flags;
            data.realtime = HostCpu.RealNanoseconds();
            data.host_tsc = now.Tsc;
        }
        return Errno.Ok;
    }

    /// <summary>KVM_SET_CLOCK: with KVM_CLOCK_REALTIME the time that has passed since then is added.</summary>
    public static int Set(ref Vm.Vm vm, kvm_clock_data data)
    {
        if ((data.flags & ~kvm_clock_data.Flags) != 0)
            return Errno.EINVAL;
        vm.Host.LockIrq();
        if ((data.flags & kvm_clock_data.KVM_CLOCK_REALTIME) != 0)
            data.clock += Math.Max(HostCpu.RealNanoseconds(), data.realtime) - data.realtime;
        vm.Clock.Restart(data.clock, vm.Clock._start.IsMaster);
        vm.Host.UnlockIrq();
        RequestAll(ref vm);
        return Errno.Ok;
    }

    private readonly ClockPoint Read()
    {
        ClockPoint now = _start with { Tsc = HostCpu.Tsc() };
        // A counter behind its own past is one that has been found unreliable just now.
        now.Nanoseconds += _start.IsMaster
            ? Scale.ToNanoseconds(Math.Max(now.Tsc, _start.Tsc) - _start.Tsc) : HostCpu.Nanoseconds() - _hostStart;
        return now;
    }

    private void Restart(ulong nanoseconds, bool master)
    {
        _start = new() { Tsc = HostCpu.Tsc(), Nanoseconds = nanoseconds, IsMaster = master };
        _hostStart = HostCpu.Nanoseconds();
    }
}
