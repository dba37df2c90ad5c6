// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Emulator;
using SharpKvm.Svm;
using SharpKvm.Tests.Mmu;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Svm;

/// <summary>Port and memory accesses that user space serves: what it is asked, and how they end.</summary>
public class PendingAccessTests
{
    private const ulong Next = SvmGuest.Code + 2;
    private const ulong Elsewhere = 0x3000;

    [Test]
    public void OutTellsPortAndData()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_IO,
            Turn.Port(0x3f8, 2, input: false, Next).Doing((ref vmcb, ref _) => vmcb.Rax = 0x12345678));
        kvm_run.Io io = guest.RunPage.io;
        Assert.That((io.direction, io.size, io.port, io.count, io.data_offset),
            Is.EqualTo((kvm_run.KVM_EXIT_IO_OUT, 2, 0x3f8, 1u, 4096ul)));
        Assert.That(guest.Port[..4].ToArray(), Is.EqualTo(new byte[] { 0x78, 0x56, 0, 0 }));
    }

    [Test]
    public void OutIsCompletedByTheNextRun()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port(0x3f8, 1, input: false, Next));
        Assert.That(guest.Registers.Rip, Is.EqualTo(SvmGuest.Code));
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(Next));
    }

    [TestCase(1, 0xaaaaaaaa_aaaaaa44ul)]
    [TestCase(2, 0xaaaaaaaa_aaaa3344ul)]
    [TestCase(4, 0x00000000_11223344ul)]
    public void InMergesAsTheInstructionDoes(int size, ulong expected)
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_IO,
            Turn.Port(0x60, size, input: true, Next).Doing((ref vmcb, ref _) => vmcb.Rax = 0xaaaaaaaa_aaaaaaaa));
        new byte[] { 0x44, 0x33, 0x22, 0x11 }.CopyTo(guest.Port);
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rax, Is.EqualTo(expected));
    }

    [Test]
    public void APortAccessIsForgottenWhenUserSpaceMovesRip()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port(0x60, 4, input: true, Next));
        guest.Port.Fill(0xff);
        MoveRip(guest);
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Rax), Is.EqualTo((Elsewhere, 0ul)));
    }

    [Test]
    public void AForgottenAccessDoesNotComeBack()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port(0x60, 4, input: true, Next));
        MoveRip(guest);
        guest.RunThrough(Turn.Exit(ExitCode.Intr).Doing((ref vmcb, ref _) => vmcb.Rip = SvmGuest.Code));
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(SvmGuest.Code));
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(SvmGuest.Code));
    }

    [Test]
    public void AnImmediateExitCompletesTheAccessOnly()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port(0x60, 1, input: true, Next));
        guest.Port[0] = 7;
        guest.RunPage.immediate_exit = 1;
        Assert.That(guest.Run(), Is.EqualTo(Errno.EINTR));
        Assert.That((guest.Registers.Rip, guest.Registers[Gpr.Rax]), Is.EqualTo((Next, 7ul)));
        Assert.That(guest.Entries, Has.Count.EqualTo(1));
    }

    [Test]
    public void StringOutputGoesThroughTheEmulator()
    {
        using SvmGuest guest = new();
        guest.Assemble(a => { a.rep.outsb(); });
        guest.Write(0x4000, "hello"u8);
        guest.Registers[Gpr.Rsi] = 0x4000;
        guest.Registers[Gpr.Rcx] = 5;
        guest.Registers[Gpr.Rdx] = 0x3f8;
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Exit(ExitCode.Ioio, 0x3f8_0000 | 1 << 4 | 1 << 3 | 1 << 2));
        Assert.That((guest.RunPage.io.port, guest.RunPage.io.count), Is.EqualTo((0x3f8, 5u)));
        Assert.That(guest.Port[..5].ToArray(), Is.EqualTo("hello"u8.ToArray()));
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rip, guest.Registers[Gpr.Rcx]), Is.EqualTo((Next, 0ul)));
    }

    [Test]
    public void AReadIsAskedAndAnswered()
    {
        using SvmGuest guest = Accessing(a => a.mov(eax, __dword_ptr[SvmGuest.Device]));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device));
        Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device, 4u, false)));
        guest.RunPage.mmio.data = 0x11223344;
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rax, guest.Entries[^1].Rip), Is.EqualTo((0x11223344ul, SvmGuest.Code + 5)));
    }

    [Test]
    public void AWriteCarriesItsData()
    {
        using SvmGuest guest = Accessing(a => a.mov(__word_ptr[SvmGuest.Device + 2], ax));
        guest.Registers[Gpr.Rax] = 0xcafe1234;
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device + 2, write: true));
        Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device + 2, 2u, true)));
        Assert.That(guest.RunPage.mmio.data, Is.EqualTo(0x1234));
    }

    [Test]
    public void AWriteIsNotAskedTwice()
    {
        using SvmGuest guest = Accessing(a => a.mov(__dword_ptr[SvmGuest.Device], eax));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device, write: true));
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(SvmGuest.Code + 5));
    }

    [Test]
    public void AWritingInstructionIsOverWhenUserSpaceSeesTheWrite()
    {
        using SvmGuest guest = Accessing(a => a.mov(__dword_ptr[SvmGuest.Device], eax));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device, write: true));
        Assert.That(guest.Registers.Rip, Is.EqualTo(SvmGuest.Code + 5));
    }

    [Test]
    public void TheWritesOfOneInstructionLeaveInOrder()
    {
        using SvmGuest guest = Accessing(a => a.pushad());
        guest.Registers[Gpr.Rsp] = SvmGuest.Device + 32;
        guest.Registers[Gpr.Rdi] = 0xd1;
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device + 28, write: true));
        for (ulong offset = 28; offset > 0; offset -= 4)
        {
            Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device + offset, 4u, true)));
            guest.RunTo(Exit.KVM_EXIT_MMIO);
        }
        Assert.That((Asked(guest), guest.RunPage.mmio.data), Is.EqualTo(((SvmGuest.Device, 4u, true), 0xd1ul)));
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Rsp), Is.EqualTo((SvmGuest.Code + 1, SvmGuest.Device)));
    }

    [Test]
    public void AnExchangeReadsThenWrites()
    {
        using SvmGuest guest = Accessing(a => a.xchg(__dword_ptr[SvmGuest.Device], ecx));
        guest.Registers[Gpr.Rcx] = 1;
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device, write: true));
        guest.RunPage.mmio.data = 2;
        guest.RunTo(Exit.KVM_EXIT_MMIO);
        Assert.That((Asked(guest), guest.RunPage.mmio.data), Is.EqualTo(((SvmGuest.Device, 4u, true), 1ul)));
        guest.RunThrough();
        Assert.That(guest.Registers[Gpr.Rcx], Is.EqualTo(2));
    }

    [Test]
    public void APageTableWithoutMemoryDoesNotLendItsAddressToTheOperand()
    {
        using SvmGuest guest = Accessing(a => a.mov(ecx, __dword_ptr[SvmGuest.Device + 0x10]));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedTableFault(0xe0000010));
        Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device + 0x10, 4u, false)));
    }

    [Test]
    public void AnAccessToMemoryThatIsNotThereWaitsForIt()
    {
        using SvmGuest guest = Accessing(a => a.movsd());
        (guest.Registers[Gpr.Rsi], guest.Registers[Gpr.Rdi]) = (SvmGuest.Device, 0x3000);
        ulong page = TestMemory.UserAddress(0, 3);
        guest.Host.Process.Unmap(page, 1);
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device));
        guest.RunPage.mmio.data = 0x11223344;
        for (int i = 0; i < 2; i++)
            Assert.That(guest.Run(), Is.EqualTo(Errno.EFAULT));
        Assert.That((guest.Registers.Rip, guest.Registers[Gpr.Rdi]), Is.EqualTo((SvmGuest.Code, 0x3000ul)));
        guest.Host.Process.Map(page, 1);
        guest.RunThrough();
        Assert.That(guest.Read<uint>(0x3000), Is.EqualTo(0x11223344), "the device was read once");
    }

    [Test]
    public void AReadOnlySlotIsReadAsMemoryAndWrittenAsADevice()
    {
        using SvmGuest guest = Accessing(a => a.add(__dword_ptr[SvmGuest.Rom], eax));
        guest.AddRom([2, 0, 0, 0]);
        guest.Registers[Gpr.Rax] = 40;
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Rom, write: true));
        Assert.That((Asked(guest), guest.RunPage.mmio.data), Is.EqualTo(((SvmGuest.Rom, 4u, true), 42ul)));
    }

    [Test]
    public void AnAccessIsForgottenWhenUserSpaceMovesRip()
    {
        using SvmGuest guest = Accessing(a => a.mov(eax, __dword_ptr[SvmGuest.Device]));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device));
        guest.RunPage.mmio.data = 0x11223344;
        MoveRip(guest);
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Rax), Is.EqualTo((Elsewhere, 0ul)));
    }

    [Test]
    public void AnInstructionThatReadsAndWritesAsksForBothInOrder()
    {
        using SvmGuest guest = Accessing(a => a.add(__dword_ptr[SvmGuest.Device], eax));
        guest.Registers[Gpr.Rax] = 40;
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device, write: true));
        Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device, 4u, false)));
        guest.RunPage.mmio.data = 2;
        guest.RunTo(Exit.KVM_EXIT_MMIO);
        Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device, 4u, true)));
        Assert.That(guest.RunPage.mmio.data, Is.EqualTo(42));
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rip, Is.GreaterThan(SvmGuest.Code));
    }

    [Test]
    public void EachElementOfAStringInstructionIsAskedOnce()
    {
        using SvmGuest guest = Accessing(a => a.rep.movsd());
        guest.Registers[Gpr.Rsi] = SvmGuest.Device;
        guest.Registers[Gpr.Rdi] = 0x5000;
        guest.Registers[Gpr.Rcx] = 3;
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device));
        for (uint element = 0; element < 3; element++)
        {
            Assert.That(Asked(guest), Is.EqualTo((SvmGuest.Device + 4 * element, 4u, false)));
            guest.RunPage.mmio.data = 0x100 + element;
            if (element < 2)
                guest.RunTo(Exit.KVM_EXIT_MMIO);
            else
                guest.RunThrough();
        }
        Assert.That(guest.Entries[^1].Rip, Is.EqualTo(Next));
        Assert.That((guest.Read<uint>(0x5000), guest.Read<uint>(0x5008)), Is.EqualTo((0x100u, 0x102u)));
    }

    [Test]
    public void AnAccessThatBeginsInMemoryIsSplit()
    {
        const ulong End = SvmGuest.MemoryPages * Page.Size;
        using SvmGuest guest = Accessing(a => a.mov(eax, __dword_ptr[End - 2]));
        guest.Write(End - 2, [0x44, 0x33]);
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(End));
        Assert.That(Asked(guest), Is.EqualTo((End, 2u, false)));
        guest.RunPage.mmio.data = 0x1122;
        guest.RunThrough();
        Assert.That(guest.Entries[^1].Rax, Is.EqualTo(0x11223344));
    }

    [Test]
    public void TheInstructionEndsAsItBeganWhateverHappensToItsBytes()
    {
        using SvmGuest guest = Accessing(a => a.mov(eax, __dword_ptr[SvmGuest.Device]));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.NestedFault(SvmGuest.Device));
        guest.Write(SvmGuest.Code, [0x90, 0x90, 0x90, 0x90, 0x90]);
        guest.RunPage.mmio.data = 7;
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rax, guest.Entries[^1].Rip), Is.EqualTo((7ul, SvmGuest.Code + 5)));
    }

    [Test]
    public void AnAccessOfADeliveryIsReported()
    {
        using SvmGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR,
            Turn.NestedFault(SvmGuest.Device, write: true).During(Injection.Interrupt(0x31)));
        Assert.That(guest.RunPage.@internal.suberror, Is.EqualTo(kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV));
        Assert.That(guest.RunPage.@internal.data[0], Is.EqualTo(Injection.Interrupt(0x31)));
    }

    [Test]
    public void AnUnknownInstructionIsShownToUserSpace()
    {
        byte[] floatLoad = [0xd9, 0x05, 0, 0, 0, 0xd0];
        using SvmGuest guest = new();
        guest.Write(SvmGuest.Code, floatLoad);
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR, Turn.NestedFault(SvmGuest.Device));
        kvm_run.EmulationFailure failure = guest.RunPage.emulation_failure;
        Assert.That(failure.suberror, Is.EqualTo(kvm_run.KVM_INTERNAL_ERROR_EMULATION));
        Assert.That(((ReadOnlySpan<byte>)failure.insn_bytes)[..floatLoad.Length].ToArray(), Is.EqualTo(floatLoad));
        Assert.That(guest.Registers.Rip, Is.EqualTo(SvmGuest.Code));
    }

    private static SvmGuest Accessing(Action<Iced.Intel.Assembler> code)
    {
        SvmGuest guest = new();
        guest.Assemble(code);
        return guest;
    }

    private static (ulong, uint, bool) Asked(SvmGuest guest) =>
        (guest.RunPage.mmio.phys_addr, guest.RunPage.mmio.len, guest.RunPage.mmio.is_write != 0);

    private static void MoveRip(SvmGuest guest)
    {
        kvm_regs registers = guest.Get<kvm_regs>(Ioctl.KVM_GET_REGS);
        registers.rip = Elsewhere;
        Assert.That(guest.Set(Ioctl.KVM_SET_REGS, in registers), Is.Zero);
    }
}
