// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.InteropServices;
using System.Text;

namespace SharpKvm.Selftests;

/// <summary>A machine for tests of interrupts, with any number of CPUs in 64-bit mode.</summary>
/// <remarks>CPU 0 starts at its code with interrupts off; the others are like it, and wait for INIT and SIPI until
/// <see cref="Start"/> or the guest starts them. Each interrupt is counted and ends with an EOI
/// (<see cref="Count"/>, <see cref="Log"/>, <see cref="Eoi"/>); an exception ends the test. Local APICs are enabled by
/// software, in xAPIC mode, with their logical address one bit of the first eight. What takes longer than
/// <see cref="Limit"/> has failed.</remarks>
sealed class Machine : IDisposable
{
    /// <summary>For a single wait; the emulated machine below may be busy.</summary>
    public static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    const int NmiVector = 2, FirstInterrupt = 32;

    readonly Guest _guest;
    readonly List<Vcpu> _cpus = [];
    readonly List<VcpuThread> _threads = [];
    readonly Kicker _watchdog;
    readonly KvmSregs _sregs;
    ulong _nextProgram = MachineLayout.Programs;

    /// <param name="code">What CPU 0 runs; null when it comes later, by <see cref="Program"/>.</param>
    /// <param name="chips">The interrupt controllers in the kernel.</param>
    /// <param name="cpus">How many CPUs; their ids are 0, 1, …</param>
    /// <param name="prepare">Sees the machine before its first CPU is made.</param>
    public Machine(Action<Assembler>? code = null, Chips chips = Chips.Kernel, int cpus = 1,
        Action<Vm>? prepare = null)
    {
        _guest = new Guest(GuestMode.Long, vm =>
        {
            if (chips == Chips.Kernel)
                vm.CreateIrqchip();
            else if (chips == Chips.Split)
                vm.CreateSplitIrqchip(KvmIoapicState.NumPins);
            prepare?.Invoke(vm);
        });
        _watchdog = new Kicker(_guest.Vcpu, Limit);
        WriteHandlers();
        Trampoline.Write(Memory);
        Eoi = chips == Chips.None ? EoiMode.None : EoiMode.XApic;
        _cpus.Add(_guest.Vcpu);
        _sregs = _guest.Vcpu.Sregs;
        SetCpu(0);
        while (_cpus.Count < cpus)
            AddCpu((uint)_cpus.Count);
        if (code != null)
            Program(0, code);
        if (chips == Chips.None)
            return;
        for (int cpu = 0; cpu < cpus; cpu++)
            EnableApic(cpu);
    }

    public Kvm Kvm => _guest.Kvm;
    public Vm Vm => _guest.Vm;
    public GuestMemory Memory => _guest.Memory;

    /// <summary>CPU 0.</summary>
    public Vcpu Vcpu => _guest.Vcpu;

    public ref KvmRun Run => ref _guest.Run;
    public IReadOnlyList<Vcpu> Cpus => _cpus;

    /// <summary>How the counting handler ends interrupts.</summary>
    public EoiMode Eoi
    {
        get => Memory.Read<EoiMode>(MachineLayout.EoiMode);
        set => Memory.Write(MachineLayout.EoiMode, value);
    }

    /// <summary>What CPU 0 has saved since the last call of <see cref="Program"/> for it.</summary>
    public uint[] Results => MemoryMarshal.Cast<byte, uint>(Memory.Slice(MachineLayout.Results,
        (int)(Vcpu.Regs.R13 - MachineLayout.Results))).ToArray();

    /// <summary>Seconds between two time stamps that CPU 0 saved (<see cref="MachineAssembler.SaveTsc"/>), the first
    /// of which is this result.</summary>
    public double SecondsFrom(int result)
    {
        Span<byte> saved = Memory.Slice(MachineLayout.Results + (ulong)result * 4, 16);
        return (double)(BitConverter.ToUInt64(saved[8..]) - BitConverter.ToUInt64(saved)) / Vcpu.TscKhz / 1000;
    }

    /// <summary>How many interrupts of a vector a CPU has handled.</summary>
    public uint Count(int vector, int cpu = 0) =>
        Memory.Read<uint>(MachineLayout.CpuPage(cpu) + MachineLayout.Counts + (ulong)vector * 4);

    /// <summary>
    /// The vectors that a CPU has handled, in the order in which their handlers began (the last 256).
    /// </summary>
    public int[] Log(int cpu = 0)
    {
        ulong page = MachineLayout.CpuPage(cpu);
        int count = Memory.Read<int>(page + MachineLayout.LogCount);
        Check.That(count <= MachineLayout.LogLength, $"{count} interrupts: more than the log of {cpu} holds");
        return [.. Memory.Slice(page + MachineLayout.Log, count).ToArray().Select(vector => (int)vector)];
    }

