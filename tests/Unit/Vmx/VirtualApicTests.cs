// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Tests.Mmu;
using SharpKvm.Vm;
using SharpKvm.Vmx;
using static Iced.Intel.AssemblerRegisters;
using Lapics = SharpKvm.Interrupts.Apic<SharpKvm.Vmx.VmxVendor>;

namespace SharpKvm.Tests.Vmx;

/// <summary>
/// A CPU that has the local APIC's registers, delivers its interrupts and takes posted ones (SDM vol. 3, chapter 30).
/// </summary>
public class VirtualApicTests
{
    private const byte Vector = 0x61;
    private const ulong ApicPlace = 0xfee0_0000;
    private const uint Posted = 1 << 7;
    private const uint Accesses = 1 << 0, X2apic = 1 << 4, Registers = 1 << 8, Delivery = 1 << 9,
        All = Accesses | X2apic | Registers | Delivery;

    private static VmxGuest Guest(IrqchipMode mode = IrqchipMode.Kernel, Action<SimulatedCpu>? change = null)
    {
        VmxGuest guest = new(change, mode: mode);
        guest.Registers.Rflags |= Rflags.If;
        guest.Host.Thread.Kicks.Clear();
        return guest;
    }

    private static ulong Secondary(VmxGuest guest) => guest.Vmcs[VmcsField.SecondaryControls] & All;

    private static int Send(VmxGuest guest, byte vector = Vector, bool level = false) =>
        ApicBus.Send(ref guest.Vm, new() { Vector = new Vector(vector), Level = level });

    private static bool SetMode(VmxGuest guest, ApicMode mode, ulong place = ApicPlace) => Lapics.TrySetBase(
        ref guest.Vcpu, place | guest.Vcpu.Msrs.ApicBase & ApicBase.Bsp | (ulong)mode << 10, host: true);

    /// <summary>The page as the guest finds it: a word at every 16 bytes.</summary>
    private static ref uint Word(VmxGuest guest, int register) => ref guest.Vcpu.Apic.Registers[register];

