// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Selftests;

namespace SharpKvm.Bench;

/// <content>Interrupt controllers, timers and event channels in the kernel.</content>
static unsafe partial class Rows
{
    const byte DoorbellPort = 0x18, Vector = 0x40;
    const uint DeviceLine = 5;
    const ulong HandlerCode = GuestLayout.Code + 0x400, SecondCode = GuestLayout.Code + 0x800;

    /// <summary>Those that an APIC can have in service: vectors below 16 are not for interrupts.</summary>
    const int Vectors = 256 - 16;

    /// <summary>Short, so that some samples fall between two timer interrupts of L1 itself; stock KVM has no period
    /// below 200 µs. Where the machine counts instructions the APIC's timer counts at the same rate.</summary>
    const int TimerPeriod = 250_000, TimerTicks = 8;

    static IEnumerable<Row> InterruptRows =>
    [
        new("apic_read", () => InsideApic(code => code.mov(eax, __dword_ptr[ebx + Apic.Id]))),
        new("apic_write", () => InsideApic(code => code.mov(__dword_ptr[ebx + Apic.Tpr], eax))),
        new("x2apic_read", () => InsideX2Apic(code => code.rdmsr(), Apic.Id)),
        new("x2apic_write", () => InsideX2Apic(code => code.wrmsr(), Apic.Tpr)),
        new("eoi", EndsOfInterrupts),
        new("ioeventfd_pio", () => Doorbell(code => code.@out(DoorbellPort, al), DoorbellPort, 1, isPort: true)),
        new("ioeventfd_mmio", () => Doorbell(code => code.mov(__dword_ptr[ebx], eax), GuestLayout.Mmio, 4)),
        new("hlt_self_ipi", HaltAndSelfIpi),
        new("irqfd_pingpong", IrqfdPingPong),
        new("msi_pingpong", MsiPingPong),
        new("ipi_two_vcpus", IpiBetweenCpus),
        new("timer_tick", TimerTick),
    ];

    static readonly KvmMsi Message = new() { AddressLo = (uint)Apic.Base, Data = Vector };

    /// <summary>An access to the APIC's page, repeated by the guest.</summary>
    static Measurement InsideApic(Action<Assembler> body)
    {
        using Guest guest = WithApic(code => Repeat(code, RoundTripsInside, body));
        return InsideGuest(guest, RoundTripsInside);
    }

    /// <summary>RDMSR or WRMSR of an x2APIC register, repeated by the guest.</summary>
    static Measurement InsideX2Apic(Action<Assembler> body, int register)
    {
        using Guest guest = WithX2Apic(code => Repeat(code, RoundTripsInside, body));
        return InsideGuest(guest, RoundTripsInside, () => guest.SetRegs((ref regs) =>
            (regs.Rax, regs.Rcx, regs.Rdx) = (0, Apic.Msr(register), 0)));
    }

    /// <summary>All vectors are in service, and the guest ends one after the other.</summary>
    static Measurement EndsOfInterrupts()
    {
        using Guest guest = WithApic(code =>
            Repeat(code, Vectors, code => code.mov(__dword_ptr[ebx + Apic.Eoi], eax)));
        return InsideGuest(guest, Vectors, () =>
        {
            KvmLapicState state = guest.Vcpu.Lapic;
            for (int word = 0; word < 8; word++)
                state[Apic.Isr + word * 16] = word == 0 ? 0xFFFF0000 : 0xFFFFFFFF;
            guest.Vcpu.Lapic = state;
        });
    }

