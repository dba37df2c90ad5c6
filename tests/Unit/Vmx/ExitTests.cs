// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Tests.Mmu;
using SharpKvm.Vm;
using SharpKvm.Vmx;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Vmx;

/// <summary>What each kind of exit does (SDM vol. 3, chapter 28 and appendix C).</summary>
public class ExitTests
{
    private const ulong Next = VmxGuest.Code + 2;
    private static ulong s_clock;

    [TestCase(ExitReason.Interrupt)]
    [TestCase(ExitReason.Init)]
    [TestCase(ExitReason.StartUp)]
    public void WhatTheHostHandlesChangesNothing(uint reason)
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Exit(reason));
        AssertLast(guest, VmxGuest.Code, Injection.None);
    }

    [TestCase(Injection.Nmi)]
    [TestCase(0x8000_0312ul)] // #MC
    public void AnEventOfTheHostChangesNothing(ulong information)
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Exception(information));
        AssertLast(guest, VmxGuest.Code, Injection.None);
    }

    [TestCase(19u)] // VMCLEAR
    [TestCase(20u)] // VMLAUNCH
    [TestCase(21u)] // VMPTRLD
    [TestCase(22u)] // VMPTRST
    [TestCase(23u)] // VMREAD
    [TestCase(24u)] // VMRESUME
    [TestCase(25u)] // VMWRITE
    [TestCase(26u)] // VMXOFF
    [TestCase(27u)] // VMXON
    [TestCase(50u)] // INVEPT
    [TestCase(53u)] // INVVPID
    public void InstructionsThatTheGuestDoesNotHaveAreUndefined(uint reason)
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Instruction(reason, 3));
        AssertLast(guest, VmxGuest.Code, Injection.Exception(6));
    }

    [Test]
    public void PerformanceCountersAreProtected()
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.Instruction(ExitReason.Rdpmc, 2));
        AssertLast(guest, VmxGuest.Code, Injection.Exception(13, 0));
    }

    [TestCase(ExitReason.Wbinvd)]
    [TestCase(ExitReason.Invd)]
    [TestCase(ExitReason.Monitor)]
    [TestCase(ExitReason.Mwait)]
    public void InstructionsWithoutEffectAreSkippedAndEndTheInterruptShadow(uint reason)
    {
        using VmxGuest guest = new();
        VmxVendor.SetInterruptShadow(ref guest.Vcpu, InterruptShadow.MovSs);
        guest.RunThrough(Turn.Instruction(reason, 2));
        AssertLast(guest, Next, Injection.None);
        Assert.That(guest.Entries[1][VmcsField.Interruptibility], Is.Zero);
    }

    [Test]
    public void CpuidAnswersFromTheTable()
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rbx] = ~0ul;
        guest.RunThrough(Turn.Instruction(ExitReason.Cpuid, 2));
        Assert.That((guest.Registers[Gpr.Rbx], guest.Registers[Gpr.Rdx], guest.Registers[Gpr.Rcx]),
            Is.EqualTo((0x68747541ul, 0x69746e65ul, 0x444d4163ul)));
        AssertLast(guest, Next, Injection.None);
    }

    [Test]
    public void AnMsrIsReadIntoTwoHalvesAndWrittenFromThem()
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rcx] = Msr.Pat;
        guest.Registers[Gpr.Rdx] = 0xffffffff_00070106;
        guest.Registers[Gpr.Rax] = 0xffffffff_00070406;
        guest.RunThrough(Turn.Instruction(ExitReason.Wrmsr, 2));
        Assert.That(guest.Entries[1][VmcsField.GuestPat], Is.EqualTo(0x00070106_00070406));
        guest.Registers[Gpr.Rdx] = guest.Registers[Gpr.Rax] = ~0ul;
        guest.RunThrough(Turn.Instruction(ExitReason.Rdmsr, 2));
        Assert.That((guest.Registers[Gpr.Rax], guest.Registers[Gpr.Rdx]), Is.EqualTo((0x00070406ul, 0x00070106ul)));
        AssertLast(guest, Next + 2, Injection.None);
    }

    [TestCase(ExitReason.Rdmsr)]
    [TestCase(ExitReason.Wrmsr)]
    public void AnUnknownMsrIsAProtectionFault(uint reason)
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rcx] = 0xffffffff;
        guest.RunThrough(Turn.Instruction(reason, 2));
        AssertLast(guest, VmxGuest.Code, Injection.Exception(13, 0));
    }

    [TestCase(1ul, 0)]
    [TestCase(1234ul, -1000)]
    public void AHypercallIsAnswered(ulong number, int answer)
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rax] = number;
        guest.RunThrough(Turn.Instruction(ExitReason.Vmcall, 3));
        Assert.That((int)guest.Registers[Gpr.Rax], Is.EqualTo(answer));
        AssertLast(guest, VmxGuest.Code + 3, Injection.None);
    }

    [Test]
    public void TheOtherVendorsHypercallBecomesOurs()
    {
        using VmxGuest guest = new();
        guest.Write(VmxGuest.Code, [0x0f, 0x01, 0xd9]);
        guest.RunThrough(Turn.Exception(Injection.Exception(6)));
        Assert.That(guest.Read<uint>(VmxGuest.Code) & 0xffffff, Is.EqualTo(0xc1010f));
        AssertLast(guest, VmxGuest.Code, Injection.None);
    }

    [TestCase(0xffff0bul, 6, false)]
    [TestCase(0xffff0bul, 17, true)]
    public void AnExceptionGoesBackToTheGuest(ulong code, byte vector, bool pushes)
    {
        using VmxGuest guest = new();
        guest.Write(VmxGuest.Code, BitConverter.GetBytes(code));
        ulong exception = pushes ? Injection.Exception(vector, 0) : Injection.Exception(vector);
        guest.RunThrough(Turn.Exception(exception));
        AssertLast(guest, VmxGuest.Code, exception);
    }

    [Test]
    public void HltGoesToUserSpaceBehindTheInstruction()
    {
        using VmxGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_HLT, Turn.Instruction(ExitReason.Hlt, 1));
        Assert.That(guest.Registers.Rip, Is.EqualTo(VmxGuest.Code + 1));
    }

    [TestCase(7ul, true)]
    [TestCase(2ul, false)]
    public void XsetbvSetsTheGuestsXcr0(ulong value, bool valid)
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rax] = value;
        guest.RunThrough(Turn.Instruction(ExitReason.Xsetbv, 3));
        Assert.That(guest.Vcpu.Shared.Xcr0, Is.EqualTo(valid ? value : 1));
        AssertLast(guest, valid ? VmxGuest.Code + 3 : VmxGuest.Code,
            valid ? Injection.None : Injection.Exception(13, 0));
    }

    [Test]
    public void AControlRegisterIsWrittenThroughTheEmulator()
    {
        using VmxGuest guest = new();
        guest.Assemble(a => a.mov(cr0, eax));
        guest.Registers[Gpr.Rax] = Cr0.Pe | Cr0.Et | Cr0.Ts;
        guest.RunThrough(Turn.Instruction(ExitReason.ControlRegister, 3));
        Assert.That(guest.Entries[1][VmcsField.Cr0Shadow], Is.EqualTo(Cr0.Pe | Cr0.Et | Cr0.Ts));
        AssertLast(guest, VmxGuest.Code + 3, Injection.None);
    }

    [TestCase(ExitReason.InterruptWindow, PrimaryControls.InterruptWindow)]
    [TestCase(ExitReason.NmiWindow, PrimaryControls.NmiWindow)]
    public void AWindowClosesWithItsExit(uint reason, object control)
    {
        using VmxGuest guest = new();
        VmxVendor.OpenInterruptWindow(ref guest.Vcpu);
        VmxVendor.OpenNmiWindow(ref guest.Vcpu);
        guest.RunThrough(Turn.Exit(reason));
        Assert.That(guest.Entries[0].Has(PrimaryControls.InterruptWindow));
        Assert.That(guest.Entries[0].Has(PrimaryControls.NmiWindow));
        Assert.That(guest.Entries[0][VmcsField.PrimaryControls] & ~guest.Entries[1][VmcsField.PrimaryControls],
            Is.EqualTo((uint)(PrimaryControls)control));
    }

    [Test]
    public void TheRunEndsWhenTheWindowThatUserSpaceAskedForOpens()
    {
        using VmxGuest guest = new();
        guest.RunPage.request_interrupt_window = 1;
        guest.RunTo(Exit.KVM_EXIT_IRQ_WINDOW_OPEN, Turn.Exit(ExitReason.InterruptWindow)
            .Doing((vmcs, ref _) => vmcs[VmcsField.Rflags] |= Rflags.If));
        Assert.That(guest.Entries[0].Has(PrimaryControls.InterruptWindow));
        Assert.That(guest.Vmcs.Has(PrimaryControls.InterruptWindow), Is.False);
    }

    [Test]
    public void HardwareShutdownEndsTheGuest()
    {
        using VmxGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_SHUTDOWN, Turn.Exit(ExitReason.TripleFault));
    }

    /// <summary>JMP, CALL, IRET: RIP is at the instruction, and the old task goes on behind it.</summary>
    [TestCase(0u, true, TestName = "CALL of a task")]
    [TestCase(2u, false, TestName = "JMP to a task")]
    public void ATaskSwitchIsCarriedOut(uint cause, bool nests)
    {
        using VmxGuest guest = new();
        TwoTasks.Put(guest);
        guest.RunThrough(Turn.Instruction(ExitReason.TaskSwitch, 7, cause << 30 | TwoTasks.Other));
        AssertLast(guest, TwoTasks.Entry, Injection.None);
        VmcsImage entry = guest.Entries[^1];
        Assert.That((entry[VmcsField.Rsp], entry[VmcsField.Rflags]),
            Is.EqualTo((TwoTasks.Stack, Rflags.Fixed | (nests ? Rflags.Nt : 0))));
        Assert.That(entry[Vmcs.Of(VmcsField.Selector, SegmentName.Tr)], Is.EqualTo(TwoTasks.Other));
        Assert.That(guest.Read<uint>(TwoTasks.RunningTss + 0x20), Is.EqualTo(VmxGuest.Code + 7));
        Assert.That(guest.Get<kvm_sregs>(Ioctl.KVM_GET_SREGS).common.cr0 & Cr0.Ts, Is.EqualTo(Cr0.Ts));
    }

    /// <summary>An exception through a task gate is over with the switch; its error code is on the new stack.</summary>
    [Test]
    public void AnEventThatIsATask([Values] bool isNmi)
    {
        using VmxGuest guest = new();
        TwoTasks.Put(guest);
        ulong interrupted = isNmi ? Injection.Nmi : Injection.Exception(13, 0x1234);
        guest.RunThrough(Turn.Exit(ExitReason.TaskSwitch, 3u << 30 | TwoTasks.Other).During(interrupted));
        AssertLast(guest, TwoTasks.Entry, Injection.None);
        Assert.That(guest.Read<uint>(TwoTasks.RunningTss + 0x20), Is.EqualTo(VmxGuest.Code));
        Assert.That(guest.Entries[^1][VmcsField.Rsp], Is.EqualTo(TwoTasks.Stack - (isNmi ? 0u : 4)));
        Assert.That(isNmi || guest.Read<uint>(TwoTasks.Stack - 4) == 0x1234);
        Assert.That(VmxVendor.GetNmiMasked(ref guest.Vcpu), Is.EqualTo(isNmi));
    }

    /// <summary>A fault of the switch itself comes on top of the event.</summary>
    [Test]
    public void AnImpossibleTask([Values] bool isEvent)
    {
        const ushort Data = 0x10;
        using VmxGuest guest = new();
        TwoTasks.Put(guest);
        Turn turn = Turn.Instruction(ExitReason.TaskSwitch, 7, (isEvent ? 3u << 30 : 0) | Data);
        guest.RunThrough(isEvent ? turn.During(Injection.Exception(13, 0)) : turn);
        AssertLast(guest, VmxGuest.Code, isEvent ? Injection.Exception(8, 0) : Injection.Exception(13, Data));
    }

    /// <summary>INT n through a task gate.</summary>
    [Test]
    public void ASoftInterruptThatIsATaskReturnsBehindIt()
    {
        using VmxGuest guest = new();
        TwoTasks.Put(guest);
        guest.RunThrough(Turn.Instruction(ExitReason.TaskSwitch, 2, 3u << 30 | TwoTasks.Other)
            .During(Injection.SoftInterrupt(0x40)));
        AssertLast(guest, TwoTasks.Entry, Injection.None);
        Assert.That(guest.Read<uint>(TwoTasks.RunningTss + 0x20), Is.EqualTo(VmxGuest.Code + 2));
    }

    [TestCase(11u)] // GETSEC
    [TestCase(46u)] // GDTR or IDTR
    [TestCase(49u)] // EPT misconfiguration
    public void AnUnknownExitIsShownToUserSpace(uint reason)
    {
        using VmxGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR, Turn.Exit(reason, 77));
        kvm_run.Internal error = guest.RunPage.@internal;
        Assert.That((error.suberror, error.ndata, error.data[0], error.data[1]),
            Is.EqualTo((kvm_run.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, 2u, (ulong)reason, 77ul)));
    }

    /// <summary>27.8; an error number of 31.4 when it did not even begin.</summary>
    [Test]
    public void AnEntryThatFailsIsShownToUserSpaceAndKeepsWhatItInjected([Values] bool begins)
    {
        using VmxGuest guest = new();
        Exceptions<VmxVendor>.Queue(ref guest.Vcpu, Vector.InvalidOpcode);
        guest.RunTo(Exit.KVM_EXIT_FAIL_ENTRY, begins ? Turn.Exit(ExitReason.EntryFailure | 33) : Turn.VmFail(7));
        Assert.That(guest.RunPage.fail_entry.hardware_entry_failure_reason, Is.EqualTo(begins ? 0x8000_0021ul : 7));
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        Assert.That(guest.Entries.Select(entry => entry.Injected),
            Is.EqualTo(new[] { Injection.Exception(6), Injection.Exception(6), Injection.None }));
    }

    /// <summary>29.3.6: the index counts down from 511, and is -1 when the log is full.</summary>
    [TestCase(511u, 0)]
    [TestCase(509u, 2)]
    [TestCase(0xffffu, 512)]
    public void PagesThatTheCpuLoggedAreInTheDirtyLog(uint index, int logged)
    {
        using VmxGuest guest = new();
        VmxVendor.ApplyCpuid(ref guest.Vcpu);
        Assert.That((SecondaryControls)guest.Vmcs[VmcsField.SecondaryControls] & SecondaryControls.Pml, Is.Not.Zero);
        const ulong Other = 0x4000_0000;
        guest.LogWrites();
        guest.AddLogged(Other);
        guest.RunThrough(Turn.Exit(ExitReason.PmlFull).Doing((vmcs, ref _) =>
        {
            Assert.That(vmcs[VmcsField.PmlIndex], Is.EqualTo(511));
            Span<ulong> log = KernelPages.Entries(new Hpa(vmcs[VmcsField.PmlAddress]));
            for (int i = 512 - logged; i < 512; i++)
                // A device, a page of another slot, and the first pages from the end.
                log[i] = i == 500 ? VmxGuest.Device : i == 300 ? Other : (ulong)(i % 4) << 12;
            vmcs[VmcsField.PmlIndex] = index;
        }));
        Assert.That(guest.Entries[1][VmcsField.PmlIndex], Is.EqualTo(511));
        Assert.That(guest.Written(), Is.EqualTo(logged switch { 0 => 0ul, 2 => 0b1100ul, _ => 0b1111ul }));
        Assert.That(guest.Written(slot: 2), Is.EqualTo(logged == 512 ? 1 : 0));
    }

    /// <summary>Each check that is told apart, broken (27.2.1 and 27.3.1).</summary>
    [TestCase(VmcsField.PinControls, 0ul, 7u, "pin-based controls")]
    [TestCase(VmcsField.PrimaryControls, 1ul, 7u, "primary controls")]
    [TestCase(VmcsField.ExitControls, 1ul << 31, 7u, "exit controls")]
    [TestCase(VmcsField.EntryControls, 1ul << 31, 7u, "entry controls")]
    [TestCase(VmcsField.SecondaryControls, 1ul << 31, 7u, "secondary controls")]
    [TestCase(VmcsField.EntryInterruption, 0x80000700ul, 7u, "contradict each other, or the injected event")]
    [TestCase(VmcsField.Cr0, 0ul, 0x80000021u, "CR0")]
    [TestCase(VmcsField.Cr4, 0ul, 0x80000021u, "CR4")]
    [TestCase(VmcsField.Cr3, 1ul << 60, 0x80000021u, "CR3")]
    [TestCase(VmcsField.GuestEfer, 0x400ul, 0x80000021u, "EFER")]
    [TestCase((VmcsField)0x4822, 0x1008bul, 0x80000021u, "TR")]
    [TestCase(VmcsField.Rip, 1ul << 40, 0x80000021u, "RIP")]
    [TestCase(VmcsField.Rflags, 0ul, 0x80000021u, "RFLAGS")]
    [TestCase(VmcsField.EntryInterruption, 0x80000020ul, 0x80000021u, "an interrupt that the guest cannot take")]
    [TestCase(VmcsField.Interruptibility, 1ul, 0x80000021u, "interruptibility")]
    [TestCase((VmcsField)0x4816, 0ul, 0x80000021u, "another part of the guest's state")]
    [TestCase(VmcsField.HostCr0, 0ul, 8u, "neither by its controls nor by the guest's state")]
    public void AnEntryThatFailsIsExplainedInTheKernelLog(object field, ulong value, uint reason, string what)
    {
        using VmxGuest guest = new();
        // Reports are counted for all machines together.
        guest.Host.Cpu.Nanoseconds = s_clock += 10_000_000_000;
        guest.RunThrough();
        guest.Vmcs.Set((VmcsField)field, value);
        EntryFailure.Report(ref guest.Vcpu, reason);
        Assert.That(guest.Host.Log[0], Does.Contain(what).And.EndsWith($" {reason:x}"));
        Assert.That(guest.Host.Log, Has.Some.Contains($"RIP {guest.Vmcs.Rip:x} "));
        Assert.That(guest.Host.Log, Has.Count.EqualTo(16));
        EntryFailure.Report(ref guest.Vcpu, reason);
        Assert.That(guest.Host.Log, Has.Count.EqualTo(16), "once a second");
        guest.Host.Cpu.Nanoseconds += 1_000_000_000;
        EntryFailure.Report(ref guest.Vcpu, reason);
        Assert.That(guest.Host.Log, Has.Count.EqualTo(32));
    }

    /// <summary>A CPU that does not load EFER has no field that could be wrong.</summary>
    [Test]
    public void AFieldThatIsMissingIsNotToBlame()
    {
        using VmxGuest guest = new(VmxGuest.Penryn, shadow: true);
        guest.Host.Cpu.Nanoseconds = s_clock += 10_000_000_000;
        guest.EnterLongMode();
        guest.RunThrough();
        guest.Vmcs.Set(VmcsField.GuestEfer, 0);
        guest.Vmcs.Set((VmcsField)0x4822, 0x1008b);
        EntryFailure.Report(ref guest.Vcpu, 0x80000021);
        Assert.That(guest.Host.Log[0], Does.Contain("TR"));
    }

    [TestCase(0x60, 1u, 0x78ul)]
    [TestCase(0xcf8, 2u, 0x5678ul)]
    [TestCase(0xffff, 4u, 0x12345678ul)]
    public void APortIsWritten(int port, uint size, ulong value)
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rax] = 0x9abcdef0_12345678;
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port((ushort)port, size, input: false));
        kvm_run.Io io = guest.RunPage.io;
        Assert.That((io.direction, io.size, io.port, io.count),
            Is.EqualTo((kvm_run.KVM_EXIT_IO_OUT, (byte)size, (ushort)port, 1u)));
        Assert.That(BitConverter.ToUInt32(guest.Port), Is.EqualTo(value));
        guest.RunThrough();
        AssertLast(guest, VmxGuest.Code + 1, Injection.None);
    }

    [TestCase(1u, 0x9abcdef0_123456eful)]
    [TestCase(2u, 0x9abcdef0_1234cdeful)]
    [TestCase(4u, 0x89abcdeful)]
    public void APortIsRead(uint size, ulong rax)
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rax] = 0x9abcdef0_12345678;
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Port(0x1f0, size, input: true, length: 2));
        Assert.That((guest.RunPage.io.direction, guest.RunPage.io.size, guest.RunPage.io.port),
            Is.EqualTo((kvm_run.KVM_EXIT_IO_IN, (byte)size, (ushort)0x1f0)));
        BitConverter.TryWriteBytes(guest.Port, 0x89abcdefu);
        guest.RunThrough();
        Assert.That(guest.Registers[Gpr.Rax], Is.EqualTo(rax));
        AssertLast(guest, Next, Injection.None);
    }

    [Test]
    public void AStringOfPortsIsEmulated()
    {
        using VmxGuest guest = new();
        guest.Assemble(a => a.rep.outsb());
        guest.Write(0x3000, [1, 2, 3]);
        (guest.Registers[Gpr.Rsi], guest.Registers[Gpr.Rcx], guest.Registers[Gpr.Rdx]) = (0x3000, 3, 0x3f8);
        const ulong Repeated = 3 << 4;
        guest.RunTo(Exit.KVM_EXIT_IO, Turn.Instruction(ExitReason.Port, 2, 0x3f8ul << 16 | Repeated));
        Assert.That((guest.RunPage.io.port, guest.RunPage.io.size, guest.RunPage.io.count),
            Is.EqualTo(((ushort)0x3f8, (byte)1, 3u)));
    }

    /// <summary>Code of 32 bits wraps at 4 GiB, 64-bit code does not.</summary>
    [TestCase(false, 0ul)]
    [TestCase(true, 1ul << 32)]
    public void AnInstructionMayEndAtTheEndOfItsAddresses(bool wide, ulong end)
    {
        using VmxGuest guest = new();
        if (wide)
            guest.EnterLongMode();
        guest.Registers.Rip = 0xffff_fffe;
        guest.RunThrough(Turn.Instruction(ExitReason.Cpuid, 2));
        AssertLast(guest, end, Injection.None);
    }

    [Test]
    public void AViolationOnMemoryMapsIt([Values] bool write)
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.EptViolation(0x2000, write));
        Assert.That(guest.Vm.Memory.Statistics.MappedPages, Is.EqualTo(1));
        AssertLast(guest, VmxGuest.Code, Injection.None);
    }

    /// <summary>Bits 3-5: the mapping is there, so that it needs no memory.</summary>
    [Test]
    public void AWriteThatAMappingDidNotAllowOnlyNeedsTheRight([Values] bool mapped)
    {
        using VmxGuest guest = new();
        guest.RunThrough(Turn.EptViolation(0x2000, write: true));
        guest.Vcpu.SpareTables.Free();
        guest.Host.FailingAllocation = guest.Host.Allocations;
        guest.Host.FailsFromThere = true;
        Assert.That(guest.Run(Turn.EptViolation(0x2000, qualification: mapped ? 0x1aau : 0x182)),
            Is.EqualTo(mapped ? Errno.EINTR : Errno.ENOMEM));
    }

    [Test]
    public void AViolationWhereThereIsNoMemoryIsADevices([Values] bool write)
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rax] = 0x1234;
        guest.Assemble(a =>
        {
            if (write)
                a.mov(__dword_ptr[VmxGuest.Device + 8], eax);
            else
                a.mov(eax, __dword_ptr[VmxGuest.Device + 8]);
        });
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.EptViolation(VmxGuest.Device + 8, write));
        kvm_run.Mmio mmio = guest.RunPage.mmio;
        Assert.That((mmio.phys_addr, mmio.len, mmio.is_write != 0), Is.EqualTo((VmxGuest.Device + 8, 4u, write)));
        if (write)
            Assert.That(mmio.data, Is.EqualTo(0x1234));
    }

    [Test]
    public void AWriteToARomIsUserSpaces()
    {
        using VmxGuest guest = new();
        guest.AddRom([1, 2, 3, 4]);
        guest.Assemble(a => a.mov(__dword_ptr[VmxGuest.Rom], eax));
        guest.RunTo(Exit.KVM_EXIT_MMIO,
            Turn.EptViolation(VmxGuest.Rom), Turn.EptViolation(VmxGuest.Rom, qualification: 0x1aa));
        Assert.That((guest.RunPage.mmio.phys_addr, guest.RunPage.mmio.is_write), Is.EqualTo((VmxGuest.Rom, (byte)1)));
    }

    /// <summary>Bit 8 is clear when the access was to a guest page table (table 28-7).</summary>
    [Test]
    public void APageTableWithoutMemoryDoesNotLendItsAddressToTheOperand()
    {
        using VmxGuest guest = new();
        guest.Assemble(a => a.mov(ecx, __dword_ptr[VmxGuest.Device + 0x10]));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Turn.EptViolation(0xe0000010, qualification: 0x81));
        Assert.That(guest.RunPage.mmio.phys_addr, Is.EqualTo(VmxGuest.Device + 0x10));
    }

    [Test]
    public void ADeliveryThroughADeviceIsShownToUserSpace()
    {
        using VmxGuest guest = new();
        guest.RunTo(Exit.KVM_EXIT_INTERNAL_ERROR,
            Turn.EptViolation(VmxGuest.Device, write: true).During(Injection.Exception(14, 4)));
        kvm_run.Internal error = guest.RunPage.@internal;
        Assert.That((error.suberror, error.data[0], error.data[1]),
            Is.EqualTo((kvm_run.KVM_INTERNAL_ERROR_DELIVERY_EV, Injection.Exception(14, 4), VmxGuest.Device)));
    }

    [Test]
    public void AViolationOnMemoryThatTheProcessLacksEndsTheRun()
    {
        using VmxGuest guest = new();
        guest.Host.Process.Unmap(TestMemory.UserAddress(0, 0), VmxGuest.MemoryPages);
        Assert.That(guest.Run(Turn.EptViolation(0x2000)), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void RegistersGoToTheVmcsAndBack()
    {
        using VmxGuest guest = new();
        guest.Registers[Gpr.Rsp] = 0x5000;
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt).Doing((vmcs, ref _) =>
            (vmcs[VmcsField.Rip], vmcs[VmcsField.Rsp], vmcs[VmcsField.Rflags]) = (0x1010, 0x4ff0, 0x246)));
        Assert.That((guest.Entries[0].Rip, guest.Entries[0][VmcsField.Rsp]), Is.EqualTo((VmxGuest.Code, 0x5000ul)));
        Assert.That((guest.Registers.Rip, guest.Registers[Gpr.Rsp], guest.Registers.Rflags),
            Is.EqualTo((0x1010ul, 0x4ff0ul, 0x246ul)));
        guest.Registers.Rip = VmxGuest.Code;
        guest.Registers[Gpr.Rsp] = 0x5000;
        guest.Registers.Rflags = 2;
        guest.RunThrough();
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1][VmcsField.Rsp], guest.Entries[^1][VmcsField.Rflags]),
            Is.EqualTo((VmxGuest.Code, 0x5000ul, 2ul)));
    }

    [Test]
    public void EveryExitIsTraced()
    {
        using VmxGuest guest = new();
        guest.Host.Cpu.Tsc = 99;
        guest.RunThrough(Turn.EptViolation(0x2000, write: true).During(Injection.Exception(14, 4)));
        ExitRecord record = guest.Vcpu.Exits[0];
        Assert.That((record.Reason, record.Info1, record.Info2, record.Rip, record.Tsc),
            Is.EqualTo((48u, 0x182ul, Injection.Exception(14, 4), VmxGuest.Code, 99ul)));
    }

    private static void AssertLast(VmxGuest guest, ulong rip, ulong injected) =>
        Assert.That((guest.Entries[^1].Rip, guest.Entries[^1].Injected), Is.EqualTo((rip, injected)));
}
