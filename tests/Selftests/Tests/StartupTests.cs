// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>
/// How virtual machine monitors start their machines: what they ask for, and their requests in order.
/// </summary>
static class StartupTests
{
    const nuint TssAddress = 0xFFFBD000;
    const ulong IdentityMap = 0xFFFBC000;

    public static IEnumerable<TestCase> All =>
    [
        new("startup/qemu_7_capabilities", Qemu7Capabilities),
        new("startup/qemu_10_capabilities", Qemu10Capabilities),
        new("startup/kvmtool_capabilities", KvmtoolCapabilities),
        new("startup/firecracker_capabilities", FirecrackerCapabilities),
        new("startup/cloud_hypervisor_capabilities", CloudHypervisorCapabilities),
        new("startup/qemu", Qemu),
        new("startup/qemu_split", QemuSplit),
        new("startup/kvmtool", Kvmtool),
        new("startup/firecracker", Firecracker),
        new("startup/cloud_hypervisor", CloudHypervisor),
        new("startup/saved_and_restored", SavedAndRestored),
    ];

    /// <summary>The client refuses to start without these.</summary>
    static void Require(params ReadOnlySpan<KvmCap> capabilities)
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        Check.Equal(Kvm.ExpectedApiVersion, kvm.ApiVersion, "API version");
        using Vm vm = kvm.CreateVm();
        foreach (KvmCap capability in capabilities)
        {
            Check.That(kvm.CheckExtension(capability) > 0, $"capability {capability}");
            Check.That(vm.CheckExtension(capability) > 0, $"capability {capability} of the machine");
        }
    }

    static void Qemu7Capabilities() => Require(KvmCap.UserMemory, KvmCap.DestroyMemoryRegionWorks,
        KvmCap.JoinMemoryRegionsWorks, KvmCap.SetTssAddr, KvmCap.ExtCpuid, KvmCap.MpState, KvmCap.IrqRouting, KvmCap.Mce,
        KvmCap.Irqchip);

    static void Qemu10Capabilities() => Require(KvmCap.UserMemory, KvmCap.DestroyMemoryRegionWorks,
        KvmCap.JoinMemoryRegionsWorks, KvmCap.SetTssAddr, KvmCap.ExtCpuid, KvmCap.MpState, KvmCap.IrqRouting,
        KvmCap.Irqchip, KvmCap.InternalErrorData, KvmCap.Ioeventfd, KvmCap.IoeventfdAnyLength, KvmCap.SignalMsi,
        KvmCap.Debugregs, KvmCap.Xsave, KvmCap.VcpuEvents, KvmCap.X86RobustSinglestep, KvmCap.Mce, KvmCap.AdjustClock,
        KvmCap.SetIdentityMapAddr);

    static void KvmtoolCapabilities() => Require(KvmCap.CoalescedMmio, KvmCap.SetTssAddr, KvmCap.Pit2,
        KvmCap.UserMemory, KvmCap.IrqRouting, KvmCap.Irqchip, KvmCap.Hlt, KvmCap.IrqInjectStatus, KvmCap.ExtCpuid);

    static void FirecrackerCapabilities() => Require(KvmCap.Irqchip, KvmCap.Ioeventfd, KvmCap.Irqfd, KvmCap.UserMemory,
        KvmCap.SetTssAddr, KvmCap.Pit2, KvmCap.PitState2, KvmCap.AdjustClock, KvmCap.Debugregs, KvmCap.MpState,
        KvmCap.VcpuEvents, KvmCap.Xcrs, KvmCap.Xsave, KvmCap.ExtCpuid, KvmCap.ImmediateExit);

    static void CloudHypervisorCapabilities() => Require(KvmCap.AdjustClock, KvmCap.ExtCpuid, KvmCap.GetTscKhz,
        KvmCap.ImmediateExit, KvmCap.Ioeventfd, KvmCap.Irqchip, KvmCap.Irqfd, KvmCap.IrqRouting, KvmCap.MpState,
        KvmCap.SetIdentityMapAddr, KvmCap.SetTssAddr, KvmCap.SplitIrqchip, KvmCap.TscDeadlineTimer, KvmCap.UserMemory,
        KvmCap.UserNmi, KvmCap.VcpuEvents, KvmCap.Xsave, KvmCap.X2apicApi);

    /// <summary>Each CPU gets leaves with its APIC ID, and the TSC-deadline timer, as all of them do.</summary>
    static KvmCpuidEntry2[] CpuidOf(Machine machine, uint id) =>
    [
        .. machine.Kvm.GetSupportedCpuid().Select(leaf => leaf.Function switch
        {
            1 => leaf with { Ebx = leaf.Ebx & 0xFFFFFF | id << 24, Ecx = leaf.Ecx | 1u << 24 | 1u << 31 },
            0xB or 0x8000001E => leaf with { Edx = leaf.Function == 0xB ? id : leaf.Edx },
            _ => leaf,
        }),
    ];

    /// <summary>What PC firmware or a small kernel does with its interrupts: CPU 1 is started by INIT and SIPI; CPU 0
    /// has the timer by its local APIC, takes a device's line and a message, and each wakes the other.</summary>
    static void RunGuest(Machine machine, Action deliver)
    {
        const int TimerVector = 0x31, WakeVector = 0x41;
        machine.ProgramForSipi(1, code =>
        {
            code.HaltFor(WakeVector, 1);
            code.Ipi(WakeVector, 0);
            code.Done();
        });
        machine.Program(0, code =>
        {
            code.ApicWrite(Apic.Svr, Apic.SvrEnable | 0xFF);
            code.StartCpus();
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.LvtTimer, Apic.TimerPeriodic | TimerVector);
            code.ApicWrite(Apic.TimerInitial, 1_000_000);
            code.HaltFor(TimerVector, 3);
            code.ApicWrite(Apic.TimerInitial, 0);
            code.mov(__dword_ptr[(long)MachineLayout.Shared], 1);
            code.HaltFor(0x51, 1);
            // An IPI to a CPU that is still on its way waits there.
            code.Ipi(WakeVector, 1);
            Label again = code.CreateLabel(), delay = code.CreateLabel(), woken = code.CreateLabel();
            code.Label(ref again);
            code.cmp(MachineAssembler.CountOf(WakeVector), 1);
            code.jae(woken);
            code.mov(ecx, 100_000);
            code.Label(ref delay);
            code.dec(ecx);
            code.jnz(delay);
            // Before its software-enable bit was set it could not take it.
            code.Ipi(WakeVector, 1);
            code.jmp(again);
            code.Label(ref woken);
            code.Done();
        });
        machine.StartAsIs(1);
        VcpuThread first = machine.StartAsIs(0);
        Wait.Until(() => first.Ended || machine.Memory.Read<uint>(MachineLayout.Shared) == 1, "the timer's ticks",
            (int)Machine.Limit.TotalSeconds);
        deliver();
        machine.Join();
    }

    static void Qemu()
    {
        using var machine = new Machine(cpus: 2, prepare: vm =>
        {
            Check.Succeeds(vm.TryCall(KvmIoctl.SetTssAddr, 0xFEFFD000), "SET_TSS_ADDR");
            ulong identity = 0xFEFFC000;
            Check.Succeeds(vm.TryCall(KvmIoctl.SetIdentityMapAddr, ref identity), "SET_IDENTITY_MAP_ADDR");
            vm.CreatePit2(KvmPitConfig.SpeakerDummy);
            vm.SetGsiRouting([
                .. Enumerable.Range(0, 8).Where(line => line != 2).Select(line =>
                    KvmIrqRoutingEntry.ToChip((uint)line, KvmIrqchipId.PicMaster, (uint)line)),
                .. Enumerable.Range(8, 8).Select(line =>
                    KvmIrqRoutingEntry.ToChip((uint)line, KvmIrqchipId.PicSlave, (uint)line - 8)),
                .. Enumerable.Range(0, 24).Select(line => KvmIrqRoutingEntry.ToChip((uint)line, KvmIrqchipId.Ioapic,
                    line == 0 ? 2u : (uint)line)),
            ]);
        });
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Cpus[cpu].Cpuid = CpuidOf(machine, (uint)cpu);
            // Its reset writes all state back.
            machine.Cpus[cpu].MpState = machine.Cpus[cpu].MpState;
            machine.Cpus[cpu].Lapic = machine.Cpus[cpu].Lapic;
            machine.Cpus[cpu].Events = machine.Cpus[cpu].Events with { Flags = 0 };
            machine.Cpus[cpu].SetMsr(0x10, 0);
            ulong vapic = 0;
            var control = new byte[40];
            _ = machine.Cpus[cpu].TryCall(KvmIoctl.TprAccessReporting, control);
            _ = machine.Cpus[cpu].TryCall(KvmIoctl.SetVapicAddr, ref vapic);
        }
        foreach (KvmIrqchipId chip in (KvmIrqchipId[])[KvmIrqchipId.PicMaster, KvmIrqchipId.PicSlave,
            KvmIrqchipId.Ioapic])
            machine.Vm.SetIrqchip(machine.Vm.GetIrqchip(chip));
        machine.Vm.Pit2 = machine.Vm.Pit2;
        machine.Route(20, 0x51);
        RunGuest(machine, () => Check.Equal(1, machine.Vm.SetIrqLineStatus(20, true), "IRQ_LINE_STATUS"));
    }

    static void QemuSplit()
    {
        using var machine = new Machine(chips: Chips.Split, cpus: 2, prepare: vm =>
            vm.EnableCap(KvmCap.X2apicApi, (ulong)(KvmX2apicApi.Use32BitIds | KvmX2apicApi.DisableBroadcastQuirk)));
        for (int cpu = 0; cpu < 2; cpu++)
            machine.Cpus[cpu].Cpuid = CpuidOf(machine, (uint)cpu);
        RunGuest(machine, () => Check.Equal(1, machine.Vm.TrySignalMsi(RoutingTests.Message(0x51)), "SIGNAL_MSI"));
    }

    static void Kvmtool()
    {
        using var machine = new Machine(cpus: 2, prepare: vm =>
        {
            Check.Succeeds(vm.TryCall(KvmIoctl.SetTssAddr, TssAddress), "SET_TSS_ADDR");
            vm.CreatePit2();
            vm.SetGsiRouting([
                .. Enumerable.Range(0, 8).Select(line =>
                    KvmIrqRoutingEntry.ToChip((uint)line, KvmIrqchipId.PicMaster, (uint)line)),
                .. Enumerable.Range(8, 8).Select(line =>
                    KvmIrqRoutingEntry.ToChip((uint)line, KvmIrqchipId.PicSlave, (uint)line - 8)),
                .. Enumerable.Range(0, 24).Where(line => line != 2).Select(line => KvmIrqRoutingEntry.ToChip(
                    (uint)line, KvmIrqchipId.Ioapic, line == 0 ? 2u : (uint)line)),
            ]);
            Check.Succeeds(vm.TryRegisterCoalesced(GuestLayout.Mmio, 0x1000), "REGISTER_COALESCED_MMIO");
        });
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Cpus[cpu].Cpuid = CpuidOf(machine, (uint)cpu);
            // LINT0 and LINT1 as firmware sets them.
            machine.SetLapic(cpu, (ref lapic) =>
            {
                lapic[Apic.LvtLint0] = Apic.ModeExtInt;
                lapic[Apic.LvtLint1] = Apic.Nmi;
            });
            machine.Cpus[cpu].Fpu = machine.Cpus[cpu].Fpu with { Fcw = 0x37F, Mxcsr = 0x1F80 };
        }
        machine.Route(19, 0x51);
        RunGuest(machine, () =>
        {
            machine.Vm.SetIrqLine(19, true);
            machine.Vm.SetIrqLine(19, false);
        });
    }

    static void Firecracker()
    {
        using var lineSource = new EventFd();
        using var doorbell = new EventFd();
        using var machine = new Machine(cpus: 2, prepare: vm =>
        {
            Check.Succeeds(vm.TryCall(KvmIoctl.SetTssAddr, TssAddress), "SET_TSS_ADDR");
            vm.CreatePit2(KvmPitConfig.SpeakerDummy);
        });
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Cpus[cpu].Cpuid = CpuidOf(machine, (uint)cpu);
            machine.SetLapic(cpu, (ref lapic) =>
            {
                lapic[Apic.LvtLint0] = Apic.ModeExtInt;
                lapic[Apic.LvtLint1] = Apic.Nmi;
            });
            foreach (uint msr in (uint[])[0x174, 0x175, 0x176, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084,
                0xC0000102, 0x10])
                machine.Cpus[cpu].SetMsr(msr, 0);
            machine.Cpus[cpu].SetMsr(0x1A0, 1);
        }
        Check.Succeeds(machine.Vm.TryIrqfd(lineSource, 20), "IRQFD");
        Check.Succeeds(machine.Vm.TryIoeventfd(new()
        {
            Addr = GuestLayout.Mmio + 0x50, Len = 4, Fd = doorbell.Fd, Flags = KvmIoeventfd.FlagDatamatch,
        }), "IOEVENTFD");
        machine.Route(20, 0x51);
        RunGuest(machine, () => lineSource.Signal());
    }

    static void CloudHypervisor()
    {
        using var source = new EventFd();
        using var machine = new Machine(chips: Chips.Split, cpus: 2, prepare: vm =>
        {
            ulong identity = IdentityMap;
            Check.Succeeds(vm.TryCall(KvmIoctl.SetIdentityMapAddr, ref identity), "SET_IDENTITY_MAP_ADDR");
            Check.Succeeds(vm.TryCall(KvmIoctl.SetTssAddr, TssAddress), "SET_TSS_ADDR");
            vm.EnableCap(KvmCap.X2apicApi, (ulong)(KvmX2apicApi.Use32BitIds | KvmX2apicApi.DisableBroadcastQuirk));
        });
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Cpus[cpu].Cpuid = CpuidOf(machine, (uint)cpu);
            machine.SetLapic(cpu, (ref lapic) =>
            {
                lapic[Apic.LvtLint0] = Apic.ModeExtInt;
                lapic[Apic.LvtLint1] = Apic.Nmi;
            });
            Check.That(machine.Cpus[cpu].TscKhz > 0, "GET_TSC_KHZ");
        }
        // Its I/O APIC makes routes of what the guest programs; irqfds stand at all of them.
        Check.Succeeds(machine.Vm.TryIrqfd(source, 24), "IRQFD");
        machine.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(24, RoutingTests.Message(0x51)));
        RunGuest(machine, () => source.Signal());
    }

    /// <summary>A snapshot: all state out of one machine and into a fresh one, in the order in which these clients
    /// restore it; the guest goes on.</summary>
    static void SavedAndRestored()
    {
        Action<Assembler> rest = code =>
        {
            code.Done(1);
            code.sti();
            code.SpinFor(0x31, 5);
            code.SpinFor(0x51, 1);
            code.Done(2);
        };
        using var source = new Machine(code =>
        {
            code.WriteMsr(Paravirt.SystemTime, MachineLayout.Shared | 1);
            code.IoapicRoute(20, (uint)KvmIoapicState.Level | 0x51);
            code.ApicWrite(Apic.TimerDivide, Apic.DivideBy1);
            code.ApicWrite(Apic.LvtTimer, Apic.TimerPeriodic | 0x31);
            code.ApicWrite(Apic.TimerInitial, 2_000_000);
            rest(code);
        }, prepare: vm => vm.CreatePit2());
        Check.Equal(1, source.RunToDone(), "first part");
        source.Vm.SetIrqLine(20, true);

        using var target = new Machine(rest, prepare: vm => vm.CreatePit2());
        source.Memory.Slice(0, (int)GuestLayout.RamSize).CopyTo(target.Memory.Slice(0, (int)GuestLayout.RamSize));
        uint[] indices = [.. source.Kvm.GetMsrIndexList()];
        // An OUT is finished by the next KVM_RUN: before its registers are read.
        source.Run.ImmediateExit = 1;
        Check.Fails(Errno.EINTR, source.Vcpu.TryRun(), "KVM_RUN with immediate_exit");
        source.Run.ImmediateExit = 0;
        Vcpu from = source.Vcpu, to = target.Vcpu;
        to.Cpuid = from.Cpuid;
        to.MpState = from.MpState;
        to.Regs = from.Regs;
        to.Sregs = from.Sregs;
        to.Xsave = from.Xsave;
        to.Xcrs = from.Xcrs;
        to.Debugregs = from.Debugregs;
        to.Lapic = from.Lapic;
        foreach (uint index in indices)
        {
            KvmMsrEntry[] entry = [new(index, 0, 0)];
            if (MsrList.TryGet(from, entry) == 1)
                _ = to.TrySetMsrs(entry);
        }
        to.Events = from.Events;
        target.Vm.Pit2 = source.Vm.Pit2;
        target.Vm.Clock = source.Vm.Clock with { Flags = 0 };
        foreach (KvmIrqchipId chip in (KvmIrqchipId[])[KvmIrqchipId.PicMaster, KvmIrqchipId.PicSlave,
            KvmIrqchipId.Ioapic])
            target.Vm.SetIrqchip(source.Vm.GetIrqchip(chip));
        target.Handle(0x51, code =>
        {
            code.CountUp(0x51);
            code.IoapicWrite(0x10 + 2 * 20, (uint)KvmIoapicState.Masked);
            code.ApicWrite(Apic.Eoi, 0);
            code.iretq();
        });
        Check.Equal(2, target.RunToDone(), "the rest, in the other machine");
        Check.Equal(1u, target.Count(0x51), "the level-triggered interrupt that was pending");
    }
}
