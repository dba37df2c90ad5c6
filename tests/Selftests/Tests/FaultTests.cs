// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>
/// Calls whose allocations and accesses of user memory fail, one after the other: they answer ENOMEM or EFAULT and have
/// changed nothing. What they lose, the kernel's leak checker finds.
/// </summary>
static class FaultTests
{
    const ulong Size = 0x200000, Where = 0x10000000;

    static readonly (string Name, uint Get, uint Set)[] Pairs =
    [
        ("regs", KvmIoctl.GetRegs, KvmIoctl.SetRegs), ("sregs", KvmIoctl.GetSregs, KvmIoctl.SetSregs),
        ("sregs2", KvmIoctl.GetSregs2, KvmIoctl.SetSregs2), ("fpu", KvmIoctl.GetFpu, KvmIoctl.SetFpu),
        ("xsave", KvmIoctl.GetXsave, KvmIoctl.SetXsave), ("xcrs", KvmIoctl.GetXcrs, KvmIoctl.SetXcrs),
        ("debugregs", KvmIoctl.GetDebugregs, KvmIoctl.SetDebugregs),
        ("events", KvmIoctl.GetVcpuEvents, KvmIoctl.SetVcpuEvents),
        ("mp_state", KvmIoctl.GetMpState, KvmIoctl.SetMpState), ("lapic", KvmIoctl.GetLapic, KvmIoctl.SetLapic),
    ];

    public static IEnumerable<TestCase> All =>
    [
        new("faults/create_vm", CreateVm),
        new("faults/create_vcpu", CreateVcpu),
        new("faults/create_irqchip", CreateIrqchip),
        new("faults/create_pit", CreatePit),
        new("faults/memory_slot", MemorySlot),
        new("faults/dirty_log", DirtyLog),
        .. Pairs.Select(pair => new TestCase($"faults/state_{pair.Name}", () => State(pair.Get, pair.Set))),
        new("faults/cpuid", Cpuid),
        new("faults/msrs", Msrs),
        new("faults/routing", Routing),
        new("faults/irqfd", Irqfd),
        new("faults/ioeventfd", Ioeventfd),
        new("faults/coalesced_zone", CoalescedZone),
        new("faults/run_touches_memory", RunTouchesMemory),
        new("faults/run_interprets", RunInterprets),
    ];

    static void CreateVm()
    {
        using var faults = new FaultInjection();
        using Kvm kvm = TestEnvironment.OpenKvm();
        faults.FailEach("KVM_CREATE_VM", () => kvm.TryCall(KvmIoctl.CreateVm), undo: fd => Libc.Close(fd));
    }

    static void CreateVcpu()
    {
        using var faults = new FaultInjection();
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        uint id = 0;
        faults.FailEach("KVM_CREATE_VCPU", () => vm.TryCall(KvmIoctl.CreateVcpu, id), undo: fd =>
        {
            Libc.Close(fd);
            Check.Fails(Errno.EEXIST, vm.TryCall(KvmIoctl.CreateVcpu, id++), "the same id");
        });
    }

    static void CreateIrqchip() => OncePerMachine("KVM_CREATE_IRQCHIP", vm => vm.TryCall(KvmIoctl.CreateIrqchip),
        prepare: _ => { });

    static void CreatePit()
    {
        var config = new KvmPitConfig();
        OncePerMachine("KVM_CREATE_PIT2", vm => vm.TryCall(KvmIoctl.CreatePit2, ref config),
            prepare: vm => vm.CreateIrqchip());
    }

    static void OncePerMachine(string what, Func<Vm, int> call, Action<Vm> prepare)
    {
        using var faults = new FaultInjection();
        using Kvm kvm = TestEnvironment.OpenKvm();
        Vm vm = Make();
        try
        {
            faults.FailEach(what, () => call(vm), undo: _ =>
            {
                vm.Dispose();
                vm = Make();
            });
        }
        finally
        {
            vm.Dispose();
        }

        Vm Make()
        {
            Vm made = kvm.CreateVm();
            prepare(made);
            return made;
        }
    }

    static void MemorySlot()
    {
        using var faults = new FaultInjection();
        using Guest guest = Make(code => code.mov(__byte_ptr[ebx], 1));
        using var memory = new GuestMemory(Where, Size);
        faults.FailEach("a new slot", () => Slot(Where, Size), undo: _ => Check.Succeeds(Slot(0, 0), "deletion"),
            refused: () => { ExpectNoMemory(guest, Where); });
        Check.Succeeds(Slot(Where, Size), "a new slot");
        faults.FailEach("log of a slot", () => Slot(Where, Size, KvmMem.LogDirtyPages),
            undo: _ => Check.Succeeds(Slot(Where, Size), "end of the log"), refused: () => ExpectMemory(guest, Where));
        faults.FailEach("move of a slot", () => Slot(Where * 2, Size),
            undo: _ => Check.Succeeds(Slot(Where, Size), "move back"), refused: () =>
            {
                ExpectMemory(guest, Where);
                ExpectNoMemory(guest, Where * 2);
            });
        faults.FailEach("deletion of a slot", () => Slot(0, 0),
            undo: _ => Check.Succeeds(Slot(Where, Size), "a new slot"), refused: () => ExpectMemory(guest, Where));

        int Slot(ulong address, ulong size, KvmMem flags = KvmMem.None) =>
            guest.Vm.TrySetMemoryRegion(1, flags, address, size, memory.HostAddress);
    }

