// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Guest code in pieces that a test of interrupts is put together from; 64-bit, for a
/// <see cref="Machine"/>.</summary>
/// <remarks>r15 is the local APIC's page, r14 the I/O APIC's, r13 where the next result goes, GS the CPU's own
/// page. Everything else may be overwritten by any of them.</remarks>
static class MachineAssembler
{
    public const int GeneralProtection = 13;

    /// <summary>How many interrupts of a vector this CPU has handled.</summary>
    public static AssemblerMemoryOperand CountOf(int vector) =>
        __dword_ptr.gs[MachineLayout.Counts + vector * 4];

    /// <summary>For handlers of a test's own: counts like the others.</summary>
    public static void CountUp(this Assembler code, int vector) => code.inc(CountOf(vector));

    /// <summary>Leaves to the test, which is done or goes on with the next step.</summary>
    public static void Done(this Assembler code, byte number = 0)
    {
        code.mov(al, number);
        code.@out(MachineLayout.DonePort, al);
    }

    /// <summary>Adds eax to <see cref="Machine.Results"/>.</summary>
    public static void Save(this Assembler code)
    {
        code.mov(__dword_ptr[r13], eax);
        code.add(r13, 4);
    }

    public static void ApicWrite(this Assembler code, int register, uint value) =>
        code.mov(__dword_ptr[r15 + register], (int)value);

    /// <summary>To eax.</summary>
    public static void ApicRead(this Assembler code, int register) => code.mov(eax, __dword_ptr[r15 + register]);

    public static void ApicSave(this Assembler code, int register)
    {
        code.ApicRead(register);
        code.Save();
    }

    /// <summary>An IPI by the xAPIC's two registers.</summary>
    public static void Ipi(this Assembler code, uint command, uint destination = 0)
    {
        code.ApicWrite(Apic.IcrHigh, destination << 24);
        code.ApicWrite(Apic.Icr, command | Apic.Assert);
    }

    /// <summary>INIT, and SIPI twice, as firmware starts CPUs.</summary>
    public static void StartCpus(this Assembler code, uint shorthand = Apic.ToOthers, uint destination = 0)
    {
        code.Ipi(Apic.Init | shorthand, destination);
        for (int i = 0; i < 2; i++)
            code.Ipi(Apic.Startup | shorthand | MachineLayout.TrampolineVector, destination);
    }

    public static void WriteMsr(this Assembler code, uint msr, ulong value)
    {
        code.mov(ecx, msr);
        code.mov(eax, (uint)value);
        code.mov(edx, (uint)(value >> 32));
        code.wrmsr();
    }

    /// <summary>To edx:eax.</summary>
    public static void ReadMsr(this Assembler code, uint msr)
    {
        code.mov(ecx, msr);
        code.rdmsr();
    }

    public static void X2Write(this Assembler code, int register, ulong value) =>
        code.WriteMsr(Apic.Msr(register), value);

    /// <summary>To eax.</summary>
    public static void X2Read(this Assembler code, int register) => code.ReadMsr(Apic.Msr(register));

    public static void X2Ipi(this Assembler code, uint command, uint destination = 0) =>
        code.X2Write(Apic.Icr, (ulong)destination << 32 | command | Apic.Assert);

    public static void IoapicWrite(this Assembler code, byte index, uint value)
    {
        code.mov(__dword_ptr[r14], index);
        code.mov(__dword_ptr[r14 + 0x10], (int)value);
    }

    /// <summary>To eax.</summary>
    public static void IoapicRead(this Assembler code, byte index)
    {
        code.mov(__dword_ptr[r14], index);
        code.mov(eax, __dword_ptr[r14 + 0x10]);
    }

    /// <summary>One entry of the I/O APIC's redirection table, masked in between.</summary>
    public static void IoapicRoute(this Assembler code, int pin, uint entry, byte destination = 0)
    {
        code.IoapicWrite((byte)(0x10 + pin * 2), (uint)KvmIoapicState.Masked);
        code.IoapicWrite((byte)(0x11 + pin * 2), (uint)destination << 24);
        code.IoapicWrite((byte)(0x10 + pin * 2), entry);
    }

    public static void PortOut(this Assembler code, ushort port, byte value)
    {
        code.mov(dx, port);
        code.mov(al, value);
        code.@out(dx, al);
    }

    /// <summary>To eax.</summary>
    public static void PortIn(this Assembler code, ushort port)
    {
        code.xor(eax, eax);
        code.mov(dx, port);
        code.@in(al, dx);
    }

