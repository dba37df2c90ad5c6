// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>What a CPU executes after INIT and SIPI: from real mode to 64-bit mode, to its own code.</summary>
static class Trampoline
{
    const uint Cr4 = 0x620, Efer = 0x901, Cr0 = 0x80010033, EferMsr = 0xC0000080, GsBaseMsr = 0xC0000101;

    public static void Write(GuestMemory memory)
    {
        memory.Write<ushort>(MachineLayout.TrampolineTables, 0x7FF);
        memory.Write(MachineLayout.TrampolineTables + 2, GuestLayout.Gdt);
        memory.Write<ushort>(MachineLayout.TrampolineTables + 0x10, 0xFFF);
        memory.Write(MachineLayout.TrampolineTables + 0x12, GuestLayout.Idt);
        memory.Write(MachineLayout.Trampoline, MachineCode.Bytes(16, 0, RealMode));
        memory.Write(MachineLayout.Trampoline64, MachineCode.Bytes(64, MachineLayout.Trampoline64, LongMode));
    }

    static void RealMode(Assembler code)
    {
        const ushort Tables = (ushort)(MachineLayout.TrampolineTables & 0xFFFF);
        code.mov(ax, cs);
        code.mov(ds, ax);
        code.db(0x0F, 0x01, 0x16, (byte)Tables, Tables >> 8); // lgdt [Tables]
        code.mov(eax, Cr4);
        code.mov(cr4, eax);
        code.mov(eax, (uint)GuestLayout.PageTables);
        code.mov(cr3, eax);
        code.mov(ecx, EferMsr);
        code.xor(edx, edx);
        code.mov(eax, Efer);
        code.wrmsr();
        code.mov(eax, Cr0);
        code.mov(cr0, eax);
        code.db(0x66, 0xEA); // jmp Code64:Trampoline64
        code.dd((uint)MachineLayout.Trampoline64);
        code.dw(GuestLayout.Code64);
    }

    static void LongMode(Assembler code)
    {
        Label x2Apic = code.CreateLabel(), known = code.CreateLabel();
        code.mov(eax, (uint)GuestLayout.Data32);
        code.mov(ds, ax);
        code.mov(es, ax);
        code.mov(ss, ax);
        code.mov(r13d, (uint)MachineLayout.Results);
        code.mov(r14d, (uint)Ioapic.Base);
        code.mov(r15d, (uint)Apic.Base);
        code.ReadMsr(Apic.BaseMsr);
        code.test(eax, (uint)Apic.BaseX2);
        code.jnz(x2Apic);
        code.ApicWrite(Apic.Svr, Apic.SvrEnable | 0xFF);
        code.ApicRead(Apic.Id);
        code.shr(eax, 24);
        code.jmp(known);
        code.Label(ref x2Apic);
        code.X2Write(Apic.Svr, Apic.SvrEnable | 0xFF);
        code.X2Read(Apic.Id);
        code.Label(ref known);
        code.imul(eax, eax, (int)MachineLayout.PerCpuSize);
        code.add(eax, (int)MachineLayout.PerCpu);
        code.lea(rsp, __[rax + (int)MachineLayout.PerCpuSize]);
        code.xor(edx, edx);
        code.mov(ecx, GsBaseMsr);
        code.wrmsr();
        code.lidt(__[(long)(MachineLayout.TrampolineTables + 0x10)]);
        code.jmp(__qword_ptr.gs[MachineLayout.Entry]);
    }
}
