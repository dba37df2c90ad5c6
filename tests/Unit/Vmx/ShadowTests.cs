// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Interrupts;
using SharpKvm.Mmu;
using SharpKvm.Tests.Host;
using SharpKvm.Vm;
using SharpKvm.Vmx;
using static Iced.Intel.AssemblerRegisters;

namespace SharpKvm.Tests.Vmx;

/// <summary>A guest without extended page tables: what hardware runs with, and what its exits become.</summary>
[TestFixture]
internal sealed class ShadowTests
{
    private const ulong Window = 0x9_0000_0000, Data = 0x6000, PageFault = 0x8000_0b0e;

    private static VmxGuest Guest() => new(VmxGuest.Penryn, shadow: true);

    /// <summary>A #PF that exits, with its error code (25.9.2).</summary>
    private static Turn Fault(uint error, ulong address) => Turn.Exception(PageFault | (ulong)error << 32, address);

    /// <summary>PAE paging from a page of pointers (4.4.1), and an entry that is none into long mode.</summary>
    [Test]
    public void HardwareHasPagingOnAndTheGuestDoesNotSeeIt()
    {
        using VmxGuest guest = Guest();
        VmxVendor.SetEfer(ref guest.Vcpu, Efer.Lme);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        VmcsImage entered = guest.Entries[0];
        Assert.Multiple(() =>
        {
            Assert.That(entered[VmcsField.Cr0], Is.EqualTo(Cr0.Pg | Cr0.Wp | Cr0.Pe | Cr0.Et | Cr0.Ne));
            Assert.That(entered[VmcsField.Cr4] & (Cr4.Pae | Cr4.Mce), Is.EqualTo(Cr4.Pae | Cr4.Mce));
            Assert.That(entered.LongMode, Is.False);
            Assert.That(entered[VmcsField.Cr3], Is.EqualTo(guest.Vcpu.Shadow.Pointers.Value));
            Assert.That(entered[VmcsField.ExceptionBitmap] >> 14 & 1, Is.EqualTo(1));
            Assert.That((entered[VmcsField.Cr0Shadow], entered[VmcsField.Cr4Shadow]),
                Is.EqualTo((Cr0.Pe | Cr0.Et, 0ul)));
            Assert.That(entered[VmcsField.Cr4Mask] & (Cr4.Pge | Cr4.Pce), Is.EqualTo(Cr4.Pge));
            Assert.That(VmxVendor.GetCr0(ref guest.Vcpu), Is.EqualTo(Cr0.Pe | Cr0.Et));
            Assert.That(VmxVendor.GetCr3(ref guest.Vcpu), Is.Zero);
            Assert.That(guest.Vcpu.Efer, Is.EqualTo(Efer.Lme));
            Assert.That(guest.Host.Cpu.GuestFlushes, Is.Empty, "a CPU without EPT has no INVEPT");
        });
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Et);
        Assert.That(VmxVendor.CanRun(ref guest.Vcpu), Is.False, "real mode");
    }

    /// <summary>The bits of the guest that no exit tells of stay when hardware gets other control registers.</summary>
    [Test]
    public void WhatTheGuestHasSetItselfStays()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt).Doing((vmcs, ref _) =>
            (vmcs[VmcsField.Cr0], vmcs[VmcsField.Cr4]) = (vmcs[VmcsField.Cr0] | Cr0.Ts, vmcs[VmcsField.Cr4] | Cr4.De)));
        VmxVendor.SetEfer(ref guest.Vcpu, Efer.Nxe);
        Assert.That((VmxVendor.GetCr0(ref guest.Vcpu), VmxVendor.GetCr4(ref guest.Vcpu)),
            Is.EqualTo((Cr0.Pe | Cr0.Et | Cr0.Ts, Cr4.De)));
        Assert.That(guest.Vmcs[VmcsField.Cr4] & Cr4.De, Is.Not.Zero);
    }

    /// <summary>27.3.1.6: an entry takes no pointer with other bits than that of presence.</summary>
    [Test]
    public void ThePointersOfPaePagingAreSuchAsAnEntryTakes()
    {
        using VmxGuest guest = Guest();
        guest.RunThrough(Fault(2, Data), Turn.Exit(ExitReason.Interrupt));
        ulong root = guest.Entries[^1][VmcsField.Cr3], pointer = KernelPages.Entries(new Hpa(root))[0];
        Assert.That(pointer & ~0x000f_ffff_ffff_f000ul, Is.EqualTo(1));
        Assert.That(KernelPages.Entries(new Hpa(root))[1], Is.Zero);
        Assert.That(guest.Entries[^1].Injected, Is.Zero);
    }

    [Test]
    public void AFaultOfTheGuestsOwnTablesIsTheGuests()
    {
        using VmxGuest guest = Guest();
        guest.EnterLongMode();
        guest.RunThrough(Fault(2, Window));
        Assert.That(guest.Entries[^1].Injected, Is.EqualTo(Injection.Exception(14, 2)));
        Assert.That(guest.Vcpu.Shared.Cr2, Is.EqualTo(Window));
    }

    [Test]
    public void AFaultOfTheShadowIsFilledAndADeviceEmulated()
    {
        using VmxGuest guest = Guest();
        guest.EnterLongMode();
        guest.RunThrough(Fault(2, Data));
        VmcsImage entered = guest.Entries[^1];
        Assert.That((entered.Injected, entered.LongMode), Is.EqualTo((0ul, true)));
        Assert.That(entered[VmcsField.Cr3], Is.EqualTo(guest.Vcpu.Shadow.Root.Value)
            .And.Not.EqualTo(VmxVendor.GetCr3(ref guest.Vcpu)));
        ulong table = entered[VmcsField.Cr3], entry = 0;
        for (int shift = 39; shift >= 12; shift -= 9)
        {
            entry = KernelPages.Entries(new Hpa(table))[(int)(Data >> shift) & 511];
            table = entry & 0x000f_ffff_ffff_f000;
        }
        Assert.That(entry & 3, Is.EqualTo(3), "a mapping that may be written to");

        guest.Assemble(code => code.mov(__dword_ptr[VmxGuest.Device], eax));
        guest.RunTo(Exit.KVM_EXIT_MMIO, Fault(2, VmxGuest.Device));
        Assert.That(guest.RunPage.mmio.phys_addr, Is.EqualTo(VmxGuest.Device));
    }

    [Test]
    public void MovToCr3InvlpgAndInvpcidFlush([Values] bool invpcid, [Values] bool invlpg)
    {
        using VmxGuest guest = Guest();
        guest.EnterLongMode();
        guest.RunThrough(Fault(2, Data));
        uint before = guest.Vm.Memory.Shadow.Sequence;
        // The register that INVPCID's information names is R13 (table 28-9): one type is good, another is not.
        guest.Registers[Gpr.R13] = invlpg ? 3ul : 4;
        guest.Vmcs.Set(VmcsField.InstructionInformation, 0xd000_0000);
        if (invlpg)
            guest.Assemble(code => code.invlpg(__byte_ptr[Data]));
        else
            guest.Assemble(code => code.mov(cr3, rax));
        ulong wanted = invpcid && !invlpg ? before : before + 1;
        guest.RunThrough(invpcid ? Turn.Instruction(ExitReason.Invpcid, 5)
            : Turn.Instruction(invlpg ? ExitReason.Invlpg : ExitReason.ControlRegister, 3,
                invlpg ? Data : 3));
        Assert.That(guest.Vm.Memory.Shadow.Sequence, Is.EqualTo(wanted));
        Assert.That(guest.Entries[^1].Injected,
            Is.EqualTo(invpcid && !invlpg ? Injection.Exception(13, 0) : Injection.None));
        if (!invpcid && !invlpg)
            Assert.That(VmxVendor.GetCr3(ref guest.Vcpu), Is.EqualTo(guest.Registers[Gpr.Rax]));
    }

    /// <summary>The exit names the register (SDM vol. 3, table 28-3). Bit 60 is no bit of an address.</summary>
    [Test]
    public void MovToCr3TakesTheRegisterThatTheExitNames([Values] bool valid)
    {
        using VmxGuest guest = Guest();
        guest.EnterLongMode();
        guest.RunThrough(Fault(2, Data));
        ulong before = VmxVendor.GetCr3(ref guest.Vcpu), value = valid ? 0x5000 : 1ul << 60, rip = guest.Registers.Rip;
        guest.Registers[Gpr.R9] = value;
        guest.RunThrough(Turn.Instruction(ExitReason.ControlRegister, 3, 9 << 8 | 3));
        Assert.That(VmxVendor.GetCr3(ref guest.Vcpu), Is.EqualTo(valid ? value : before));
        Assert.That(guest.Registers.Rip, Is.EqualTo(valid ? rip + 3 : rip));
        Assert.That(guest.Entries[^1].Injected, Is.EqualTo(valid ? Injection.None : Injection.Exception(13, 0)));
    }

    /// <summary>No control switches EFER: what SYSCALL needs is on the CPU for as long as the thread is.</summary>
    [Test]
    public void OfEferTheGuestHasOnlySceWithoutTheControl([Values] bool set)
    {
        const int Place = 4;
        using VmxGuest guest = Guest();
        Assert.That(guest.Vcpu.Shared.SyscallMsrs[Place], Is.EqualTo(VmxGuest.HostEfer & ~Efer.Sce));
        VmxVendor.SetEfer(ref guest.Vcpu, set ? Efer.Sce : Efer.Lme | Efer.Lma);
        Assert.That(guest.Vcpu.Shared.SyscallMsrs[Place],
            Is.EqualTo(set ? VmxGuest.HostEfer : VmxGuest.HostEfer & ~Efer.Sce));
    }

    [Test]
    public void TheControlSwitchesEferWhereTheCpuHasIt([Values] bool set)
    {
        const int Place = 4;
        using VmxGuest nested = new();
        Assert.That(nested.Vcpu.Shared.SyscallMsrs[Place], Is.EqualTo(VmxGuest.HostEfer));
        VmxVendor.SetEfer(ref nested.Vcpu, set ? Efer.Sce : 0);
        Assert.That(nested.Vcpu.Shared.SyscallMsrs[Place], Is.EqualTo(VmxGuest.HostEfer));
    }

    /// <summary>A vCPU that has no page for the pointers is none.</summary>
    [Test]
    public void APageForThePointersIsNeeded()
    {
        using VmxGuest guest = Guest();
        guest.Vcpu.Shadow.Free();
        guest.Vcpu.Shadow = default;
        VmxVendor.DestroyVcpu(ref guest.Vcpu);
        // After the VMCS.
        guest.Host.FailingAllocation = guest.Host.Allocations + 1;
        Assert.That(VmxVendor.CreateVcpu(ref guest.Vcpu), Is.EqualTo(Errno.ENOMEM));
    }
}