    static Guest Make(Action<Assembler> code) => new(GuestMode.Protected, c =>
    {
        code(c);
        c.hlt();
    });

    static void Start(Guest guest, ulong address) => guest.SetRegs((ref regs) =>
    {
        regs.Rip = GuestLayout.Code;
        regs.Rbx = address;
    });

    static void ExpectMemory(Guest guest, ulong address)
    {
        Start(guest, address);
        guest.RunToHalt("a write to memory");
    }

    static void ExpectNoMemory(Guest guest, ulong address)
    {
        Start(guest, address);
        guest.RunTo(KvmExit.Mmio, "a write to no memory");
        guest.RunToHalt("afterwards");
    }

    static void DirtyLog()
    {
        using var faults = new FaultInjection();
        using Guest guest = Make(code => code.mov(__byte_ptr[ebx], 1));
        using var memory = new GuestMemory(Where, Size);
        guest.Vm.SetMemoryRegion(1, KvmMem.LogDirtyPages, Where, Size, memory.HostAddress);
        ExpectMemory(guest, Where + 0x5000);
        ulong[] bitmap = GC.AllocateArray<ulong>((int)(Size >> 12) / 64, pinned: true);
        var request = new KvmDirtyLog
        {
            Slot = 1, DirtyBitmap = (ulong)Marshal.UnsafeAddrOfPinnedArrayElement(bitmap, 0),
        };
        // The page stays in the log of a call that failed.
        faults.FailEach("KVM_GET_DIRTY_LOG", () => guest.Vm.TryCall(KvmIoctl.GetDirtyLog, ref request), undo: _ =>
        {
            Check.Equal(1ul << 5, bitmap[0], "log");
            ExpectMemory(guest, Where + 0x5000);
        });
    }

    static void State(uint get, uint set)
    {
        using var faults = new FaultInjection();
        using var machine = new Guest(GuestMode.Long,
            get == KvmIoctl.GetLapic ? vm => vm.CreateIrqchip() : (Action<Vm>?)null);
        int length = (int)(get >> 16) & 0x3FFF;
        byte[] state = GC.AllocateArray<byte>(length, pinned: true), now = new byte[length];
        faults.FailEach("get", () => machine.Vcpu.TryCall(get, state));
        faults.FailEach("set", () => machine.Vcpu.TryCall(set, state), refused: () =>
        {
            machine.Vcpu.Call(get, now);
            Check.Bytes(state, now, "state");
        });
    }

    static void Cpuid()
    {
        using var faults = new FaultInjection();
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmCpuidEntry2[] before = guest.Vcpu.Cpuid;
        byte[] all = CpuidList.Pack(before), fewer = CpuidList.Pack(before.AsSpan(0, before.Length / 2));
        byte[] supported = CpuidList.Pack(new KvmCpuidEntry2[256]);
        faults.FailEach("KVM_GET_SUPPORTED_CPUID",
            () => guest.Kvm.TryCall(KvmIoctl.GetSupportedCpuid, supported),
            undo: _ => supported = CpuidList.Pack(new KvmCpuidEntry2[256]));
        faults.FailEach("KVM_SET_CPUID2", () => guest.Vcpu.TryCall(KvmIoctl.SetCpuid2, fewer),
            undo: _ => guest.Vcpu.Cpuid = before,
            refused: () => Check.Bytes(all, CpuidList.Pack(guest.Vcpu.Cpuid), "CPUID"));
        faults.FailEach("KVM_GET_CPUID2", () => guest.Vcpu.TryCall(KvmIoctl.GetCpuid2, all));
    }

    static void Msrs()
    {
        const uint Star = 0xC0000081, LStar = 0xC0000082;
        using var faults = new FaultInjection();
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        byte[] list = MsrList.Pack([new(Star, 0, 1), new(LStar, 0, 2)]);
        faults.FailEach("KVM_SET_MSRS", () => guest.Vcpu.TryCall(KvmIoctl.SetMsrs, list), undo: count =>
        {
            Check.Equal(2, count, "MSRs set");
            guest.Vcpu.SetMsr(LStar, 0);
        }, refused: () => Check.Equal(0ul, guest.Vcpu.GetMsr(LStar), "LSTAR"));
        faults.FailEach("KVM_GET_MSRS", () => guest.Vcpu.TryCall(KvmIoctl.GetMsrs, list));
    }

