// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;

namespace SharpKvm.Selftests;

/// <summary>What the kernel answers to wrong calls; and that nothing changed by them.</summary>
static class ErrorTests
{
    const nuint BadPointer = 0x10; // inside the page that is never mapped

    static readonly (string Name, uint Request)[] VcpuPointers =
    [
        (nameof(KvmIoctl.GetRegs), KvmIoctl.GetRegs), (nameof(KvmIoctl.SetRegs), KvmIoctl.SetRegs),
        (nameof(KvmIoctl.GetSregs), KvmIoctl.GetSregs), (nameof(KvmIoctl.SetSregs), KvmIoctl.SetSregs),
        (nameof(KvmIoctl.GetSregs2), KvmIoctl.GetSregs2), (nameof(KvmIoctl.SetSregs2), KvmIoctl.SetSregs2),
        (nameof(KvmIoctl.GetFpu), KvmIoctl.GetFpu), (nameof(KvmIoctl.SetFpu), KvmIoctl.SetFpu),
        (nameof(KvmIoctl.GetXsave), KvmIoctl.GetXsave), (nameof(KvmIoctl.SetXsave), KvmIoctl.SetXsave),
        (nameof(KvmIoctl.GetXsave2), KvmIoctl.GetXsave2),
        (nameof(KvmIoctl.GetXcrs), KvmIoctl.GetXcrs), (nameof(KvmIoctl.SetXcrs), KvmIoctl.SetXcrs),
        (nameof(KvmIoctl.GetMsrs), KvmIoctl.GetMsrs), (nameof(KvmIoctl.SetMsrs), KvmIoctl.SetMsrs),
        (nameof(KvmIoctl.GetDebugregs), KvmIoctl.GetDebugregs), (nameof(KvmIoctl.SetDebugregs), KvmIoctl.SetDebugregs),
        (nameof(KvmIoctl.GetVcpuEvents), KvmIoctl.GetVcpuEvents),
        (nameof(KvmIoctl.SetVcpuEvents), KvmIoctl.SetVcpuEvents),
        (nameof(KvmIoctl.GetMpState), KvmIoctl.GetMpState), (nameof(KvmIoctl.SetMpState), KvmIoctl.SetMpState),
        (nameof(KvmIoctl.SetCpuid2), KvmIoctl.SetCpuid2), (nameof(KvmIoctl.GetCpuid2), KvmIoctl.GetCpuid2),
        (nameof(KvmIoctl.Translate), KvmIoctl.Translate), (nameof(KvmIoctl.Interrupt), KvmIoctl.Interrupt),
        (nameof(KvmIoctl.SetGuestDebug), KvmIoctl.SetGuestDebug),
        (nameof(KvmIoctl.SetSignalMask), KvmIoctl.SetSignalMask),
    ];

    public static IEnumerable<TestCase> All =>
    [
        .. VcpuPointers.Select(call => new TestCase($"errors/vcpu_bad_pointer_{call.Name}", () =>
            VcpuBadPointer(call.Request))),
        new("errors/system_bad_pointer", SystemBadPointer),
        new("errors/vm_bad_pointer", VmBadPointer),
        new("errors/unknown_command", UnknownCommand),
        new("errors/wrong_size", WrongSize),
        new("errors/wrong_descriptor", WrongDescriptor),
        new("errors/run_with_argument", RunWithArgument),
        new("errors/supported_cpuid_counts", SupportedCpuidCounts),
        new("errors/set_cpuid_counts", SetCpuidCounts),
        new("errors/get_cpuid_counts", GetCpuidCounts),
        new("errors/msr_counts", MsrCounts),
        new("errors/msr_index_list_count", MsrIndexListCount),
        new("errors/signal_mask_length", SignalMaskLength),
        new("errors/mp_state_values", MpStateValues),
        new("errors/enable_cap_unknown", EnableCapUnknown),
        new("errors/without_irqchip", WithoutIrqchip),
        new("errors/tss_and_identity_addresses", TssAndIdentityAddresses),
        new("errors/get_pages_partly_mapped", GetPartlyMapped),
        new("errors/vcpu_other_process", VcpuOtherAddressSpace, Own: true),
    ];

