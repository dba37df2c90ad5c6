// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using SharpKvm.Selftests;

namespace SharpKvm.Bench;

/// <summary>What is measured. The guest is in 32-bit protected mode without paging, so that fetching its instruction
/// bytes costs the hypervisor no walk of the guest's page tables.</summary>
static unsafe partial class Rows
{
    const int Samples = 25, RoundTrips = 200, RoundTripsInside = 1000, FaultPages = 512;
    const ulong FaultMemory = 0x40000000;
    const byte EndPort = 0x10;
    const int AdviseNoHugePage = 15;

    public static IEnumerable<Row> All =>
    [
        new("run_immediate_exit", ImmediateExit),
        new("cpuid", () => InsideGuest(code =>
        {
            code.xor(eax, eax);
            code.cpuid();
        })),
        new("rdmsr_efer", () => InsideGuest(code => code.rdmsr(), rcx: 0xC0000080)),
        new("wrmsr_pat", () => InsideGuest(code => code.wrmsr(), rax: 0x00070406, rcx: 0x277, rdx: 0x00070406)),
        new("hypercall", () => InsideGuest(code =>
        {
            code.mov(eax, 9999);
            code.vmmcall();
        })),
        new("io_out_user", () => ToUser(KvmExit.Io, code => code.@out(EndPort, al))),
        new("io_in_user", () => ToUser(KvmExit.Io, code => code.@in(al, EndPort))),
        new("mmio_write_user", () => ToUser(KvmExit.Mmio, code => code.mov(__dword_ptr[ebx], eax))),
        new("mmio_read_user", () => ToUser(KvmExit.Mmio, code => code.mov(eax, __dword_ptr[ebx]))),
        new("hlt_user", () => ToUser(KvmExit.Hlt, code => code.hlt())),
        new("npt_fault_populated", () => NestedFaults(populated: true)),
        new("npt_fault_fresh", () => NestedFaults(populated: false)),
        .. MemoryRows,
        .. InterruptRows,
        new("vm_create_destroy", CreateDestroy, NeedsRoom: true),
    ];

    static Measurement ImmediateExit()
    {
        using var guest = new Guest(GuestMode.Protected, code => code.hlt());
        guest.Run.ImmediateExit = 1;
        return Measurement.Take(Samples, RoundTrips,
            () => HostLoop.Run(guest.Vcpu, RoundTrips, -(int)Errno.EINTR));
    }

    /// <summary>The exit is handled in the kernel: the guest repeats it in a loop, one KVM_RUN for all.</summary>
    static Measurement InsideGuest(Action<Assembler> body, ulong rax = 0, ulong rcx = 0, ulong rdx = 0)
    {
        using var guest = new Guest(GuestMode.Protected, code => Repeat(code, RoundTripsInside, body));
        return InsideGuest(guest, RoundTripsInside,
            () => guest.SetRegs((ref regs) => (regs.Rax, regs.Rcx, regs.Rdx) = (rax, rcx, rdx)));
    }

    /// <summary>One KVM_RUN for all the round trips of a guest whose code is by <see cref="Repeat"/>.</summary>
    static Measurement InsideGuest(Guest guest, int roundTrips, Action? prepare = null) =>
        Measurement.Take(Samples, roundTrips, () =>
        {
            prepare?.Invoke();
            return RunToEnd(guest);
        });

    /// <summary>Guest code that repeats <paramref name="body"/>, leaves for user space, and starts again.</summary>
    static void Repeat(Assembler code, int roundTrips, Action<Assembler> body)
    {
        Label start = code.CreateLabel();
        code.Label(ref start);
        Times(code, roundTrips, () => body(code));
        code.@out(EndPort, al);
        code.jmp(start);
    }

    /// <summary>Guest code so many times. ESI counts, and is 0 at the end.</summary>
    static void Times(Assembler code, int count, Action body)
    {
        Label again = code.CreateLabel();
        code.mov(esi, count);
        code.Label(ref again);
        body();
        code.dec(esi);
        code.jnz(again);
    }