    /// <summary>A write that only adds to an eventfd, on which nobody waits.</summary>
    static Measurement Doorbell(Action<Assembler> body, ulong address, uint length, bool isPort = false)
    {
        Needs(KvmCap.Ioeventfd);
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            code.mov(ebx, (uint)GuestLayout.Mmio);
            Repeat(code, RoundTripsInside, body);
        });
        using var bell = new EventFd();
        Attach(guest, bell, address, length, isPort);
        return InsideGuest(guest, RoundTripsInside);
    }

    /// <summary>The guest interrupts itself, halts, and the handler ends the interrupt.</summary>
    static Measurement HaltAndSelfIpi()
    {
        using Guest guest = WithApic(code => Repeat(code, RoundTrips, code =>
        {
            code.mov(__dword_ptr[ebx + Apic.Icr], Apic.ToSelf | Vector);
            code.sti();
            code.hlt();
            code.cli();
        }));
        guest.Handle(Vector, HandlerCode, code =>
        {
            code.mov(__dword_ptr[ebx + Apic.Eoi], 0);
            code.iretd();
        });
        return InsideGuest(guest, RoundTrips);
    }

    static Measurement IrqfdPingPong()
    {
        Needs(KvmCap.Irqfd, KvmCap.IrqRouting);
        using var line = new EventFd();
        ulong* one = stackalloc ulong[] { 1 };
        SystemCall interrupt = SystemCall.Write(line.Fd, (nint)one, sizeof(ulong));
        return PingPong(guest =>
        {
            guest.Vm.SetGsiRouting(KvmIrqRoutingEntry.ToMsi(DeviceLine, Message));
            Check.Succeeds(guest.Vm.TryIrqfd(line, DeviceLine), "KVM_IRQFD");
            return interrupt;
        });
    }

    static Measurement MsiPingPong()
    {
        Needs(KvmCap.SignalMsi);
        KvmMsi* message = stackalloc KvmMsi[] { Message };
        nint address = (nint)message;
        return PingPong(guest => SystemCall.Ioctl(guest.Vm.Fd, KvmIoctl.SignalMsi, address));
    }

    /// <summary>This thread is a device: it interrupts the halted guest, and blocks until the guest's handler rings the
    /// doorbell.</summary>
    /// <param name="connect">Connects the device; returns how it interrupts.</param>
    static Measurement PingPong(Func<Guest, SystemCall> connect)
    {
        Needs(KvmCap.Ioeventfd);
        using Guest guest = WithApic(HaltForever);
        guest.Handle(Vector, HandlerCode, code =>
        {
            code.mov(__dword_ptr[ebx + Apic.Eoi], 0);
            code.@out(DoorbellPort, al);
            code.iretd();
        });
        using var bell = new EventFd(nonBlocking: false);
        Attach(guest, bell, DoorbellPort, 1, isPort: true);
        ulong rings;
        SystemCall wait = SystemCall.Read(bell.Fd, (nint)(&rings), sizeof(ulong)), interrupt = connect(guest);
        using var cpu = new VcpuThread(guest.Vcpu, _ => throw new TestFailure(guest.DescribeExit()));
        return Measurement.Take(Samples, RoundTrips,
            () => HostLoop.Run(interrupt, wait, RoundTrips, sizeof(ulong)));
    }

    /// <summary>An interrupt to the other CPU, which is halted, and one back.</summary>
    static Measurement IpiBetweenCpus()
    {
        using Guest guest = WithX2Apic(code => Repeat(code, RoundTrips, code =>
        {
            code.X2Ipi(Vector + 1, 1);
            code.sti();
            code.hlt();
            code.cli();
        }));
        guest.Handle(Vector, HandlerCode, code =>
        {
            code.X2Write(Apic.Eoi, 0);
            code.iretd();
        });
        guest.Handle(Vector + 1, HandlerCode + 0x80, code =>
        {
            code.X2Write(Apic.Eoi, 0);
            code.X2Ipi(Vector, 0);
            code.iretd();
        });
        guest.Load(SecondCode, HaltForever);
        Vcpu second = guest.AddCpu(1, SecondCode, GuestLayout.UserStackTop);
        Enable(second);
        using var cpu = new VcpuThread(second, _ => throw new TestFailure(guest.DescribeExit()));
        return InsideGuest(guest, RoundTrips);
    }

    /// <summary>What a tick of the APIC's periodic timer takes from a guest that computes: of the time between the
    /// first and the last, what the guest's own loop did not get.</summary>
    static Measurement TimerTick()
    {
        const int InstructionsOfLoop = 3;
        using Guest guest = WithX2Apic(code =>
        {
            Label start = code.CreateLabel(), first = code.CreateLabel(), spin = code.CreateLabel();
            code.Label(ref start);
            code.xor(ebp, ebp);
            code.X2Write(Apic.TimerDivide, Apic.DivideBy1);
            code.X2Write(Apic.LvtTimer, Apic.TimerPeriodic | Vector);
            code.X2Write(Apic.TimerInitial, TimerPeriod);
            code.sti();
            code.Label(ref first);
            code.cmp(ebp, 1);
            code.jb(first);
            code.rdtsc();
            code.mov(edi, eax);
            code.xor(ebx, ebx);
            code.Label(ref spin);
            code.inc(ebx);
            code.cmp(ebp, 1 + TimerTicks);
            code.jb(spin);
            code.rdtsc();
            code.sub(eax, edi);
            code.mov(edi, eax);
            code.cli();
            code.X2Write(Apic.TimerInitial, 0);
            code.@out(EndPort, al);
            code.jmp(start);
        });
        guest.Handle(Vector, HandlerCode, code =>
        {
            code.X2Write(Apic.Eoi, 0);
            code.inc(ebp);
            code.iretd();
        });
        return Measurement.Take(Samples, TimerTicks, () =>
        {
            RunToEnd(guest);
            KvmRegs regs = guest.Vcpu.Regs;
            return regs.Rdi - InstructionsOfLoop * regs.Rbx;
        });
    }

    /// <summary>A guest with all interrupt controllers in the kernel; EBX points to its APIC, which is enabled.
    /// </summary>
    static Guest WithApic(Action<Assembler> body)
    {
        Needs(KvmCap.Irqchip);
        var guest = new Guest(GuestMode.Protected, vm => vm.CreateIrqchip());
        guest.Load(GuestLayout.Code, code =>
        {
            code.mov(ebx, (uint)Apic.Base);
            body(code);
        });
        Enable(guest.Vcpu);
        return guest;
    }

    /// <summary>The same with the APIC in x2APIC mode.</summary>
    static Guest WithX2Apic(Action<Assembler> body)
    {
        Guest guest = WithApic(body);
        guest.SetSregs((ref sregs) => sregs.ApicBase |= Apic.BaseX2);
        return guest;
    }

    static void Enable(Vcpu vcpu)
    {
        KvmLapicState state = vcpu.Lapic;
        state[Apic.Svr] = Apic.SvrEnable | 0xFF;
        vcpu.Lapic = state;
    }

    /// <summary>Halts, takes an interrupt, and halts again.</summary>
    static void HaltForever(Assembler code)
    {
        Label again = code.CreateLabel();
        code.Label(ref again);
        code.sti();
        code.hlt();
        code.jmp(again);
    }

    static void Attach(Guest guest, EventFd bell, ulong address, uint length, bool isPort) =>
        Check.Succeeds(guest.Vm.TryIoeventfd(new()
        {
            Addr = address, Len = length, Fd = bell.Fd, Flags = isPort ? KvmIoeventfd.FlagPio : 0,
        }), "KVM_IOEVENTFD");

    /// <summary>Leaves a row as missing when the device lacks what it measures.</summary>
    static void Needs(params ReadOnlySpan<KvmCap> capabilities)
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        foreach (KvmCap capability in capabilities)
        {
            if (kvm.CheckExtension(capability) == 0)
                throw new TestSkipped($"capability {capability}");
        }
    }
}
