// SPDX-License-Identifier: GPL-2.0-only
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Tests.Cpu;
using SharpKvm.Vm;
using SharpKvm.Vmx;

namespace SharpKvm.Tests.Vmx;

/// <summary>Where the guest's state is in the VMCS (SDM vol. 3, 25.4 and 25.6).</summary>
public class StateTests
{
    private const ulong Vmxe = 1 << 13, Unusable = 1 << 16, ReservedRights = 0xfffe_0f00;

    private static readonly SegmentName[] s_segments =
        [.. Enum.GetValues<SegmentName>().Where(name => name <= SegmentName.Tr)];

    /// <summary>All descriptor bits, present or not (25.4.1).</summary>
    [Test]
    public void ASegmentIsReadAsItWasWritten()
    {
        using VmxGuest guest = new();
        for (int i = 0; i < 0x8000; i++)
        {
            (SegmentName name, int attributes) = ((SegmentName)(i >> 12), i & 0xfff);
            Segment segment = new()
            {
                Selector = (ushort)(attributes * 7), Attributes = (ushort)attributes,
                Limit = (uint)attributes * 0x10_0001, Base = (ulong)attributes * 0x1_0000_0001,
            };
            VmxVendor.SetSegment(ref guest.Vcpu, name, in segment);
            ulong rights = guest.Vmcs[Vmcs.Of(VmcsField.AccessRights, name)];
            if ((rights & ReservedRights) != 0 || (rights & Unusable) != 0 == segment.Present
                || !VmxVendor.GetSegment(ref guest.Vcpu, name).Equals(segment))
                Assert.Fail($"{name} {attributes:x}: {rights:x}");
        }
    }

    [Test]
    public void SegmentsDoNotOverlap()
    {
        using VmxGuest guest = new();
        Segment[] segments = [.. s_segments.Select(name => new Segment
        {
            Selector = (ushort)(8 + (int)name), Attributes = (ushort)(0x90 + (int)name),
            Limit = 100 + (uint)name, Base = 1000 + (uint)name,
        })];
        foreach (SegmentName name in s_segments)
            VmxVendor.SetSegment(ref guest.Vcpu, name, in segments[(int)name]);
        Assert.That(s_segments.Select(name => VmxVendor.GetSegment(ref guest.Vcpu, name)),
            Is.EqualTo(segments));
    }

    [Test]
    public void DescriptorTablesAreReadAsTheyWereWritten()
    {
        using VmxGuest guest = new();
        DescriptorTable gdtr = new() { Base = 0x1234, Limit = 0x7f }, idtr = new() { Base = 0x5678, Limit = 0xfff };
        VmxVendor.SetTable(ref guest.Vcpu, SegmentName.Gdtr, gdtr);
        VmxVendor.SetTable(ref guest.Vcpu, SegmentName.Idtr, idtr);
        Assert.That(VmxVendor.GetTable(ref guest.Vcpu, SegmentName.Gdtr), Is.EqualTo(gdtr));
        Assert.That(VmxVendor.GetTable(ref guest.Vcpu, SegmentName.Idtr), Is.EqualTo(idtr));
        Assert.That((guest.Vmcs[VmcsField.GdtrBase], guest.Vmcs[VmcsField.GdtrLimit]), Is.EqualTo((0x1234ul, 0x7ful)));
        Assert.That((guest.Vmcs[VmcsField.IdtrBase], guest.Vmcs[VmcsField.IdtrLimit]), Is.EqualTo((0x5678ul, 0xffful)));
    }

    [Test]
    public void ThePrivilegeLevelIsThatOfTheStack([Values] bool usable)
    {
        using VmxGuest guest = new();
        ushort attributes = (ushort)(usable ? 0xcf3 : 0xc73);
        VmxVendor.SetSegment(ref guest.Vcpu, SegmentName.Ss, new() { Attributes = attributes });
        Assert.That(VmxVendor.GetCpl(ref guest.Vcpu), Is.EqualTo(3));
        VmxVendor.SetCpl(ref guest.Vcpu, 1);
        Assert.That(VmxVendor.GetCpl(ref guest.Vcpu), Is.EqualTo(1));
        Assert.That(VmxVendor.GetSegment(ref guest.Vcpu, SegmentName.Ss).Attributes,
            Is.EqualTo(attributes & ~0x60 | 0x20));
    }

