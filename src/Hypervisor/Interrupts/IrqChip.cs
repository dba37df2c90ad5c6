// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Interrupts;

/// <summary>Which interrupt controllers are in the kernel.</summary>
internal enum IrqchipMode : byte
{
    /// <summary>None: user space delivers by KVM_INTERRUPT.</summary>
    None,
    /// <summary>Local APICs only; IOAPIC, PIC and PIT are in user space (KVM_CAP_SPLIT_IRQCHIP).</summary>
    Split,
    /// <summary>All (KVM_CREATE_IRQCHIP).</summary>
    Kernel,
}

/// <summary>Who drives a line: a line is high while any of them holds it high.</summary>
[Flags] internal enum LineSource : byte
{
    UserSpace = 1 << 0, ResampleFd = 1 << 1, Pit = 1 << 2,
}

/// <summary>
/// The interrupt controllers that the vCPUs of a VM share, and the routes to them. Everything but
/// <see cref="Mode"/> and what is said otherwise is guarded by the irqchip lock (<see cref="HostVm.LockIrq"/>), which
/// is taken in interrupt handlers: nothing here sleeps, allocates or touches guest memory. Local APICs are reached
/// without a lock (<see cref="ApicBus"/>).
/// </summary>
internal struct IrqChip
{
    /// <summary>10 ms, in nanoseconds.</summary>
    private const ulong StormPause = 10_000_000;
    /// <summary>
    /// 50 us that a CPU has for other work between two expiries of the chips' timer, in nanoseconds: however slow it
    /// is, a guest's fast PIT does not fill it.
    /// </summary>
    private const ulong Breath = 50_000;

    /// <summary>Set before the first vCPU exists, never changed afterwards.</summary>
    public IrqchipMode Mode;
    /// <summary>KVM_X2APIC_API_USE_32BIT_IDS: MSIs and KVM_GET/SET_LAPIC carry APIC ids of 32 bits.</summary>
    public bool Wide;
    /// <summary>
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: to a CPU in x2APIC mode, destination 0xff of a chip or MSI is an id
    /// like any other, not all CPUs.
    /// </summary>
    public bool NoBroadcastQuirk;
    /// <summary>
    /// The id of the CPU that took the last message of lowest priority. A hint: senders race for it, and may.
    /// </summary>
    public uint LastArbitrated;
    /// <summary>KVM_CREATE_PIT2 was called, maybe with the speaker's port.</summary>
    public bool HasPit, HasSpeaker;
    /// <summary>Split mode: the GSIs that stand for pins of user space's IOAPIC.</summary>
    public int ReservedRoutes;
    /// <summary>Vectors whose end others want to know besides the local APIC. Read without the lock.</summary>
    public VectorSet EoiVectors;
    public Pic Pic;
    public IoApic IoApic;
    public Pit Pit;
    private RouteTable _routes;
    /// <summary>Who holds each line high.</summary>
    private PerLine<LineSource> _holders;
    /// <summary>Pins whose end of interrupt a resampling irqfd waits for, and whether there is one at all.</summary>
    private uint _resampled;
    private bool _hasResamplers;
    /// <summary>When pins that the guest ends over and over again are delivered once more; 0: there are none.</summary>
    private ulong _resumeStorm;

    /// <summary>Puts the shared controllers into the kernel. EEXIST, EINVAL once there are vCPUs, ENOMEM.</summary>
    public static int Create(ref Vm.Vm vm)
    {
        if (vm.Irqchip.Mode != IrqchipMode.None)
            return Errno.EEXIST;
        if (vm.Vcpus.Count != 0)
            return Errno.EINVAL;
        ref IrqChip chip = ref vm.Irqchip;
        if (!RouteTable.TryCreateDefault(out chip._routes))
            return Errno.ENOMEM;
        vm.Host.LockIrq();
        chip.Pic.Reset();
        chip.IoApic.Reset();
        chip.Mode = IrqchipMode.Kernel;
        vm.Host.UnlockIrq();
        return Errno.Ok;
    }

    /// <summary>KVM_CAP_SPLIT_IRQCHIP. EINVAL for more pins than routes, EEXIST with controllers or vCPUs.</summary>
    public static int Split(ref Vm.Vm vm, ulong pins)
    {
        if (pins > Gsi.Limit)
            return Errno.EINVAL;
        if (vm.Irqchip.Mode != IrqchipMode.None || vm.Vcpus.Count != 0)
            return Errno.EEXIST;
        vm.Irqchip.ReservedRoutes = (int)pins;
        vm.Irqchip.Mode = IrqchipMode.Split;
        return Errno.Ok;
    }