    static void VcpuBadPointer(uint request)
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        KvmSregs sregs = guest.Vcpu.Sregs;
        KvmRegs regs = guest.Vcpu.Regs;
        Check.Fails(Errno.EFAULT, guest.Vcpu.TryCall(request, BadPointer), "an address in page 0");
        Check.Fails(Errno.EFAULT, guest.Vcpu.TryCall(request, unchecked((nuint)0xFFFF888000000000)),
            "a kernel address");
        Check.Fails(Errno.EFAULT, guest.Vcpu.TryCall(request, unchecked((nuint)0x8000000000000000)),
            "a non-canonical address");
        Check.Same(sregs, guest.Vcpu.Sregs, "sregs");
        Check.Same(regs, guest.Vcpu.Regs, "regs");
        guest.RunToHalt("run afterwards");
    }

    static void SystemBadPointer()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        foreach (uint request in (uint[])[KvmIoctl.GetSupportedCpuid, KvmIoctl.GetEmulatedCpuid,
            KvmIoctl.GetMsrIndexList])
            Check.Fails(Errno.EFAULT, kvm.TryCall(request, BadPointer), $"request {request:x}");
    }

    static void VmBadPointer()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        foreach (uint request in (uint[])[KvmIoctl.SetUserMemoryRegion, KvmIoctl.GetDirtyLog,
            KvmIoctl.SetIdentityMapAddr, KvmIoctl.EnableCap])
            Check.Fails(Errno.EFAULT, vm.TryCall(request, BadPointer), $"request {request:x}");
    }

    static void UnknownCommand()
    {
        using var guest = new Guest(GuestMode.Real, code => code.hlt());
        foreach (uint request in (uint[])[0xAEFF, 0x4008AEFE, 0xFFFFFFFF, 0, 0x5401, 0x1234])
        {
            // On the system descriptor stock answers -EINVAL from the architecture's own switch, on the others too.
            foreach (KvmObject target in (KvmObject[])[guest.Kvm, guest.Vm, guest.Vcpu])
            {
                int result = target.TryCall(request, BadPointer);
                Check.That(-result is (int)Errno.EINVAL or (int)Errno.ENOTTY,
                    $"request {request:x} on {target.GetType().Name}: {result}");
            }
        }
        guest.RunToHalt();
    }

    /// <summary>The size is part of the request number: another size is another, unknown request.</summary>
    static void WrongSize()
    {
        using var guest = new Guest(GuestMode.Real, code => code.hlt());
        Span<byte> buffer = stackalloc byte[8192];
        foreach (uint request in (uint[])[KvmIoctl.GetRegs, KvmIoctl.GetSregs, KvmIoctl.GetFpu, KvmIoctl.GetVcpuEvents])
        {
            foreach (int change in (int[])[-8, 8, 0x1000])
            {
                uint wrong = (uint)(request + (change << 16));
                buffer.Fill(0xA5);
                int result = guest.Vcpu.TryCall(wrong, buffer);
                Check.That(-result is (int)Errno.EINVAL or (int)Errno.ENOTTY, $"request {wrong:x}: {result}");
                Check.That(!buffer.ContainsAnyExcept((byte)0xA5), $"request {wrong:x} wrote to its argument");
            }
        }
    }

    static void WrongDescriptor()
    {
        using var guest = new Guest(GuestMode.Real, code => code.hlt());
        Span<byte> buffer = stackalloc byte[8192];
        buffer.Clear();
        foreach ((KvmObject target, uint request) in new (KvmObject, uint)[]
            {
                (guest.Kvm, KvmIoctl.Run), (guest.Kvm, KvmIoctl.GetRegs), (guest.Kvm, KvmIoctl.CreateVcpu),
                (guest.Kvm, KvmIoctl.SetUserMemoryRegion), (guest.Vm, KvmIoctl.Run), (guest.Vm, KvmIoctl.GetRegs),
                (guest.Vm, KvmIoctl.CreateVm), (guest.Vm, KvmIoctl.GetSupportedCpuid), (guest.Vcpu, KvmIoctl.CreateVm),
                (guest.Vcpu, KvmIoctl.CreateVcpu), (guest.Vcpu, KvmIoctl.SetUserMemoryRegion),
                (guest.Vcpu, KvmIoctl.GetSupportedCpuid), (guest.Vcpu, KvmIoctl.GetApiVersion),
            })
        {
            int result = target.TryCall(request, buffer);
            Check.That(-result is (int)Errno.EINVAL or (int)Errno.ENOTTY,
                $"request {request:x} on {target.GetType().Name}: {result}");
        }
        guest.RunToHalt();
    }

    static void RunWithArgument()
    {
        using var guest = new Guest(GuestMode.Real, code => code.hlt());
        Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.Run, 1), "KVM_RUN with an argument");
        guest.RunToHalt();
    }

    static byte[] CountOnly(uint count, int size)
    {
        byte[] buffer = new byte[size];
        MemoryMarshal.Write(buffer, in count);
        return buffer;
    }

    static void SupportedCpuidCounts()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        foreach (uint request in (uint[])[KvmIoctl.GetSupportedCpuid, KvmIoctl.GetEmulatedCpuid])
        {
            Check.Fails(Errno.E2BIG, kvm.TryCall(request, CountOnly(0, 8)), $"{request:x}: no entry");
            // A huge count is cut down, not multiplied: the answer fits into far less than it announces.
            foreach (uint huge in (uint[])[uint.MaxValue, 0x06666667, 0x80000000])
                Check.Succeeds(kvm.TryCall(request, CountOnly(huge, 8 + 40 * 256)), $"{request:x}: {huge:x} entries");
        }
        Check.Fails(Errno.E2BIG, kvm.TryCall(KvmIoctl.GetSupportedCpuid, CountOnly(1, 48)), "one entry");
    }

    static void SetCpuidCounts()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.xor(eax, eax);
            code.cpuid();
            code.hlt();
        });
        Check.Fails(Errno.E2BIG, guest.Vcpu.TryCall(KvmIoctl.SetCpuid2, CountOnly(257, 8 + 257 * 40)), "257 entries");
        Check.Fails(Errno.E2BIG, guest.Vcpu.TryCall(KvmIoctl.SetCpuid2, CountOnly(uint.MaxValue, 64)),
            "2^32-1 entries");
        Check.Fails(Errno.E2BIG, guest.Vcpu.TryCall(KvmIoctl.SetCpuid2, CountOnly(0x06666667, 64)),
            "entries * 40 overflows");
        guest.RunToHalt("run afterwards");
        Check.That((uint)guest.Vcpu.Regs.Rax >= 1, "the CPUID set before is still there");
    }

    static void GetCpuidCounts()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        int count = guest.Vcpu.Cpuid.Length;
        byte[] small = CountOnly((uint)count - 1, 8 + 40 * count);
        Check.Fails(Errno.E2BIG, guest.Vcpu.TryCall(KvmIoctl.GetCpuid2, small), "one entry too few");
    }

    static void MsrCounts()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        foreach (uint count in (uint[])[256, 257, 0x10000000, uint.MaxValue])
        {
            Check.Fails(Errno.E2BIG, guest.Vcpu.TryCall(KvmIoctl.GetMsrs, CountOnly(count, 8 + 256 * 16)),
                $"GET_MSRS {count}");
            Check.Fails(Errno.E2BIG, guest.Vcpu.TryCall(KvmIoctl.SetMsrs, CountOnly(count, 8 + 256 * 16)),
                $"SET_MSRS {count}");
        }
        Check.Equal(0, guest.Vcpu.TryCall(KvmIoctl.GetMsrs, CountOnly(0, 8)), "GET_MSRS of none");
        Check.Equal(0, guest.Vcpu.TryCall(KvmIoctl.SetMsrs, CountOnly(0, 8)), "SET_MSRS of none");
    }

    static void MsrIndexListCount()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        byte[] none = CountOnly(0, 4);
        Check.Fails(Errno.E2BIG, kvm.TryCall(KvmIoctl.GetMsrIndexList, none), "room for none");
        Check.Equal(kvm.GetMsrIndexList().Length, MemoryMarshal.Read<int>(none), "count told with E2BIG");
    }

    static void SignalMaskLength()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        foreach (uint length in (uint[])[0, 4, 7, 9, 16, 128, uint.MaxValue])
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetSignalMask, CountOnly(length, 256)),
                $"length {length}");
        Check.Succeeds(guest.Vcpu.TryCall(KvmIoctl.SetSignalMask, CountOnly(8, 12)), "length 8");
        Check.Succeeds(guest.Vcpu.TryCall(KvmIoctl.SetSignalMask, 0), "null pointer takes the mask away");
    }

    static void MpStateValues()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        // Without an interrupt controller in the kernel only RUNNABLE means anything.
        foreach (uint state in (uint[])[5, 10, 11, 1000, uint.MaxValue])
        {
            var argument = new KvmMpState { MpState = state };
            Check.Fails(Errno.EINVAL, guest.Vcpu.TryCall(KvmIoctl.SetMpState, ref argument), $"MP state {state}");
        }
        Check.Equal(KvmMpState.Runnable, guest.Vcpu.MpState, "state afterwards");
    }

    static void EnableCapUnknown()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        foreach (KvmObject target in (KvmObject[])[guest.Vm, guest.Vcpu])
        {
            var unknown = new KvmEnableCap { Cap = 0x7FFF };
            Check.Fails(Errno.EINVAL, target.TryCall(KvmIoctl.EnableCap, ref unknown),
                $"{target.GetType().Name}: unknown");
        }
        var flags = new KvmEnableCap { Cap = (uint)KvmCap.HaltPoll, Flags = 1 };
        Check.Fails(Errno.EINVAL, guest.Vm.TryCall(KvmIoctl.EnableCap, ref flags), "unknown flags");
    }

    /// <summary>What needs interrupt controllers in the kernel, on a machine without.</summary>
    static void WithoutIrqchip()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Span<byte> buffer = stackalloc byte[1024];
        buffer.Clear();
        Check.That(guest.Vcpu.TryCall(KvmIoctl.GetLapic, buffer) < 0, "GET_LAPIC without a local APIC");
        Check.That(guest.Vm.TryCall(KvmIoctl.GetIrqchip, buffer) < 0, "GET_IRQCHIP without one");
        Check.That(guest.Vm.TryCall(KvmIoctl.IrqLine, buffer) < 0, "IRQ_LINE without an interrupt controller");
        Check.That(guest.Vm.TryCall(KvmIoctl.GetPit2, buffer) < 0, "GET_PIT2 without a timer");
        guest.RunToHalt();
    }

    static void TssAndIdentityAddresses()
    {
        using Kvm kvm = TestEnvironment.OpenKvm();
        using Vm vm = kvm.CreateVm();
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.SetTssAddr, 0xFFFFE000), "TSS across 4 GiB");
        Check.Succeeds(vm.TryCall(KvmIoctl.SetTssAddr, 0xFEFFD000), "TSS where QEMU puts it");
        ulong identity = 0xFEFFC000;
        Check.Succeeds(vm.TryCall(KvmIoctl.SetIdentityMapAddr, ref identity), "identity map where QEMU puts it");
        vm.CreateVcpu();
        Check.Fails(Errno.EINVAL, vm.TryCall(KvmIoctl.SetIdentityMapAddr, ref identity), "identity map after a vCPU");
    }

    /// <summary>A structure whose second half is not mapped.</summary>
    static void GetPartlyMapped()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        nint pages = Libc.MemoryMap(0, 8192, Libc.ProtRead | Libc.ProtWrite,
            Libc.MapPrivate | Libc.MapAnonymous, -1, 0);
        _ = Libc.MemoryUnmap(pages + 4096, 4096);
        foreach (uint request in (uint[])
            [
                KvmIoctl.GetRegs, KvmIoctl.SetRegs, KvmIoctl.GetSregs, KvmIoctl.SetSregs, KvmIoctl.GetXsave,
                KvmIoctl.SetXsave, KvmIoctl.GetFpu, KvmIoctl.SetFpu,
            ])
        {
            Check.Fails(Errno.EFAULT, guest.Vcpu.TryCall(request, (nuint)(pages + 4096 - 64)), $"request {request:x}");
        }
        guest.RunToHalt();
    }

    /// <summary>A machine belongs to the process that made it: a child is refused.</summary>
    static unsafe void VcpuOtherAddressSpace()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        // fork(); the child calls ioctl(fd, KVM_RUN, 0) and exits with -result.
        nint fork = HostCode.Load(code =>
        {
            Label parent = code.CreateLabel();
            code.push(rbx);
            code.mov(ebx, edi);
            code.mov(eax, 57);
            code.syscall();
            code.test(eax, eax);
            code.jnz(parent);
            code.mov(edi, ebx);
            code.mov(esi, KvmIoctl.Run);
            code.xor(edx, edx);
            code.mov(eax, 16);
            code.syscall();
            code.neg(eax);
            code.mov(edi, eax);
            code.mov(eax, 231);
            code.syscall();
            code.Label(ref parent);
            code.pop(rbx);
            code.ret();
        });
        int child = (int)HostCode.Call(fork, (void*)guest.Vcpu.Fd);
        Check.That(child > 0, "fork");
        Check.Equal(child, Process.WaitPid(child, out int status, 0), "waitpid");
        Check.Equal(Errno.EIO, (Errno)(status >> 8 & 0xFF), "KVM_RUN in another process");
        guest.RunToHalt("run in the owner");
    }
}