    /// <summary>Reads come from the shadow (25.6.6); hardware has its fixed bits, and caches that are on.</summary>
    [TestCase(Cr0.Et | Cr0.Cd | Cr0.Nw, Cr0.Et | Cr0.Ne)]
    [TestCase(Cr0.Pe | Cr0.Ts, Cr0.Pe | Cr0.Ts | Cr0.Ne)]
    public void TheGuestBelievesInItsCr0(ulong value, ulong hardware)
    {
        using VmxGuest guest = new();
        VmxVendor.SetCr0(ref guest.Vcpu, value);
        Assert.That((VmxVendor.GetCr0(ref guest.Vcpu), guest.Vmcs[VmcsField.Cr0Shadow]), Is.EqualTo((value, value)));
        Assert.That(guest.Vmcs[VmcsField.Cr0], Is.EqualTo(hardware));
        Assert.That(guest.Vmcs[VmcsField.Cr0Mask], Is.EqualTo(~Cr0.Ts));
    }

    /// <summary>Bits that the mask leaves to the guest are where it writes them (25.6.6).</summary>
    [Test]
    public void SomeControlBitsAreTheGuestsOwn([Values] bool set)
    {
        const ulong Owned = 0x78e; // PVI, TSD, DE, PGE, PCE, OSFXSR, OSXMMEXCPT
        using VmxGuest guest = new();
        VmxVendor.SetCr0(ref guest.Vcpu, set ? Cr0.Et : Cr0.Et | Cr0.Ts);
        VmxVendor.SetCr4(ref guest.Vcpu, set ? Cr4.Pae : Cr4.Pae | Owned);
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt).Doing((vmcs, ref _) =>
        {
            (vmcs[VmcsField.Cr0], vmcs[VmcsField.Cr4]) = (vmcs[VmcsField.Cr0] ^ Cr0.Ts, vmcs[VmcsField.Cr4] ^ Owned);
        }));
        Assert.That(VmxVendor.GetCr0(ref guest.Vcpu), Is.EqualTo(set ? Cr0.Et | Cr0.Ts : Cr0.Et));
        Assert.That(VmxVendor.GetCr4(ref guest.Vcpu), Is.EqualTo(set ? Cr4.Pae | Owned : Cr4.Pae));
        ulong mask = guest.Entries[0][VmcsField.Cr4Mask];
        Assert.That(mask & (Owned | Cr4.Pae | Cr4.Smep), Is.EqualTo(Cr4.Pae | Cr4.Smep));
        Assert.That((mask & Cr4.Fsgsbase) == 0, Is.EqualTo((guest.Vcpu.Cpuid.Cr4Allowed & Cr4.Fsgsbase) != 0));
    }

    [TestCase(0ul)]
    [TestCase(Cr4.Pae | Cr4.Mce)]
    public void TheGuestBelievesInItsCr4(ulong value)
    {
        using VmxGuest guest = new();
        VmxVendor.SetCr4(ref guest.Vcpu, value);
        Assert.That((VmxVendor.GetCr4(ref guest.Vcpu), guest.Vmcs[VmcsField.Cr4Shadow]), Is.EqualTo((value, value)));
        Assert.That(guest.Vmcs[VmcsField.Cr4], Is.EqualTo(value | Cr4.Mce | Vmxe));
        Assert.That(guest.Vmcs[VmcsField.Cr4Mask], Is.EqualTo(ulong.MaxValue));
    }

    /// <summary>25.8.1; an entry into long mode wants a busy 64-bit TSS (27.3.1.2).</summary>
    [Test]
    public void LongModeIsAnEntryControlAndATask()
    {
        using VmxGuest guest = new();
        VmxVendor.SetSegment(ref guest.Vcpu, SegmentName.Tr, new() { Attributes = 0x83, Limit = 0xffff });
        VmxVendor.SetEfer(ref guest.Vcpu, Efer.Lme);
        Assert.That((guest.Vmcs.LongMode, VmxVendor.GetSegment(ref guest.Vcpu, SegmentName.Tr).Type),
            Is.EqualTo((false, 3)));
        VmxVendor.SetEfer(ref guest.Vcpu, Efer.Lme | Efer.Lma);
        Assert.That((guest.Vmcs.LongMode, VmxVendor.GetSegment(ref guest.Vcpu, SegmentName.Tr).Type),
            Is.EqualTo((true, 11)));
        Assert.That((guest.Vmcs[VmcsField.GuestEfer], guest.Vcpu.Efer),
            Is.EqualTo((Efer.Lme | Efer.Lma, Efer.Lme | Efer.Lma)));
        VmxVendor.SetEfer(ref guest.Vcpu, Efer.Lme);
        Assert.That(guest.Vmcs.LongMode, Is.False);
        Assert.That(guest.Vmcs[VmcsField.EntryControls], Is.EqualTo(0xd1ff));
    }

    [Test]
    public void AGuestIn64BitModeEnters()
    {
        using VmxGuest guest = new();
        guest.EnterLongMode();
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        Assert.That(guest.Entries[0].LongMode);
    }

    /// <summary>4.4.1: of an aligned table below 4 GiB; what is absent, reserved or no memory is 0.</summary>
    [Test]
    public void PaePagingHasItsPdptesInTheVmcs()
    {
        const ulong Table = 0x2020, NoMemory = 0xf000_0000;
        ulong[] entries = [0x3001, 0x4000, 0x5001 | 1 << 5, 1ul << 60 | 1];
        using VmxGuest guest = new();
        guest.Write(Table, System.Runtime.InteropServices.MemoryMarshal.AsBytes<ulong>(entries));
        SetPaging(guest, Cr4.Pae, Table | 1ul << 32 | 0x18);
        guest.RunThrough();
        Assert.That(Pdptes(guest), Is.EqualTo(new ulong[] { 0x3001, 0, 0, 0 }));

        entries = [0x3001, 0x4019, 0xe01, 0x6001];
        guest.Write(Table, System.Runtime.InteropServices.MemoryMarshal.AsBytes<ulong>(entries));
        guest.RunThrough();
        Assert.That(Pdptes(guest)[1], Is.Zero, "not before CR3 is written");
        VmxVendor.SetCr3(ref guest.Vcpu, Table);
        guest.RunThrough();
        Assert.That(Pdptes(guest), Is.EqualTo(entries));
        VmxVendor.SetCr3(ref guest.Vcpu, NoMemory);
        guest.RunThrough();
        Assert.That(Pdptes(guest), Is.All.Zero);
    }

    [TestCase(0ul, Cr0.Pg)]
    [TestCase(Cr4.Pae, 0ul)]
    public void OtherPagingHasNoPdptes(ulong cr4, ulong paging)
    {
        using VmxGuest guest = new();
        guest.Write(0x2000, [1, 0x30]);
        SetPaging(guest, cr4, 0x2000, paging);
        guest.RunThrough();
        Assert.That(Pdptes(guest), Is.All.Zero);
    }

    [Test]
    public void LongModeHasNoPdptes()
    {
        using VmxGuest guest = new();
        guest.EnterLongMode();
        guest.RunThrough();
        Assert.That(Pdptes(guest), Is.All.Zero);
    }

    [TestCase(Msr.SysenterCs, VmcsField.SysenterCs)]
    [TestCase(Msr.SysenterEsp, VmcsField.SysenterEsp)]
    [TestCase(Msr.SysenterEip, VmcsField.SysenterEip)]
    [TestCase(Msr.FsBase, (VmcsField)0x680e)]
    [TestCase(Msr.GsBase, (VmcsField)0x6810)]
    public void AnMsrIsAField(uint msr, object field)
    {
        using VmxGuest guest = new();
        Assert.That(VmxVendor.TrySetMsr(ref guest.Vcpu, msr, 0x0007_0406_0007_0406), Is.True);
        Assert.That(guest.Vmcs[(VmcsField)field], Is.EqualTo(0x0007_0406_0007_0406));
        guest.Host.Cpu.Vmcs[(uint)(VmcsField)field] = 5;
        Assert.That(VmxVendor.TryGetMsr(ref guest.Vcpu, msr, out ulong value), Is.True);
        Assert.That((value, guest.Host.Thread.MsrTakes), Is.EqualTo((5ul, 0)));
    }

    /// <summary>They are on the CPU while the guest runs: fetched from there before each use.</summary>
    [TestCase(Msr.Star, 0)]
    [TestCase(Msr.Lstar, 1)]
    [TestCase(Msr.Sfmask, 2)]
    [TestCase(Msr.KernelGsBase, 3)]
    public void AnMsrOfSystemCallsIsFetchedFromTheCpu(uint msr, int place)
    {
        using VmxGuest guest = new();
        Assert.That(VmxVendor.TrySetMsr(ref guest.Vcpu, msr, 0x1234), Is.True);
        Assert.That((guest.Vcpu.Shared.SyscallMsrs[place], guest.Host.Thread.MsrTakes), Is.EqualTo((0x1234ul, 1)));
        guest.Vcpu.Shared.SyscallMsrs[place] = 5;
        Assert.That(VmxVendor.TryGetMsr(ref guest.Vcpu, msr, out ulong value), Is.True);
        Assert.That((value, guest.Host.Thread.MsrTakes), Is.EqualTo((5ul, 2)));
    }

    /// <summary>A CPU that does not load PAT has no field for it.</summary>
    [TestCase(Msr.Cstar)]
    [TestCase(Msr.Pat)]
    public void SomeMsrsAreKept(uint msr)
    {
        using VmxGuest guest = new();
        Assert.That(VmxVendor.TrySetMsr(ref guest.Vcpu, msr, 0x0007_0406_0007_0406), Is.True);
        if (msr == Msr.Pat)
            Assert.That(guest.Vmcs[VmcsField.GuestPat], Is.EqualTo(0x0007_0406_0007_0406));
        guest.Vmcs.Set(VmcsField.GuestPat, 0);
        Assert.That(VmxVendor.TryGetMsr(ref guest.Vcpu, msr, out ulong value), Is.True);
        Assert.That((value, guest.Host.Thread.MsrTakes), Is.EqualTo((0x0007_0406_0007_0406ul, 0)));
    }

    [Test]
    public void OtherMsrsAreNotTheVendors()
    {
        using VmxGuest guest = new();
        Assert.That(VmxVendor.TrySetMsr(ref guest.Vcpu, Msr.Efer, 1), Is.False);
        Assert.That(VmxVendor.TryGetMsr(ref guest.Vcpu, Msr.Tsc, out ulong value), Is.False);
        Assert.That(value, Is.Zero);
    }

    [Test]
    public void AFilterInterceptsAllMsrs()
    {
        using VmxGuest guest = new();
        kvm_msr_filter filter = new() { flags = 0 };
        filter.ranges[0] = new()
        {
            flags = 3, @base = Msr.FsBase, nmsrs = 1, bitmap = TestVcpu.Argument + 0x400,
        };
        Apply();
        Assert.That(guest.Vmcs.Has(PrimaryControls.MsrBitmap), Is.False);
        filter = default;
        Apply();
        Assert.That(guest.Vmcs[VmcsField.PrimaryControls], Is.EqualTo(0xb5986dfa));

        void Apply()
        {
            Assert.That(MsrFilter.Set(ref guest.Vm, in filter), Is.Zero);
            VmxVendor.UpdateMsrFilter(ref guest.Vcpu);
        }
    }

    [Test]
    public void TheTscOffsetIsAFieldThatOthersMayRead()
    {
        using VmxGuest guest = new();
        Msrs<VmxVendor>.SetTscOffset(ref guest.Vcpu, 0xffff_ffff_0000_0001);
        Assert.That((guest.Vmcs[VmcsField.TscOffset], guest.Vcpu.TscOffset),
            Is.EqualTo((0xffff_ffff_0000_0001, 0xffff_ffff_0000_0001)));
    }

    /// <summary>25.4.2: bit 0 is STI's, bit 1 MOV SS's, and never both; 27.3.1.5: STI's only while IF is set.</summary>
    [TestCase(InterruptShadow.None, true, 0ul, InterruptShadow.None)]
    [TestCase(InterruptShadow.MovSs, true, 2ul, InterruptShadow.MovSs)]
    [TestCase(InterruptShadow.Sti, true, 1ul, InterruptShadow.Sti)]
    [TestCase(InterruptShadow.Sti | InterruptShadow.MovSs, true, 1ul, InterruptShadow.Sti)]
    [TestCase(InterruptShadow.None, false, 0ul, InterruptShadow.None)]
    [TestCase(InterruptShadow.Sti | InterruptShadow.MovSs, false, 2ul, InterruptShadow.MovSs)]
    public void AnInterruptShadowIsOneBit(int shadow, bool interruptFlag, ulong bits, int read)
    {
        using VmxGuest guest = new();
        guest.Vcpu.Registers.Rflags = interruptFlag ? Rflags.If | Rflags.Fixed : Rflags.Fixed;
        guest.Host.Cpu.Vmcs[(uint)VmcsField.Interruptibility] = 0xb;
        VmxVendor.SetInterruptShadow(ref guest.Vcpu, shadow);
        Assert.That(guest.Vmcs[VmcsField.Interruptibility], Is.EqualTo(8 | bits));
        Assert.That(VmxVendor.GetInterruptShadow(ref guest.Vcpu), Is.EqualTo(read));
    }

    [Test]
    public void BlockingByNmiIsABit([Values] bool masked)
    {
        using VmxGuest guest = new();
        guest.Host.Cpu.Vmcs[(uint)VmcsField.Interruptibility] = masked ? 2u : 0xa;
        VmxVendor.SetNmiMasked(ref guest.Vcpu, masked);
        Assert.That(guest.Vmcs[VmcsField.Interruptibility], Is.EqualTo(masked ? 0xa : 2));
        Assert.That(VmxVendor.GetNmiMasked(ref guest.Vcpu), Is.EqualTo(masked));
    }

    [Test]
    public void PagingThatChangesFlushesWithTheNextEntry()
    {
        using VmxGuest guest = new();
        Assert.That(Flushes(), Is.True, "a new vCPU");
        guest.RunThrough(Turn.NotEntered());
        Assert.That(Flushes(), Is.True, "not entered");
        guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
        Assert.That(Flushes(), Is.False, "entered");
        VmxVendor.SetCr3(ref guest.Vcpu, 0x2000);
        AssertFlushesOnce("CR3");
        VmxVendor.SetCr4(ref guest.Vcpu, Cr4.Pae);
        AssertFlushesOnce("CR4");
        VmxVendor.SetEfer(ref guest.Vcpu, Efer.Nxe);
        AssertFlushesOnce("EFER");
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Pe | Cr0.Et);
        AssertFlushesOnce("CR0");
        VmxVendor.FlushTlb(ref guest.Vcpu);
        AssertFlushesOnce("flush");

        bool Flushes() => (guest.Vcpu.Shared.Flags & EntryFlags.Flushes) != 0;

        void AssertFlushesOnce(string cause)
        {
            Assert.That(Flushes(), Is.True, cause);
            guest.RunThrough(Turn.Exit(ExitReason.Interrupt));
            Assert.That(Flushes(), Is.False, cause);
        }
    }

    private static void SetPaging(VmxGuest guest, ulong cr4, ulong cr3, ulong paging = Cr0.Pg)
    {
        VmxVendor.SetCr4(ref guest.Vcpu, cr4);
        VmxVendor.SetCr3(ref guest.Vcpu, cr3);
        VmxVendor.SetCr0(ref guest.Vcpu, Cr0.Pe | Cr0.Et | paging);
    }

    private static ulong[] Pdptes(VmxGuest guest) =>
        [.. Enumerable.Range(0, 4).Select(i => guest.Vmcs[VmcsField.GuestPdpte + 2 * (uint)i])];
}
