// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>A virtual machine with one CPU that runs a few instructions of a test.</summary>
/// <remarks>It starts at <see cref="GuestLayout.Code"/> in the mode asked for, interrupts off, with a descriptor
/// table, an IDT whose every handler halts (see <see cref="ExpectTrap"/>) and, where the mode has it, paging.</remarks>
sealed class Guest : IDisposable
{
    const ulong Cr0Pe = 1, Cr0Ne = 0x20, Cr0Et = 0x10, Cr0Wp = 0x10000, Cr0Pg = 0x80000000;
    const ulong Cr4Pse = 0x10, Cr4Pae = 0x20, Cr4Osfxsr = 0x200, Cr4Osxmmexcpt = 0x400;
    const ulong EferSce = 1, EferLme = 0x100, EferLma = 0x400, EferNx = 0x800;

    const byte AvailableTss = 9, BusyTss = 11;

    readonly Kvm _kvm;

    /// <summary>
    /// A guest without code; <paramref name="prepare"/> sees its machine before the first CPU is made.
    /// </summary>
    public Guest(GuestMode mode, Action<Vm>? prepare = null)
    {
        Mode = mode;
        _kvm = TestEnvironment.OpenKvm();
        Vm = _kvm.CreateVm();
        prepare?.Invoke(Vm);
        Memory = Vm.AddMemory(0, 0, GuestLayout.RamSize);
        Vcpu = Vm.CreateVcpu();
        Vcpu.Cpuid = _kvm.GetSupportedCpuid();
        GuestTables.Write(Memory, mode);
        SetMode();
    }

    /// <summary>A guest whose code is what <paramref name="code"/> assembles.</summary>
    public Guest(GuestMode mode, Action<Assembler> code) : this(mode) => Load(GuestLayout.Code, code);

    /// <summary>A guest whose code is given as bytes.</summary>
    public Guest(GuestMode mode, params ReadOnlySpan<byte> code) : this(mode) => Memory.Write(GuestLayout.Code, code);

    public GuestMode Mode { get; }
    public Kvm Kvm => _kvm;
    public Vm Vm { get; }
    public Vcpu Vcpu { get; }
    public GuestMemory Memory { get; }
    public ref KvmRun Run => ref Vcpu.Run;

    /// <summary>Assembles code to a guest address; the result knows where labels came to lie.</summary>
    public AssemblerResult Load(ulong address, Action<Assembler> code) => Load(address, Mode.CodeBits(), code);

    public AssemblerResult Load(ulong address, int bits, Action<Assembler> code)
    {
        (byte[] bytes, AssemblerResult result) = MachineCode.Assemble(bits, address, code);
        Memory.Write(address, bytes);
        return result;
    }

    /// <summary>Code for an interrupt vector, run instead of the handler that halts.</summary>
    public void Handle(int vector, ulong address, Action<Assembler> code)
    {
        Load(address, Mode.IsLongMode() ? 64 : Mode.CodeBits(), code);
        GuestTables.SetGate(Memory, Mode, vector, address);
    }

    /// <summary>One more CPU in the state of the first, runnable, with its own code and stack.</summary>
    public Vcpu AddCpu(uint id, ulong code, ulong stackTop)
    {
        Vcpu vcpu = Vm.CreateVcpu(id);
        vcpu.Cpuid = Vcpu.Cpuid;
        KvmSregs sregs = Vcpu.Sregs;
        sregs.ApicBase &= ~Apic.BaseBsp;
        Set(vcpu, sregs);
        vcpu.Regs = Vcpu.Regs with { Rip = code, Rsp = stackTop };
        vcpu.MpState = KvmMpState.Runnable;
        return vcpu;
    }

    /// <summary>Changes some of the general registers.</summary>
    public void SetRegs(RefAction<KvmRegs> change)
    {
        KvmRegs regs = Vcpu.Regs;
        change(ref regs);
        Vcpu.Regs = regs;
    }

    /// <summary>Changes some of the special registers.</summary>
    public void SetSregs(RefAction<KvmSregs> change)
    {
        KvmSregs sregs = Vcpu.Sregs;
        change(ref sregs);
        Set(Vcpu, sregs);
    }

    /// <summary>Lets the guest start in user mode (CPL 3; 32 or 64 bits by its mode).</summary>
    public void EnterUserMode() => SetSregs((ref sregs) =>
    {
        sregs.Cs = Segment(Mode == GuestMode.Long ? GuestLayout.UserCode64 : GuestLayout.UserCode32, 0xB, 3);
        sregs.Cs.L = (byte)(Mode == GuestMode.Long ? 1 : 0);
        sregs.Cs.Db = (byte)(1 - sregs.Cs.L);
        sregs.Ss = sregs.Ds = sregs.Es = Segment(GuestLayout.UserData, 3, 3);
        SetRegs((ref regs) => regs.Rsp = GuestLayout.UserStackTop);
    });