    public void ExpectLog(string what, params int[] vectors) => ExpectLogOf(0, what, vectors);

    public void ExpectLogOf(int cpu, string what, params int[] vectors) =>
        Check.Equal(Show(vectors), Show(Log(cpu)), $"{what}: vectors that CPU {cpu} handled");

    /// <summary>One more CPU, with any id; returns its number here.</summary>
    public int AddCpu(uint id)
    {
        Vcpu vcpu = Vm.CreateVcpu(id);
        vcpu.Cpuid = Kvm.GetSupportedCpuid();
        _cpus.Add(vcpu);
        SetCpu(_cpus.Count - 1);
        return _cpus.Count - 1;
    }

    /// <summary>Code for a CPU, which starts there from now on, its registers fresh.</summary>
    public AssemblerResult Program(int cpu, Action<Assembler> code)
    {
        AssemblerResult result = Load(code, out ulong address);
        SetRegs(cpu, address);
        return result;
    }

    /// <summary>Code for a CPU that is started by SIPI (<see cref="MachineLayout.TrampolineVector"/>), whose APIC ID is
    /// its number.</summary>
    public void ProgramForSipi(int cpu, Action<Assembler> code)
    {
        Load(code, out ulong address);
        Memory.Write(MachineLayout.CpuPage(cpu) + MachineLayout.Entry, address);
    }

    /// <summary>Assembles code behind what is there; <paramref name="address"/> is where it came to lie.</summary>
    public AssemblerResult Load(Action<Assembler> code, out ulong address)
    {
        address = _nextProgram;
        (byte[] bytes, AssemblerResult result) = MachineCode.Assemble(64, address, code);
        Check.That(address + (ulong)bytes.Length <= MachineLayout.ProgramsEnd, "the test's code has room");
        Memory.Write(address, bytes);
        _nextProgram = (address + (ulong)bytes.Length + 15) & ~15ul;
        return result;
    }

    /// <summary>Code for a vector of all CPUs instead of the counting handler.</summary>
    public void Handle(int vector, Action<Assembler> code)
    {
        Load(code, out ulong address);
        GuestTables.SetGate(Memory, GuestMode.Long, vector, address);
    }

    /// <summary>From now on #GP is counted, as vector 13, and steps over the two bytes of RDMSR, WRMSR and the
    /// like.</summary>
    public void CatchGeneralProtection() => Handle(MachineAssembler.GeneralProtection, code =>
    {
        code.CountUp(MachineAssembler.GeneralProtection);
        code.add(__qword_ptr[rsp + 8], 2);
        code.add(rsp, 8);
        code.iretq();
    });

    /// <summary>Changes a CPU's local APIC.</summary>
    public void SetLapic(int cpu, RefAction<KvmLapicState> change)
    {
        KvmLapicState lapic = _cpus[cpu].Lapic;
        change(ref lapic);
        _cpus[cpu].Lapic = lapic;
    }

    /// <summary>The state after a firmware's set-up, as seen in the class's remarks.</summary>
    public void EnableApic(int cpu) => SetLapic(cpu, (ref lapic) =>
    {
        lapic[Apic.Svr] = Apic.SvrEnable | 0xFF;
        if (cpu < 8)
            lapic[Apic.Ldr] = 1u << (24 + cpu);
    });

    /// <summary>Puts a CPU's local APIC into x2APIC mode, enabled by software.</summary>
    public void EnableX2Apic(int cpu)
    {
        KvmSregs sregs = _cpus[cpu].Sregs;
        sregs.ApicBase |= Apic.BaseEnable | Apic.BaseX2;
        _cpus[cpu].Sregs = sregs;
        SetLapic(cpu, (ref lapic) => lapic[Apic.Svr] = Apic.SvrEnable | 0xFF);
    }

    /// <summary>The interrupts that wait in a CPU's local APIC.</summary>
    public int[] Pending(int cpu = 0) => _cpus[cpu].Lapic.Vectors(Apic.Irr);

    /// <summary>Runs CPU 0 in this thread to its next <see cref="MachineAssembler.Done"/>, whose number it
    /// returns.</summary>
    public byte RunToDone(string what = "run")
    {
        RunTo(KvmExit.Io, what);
        return CheckDone(Vcpu, what);
    }

    /// <summary>Runs CPU 0 in this thread until it leaves for the reason expected.</summary>
    public void RunTo(KvmExit expected, string what = "exit reason")
    {
        int result;
        do
            result = Vcpu.TryRun();
        while (result == -(int)Errno.EINTR && !_watchdog.Fired);
        if (result == -(int)Errno.EINTR)
            throw new TestFailure($"{what}: did not get there in {Limit.TotalSeconds} s; {DescribeCpus()}");
        Check.Succeeds(result, $"{what}: KVM_RUN");
        if (Run.ExitReason != expected)
            throw new TestFailure($"{what}: expected {expected}, got {DescribeExit()}");
    }