    [Test]
    public void TheModeSaysByWhichWayTheRegistersAreTheCpus()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough();
        Assert.That(Secondary(guest), Is.EqualTo(Accesses | Registers | Delivery));
        Assert.That(guest.Vmcs[VmcsField.MsrBitmap], Is.EqualTo(VmxHardware.MsrBitmaps[0].Value));
        guest.Vcpu.Shared.Flags &= ~EntryFlags.Flushes;
        Assert.That(SetMode(guest, ApicMode.X2apic));
        Assert.That(guest.Vcpu.Shared.Flags & EntryFlags.Flushes, Is.EqualTo(EntryFlags.Flushes));
        Assert.That(Secondary(guest), Is.EqualTo(X2apic | Registers | Delivery));
        Assert.That(guest.Vmcs[VmcsField.MsrBitmap], Is.EqualTo(VmxHardware.MsrBitmaps[1].Value));
        Assert.That(SetMode(guest, ApicMode.Disabled));
        Assert.That(Secondary(guest), Is.EqualTo(Registers | Delivery));
        Assert.That(guest.Vmcs[VmcsField.MsrBitmap], Is.EqualTo(VmxHardware.MsrBitmaps[0].Value));
        Assert.That(guest.Vmcs[VmcsField.PinControls] & Posted, Is.EqualTo(Posted));
        Assert.That(guest.Vmcs[VmcsField.VirtualApic], Is.EqualTo(guest.Vcpu.Apic.Page.Value));
        Assert.That(guest.Vmcs[VmcsField.PostedDescriptor], Is.EqualTo(guest.Vcpu.Apic.Page.Value + 0x400));
        Assert.That(guest.Vmcs[VmcsField.PostedVector], Is.EqualTo(0xf2));
    }

    [Test]
    public void AGuestWithoutAnApicHasNothingOfIt()
    {
        using VmxGuest guest = Guest(IrqchipMode.None);
        guest.RunThrough();
        Assert.That((Secondary(guest), guest.Vmcs[VmcsField.PinControls] & Posted), Is.EqualTo((0ul, 0ul)));
    }

    /// <summary>All of it or nothing; the APIC-access page needs no more than the shadow of TPR.</summary>
    [TestCase(0x48bu, 36, Accesses)] // no x2APIC
    [TestCase(0x48bu, 40, Accesses)] // no registers
    [TestCase(0x48bu, 41, Accesses)] // no delivery
    [TestCase(0x48bu, 39, Accesses)] // the emulator runs real mode
    [TestCase(0x48bu, 32, Registers | Delivery)]
    [TestCase(0x48eu, 53, 0u)] // no shadow of TPR
    public void WhatTheCpuLacksIsSoftwares(uint msr, int bit, uint controls)
    {
        using VmxGuest guest = Guest(change: cpu => cpu.Msrs[msr] &= ~(1ul << bit));
        guest.EnterLongMode();
        guest.RunThrough();
        Assert.That(Secondary(guest), Is.EqualTo(controls));
        bool delivers = (controls & Delivery) != 0;
        Assert.That(guest.Vmcs[VmcsField.PinControls] & Posted, Is.EqualTo(delivers ? Posted : 0));
        Send(guest);
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Injected, Is.EqualTo(delivers ? Injection.None : Injection.Interrupt(Vector)));
    }

    [TestCase(0x48du, 39)] // no posting
    [TestCase(0x48fu, 47)] // exits do not acknowledge
    [TestCase(0u, 0)] // Linux has no handler
    public void WhatIsNotPostedKicks(uint msr, int bit)
    {
        using VmxGuest guest = Guest(change: cpu =>
        {
            cpu.Msrs[msr] = cpu.Msrs.GetValueOrDefault(msr) & ~(1ul << bit);
            cpu.HasPostedVector = msr != 0;
        });
        guest.RunThrough();
        Assert.That(Secondary(guest) & Delivery, Is.EqualTo(Delivery));
        Assert.That(guest.Vmcs[VmcsField.PinControls] & Posted, Is.Zero);
        Assert.That(guest.Vmcs[VmcsField.ExitControls] & 1 << 15, Is.Zero, "nobody handles what is acknowledged");
        Send(guest);
        Assert.That((guest.Host.Thread.Kicks.Count, guest.Host.Thread.Posts.Count), Is.EqualTo((1, 0)));
    }

    [Test]
    public void WhatIsPostedIsToldOnceAndInIrrAtTheNextEntry()
    {
        using VmxGuest guest = Guest();
        Assert.That(Send(guest), Is.EqualTo(1));
        Assert.That(Send(guest, 0x52), Is.EqualTo(1));
        Assert.That((guest.Host.Thread.Kicks.Count, guest.Host.Thread.Posts.Count), Is.EqualTo((0, 1)));
        Span<byte> page = KernelPages.Bytes(guest.Vcpu.Apic.Page);
        // Table 30-1: a bit for each vector, then the one of the notification.
        Assert.That((page[0x400 + 0x61 / 8], page[0x400 + 0x52 / 8], page[0x420]), Is.EqualTo((2, 4, 1)));
        Assert.That(Word(guest, ApicRegister.Irr + 3), Is.Zero);
        guest.RunThrough();
        Assert.That((page[0x400 + 0x61 / 8], page[0x400 + 0x52 / 8], page[0x420]), Is.EqualTo((0, 0, 0)));
        Assert.That((Word(guest, ApicRegister.Irr + 3), Word(guest, ApicRegister.Irr + 2)), Is.EqualTo((2u, 1u << 18)));
        Assert.That(guest.Entries[0][VmcsField.InterruptStatus], Is.EqualTo(0x61));
        Assert.That(guest.Entries[0].Injected, Is.EqualTo(Injection.None));
        Assert.That(guest.Entries[0].Has(PrimaryControls.InterruptWindow), Is.False);
        Send(guest, 0x41);
        Assert.That(guest.Host.Thread.Posts.Count, Is.EqualTo(2), "the CPU would not look for it again");
    }

    /// <summary>What the CPU has delivered is not requested again, and nothing is written that it knows.</summary>
    [Test]
    public void TheStatusIsTheCpusUntilSoftwareChangesIt()
    {
        using VmxGuest guest = Guest();
        Send(guest);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt).Doing((vmcs, ref _) =>
        {
            Word(guest, ApicRegister.Irr + 3) = 0;
            Word(guest, ApicRegister.Isr + 3) = 2;
            vmcs[VmcsField.InterruptStatus] = 0x6100;
        }));
        Assert.That(guest.Entries[1][VmcsField.InterruptStatus], Is.EqualTo(0x6100));
        Send(guest, 0x71);
        guest.RunThrough();
        Assert.That(guest.Entries[^1][VmcsField.InterruptStatus], Is.EqualTo(0x6171));
        Send(guest, 0x52);
        guest.RunThrough();
        Assert.That(guest.Entries[^1][VmcsField.InterruptStatus], Is.EqualTo(0x6171), "the higher one still waits");
    }

    [Test]
    public void ALevelIsKickedOnceSoThatItsEndExits()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough();
        Send(guest, level: true);
        Assert.That((guest.Host.Thread.Kicks.Count, guest.Host.Thread.Posts.Count), Is.EqualTo((1, 0)));
        guest.RunThrough();
        Assert.That(guest.Entries[^1][VmcsField.EoiExits + 2], Is.EqualTo(1ul << 0x21));
        Send(guest, level: true);
        Assert.That((guest.Host.Thread.Kicks.Count, guest.Host.Thread.Posts.Count), Is.EqualTo((1, 1)));
    }

    /// <summary>A level-triggered pin that is still high delivers again at the end of its interrupt.</summary>
    [Test]
    public void TheEndThatExitsGoesToTheIoapic()
    {
        const ulong Entry = 1 << 15 | Vector;
        using VmxGuest guest = Guest();
        IrqChip.WriteIoApic(ref guest.Vm, 0, 0x10 + 2 * 9);
        IrqChip.WriteIoApic(ref guest.Vm, 0x10, (uint)Entry);
        Gsi.TryCreate(9, out Gsi gsi);
        IrqChip.SetLine(ref guest.Vm, gsi, LineSource.UserSpace, true);
        guest.RunThrough();
        Assert.That(guest.Entries[0][VmcsField.EoiExits + 2], Is.EqualTo(1ul << 0x21));
        Assert.That(Word(guest, ApicRegister.Irr + 3), Is.EqualTo(2));
        guest.RunThrough(Turn.Exit(ExitReason.EndOfInterrupt, Vector)
            .Doing((_, ref _) => Word(guest, ApicRegister.Irr + 3) = 0));
        Assert.That(Word(guest, ApicRegister.Irr + 3), Is.EqualTo(2), "it came again");
    }

    [Test]
    public void WritesThatTheCpuHasMadeTakeEffect()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough(Write(ApicRegister.LvtTimer, 0x8002_0040), Write(ApicRegister.Divide, 0xffff_fffb),
            Write(ApicRegister.InitialCount, 1_000_000), Write(ApicRegister.Id, 0x7700_0000),
            Write(ApicRegister.Icr, 1 << 18 | 0x55));
        Assert.That(guest.Vcpu.Apic.Timer.Target, Is.EqualTo(guest.Host.Cpu.Nanoseconds + 1_000_000));
        Assert.That(Word(guest, ApicRegister.LvtTimer), Is.EqualTo(0x2_0040), "reserved bits");
        Assert.That(Word(guest, ApicRegister.Divide), Is.EqualTo(0xb));
        Assert.That(Word(guest, ApicRegister.Id), Is.Zero, "it is not software's");
        Assert.That(Word(guest, ApicRegister.Irr + 2), Is.EqualTo(1 << 0x15));
        // With a deadline there is no count, and without one no deadline.
        ApicTimer<VmxVendor>.SetMode(ref guest.Vcpu, LapicTimer.TscDeadline | 0x40);
        ApicTimer<VmxVendor>.SetDeadline(ref guest.Vcpu, ulong.MaxValue);
        guest.RunThrough(Write(ApicRegister.InitialCount, 77));
        Assert.That(Word(guest, ApicRegister.InitialCount), Is.Zero);
        Assert.That(guest.Vcpu.Apic.Timer.Target, Is.Not.Zero);
        guest.RunThrough(Write(ApicRegister.LvtTimer, 0x41));
        Assert.That((guest.Vcpu.Apic.Timer.Target, guest.Vcpu.Apic.Timer.Deadline), Is.EqualTo((0ul, 0ul)));

        Turn Write(int register, uint value) => Turn.Exit(ExitReason.ApicWrite, (ulong)register * 16)
            .Doing((_, ref _) => Word(guest, register) = value);
    }

    [Test]
    public void APostedInterruptEndsAHalt()
    {
        using VmxGuest guest = Guest();
        guest.Host.Thread.Halt = _ =>
        {
            Send(guest);
            return HaltEnd.Woken;
        };
        guest.RunThrough(Turn.Instruction(ExitReason.Hlt, 1));
        Assert.That(guest.Vcpu.MpState, Is.EqualTo(MpState.Runnable));
        Assert.That(guest.Entries[^1][VmcsField.InterruptStatus], Is.EqualTo(Vector));
    }

    [Test]
    public void APriorityThatHoldsItBackKeepsTheHalt()
    {
        using VmxGuest guest = Guest();
        Lapics.SetTpr(ref guest.Vcpu, 0x70);
        Send(guest);
        guest.Host.Thread.Halt = _ =>
        {
            guest.Host.Thread.SignalPending = true;
            return HaltEnd.Interrupted;
        };
        guest.RunThrough(Turn.Instruction(ExitReason.Hlt, 1));
        Assert.That(guest.Vcpu.MpState, Is.EqualTo(MpState.Halted));
    }

    [Test]
    public void UserSpaceFindsWhatWasPostedAndItsStateIsTakenUp()
    {
        using VmxGuest guest = Guest();
        Send(guest);
        Lapics.Get(ref guest.Vcpu, out kvm_lapic_state state);
        Assert.That(state.regs[0x230], Is.EqualTo(2));
        state.regs[0x230] = 0;
        state.regs[0x240] = 1; // 80H requested
        state.regs[0x150] = 2; // A1H in service
        Assert.That(Lapics.Set(ref guest.Vcpu, in state), Is.Zero);
        guest.RunThrough();
        Assert.That(guest.Entries[0][VmcsField.InterruptStatus], Is.EqualTo(0xa180));
        Assert.That(guest.Entries[0].Injected, Is.EqualTo(Injection.None));
    }

    [Test]
    public void TheAccessPageIsMappedWhereTheApicIs()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough(Turn.EptViolation(ApicPlace + 0x300, write: true));
        Assert.That(IsMapped(guest));
        Assert.That(guest.Vmcs[VmcsField.ApicAccess], Is.EqualTo(guest.Vm.Memory.ApicAccess.Page.Value));
        Assert.That(SetMode(guest, ApicMode.X2apic));
        Assert.That(IsMapped(guest), Is.False, "it would be memory");
        Assert.That(SetMode(guest, ApicMode.Disabled) && SetMode(guest, ApicMode.Xapic));
        guest.Assemble(code => code.mov(eax, __[0xfee00030]));
        guest.RunThrough(Turn.EptViolation(ApicPlace + 0x30));
        Assert.That(IsMapped(guest), Is.False, "another vCPU may still be there");
        Assert.That(guest.Registers[Gpr.Rax], Is.EqualTo(0x50014), "emulated");
    }

    [Test]
    public void AnApicThatMovesTakesThePageAway()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough(Turn.EptViolation(ApicPlace));
        Assert.That(SetMode(guest, ApicMode.Xapic, 0xfed0_0000));
        Assert.That(IsMapped(guest), Is.False);
    }

    [Test]
    public void MemoryThereTakesThePageAway()
    {
        using TestMemory memory = new();
        Assert.That(memory.Vm.Memory.ApicAccess.TryCreate());
        Hpa page = memory.Vm.Memory.ApicAccess.Page;
        Assert.That(memory.Spare.TopUp(NestedTables.TablesPerMapping));
        NestedTables.Map<Ept>(ref memory.Vm.Memory, ref memory.Spare, ApicAccess.Address.Frame, 1,
            Ept.Leaf(page.Frame, 1));
        memory.AddMemory(3, ApicAccess.Address.Frame.Value - 1, 4);
        Assert.That(NestedTables.TryFind(ref memory.Vm.Memory, ApicAccess.Address.Frame, out _, out _, out _),
            Is.False);
        memory.Destroy();
    }

    /// <summary>What the CPU leaves to software: here, the current count.</summary>
    [Test]
    public void OtherAccessesAreEmulated()
    {
        using VmxGuest guest = Guest();
        Lapics.Write(ref guest.Vcpu, ApicRegister.Divide * 16, [0xb, 0, 0, 0]);
        Lapics.Write(ref guest.Vcpu, ApicRegister.InitialCount * 16, [0, 0, 1, 0]);
        guest.Assemble(code => code.mov(eax, __[0xfee00390]));
        guest.RunThrough(Turn.Exit(ExitReason.ApicAccess, 0x390));
        Assert.That(guest.Registers[Gpr.Rax], Is.EqualTo(0x10000));
    }

    [Test]
    public void AStackInTheApicIsNoStack()
    {
        using VmxGuest guest = Guest();
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR,
            Turn.Exit(ExitReason.ApicAccess, 3 << 12 | 0x80).During(Injection.Interrupt(0x31)));
        Assert.That(guest.RunPage.@internal.suberror, Is.EqualTo(kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV));
    }

    /// <summary>RDMSR of all that is there but the count and ICR, WRMSR of TPR, EOI and self-IPI.</summary>
    [Test]
    public void AnX2apicsRegistersPassWhereTheCpuHasThem()
    {
        using VmxGuest guest = Guest();
        byte[] bitmap = KernelPages.Bytes(VmxHardware.MsrBitmaps[1]).ToArray();
        IEnumerable<int> Clear(int half) => Enumerable.Range(0x800, 0x100)
            .Where(msr => (bitmap[half + msr / 8] >> msr % 8 & 1) == 0).Select(msr => msr - 0x800);
        int[] readable = [2, 3, 8, 0xa, 0xd, 0xf, .. Enumerable.Range(0x10, 0x19), .. Enumerable.Range(0x32, 7), 0x3e];
        Assert.That(Clear(0), Is.EqualTo(readable));
        Assert.That(Clear(0x800), Is.EqualTo(new[] { 8, 0xb, 0x3f }));
    }

    private static bool IsMapped(VmxGuest guest) => NestedTables.TryFind(
        ref guest.Vm.Memory, ApicAccess.Address.Frame, out _, out bool writable, out _) && writable;
}