    /// <summary>Runs until the guest leaves for the reason expected.</summary>
    public void RunTo(KvmExit expected, string what = "exit reason")
    {
        int result = Vcpu.TryRun();
        if (result < 0)
            throw new TestFailure($"{what}: KVM_RUN failed with {(Errno)(-result)}, expected {expected}");
        if (Run.ExitReason != expected)
            throw new TestFailure($"{what}: expected {expected}, got {DescribeExit()}");
    }

    /// <summary>Runs to the guest's HLT.</summary>
    public void RunToHalt(string what = "run to HLT")
    {
        RunTo(KvmExit.Hlt, what);
        if (TrapVector(Vcpu.Regs.Rip) is { } vector)
            throw new TestFailure($"{what}: unexpected exception {vector}, {DescribeExit()}");
    }

    /// <summary>Runs until an exception or interrupt with this vector was delivered to its halting handler.</summary>
    public Trap ExpectTrap(int vector, string what = "trap")
    {
        RunTo(KvmExit.Hlt, $"{what}: vector {vector}");
        return ReadTrap(vector, what);
    }

    /// <summary>What the halting handler of <paramref name="vector"/>, in which the guest is, found on its
    /// stack.</summary>
    public Trap ReadTrap(int vector, string what = "trap")
    {
        KvmRegs regs = Vcpu.Regs;
        Check.Equal(vector, TrapVector(regs.Rip) ?? -1, $"{what}: vector delivered (rip {regs.Rip:x})");
        ulong stack = regs.Rsp;
        if (Mode == GuestMode.Real)
            return new(vector, 0, Pop16(), Pop16(), Pop16(), stack & 0xFFFF);
        if (Mode == GuestMode.Protected16)
            return new(vector, Pop16(), Pop16(), Pop16(), Pop16(), stack & 0xFFFF);
        if (!Mode.IsLongMode())
            return new(vector, Pop32(), Pop32(), Pop32(), Pop32(), stack);
        return new(vector, Pop64(), Pop64(), Pop64(), Pop64(), Pop64());

        ulong Pop16()
        {
            stack += 2;
            return Memory.Read<ushort>((stack - 2) & 0xFFFF);
        }

        ulong Pop32()
        {
            stack += 4;
            return Memory.Read<uint>(stack - 4);
        }

        ulong Pop64()
        {
            stack += 8;
            return Memory.Read<ulong>(stack - 8);
        }
    }

    /// <summary>Runs to an MMIO write and checks it.</summary>
    public void ExpectMmioWrite(ulong address, params ReadOnlySpan<byte> data)
    {
        RunTo(KvmExit.Mmio, $"MMIO write to {address:x}");
        KvmRunMmio mmio = Run.Mmio;
        Check.Equal(1, mmio.IsWrite, "is_write");
        Check.Equal(address, mmio.PhysAddr, "MMIO address");
        Check.Equal((uint)data.Length, mmio.Len, "MMIO length");
        Check.Bytes(data, ((ReadOnlySpan<byte>)mmio.Data)[..data.Length], "MMIO data");
    }

    /// <summary>Runs to an MMIO read, checks it and provides the answer.</summary>
    public void ExpectMmioRead(ulong address, params ReadOnlySpan<byte> answer)
    {
        RunTo(KvmExit.Mmio, $"MMIO read from {address:x}");
        KvmRunMmio mmio = Run.Mmio;
        Check.Equal(0, mmio.IsWrite, "is_write");
        Check.Equal(address, mmio.PhysAddr, "MMIO address");
        Check.Equal((uint)answer.Length, mmio.Len, "MMIO length");
        answer.CopyTo(Run.Mmio.Data);
    }

    /// <summary>Runs to a port access and checks its shape; the data is in <see cref="Vcpu.IoData"/>.</summary>
    public Span<byte> ExpectPort(byte direction, ushort port, int size, uint count = 1)
    {
        RunTo(KvmExit.Io, $"port 0x{port:x}");
        KvmRunIo io = Run.Io;
        Check.Equal(direction, io.Direction, "direction");
        Check.Equal(port, io.Port, "port");
        Check.Equal(size, io.Size, "size of the port access");
        Check.Equal(count, io.Count, "count of the port access");
        return Vcpu.IoData;
    }

    public string DescribeExit() => DescribeExit(Vcpu);