    /// <summary>Lets a CPU run in a thread of its own until its <see cref="MachineAssembler.Done"/>; other exits go to
    /// <paramref name="onExit"/>, false from which ends it too.</summary>
    public VcpuThread Start(int cpu, Func<Vcpu, bool>? onExit = null)
    {
        _cpus[cpu].MpState = KvmMpState.Runnable;
        return StartAsIs(cpu, onExit);
    }

    /// <summary>As <see cref="Start"/>, but the CPU is left in the state in which it is: one that waits for INIT and
    /// SIPI goes on waiting.</summary>
    public VcpuThread StartAsIs(int cpu, Func<Vcpu, bool>? onExit = null)
    {
        var thread = new VcpuThread(_cpus[cpu], vcpu =>
        {
            if (IsDone(vcpu))
                return false;
            if (onExit == null || IsException(vcpu))
                CheckDone(vcpu, "in its thread");
            return onExit!(vcpu);
        });
        _threads.Add(thread);
        return thread;
    }

    /// <summary>Waits for the end of all threads, and that each was a good one.</summary>
    public void Join(string what = "run")
    {
        try
        {
            Wait.Until(() => _threads.All(thread => thread.Ended) || _threads.Any(thread => thread.Failed),
                "all CPUs to be done", (int)Limit.TotalSeconds);
            foreach (VcpuThread thread in _threads.Where(thread => thread.Ended))
                thread.Join(Limit);
        }
        catch (Exception error) when (error is TestFailure or InvalidOperationException)
        {
            throw new TestFailure($"{what}: {error.Message}; {DescribeCpus()}");
        }
        _threads.Clear();
    }

    /// <summary>Gets all CPUs out of the guest, wherever they are.</summary>
    public void StopThreads()
    {
        foreach (VcpuThread thread in _threads)
            thread.Stop();
        _threads.Clear();
    }

    /// <summary>Waits until a CPU that runs in a thread has handled so many interrupts of a vector.</summary>
    public void WaitForCount(int vector, uint count, int cpu = 0)
    {
        try
        {
            Wait.Until(() => Count(vector, cpu) >= count, $"interrupt {vector:x} number {count} of CPU {cpu}",
                (int)Limit.TotalSeconds);
        }
        catch (TestFailure failure)
        {
            throw new TestFailure($"{failure.Message}; {DescribeCpus()}");
        }
    }

    public void Dispose()
    {
        StopThreads();
        _watchdog.Dispose();
        _guest.Dispose();
    }

    string DescribeExit() => IsException(Vcpu) ? DescribeException(Vcpu) : _guest.DescribeExit();

    /// <summary>Where all CPUs are; those that run are stopped for that.</summary>
    public string DescribeCpus()
    {
        StopThreads();
        var text = new StringBuilder();
        for (int cpu = 0; cpu < Math.Min(_cpus.Count, 8); cpu++)
        {
            KvmRegs regs = _cpus[cpu].Regs;
            text.Append($"CPU {cpu}: rip {regs.Rip:x} rflags {regs.Rflags:x}, {_cpus[cpu].Run.ExitReason}");
            KvmLapicState lapic = default;
            if (_cpus[cpu].TryCall(KvmIoctl.GetLapic, ref lapic) == 0)
                text.Append($", MP state {_cpus[cpu].MpState}, TPR {lapic[Apic.Tpr]:x}, IRR"
                    + $" {Show(lapic.Vectors(Apic.Irr))}, ISR {Show(lapic.Vectors(Apic.Isr))}");
            int[] seen = [.. Enumerable.Range(0, 256).Where(vector => Count(vector, cpu) != 0)];
            text.Append($", handled {string.Join(' ', seen.Select(vector => $"{vector:x}*{Count(vector, cpu)}"))}; ");
        }
        return text.ToString();
    }

    /// <summary>Vectors as a test's messages show them.</summary>
    public static string Show(IEnumerable<int> vectors) =>
        $"[{string.Join(' ', vectors.Select(vector => vector.ToString("x2")))}]";

    /// <summary>A CPU's last exit was its <see cref="MachineAssembler.Done"/>.</summary>
    public bool IsDone(int cpu) => IsDone(_cpus[cpu]);