    /// <summary>Both 8259s as a PC's firmware sets them up: vectors from 0x20 and 0x28 on, the second one at the first
    /// one's line 2.</summary>
    public static void PicInit(this Assembler code, ushort mask = 0, byte icw4 = 1)
    {
        foreach ((ushort port, byte vector, byte cascade) in new (ushort, byte, byte)[]
            { (0x20, 0x20, 4), (0xA0, 0x28, 2) })
        {
            code.PortOut(port, 0x11);
            code.PortOut((ushort)(port + 1), vector);
            code.PortOut((ushort)(port + 1), cascade);
            code.PortOut((ushort)(port + 1), icw4);
        }
        code.PortOut(0x21, (byte)mask);
        code.PortOut(0xA1, (byte)(mask >> 8));
    }

    /// <summary>A mode and count for one of the 8254's channels, low byte first.</summary>
    public static void PitProgram(this Assembler code, int channel, int mode, ushort count)
    {
        code.PortOut(0x43, (byte)(channel << 6 | 0x30 | mode << 1));
        code.PortOut((ushort)(0x40 + channel), (byte)count);
        code.PortOut((ushort)(0x40 + channel), (byte)(count >> 8));
    }

    /// <summary>The time stamp counter to rax; rdx is overwritten.</summary>
    public static void ReadTsc(this Assembler code)
    {
        code.lfence();
        code.rdtsc();
        code.shl(rdx, 32);
        code.or(rax, rdx);
    }

    /// <summary>The time stamp counter as a result of 64 bits; rdx is overwritten.</summary>
    public static void SaveTsc(this Assembler code)
    {
        code.ReadTsc();
        code.mov(__qword_ptr[r13], rax);
        code.add(r13, 8);
    }

    /// <summary>How many #GP there were so far, as a result (<see cref="Machine.CatchGeneralProtection"/>).</summary>
    public static void SaveFaults(this Assembler code)
    {
        code.mov(eax, CountOf(GeneralProtection));
        code.Save();
    }

    /// <summary>Spins until this CPU has had so many interrupts of a vector. The test's limit ends it
    /// otherwise.</summary>
    public static void SpinFor(this Assembler code, int vector, uint count) =>
        code.WaitUntil(halt: false, () => code.cmp(CountOf(vector), (int)count));

    /// <summary>Spins until a 32-bit variable has at least this value.</summary>
    public static void SpinUntil(this Assembler code, ulong variable, uint value) =>
        code.WaitUntil(halt: false, () => code.cmp(__dword_ptr[(long)variable], (int)value));

    /// <inheritdoc cref="SpinUntil(Assembler,ulong,uint)"/>
    public static void SpinUntil(this Assembler code, ulong variable, AssemblerRegister32 value) =>
        code.WaitUntil(halt: false, () => code.cmp(__dword_ptr[(long)variable], value));

    /// <summary>Halts until this CPU has had so many interrupts of a vector; leaves interrupts on.</summary>
    public static void HaltFor(this Assembler code, int vector, uint count) =>
        code.WaitUntil(halt: true, () => code.cmp(CountOf(vector), (int)count));

    /// <inheritdoc cref="HaltFor(Assembler,int,uint)"/>
    public static void HaltFor(this Assembler code, int vector, AssemblerRegister32 count) =>
        code.WaitUntil(halt: true, () => code.cmp(CountOf(vector), count));

    /// <summary>Waits until what <paramref name="compare"/> compares is not below, as unsigned numbers.</summary>
    static void WaitUntil(this Assembler code, bool halt, Action compare)
    {
        Label again = code.CreateLabel(), done = code.CreateLabel();
        code.nop(); // another label may stand here
        code.Label(ref again);
        if (halt)
            code.cli();
        compare();
        code.jae(done);
        if (halt)
        {
            code.sti();
            code.hlt();
        }
        else
            code.pause();
        code.jmp(again);
        code.Label(ref done);
        if (halt)
            code.sti();
        else
            code.nop();
    }

    /// <summary>Takes interrupts for a moment after each <see cref="Done"/>, for ever.</summary>
    public static void TakeInterruptsInSteps(this Assembler code)
    {
        Label again = code.CreateLabel();
        code.nop();
        code.Label(ref again);
        code.Done();
        code.TakeInterrupts();
        code.jmp(again);
    }

    /// <summary>Interrupts are taken for a few instructions.</summary>
    public static void TakeInterrupts(this Assembler code)
    {
        code.sti();
        for (int i = 0; i < 4; i++)
            code.nop();
        code.cli();
    }

    /// <summary>Does nothing for ever, with interrupts as they are.</summary>
    public static void Idle(this Assembler code)
    {
        Label self = code.CreateLabel();
        code.Label(ref self);
        code.pause();
        code.jmp(self);
    }
}