    /// <summary>One KVM_RUN up to the guest's <see cref="EndPort"/>; returns its ticks.</summary>
    static ulong RunToEnd(Guest guest)
    {
        ulong ticks = HostLoop.Run(guest.Vcpu, 1);
        Check.Equal(KvmExit.Io, guest.Run.ExitReason, "exit reason");
        Check.Equal(EndPort, guest.Run.Io.Port, "port");
        Check.Equal(0ul, guest.Vcpu.Regs.Rsi, "round trips left");
        return ticks;
    }

    /// <summary>Each exit goes to user space and back: the guest repeats one instruction.</summary>
    static Measurement ToUser(KvmExit reason, Action<Assembler> body)
    {
        using var guest = new Guest(GuestMode.Protected, code =>
        {
            Label again = code.CreateLabel();
            code.mov(ebx, (uint)GuestLayout.Mmio);
            code.Label(ref again);
            body(code);
            code.jmp(again);
        });
        return Measurement.Take(Samples, RoundTrips, () =>
        {
            ulong ticks = HostLoop.Run(guest.Vcpu, RoundTrips);
            Check.Equal(reason, guest.Run.ExitReason, "exit reason");
            return ticks;
        });
    }

    /// <summary>The guest writes one word to each page that it never touched before.</summary>
    static Measurement NestedFaults(bool populated)
    {
        using Guest guest = Toucher(FaultPages, 4096);
        return Measurement.Take(5, FaultPages, () =>
        {
            using var memory = new GuestMemory(FaultMemory, FaultPages * 4096);
            _ = Advise((nint)memory.HostAddress, FaultPages * 4096, AdviseNoHugePage);
            if (populated)
                memory.Slice(FaultMemory, FaultPages * 4096).Fill(1);
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, FaultPages * 4096, memory.HostAddress);
            ulong ticks = RunToHalt(guest);
            guest.Vm.SetMemoryRegion(1, 0, FaultMemory, 0, 0);
            return ticks;
        });
    }

    /// <summary>A guest that writes one word to each of so many pages, and halts.</summary>
    static Guest Toucher(int pages, ulong pageSize) => new(GuestMode.Protected, code =>
    {
        Label start = code.CreateLabel();
        code.Label(ref start);
        code.mov(esi, pages);
        code.mov(ebx, (uint)FaultMemory);
        Touch(code, pageSize);
        code.hlt();
        code.jmp(start);
    });

    /// <summary>Writes one word to each of ESI pages from EBX on, in any mode.</summary>
    static void Touch(Assembler code, ulong pageSize)
    {
        Label again = code.CreateLabel();
        code.Label(ref again);
        code.mov(__dword_ptr[ebx], esi);
        code.add(ebx, (int)pageSize);
        code.dec(esi);
        code.jnz(again);
    }

    static ulong RunToHalt(Guest guest)
    {
        ulong ticks = HostLoop.Run(guest.Vcpu, 1);
        Check.Equal(KvmExit.Hlt, guest.Run.ExitReason, "exit reason");
        return ticks;
    }

    /// <summary>A machine with one slot and one CPU that never ran. Linux waits for grace periods meanwhile.</summary>
    static Measurement CreateDestroy()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using var memory = new GuestMemory(0, 1 << 20);
        const int Machines = 5;
        return Measurement.Take(5, Machines, () =>
        {
            ulong start = HostLoop.Ticks();
            for (int i = 0; i < Machines; i++)
            {
                using Vm vm = kvm.CreateVm();
                vm.SetMemoryRegion(0, 0, 0, memory.Size, memory.HostAddress);
                vm.CreateVcpu();
            }
            return HostLoop.Ticks() - start;
        });
    }

    [LibraryImport("libc", EntryPoint = "madvise")]
    private static partial int Advise(nint address, nuint length, int advice);
}
