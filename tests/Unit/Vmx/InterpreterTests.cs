// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Vm;
using SharpKvm.Vmx;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Vmx;

/// <summary>A CPU without unrestricted guests: real mode and code without paging are run by the emulator.</summary>
public class InterpreterTests
{
    private const ulong WithoutUnrestricted = 0x02577f7f_00000000;
    private const ushort RealCode = 0x9b, RealData = 0x93;
    private const ulong Handler = 0x2000, Gdt = 0x3000;

    private static VmxGuest Guest(bool real, IrqchipMode mode = IrqchipMode.None)
    {
        VmxGuest guest = new(cpu => cpu.Msrs[0x48b] = WithoutUnrestricted, mode: mode);
        if (!real)
            return guest;
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Et);
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
            VmxVendor.SetSegment(ref guest.Vcpu, name,
                new() { Limit = ushort.MaxValue, Attributes = name == SegmentName.Cs ? RealCode : RealData });
        return guest;
    }

    private static void Assemble(VmxGuest guest, ulong address, int bits, Action<Assembler> code)
    {
        Assembler assembler = new(bits);
        code(assembler);
        using MemoryStream stream = new();
        assembler.Assemble(new StreamCodeWriter(stream), address);
        guest.Write(address, stream.ToArray());
    }

    private static void SetVector(VmxGuest guest, int vector, ulong offset) =>
        guest.Write((ulong)vector * 4, BitConverter.GetBytes((uint)offset));

    /// <summary>What firmware does: interrupts, devices, to protected mode and back, and sleep.</summary>
    [Test]
    public void FromRealModeToProtectedModeAndBack()
    {
        const ushort Code32 = 8, Data32 = 0x10, Code16 = 0x18;
        using VmxGuest guest = Guest(real: true);
        guest.Write(Gdt + Code32, BitConverter.GetBytes(0x00cf9a000000fffful));
        guest.Write(Gdt + Data32, BitConverter.GetBytes(0x00cf92000000fffful));
        guest.Write(Gdt + Code16, BitConverter.GetBytes(0x00009a000000fffful));
        guest.Write(0x3100, [0x1f, 0, 0, 0x30, 0, 0]);
        SetVector(guest, 0x21, Handler);
        SetVector(guest, 0x30, Handler + 0x100);
        Assemble(guest, Handler, 16, c => { c.inc(cx); c.iret(); });
        Assemble(guest, Handler + 0x100, 16, c => { c.@out(0x81, al); c.iret(); });
        Assemble(guest, VmxGuest.Code, 16, c =>
        {
            c.@int(0x21);
            c.lgdt(__[0x3100]);
            c.mov(eax, cr0);
            c.or(al, 1);
            c.mov(cr0, eax);
            c.db(0x66, 0xea, 0x00, 0x11, 0x00, 0x00, (byte)Code32, 0x00);
        });
        Assemble(guest, 0x1100, 32, c =>
        {
            c.mov(eax, Data32);
            c.mov(ds, eax);
            c.mov(__dword_ptr[0x4000], 0x12345678);
            c.db(0xea, 0x00, 0x12, 0x00, 0x00, (byte)Code16, 0x00);
        });
        Assemble(guest, 0x1200, 16, c =>
        {
            c.mov(eax, cr0);
            c.and(al, 0xfe);
            c.mov(cr0, eax);
            c.db(0xea, 0x00, 0x13, 0x00, 0x00);
        });
        Assemble(guest, 0x1300, 16, c =>
        {
            c.mov(al, 0x55);
            c.@out(0x80, al);
            c.sti();
            c.hlt();
            c.nop();
            c.hlt();
        });
        guest.RunTo(Exit.KVM_EXIT_IO);
        Assert.That((guest.RunPage.io.port, guest.Port[0]), Is.EqualTo((0x80, 0x55)));
        Assert.That(guest.Read<uint>(0x4000), Is.EqualTo(0x12345678));
        Assert.That(guest.Registers[Gpr.Rcx], Is.EqualTo(1));
        guest.RunTo(Exit.KVM_EXIT_HLT);
        guest.Interrupt(0x30);
        guest.RunTo(Exit.KVM_EXIT_IO);
        Assert.That(guest.RunPage.io.port, Is.EqualTo(0x81));
        guest.RunTo(Exit.KVM_EXIT_HLT);
        Assert.That((guest.Registers.Rip, guest.Registers[Gpr.Rsp]), Is.EqualTo((0x1308ul, 0x7000ul)));
        Assert.That(guest.Entries, Is.Empty, "hardware could not");
    }

    [Test]
    public void HardwareTakesOverWhenPagingIsOn()
    {
        const ulong Directory = 0x8000;
        using VmxGuest guest = Guest(real: false);
        guest.Write(Directory, BitConverter.GetBytes(0x83u));
        VmxVendor.SetCr4(ref guest.Vcpu, Cr4.Pse);
        VmxVendor.SetCr3(ref guest.Vcpu, Directory);
        Assemble(guest, VmxGuest.Code, 32, c =>
        {
            c.mov(eax, cr0);
            c.or(eax, 0x80000000);
            c.mov(cr0, eax);
        });
        guest.RunThrough();
        Assert.That(guest.Entries, Has.Count.EqualTo(1));
        Assert.That(guest.Entries[0].Rip, Is.EqualTo(VmxGuest.Code + 11));
        Assert.That(guest.Entries[0][VmcsField.Cr0] & (Cr0.Pe | Cr0.Pg), Is.EqualTo(Cr0.Pe | Cr0.Pg));
    }

    [Test]
    public void AnEndlessLoopCanBeLeft([Values] bool real)
    {
        using VmxGuest guest = Guest(real);
        guest.Write(VmxGuest.Code, [0xeb, 0xfe]);
        guest.Host.Thread.SignalPending = true;
        Assert.That(RunLoop<VmxVendor>.Run(ref guest.Vcpu), Is.EqualTo(Errno.EINTR));
        Assert.That(guest.RunPage.exit_reason, Is.EqualTo(Exit.KVM_EXIT_INTR));
        Assert.That(guest.Entries, Is.Empty);
    }

    [Test]
    public void NmisAreBlockedUntilIret()
    {
        using VmxGuest guest = Guest(real: true);
        SetVector(guest, 2, Handler);
        Assemble(guest, Handler, 16, c => { c.@out(0x70, al); c.iret(); });
        Assemble(guest, VmxGuest.Code, 16, c => { c.nop(); c.@out(0x71, al); });
        guest.Nmi();
        guest.RunTo(Exit.KVM_EXIT_IO);
        Assert.That(guest.RunPage.io.port, Is.EqualTo(0x70));
        guest.Nmi();
        Assert.That(VmxVendor.GetNmiMasked(ref guest.Vcpu), Is.True);
        guest.RunTo(Exit.KVM_EXIT_IO);
        Assert.That((guest.RunPage.io.port, guest.Registers[Gpr.Rsp]), Is.EqualTo((0x70, 0x7000ul - 6)), "the second");
        guest.RunTo(Exit.KVM_EXIT_IO);
        Assert.That(guest.RunPage.io.port, Is.EqualTo(0x71));
        Assert.That(VmxVendor.GetNmiMasked(ref guest.Vcpu), Is.False);
    }

    [Test]
    public void AnInterruptWaitsForStiAndTheInstructionAfter()
    {
        using VmxGuest guest = Guest(real: true);
        SetVector(guest, 0x30, Handler);
        Assemble(guest, Handler, 16, c => c.hlt());
        Assemble(guest, VmxGuest.Code, 16, c => { c.sti(); c.inc(cx); c.inc(cx); c.inc(cx); });
        guest.RunPage.request_interrupt_window = 1;
        guest.RunTo(Exit.KVM_EXIT_IRQ_WINDOW_OPEN);
        guest.RunPage.request_interrupt_window = 0;
        guest.Interrupt(0x30);
        guest.RunTo(Exit.KVM_EXIT_HLT);
        Assert.That(guest.Registers[Gpr.Rcx], Is.EqualTo(1));
    }

    /// <summary>Its handler, its double fault, and shutdown.</summary>
    [TestCase(0x3ff, 0)]
    [TestCase(0x23, 8)]
    [TestCase(0x1f, -1)]
    public void ExceptionsAreDelivered(int limit, int vector)
    {
        using VmxGuest guest = Guest(real: true);
        // Overflow of the table for #UD (6) needs a smaller one: INT 20h raises #GP, whose entry is missing, too.
        VmxVendor.SetTable(ref guest.Vcpu, SegmentName.Idtr, new() { Limit = (ushort)limit });
        for (int n = 0; n < 32; n++)
            SetVector(guest, n, Handler + 16 * (ulong)n);
        for (int n = 0; n < 32; n++)
            guest.Write(Handler + 16 * (ulong)n, [0xf4]);
        guest.Write(VmxGuest.Code, limit == 0x3ff ? [0xf6, 0xf1] : [0xcd, 0x20]);
        guest.RunTo(vector < 0 ? Exit.KVM_EXIT_SHUTDOWN : Exit.KVM_EXIT_HLT);
        if (vector >= 0)
            Assert.That(guest.Registers.Rip, Is.EqualTo(Handler + 16 * (ulong)vector + 1));
    }

    [Test]
    public void UserSpaceStepsThroughRealMode()
    {
        using VmxGuest guest = Guest(real: true);
        Assemble(guest, VmxGuest.Code, 16, c => { c.nop(); c.inc(cx); });
        guest.Debug(kvm_guest_debug.KVM_GUESTDBG_ENABLE | kvm_guest_debug.KVM_GUESTDBG_SINGLESTEP);
        guest.RunTo(Exit.KVM_EXIT_DEBUG);
        Assert.That(guest.RunPage.debug.pc, Is.EqualTo(VmxGuest.Code + 1));
        guest.RunTo(Exit.KVM_EXIT_DEBUG);
        Assert.That((guest.RunPage.debug.pc, guest.Registers[Gpr.Rcx]), Is.EqualTo((VmxGuest.Code + 2, 1ul)));
    }

    [Test]
    public void WhatIsNotEmulatedIsShownToUserSpace()
    {
        using VmxGuest guest = Guest(real: true);
        guest.Write(VmxGuest.Code, [0xd9, 0xc0]);
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR);
        Assert.That(guest.RunPage.@internal.suberror, Is.EqualTo(kvm_run.KVM_INTERNAL_ERROR_EMULATION));
    }

    /// <summary>Where its vector is only user space knows; what it pushes goes there as any write.</summary>
    [Test]
    public void DeliveriesAndDevices([Values] bool table)
    {
        using VmxGuest guest = Guest(real: true);
        SetVector(guest, 0, Handler);
        guest.Write(VmxGuest.Code, [0xf6, 0xf1]);
        if (table)
        {
            VmxVendor.SetTable(ref guest.Vcpu, SegmentName.Idtr, new() { Base = VmxGuest.Device, Limit = 0x3ff });
            guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR);
            Assert.That(guest.RunPage.@internal.suberror, Is.EqualTo(kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV));
            return;
        }
        VmxVendor.SetSegment(ref guest.Vcpu, SegmentName.Ss,
            new() { Base = VmxGuest.Device, Limit = ushort.MaxValue, Attributes = RealData });
        for (uint n = 1; n <= 3; n++)
        {
            guest.RunTo(Exit.KVM_EXIT_MMIO);
            Assert.That(guest.RunPage.mmio.phys_addr, Is.EqualTo(VmxGuest.Device + 0x7000 - 2 * n));
        }
        guest.Write(Handler, [0xf4]);
        guest.RunTo(Exit.KVM_EXIT_HLT);
        Assert.That(guest.Registers.Rip, Is.EqualTo(Handler + 1));
    }

    /// <summary>What an entry refuses (SDM vol. 3, 27.3.1.2); protected mode with paging.</summary>
    [TestCase((byte)SegmentName.Cs, 8, 0xc9b, true, TestName = "flat code")]
    [TestCase((byte)SegmentName.Cs, 8, 0xc9a, false, TestName = "code that was not accessed")]
    [TestCase((byte)SegmentName.Cs, 8, 0xc93, false, TestName = "data for code")]
    [TestCase((byte)SegmentName.Cs, 8, 0xcfb, false, TestName = "code of another level than the stack")]
    [TestCase((byte)SegmentName.Cs, 8, 0xc9f, true, TestName = "conforming code")]
    [TestCase((byte)SegmentName.Cs, 11, 0xc9b, false, TestName = "code with another RPL than the stack")]
    [TestCase((byte)SegmentName.Ss, 0x10, 0xc93, true, TestName = "a flat stack")]
    [TestCase((byte)SegmentName.Ss, 0x13, 0xc93, false, TestName = "a stack with a wrong RPL")]
    [TestCase((byte)SegmentName.Ss, 0x10, 0xc91, false, TestName = "a read-only stack")]
    [TestCase((byte)SegmentName.Ds, 0x10, 0xc93, true, TestName = "flat data")]
    [TestCase((byte)SegmentName.Ds, 0, 0, true, TestName = "no data")]
    [TestCase((byte)SegmentName.Ds, 0x13, 0xc93, false, TestName = "data with an RPL above its DPL")]
    [TestCase((byte)SegmentName.Ds, 8, 0xc99, false, TestName = "code that cannot be read as data")]
    [TestCase((byte)SegmentName.Ldtr, 0x20, 0x82, true, TestName = "an LDT")]
    [TestCase((byte)SegmentName.Ldtr, 0x24, 0x82, false, TestName = "an LDT from the LDT")]
    [TestCase((byte)SegmentName.Ldtr, 0x20, 0x83, false, TestName = "a task for the LDT")]
    [TestCase((byte)SegmentName.Tr, 0x28, 0x8b, true, TestName = "a task")]
    [TestCase((byte)SegmentName.Tr, 0x28, 0x89, false, TestName = "a task that is not busy")]
    public void SegmentsThatAnEntryTakes(byte name, int selector, int attributes, bool enters)
    {
        using VmxGuest guest = Guest(real: false);
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Pe | Cr0.Pg | Cr0.Et);
        Assert.That(VmxVendor.CanRun(ref guest.Vcpu), Is.True);
        VmxVendor.SetSegment(ref guest.Vcpu, (SegmentName)name,
            new() { Selector = (ushort)selector, Attributes = (ushort)attributes, Limit = uint.MaxValue });
        Assert.That(VmxVendor.CanRun(ref guest.Vcpu), Is.EqualTo(enters));
    }

    [TestCase(0xf3, 0x1234, 0x12340ul, true)]
    [TestCase(0x93, 0x1234, 0x12340ul, false)]
    [TestCase(0xf3, 0x1234, 0x12350ul, false)]
    public void VirtualSegmentsThatAnEntryTakes(int attributes, int selector, ulong start, bool enters)
    {
        using VmxGuest guest = Guest(real: false);
        guest.Registers.Rflags |= Rflags.Vm;
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Pe | Cr0.Pg | Cr0.Et);
        for (SegmentName name = SegmentName.Es; name <= SegmentName.Gs; name++)
            VmxVendor.SetSegment(ref guest.Vcpu, name, new()
            {
                Selector = (ushort)selector, Base = start, Attributes = (ushort)attributes, Limit = ushort.MaxValue,
            });
        Assert.That(VmxVendor.CanRun(ref guest.Vcpu), Is.EqualTo(enters));
    }

    [Test]
    public void UnrestrictedGuestsAlwaysRun()
    {
        using VmxGuest guest = new();
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Et);
        Assert.That(VmxVendor.CanRun(ref guest.Vcpu), Is.True);
    }
}