    public readonly void Destroy() => _routes.Free();

    /// <summary>KVM_SET_GSI_ROUTING: the new table, under the VM's lock.</summary>
    public static void Replace(ref Vm.Vm vm, RouteTable routes)
    {
        ref IrqChip chip = ref vm.Irqchip;
        vm.Host.LockIrq();
        (chip._routes, routes) = (routes, chip._routes);
        UpdateEoiVectors(ref vm);
        vm.Host.UnlockIrq();
        routes.Free();
    }

    /// <summary>
    /// A source drives a GSI's line; an MSI is sent by the rising edge.
    /// </summary>
    /// <returns>How many CPUs it reached; 0: it was still pending; -1: masked, or leads nowhere.</returns>
    public static int SetLine(ref Vm.Vm vm, Gsi gsi, LineSource source, bool level)
    {
        vm.Host.LockIrq();
        int status = SetLineLocked(ref vm, gsi, source, level);
        vm.Host.UnlockIrq();
        return status;
    }

    /// <summary>An irqfd was signalled: an edge, or with a resampler the line goes high until its end.</summary>
    public static void Trigger(ref Vm.Vm vm, Gsi gsi, bool resample)
    {
        vm.Host.LockIrq();
        SetLineLocked(ref vm, gsi, resample ? LineSource.ResampleFd : LineSource.UserSpace, true);
        if (!resample)
            SetLineLocked(ref vm, gsi, LineSource.UserSpace, false);
        vm.Host.UnlockIrq();
    }

    private static int SetLineLocked(ref Vm.Vm vm, Gsi gsi, LineSource source, bool level)
    {
        ref IrqChip chip = ref vm.Irqchip;
        Route route = chip._routes.Find(gsi);
        if (route.IsMsi)
            return level ? SendMsi(ref vm, route.Address, route.Data) : -1;
        int reached = -1;
        for (ulong lines = route.Lines; lines != 0; lines &= lines - 1)
        {
            int line = BitOperations.TrailingZeroCount(lines);
            ref LineSource holders = ref chip._holders[line];
            holders = level ? holders | source : holders & ~source;
            LineStatus status = line < RouteTable.PicLines
                ? chip.Pic.SetLine(line, holders != 0)
                : chip.IoApic.SetLine(line - RouteTable.PicLines, holders != 0, ref vm);
            if (status != LineStatus.Masked)
                reached = Math.Max(reached, 0) + (int)status;
        }
        if ((route.Lines & RouteTable.AllPicLines) != 0)
            NotifyPicOutput(ref vm);
        return reached;
    }

    /// <summary>Whoever takes interrupts from the PIC has a look, while it has one to give.</summary>
    private static void NotifyPicOutput(ref Vm.Vm vm)
    {
        if (!vm.Irqchip.Pic.Output)
            return;
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
        {
            if (ApicBus.AcceptsPic(ref vcpu.Value))
                vcpu.Value.Shared.RequestNow(VcpuRequests.Event);
        }
    }

    /// <summary>Takes the interrupt that the PIC gives (INTA), on a vCPU's thread.</summary>
    public static byte AcknowledgePic(ref Vm.Vm vm)
    {
        vm.Host.LockIrq();
        byte vector = vm.Irqchip.Pic.Acknowledge();
        UnlockAfterEnds(ref vm);
        return vector;
    }

    /// <summary>KVM_SIGNAL_MSI and MSI routes.</summary>
    /// <returns>How many CPUs it reached; 0: it was pending there already; -1: nobody has that address.</returns>
    public static int SendMsi(ref Vm.Vm vm, ulong address, uint data) =>
        ApicBus.TryDecodeMsi(address, data, vm.Irqchip.Wide, out InterruptMessage message)
            ? ApicBus.Send(ref vm, in message) : -1;

    /// <summary>
    /// A local APIC ended an interrupt that others want to know of: level-triggered, or in
    /// <see cref="EoiVectors"/>. On the vCPU's thread, no lock held.
    /// </summary>
    public static void EndOfInterrupt(ref Vcpu vcpu, Vector vector)
    {
        ref Vm.Vm vm = ref vcpu.Vm;
        ref IrqChip chip = ref vm.Irqchip;
        vm.Host.LockIrq();
        // Split mode: user space hears of it if a level-triggered pin sends this vector to this CPU.
        foreach (ref readonly Route route in chip._routes.First(chip.ReservedRoutes))
        {
            if (chip.IsLevel(in route, out InterruptMessage message) && message.Vector.Value == vector.Value
                && ApicBus.IsFor(ref vcpu, in message))
                vcpu.RequestEoiExit(vector.Value);
        }
        UnlockAfterEnds(ref vm, chip.IoApic.PinsOf(vector.Value));
    }