    static void Routing()
    {
        using var faults = new FaultInjection();
        using var guest = new Guest(GuestMode.Long, vm => vm.CreateIrqchip());
        KvmMsi message = RoutingTests.Message(0x61);
        KvmIrqRoutingEntry[] routes =
            [.. Enumerable.Range(0, 200).Select(gsi => KvmIrqRoutingEntry.ToMsi((uint)gsi, message))];
        guest.Vm.SetGsiRouting();
        // No route, no interrupt: KVM_IRQ_LINE_STATUS tells how many it has reached.
        faults.FailEach("KVM_SET_GSI_ROUTING", () => guest.Vm.TrySetGsiRouting(routes),
            undo: _ => guest.Vm.SetGsiRouting(),
            refused: () => Check.That(guest.Vm.SetIrqLineStatus(7, true) <= 0, "there is a route"));
    }

    static void Irqfd()
    {
        using var faults = new FaultInjection();
        using var guest = new Guest(GuestMode.Long, vm => vm.CreateIrqchip());
        using var source = new EventFd();
        using var resampler = new EventFd();
        foreach (EventFd? resample in (EventFd?[])[null, resampler])
        {
            faults.FailEach("KVM_IRQFD", () => guest.Vm.TryIrqfd(source, 5, resample),
                undo: _ => Check.Succeeds(guest.Vm.TryIrqfd(source, 5, deassign: true), "deassignment"));
            Check.Succeeds(guest.Vm.TryIrqfd(source, 5, resample), "assignment");
            // An eventfd has one irqfd.
            faults.FailEach("KVM_IRQFD, deassign", () => guest.Vm.TryIrqfd(source, 5, deassign: true),
                undo: _ => Check.Succeeds(guest.Vm.TryIrqfd(source, 5, resample), "assignment"),
                refused: () => Check.Fails(Errno.EBUSY, guest.Vm.TryIrqfd(source, 5, resample), "assigned twice"));
            Check.Succeeds(guest.Vm.TryIrqfd(source, 5, deassign: true), "deassignment");
        }
    }

    static void Ioeventfd()
    {
        using var faults = new FaultInjection();
        using var guest = new Guest(GuestMode.Long, vm => vm.CreateIrqchip());
        using var target = new EventFd();
        var assign = new KvmIoeventfd { Addr = GuestLayout.Mmio, Len = 4, Fd = target.Fd };
        KvmIoeventfd deassign = assign with { Flags = KvmIoeventfd.FlagDeassign };
        faults.FailEach("KVM_IOEVENTFD", () => guest.Vm.TryIoeventfd(assign),
            undo: _ => Check.Succeeds(guest.Vm.TryIoeventfd(deassign), "deassignment"),
            refused: () => Check.Fails(Errno.ENOENT, guest.Vm.TryIoeventfd(deassign), "not assigned"));
        Check.Succeeds(guest.Vm.TryIoeventfd(assign), "assignment");
        faults.FailEach("KVM_IOEVENTFD, deassign", () => guest.Vm.TryIoeventfd(deassign),
            undo: _ => Check.Succeeds(guest.Vm.TryIoeventfd(assign), "assignment"),
            refused: () => Check.Fails(Errno.EEXIST, guest.Vm.TryIoeventfd(assign), "assigned twice"));
    }

    static void CoalescedZone()
    {
        using var faults = new FaultInjection();
        using var guest = new Guest(GuestMode.Long, vm => vm.CreateIrqchip());
        faults.FailEach("a zone", () => guest.Vm.TryRegisterCoalesced(GuestLayout.Mmio, 0x1000),
            undo: _ => Check.Succeeds(guest.Vm.TryUnregisterCoalesced(GuestLayout.Mmio, 0x1000), "its end"));
    }

    /// <summary>Each page that the guest meets first needs tables, and memory of the process.</summary>
    static void RunTouchesMemory()
    {
        using var faults = new FaultInjection();
        using Kvm kvm = TestEnvironment.OpenKvm();
        Guest guest = Fresh();
        try
        {
            faults.FailEach("KVM_RUN", () => guest.Vcpu.TryRun(), undo: _ =>
            {
                Check.Equal(KvmExit.Hlt, guest.Run.ExitReason, "exit reason");
                guest.Dispose();
                guest = Fresh();
            }, refused: () =>
            {
                guest.RunToHalt("run again");
                guest.Dispose();
                guest = Fresh();
            });
        }
        finally
        {
            guest.Dispose();
        }

        static Guest Fresh()
        {
            Guest guest = Make(code =>
            {
                code.mov(__byte_ptr[ebx], 1);
                code.mov(__byte_ptr[ebx + 0x400000], 1);
            });
            guest.Vm.AddMemory(1, Where, 0x800000);
            Start(guest, Where);
            return guest;
        }
    }

    /// <summary>The interpreter reads the instruction and an operand, and writes another.</summary>
    static void RunInterprets()
    {
        using var faults = new FaultInjection();
        using Guest guest = Make(code => code.movsd());
        guest.Memory.Write(GuestLayout.Data, 0x12345678u);
        Begin();
        faults.FailEach("KVM_RUN", () => guest.Vcpu.TryRun(), undo: _ =>
        {
            guest.RunToHalt("afterwards");
            Begin();
        });

        void Begin()
        {
            Start(guest, 0);
            guest.SetRegs((ref regs) =>
            {
                regs.Rsi = GuestLayout.Data;
                regs.Rdi = GuestLayout.Mmio;
            });
        }
    }
}