    byte CheckDone(Vcpu vcpu, string what)
    {
        if (IsDone(vcpu))
            return vcpu.IoData[0];
        if (IsException(vcpu))
            throw new TestFailure($"{what}: {DescribeException(vcpu)}");
        KvmRunIo io = vcpu.Run.Io;
        throw new TestFailure($"{what}: CPU {vcpu.Id} left with {vcpu.Run.ExitReason}"
            + $" (port {io.Port:x}, or address {vcpu.Run.Mmio.PhysAddr:x}) at rip {vcpu.Regs.Rip:x}");
    }

    static bool IsDone(Vcpu vcpu) => IsOut(vcpu, MachineLayout.DonePort);

    static bool IsException(Vcpu vcpu) => IsOut(vcpu, MachineLayout.ExceptionPort);

    static bool IsOut(Vcpu vcpu, ushort port) => vcpu.Run.ExitReason == KvmExit.Io && vcpu.Run.Io.Port == port
        && vcpu.Run.Io.Direction == KvmRunIo.Out;

    string DescribeException(Vcpu vcpu)
    {
        ulong stack = vcpu.Regs.Rsp;
        string frame = stack + 24 <= GuestLayout.RamSize
            ? string.Join(' ', Enumerable.Range(0, 3).Select(i => $"{Memory.Read<ulong>(stack + (ulong)i * 8):x}"))
            : "none";
        return $"exception {vcpu.IoData[0]} in CPU {vcpu.Id}, stack {frame}, cr2 {vcpu.Sregs.Cr2:x}";
    }

    void SetCpu(int cpu)
    {
        ulong page = cpu < MachineLayout.MaxCpus ? MachineLayout.CpuPage(cpu) : 0;
        // CPU 0 may be running by now.
        KvmSregs sregs = _sregs;
        sregs.ApicBase = _cpus[cpu].Sregs.ApicBase;
        sregs.Gs.Base = page;
        _cpus[cpu].Sregs = sregs;
        if (page != 0)
            Memory.Write(page + MachineLayout.Index, (uint)cpu);
    }

    void SetRegs(int cpu, ulong rip) => _cpus[cpu].Regs = new()
    {
        Rip = rip, Rsp = MachineLayout.CpuPage(cpu) + MachineLayout.PerCpuSize, Rflags = 2,
        R13 = MachineLayout.Results, R14 = Ioapic.Base, R15 = Apic.Base,
    };

    void WriteHandlers()
    {
        Load(CountingHandler, out ulong handler);
        Load(code =>
        {
            code.CountUp(NmiVector);
            code.iretq();
        }, out ulong nmi);
        for (int vector = 0; vector < 256; vector++)
        {
            ulong stub = GuestTables.StubAddress(vector);
            Memory.Write(stub, MachineCode.Bytes(64, stub, code =>
            {
                if (vector < FirstInterrupt)
                {
                    Label again = code.CreateLabel();
                    code.Label(ref again);
                    code.mov(al, (byte)vector);
                    code.@out(MachineLayout.ExceptionPort, al);
                    code.jmp(again);
                    return;
                }
                code.push(vector);
                code.jmp(handler);
            }));
        }
        GuestTables.SetGate(Memory, GuestMode.Long, NmiVector, nmi);
    }

    /// <summary>Entered with the vector on the stack.</summary>
    static void CountingHandler(Assembler code)
    {
        Label notXApic = code.CreateLabel(), notX2Apic = code.CreateLabel(), end = code.CreateLabel();
        code.push(rax);
        code.push(rcx);
        code.push(rdx);
        code.mov(eax, __dword_ptr[rsp + 24]);
        code.inc(__dword_ptr.gs[rax * 4 + MachineLayout.Counts]);
        code.movzx(ecx, __byte_ptr.gs[MachineLayout.LogCount]);
        code.mov(__byte_ptr.gs[rcx + MachineLayout.Log], al);
        code.inc(__dword_ptr.gs[MachineLayout.LogCount]);
        code.mov(eax, __dword_ptr[(long)MachineLayout.EoiMode]);

        code.cmp(eax, (int)EoiMode.XApic);
        code.jne(notXApic);
        code.mov(ecx, (uint)Apic.Base);
        code.mov(__dword_ptr[rcx + Apic.Eoi], 0);
        code.jmp(end);

        code.Label(ref notXApic);
        code.cmp(eax, (int)EoiMode.X2Apic);
        code.jne(notX2Apic);
        code.WriteMsr(Apic.Msr(Apic.Eoi), 0);
        code.jmp(end);

        code.Label(ref notX2Apic);
        code.cmp(eax, (int)EoiMode.Pic);
        code.jne(end);
        code.mov(al, 0x20);
        code.@out(0xA0, al);
        code.@out(0x20, al);

        code.Label(ref end);
        code.pop(rdx);
        code.pop(rcx);
        code.pop(rax);
        code.add(rsp, 8);
        code.iretq();
    }
}