    /// <summary>Split mode: whether a route stands for a level-triggered pin, and its message.</summary>
    private readonly bool IsLevel(in Route route, out InterruptMessage message) =>
        // Of a route that is none all is 0: an edge.
        ApicBus.TryDecodeMsi(route.Address, route.Data, Wide, out message) && message.Level;

    /// <summary>The chips' timer has expired, in interrupt context.</summary>
    public static void TimerExpired(ref Vm.Vm vm)
    {
        vm.Host.LockIrq();
        ref IrqChip chip = ref vm.Irqchip;
        ulong now = HostCpu.Nanoseconds();
        if (chip.HasPit && chip.Pit.Deadline != 0 && chip.Pit.Expire(now))
            PulsePit(ref vm);
        if (chip._resumeStorm != 0 && now >= chip._resumeStorm)
        {
            chip._resumeStorm = 0;
            chip.IoApic.DeliverDeferred(ref vm);
        }
        chip.ArmTimer(vm.Host, HostCpu.Nanoseconds() + Breath);
        vm.Host.UnlockIrq();
    }

    /// <summary>One timer serves both: what comes first.</summary>
    public readonly void ArmTimer(HostVm host, ulong earliest = 0)
    {
        ulong pit = HasPit ? Pit.Deadline : 0;
        ulong next = pit == 0 || _resumeStorm != 0 && _resumeStorm < pit ? _resumeStorm : pit;
        host.SetChipTimer(next == 0 ? 0 : Math.Max(next, earliest));
    }

    /// <summary>An edge of GSI 0.</summary>
    private static void PulsePit(ref Vm.Vm vm)
    {
        if (SetLineLocked(ref vm, default, LineSource.Pit, true) < 0)
            vm.Irqchip.Pit.ForgetOwed();
        SetLineLocked(ref vm, default, LineSource.Pit, false);
    }

    /// <summary>A CPU was reset: what it had in service it will not end.</summary>
    public static void ForgetInService(ref Vm.Vm vm)
    {
        vm.Host.LockIrq();
        vm.Irqchip.IoApic.ForgetRtc();
        vm.Host.UnlockIrq();
    }

    /// <summary>Whether the port is one of the PIC's or the PIT's, in the kernel.</summary>
    public readonly bool OwnsPort(ushort port) =>
        Mode == IrqchipMode.Kernel && (Pic.Owns(port) || HasPit && Pit.Owns(port, HasSpeaker));

    /// <summary>False: the port is not of the controllers in the kernel.</summary>
    public static bool TryAccessPort(ref Vm.Vm vm, bool write, ushort port, ref byte data)
    {
        ref IrqChip chip = ref vm.Irqchip;
        if (!chip.OwnsPort(port))
            return false;
        vm.Host.LockIrq();
        bool isPic = Pic.Owns(port);
        if (isPic && write)
            chip.Pic.Write(port, data);
        else if (isPic)
            data = chip.Pic.Read(port);
        else if (write)
            chip.Pit.Write(port, data, HostCpu.Nanoseconds());
        else
            data = chip.Pit.Read(port, HostCpu.Nanoseconds());
        if (isPic)
            NotifyPicOutput(ref vm);
        else if (write)
            chip.ArmTimer(vm.Host);
        UnlockAfterEnds(ref vm);
        return true;
    }

    /// <summary>Whether an access goes to the IOAPIC in the kernel.</summary>
    public readonly bool OwnsIoApic(Gpa address) =>
        Mode == IrqchipMode.Kernel && address.Value - IoApic.BaseAddress < IoApic.WindowSize;

    /// <summary>A 32-bit register of the IOAPIC.</summary>
    public static uint ReadIoApic(ref Vm.Vm vm, uint offset)
    {
        vm.Host.LockIrq();
        uint value = vm.Irqchip.IoApic.Read(offset);
        vm.Host.UnlockIrq();
        return value;
    }

    public static void WriteIoApic(ref Vm.Vm vm, uint offset, uint value)
    {
        vm.Host.LockIrq();
        vm.Irqchip.IoApic.Write(offset, value, ref vm);
        UpdateEoiVectors(ref vm);
        vm.Host.UnlockIrq();
    }