    /// <summary>Everything that tells why the vCPU stopped.</summary>
    public string DescribeExit(Vcpu vcpu)
    {
        ref KvmRun run = ref vcpu.Run;
        KvmRegs regs = vcpu.Regs;
        string where = $"at rip {regs.Rip:x} rsp {regs.Rsp:x} rax {regs.Rax:x}";
        if (TrapVector(regs.Rip) is { } vector)
            where += $" in the handler of vector {vector}, stack" +
                $" {Convert.ToHexString(Memory.Slice(regs.Rsp & 0xFFFF, 40))} cr2 {vcpu.Sregs.Cr2:x}";
        return run.ExitReason switch
        {
            KvmExit.Io => $"Io port 0x{run.Io.Port:x} direction {run.Io.Direction} size {run.Io.Size} {where}",
            KvmExit.Mmio => $"Mmio 0x{run.Mmio.PhysAddr:x} write {run.Mmio.IsWrite} length {run.Mmio.Len} {where}",
            KvmExit.InternalError => $"InternalError {run.Internal.Suberror} ndata {run.Internal.Ndata}" +
                $" data {string.Join(',', InternalData(run.Internal))} {where}",
            KvmExit.FailEntry => $"FailEntry 0x{run.FailEntry.HardwareEntryFailureReason:x} {where}",
            KvmExit.Unknown => $"Unknown 0x{run.HardwareExitReason:x} {where}",
            _ => $"{run.ExitReason} {where}",
        };
    }

    public void Dispose()
    {
        Vm.Dispose();
        _kvm.Dispose();
    }

    /// <summary>A flat segment for KVM_SET_SREGS; 32-bit, the caller changes what is different.</summary>
    public static KvmSegment Segment(ushort selector, byte type, byte dpl = 0) => new()
    {
        Selector = selector, Type = type, Dpl = dpl, Limit = 0xFFFFFFFF, Present = 1, S = 1, G = 1, Db = 1,
    };

    static IEnumerable<string> InternalData(KvmRunInternal error)
    {
        for (int i = 0; i < Math.Min((int)error.Ndata, 16); i++)
            yield return error.Data[i].ToString("x");
    }

    static int? TrapVector(ulong rip)
    {
        ulong offset = rip - GuestLayout.Stubs;
        return offset < 256 * GuestLayout.StubSize ? (int)(offset / GuestLayout.StubSize) : null;
    }

    void SetMode()
    {
        SetSregs((ref sregs) =>
        {
            if (Mode == GuestMode.Real)
            {
                sregs.Cs.Base = 0;
                sregs.Cs.Selector = 0;
                return;
            }
            sregs.Gdt = new() { Base = GuestLayout.Gdt, Limit = 0x7FF };
            sregs.Idt = new() { Base = GuestLayout.Idt, Limit = 0xFFF };
            sregs.Tr = new()
            {
                Selector = GuestLayout.TssSelector, Base = GuestLayout.Tss, Limit = 0x67, Type = BusyTss, Present = 1,
            };
            sregs.Cr0 = Cr0Pe | Cr0Ne | Cr0Et | Cr0Wp;
            sregs.Cr4 = Cr4Osfxsr | Cr4Osxmmexcpt;
            SetSegments(ref sregs);
            if (Mode.HasPaging())
                SetPaging(ref sregs);
        });
        SetRegs((ref regs) => regs = new() { Rip = GuestLayout.Code, Rsp = GuestLayout.StackTop, Rflags = 2 });
    }

    void Set(Vcpu vcpu, KvmSregs sregs)
    {
        // QEMU's emulated CPU aborts on a busy TSS, which is what each is, when a legacy-mode guest changes its stack.
        if (HostCpu.IsEmulatedByTcg && !Mode.IsLongMode() && sregs.Tr.Type == BusyTss)
            sregs.Tr.Type = AvailableTss;
        vcpu.Sregs = sregs;
    }

    void SetSegments(ref KvmSregs sregs)
    {
        sregs.Cs = Segment(GuestLayout.Code32, 0xB);
        KvmSegment data = Segment(GuestLayout.Data32, 3);
        if (Mode == GuestMode.Long)
        {
            sregs.Cs = Segment(GuestLayout.Code64, 0xB) with { L = 1, Db = 0 };
        }
        else if (Mode == GuestMode.Protected16)
        {
            sregs.Cs = Segment(GuestLayout.Code16, 0xB) with { Db = 0 };
            data = Segment(GuestLayout.Data16, 3) with { Db = 0 };
        }
        sregs.Ds = sregs.Es = sregs.Fs = sregs.Gs = sregs.Ss = data;
    }

    void SetPaging(ref KvmSregs sregs)
    {
        sregs.Cr0 |= Cr0Pg;
        sregs.Cr3 = Mode == GuestMode.Pae ? GuestLayout.PageTables + 0x1000 : GuestLayout.PageTables;
        sregs.Cr4 |= Mode == GuestMode.Paged ? Cr4Pse : Cr4Pae;
        if (Mode != GuestMode.Paged)
            sregs.Efer |= EferNx;
        if (Mode.IsLongMode())
            sregs.Efer |= EferLme | EferLma | EferSce;
    }
}

/// <summary>What an exception or interrupt left on the stack.</summary>
readonly record struct Trap(int Vector, ulong ErrorCode, ulong Rip, ulong Cs, ulong Flags, ulong Rsp);

delegate void RefAction<T>(ref T value);