    /// <summary>
    /// KVM_GET_IRQCHIP and KVM_SET_IRQCHIP. ENXIO unless the shared chips are in the kernel, EINVAL for a chip that is
    /// none.
    /// </summary>
    public static int Access(ref Vm.Vm vm, ref kvm_irqchip state, bool set)
    {
        ref IrqChip chip = ref vm.Irqchip;
        if (chip.Mode != IrqchipMode.Kernel)
            return Errno.ENXIO;
        if (state.chip_id > kvm_irqchip.KVM_IRQCHIP_IOAPIC)
            return Errno.EINVAL;
        bool isIoApic = state.chip_id == kvm_irqchip.KVM_IRQCHIP_IOAPIC;
        vm.Host.LockIrq();
        if (!set && isIoApic)
            state.chip.ioapic = chip.IoApic.Get();
        else if (!set)
            state.chip.pic = chip.Pic.Get((int)state.chip_id);
        else if (isIoApic)
            chip.IoApic.Set(in state.chip.ioapic, ref vm);
        else
            chip.Pic.Set((int)state.chip_id, in state.chip.pic);
        // Neither finds anything new when the state was only read.
        UpdateEoiVectors(ref vm);
        NotifyPicOutput(ref vm);
        vm.Host.UnlockIrq();
        return Errno.Ok;
    }

    /// <summary>A resampling irqfd waits for the end of this GSI's interrupts.</summary>
    public static void Watch(ref Vm.Vm vm, Gsi gsi)
    {
        vm.Host.LockIrq();
        vm.Irqchip._hasResamplers = true;
        vm.Irqchip._resampled |= (uint)(vm.Irqchip._routes.Find(gsi).Lines >> RouteTable.PicLines);
        UpdateEoiVectors(ref vm);
        vm.Host.UnlockIrq();
    }

    /// <summary>Brings <see cref="EoiVectors"/> up to date after a change of the IOAPIC or the routes.</summary>
    private static void UpdateEoiVectors(ref Vm.Vm vm)
    {
        ref IrqChip chip = ref vm.Irqchip;
        const uint PitAndRtc = 1 << 0 | 1 << 2 | 1 << 8;
        VectorSet vectors = default;
        if (chip.Mode == IrqchipMode.Kernel)
            chip.IoApic.CollectEoiVectors(ref vectors, PitAndRtc | chip._resampled);
        foreach (ref readonly Route route in chip._routes.First(chip.ReservedRoutes))
        {
            if (chip.IsLevel(in route, out InterruptMessage message))
                vectors.Add(message.Vector.Value);
        }
        if (!chip.EoiVectors.Assign(in vectors))
            return;
        for (uint id = 0; vm.Vcpus.TryFindFrom(ref id, out KernelRef<Vcpu> vcpu); id++)
        {
            if (vcpu.Value.Apic.IsVirtual)
                vcpu.Value.Shared.RequestNow(VcpuRequests.Ends);
        }
    }

    /// <summary>
    /// Lets go of the lock when interrupts may have ended, those of the IOAPIC's <paramref name="pins"/> by a local
    /// APIC. Before that resampled lines go low, pins that still ask deliver again, and the PIT may owe another tick at
    /// once; behind it the resampling irqfds are told.
    /// </summary>
    private static void UnlockAfterEnds(ref Vm.Vm vm, uint pins = 0)
    {
        ref IrqChip chip = ref vm.Irqchip;
        ulong ended = chip.Pic.TakeAcknowledged() | (ulong)pins << RouteTable.PicLines;
        ulong resampled = chip._hasResamplers ? ended : 0;
        for (ulong lines = resampled; lines != 0; lines &= lines - 1)
            SetLineLocked(ref vm, chip._routes.GsiOf(lines), LineSource.ResampleFd, false);
        chip.IoApic.EndOfInterrupt(pins, ref vm);
        if (chip.IoApic.Deferred != 0 && chip._resumeStorm == 0)
        {
            chip._resumeStorm = HostCpu.Nanoseconds() + StormPause;
            chip.ArmTimer(vm.Host);
        }
        for (; ended != 0; ended &= ended - 1)
        {
            if (chip._routes.GsiOf(ended).Value == 0 && chip.HasPit && chip.Pit.Acknowledge())
                PulsePit(ref vm);
        }
        vm.Host.UnlockIrq();
        // Routes that change under us lead to another irqfd, which takes it as one notice too many.
        for (; resampled != 0; resampled &= resampled - 1)
            vm.Host.ResampleIrqFds(chip._routes.GsiOf(resampled).Value);
    }
}
