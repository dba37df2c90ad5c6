// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Mmu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Cpu;

/// <summary>What is set comes back; what is wrong is refused and changes nothing.</summary>
public class StateIoctlsTests
{
    private static readonly Gen<kvm_segment> s_segment =
        from @base in Gen.ULong
        from limit in Gen.UInt
        from selector in Gen.UShort
        from bits in Gen.Byte.Array[8]
        select new kvm_segment
        {
            @base = @base, limit = limit, selector = selector, type = (byte)(bits[0] & 15),
            present = (byte)(bits[1] & 1), dpl = (byte)(bits[2] & 3), db = (byte)(bits[3] & 1), s = (byte)(bits[4] & 1),
            l = 0, g = (byte)(limit > 0xfffff ? 1 : bits[6] & 1), avl = (byte)(bits[7] & 1),
            unusable = (byte)(~bits[1] & 1),
        };

    private static readonly Gen<kvm_dtable> s_table =
        Gen.Select(Gen.ULong, Gen.UShort, (@base, limit) => new kvm_dtable { @base = @base, limit = limit });

    /// <summary>Any values that make a consistent state: real mode, protected, PAE or long mode.</summary>
    private static readonly Gen<kvm_sregs_common> s_sregs =
        from segments in s_segment.Array[8]
        from tables in s_table.Array[2]
        from mode in Gen.Int[0, 3]
        from values in Gen.ULong.Array[5]
        from cr8 in Gen.ULong[0, 15]
        select new kvm_sregs_common
        {
            cs = segments[0], ds = segments[1], es = segments[2], fs = segments[3], gs = segments[4], ss = segments[5],
            tr = segments[6], ldt = segments[7], gdt = tables[0], idt = tables[1],
            cr0 = values[0] & (Cr0.Mp | Cr0.Em | Cr0.Ts | Cr0.Ne | Cr0.Wp | Cr0.Am | Cr0.Cd) | Cr0.Et
                | (mode > 0 ? Cr0.Pe : 0) | (mode > 1 ? Cr0.Pg : 0),
            cr2 = values[1],
            cr3 = values[2] & 0xf_ffff_f000,
            cr4 = values[3] & (Cr4.Always | Cr4.Fsgsbase | Cr4.Osxsave | Cr4.Smep | Cr4.Smap) & ~Cr4.Pae
                | (mode > 1 ? Cr4.Pae : 0),
            cr8 = cr8,
            efer = values[4] & (Efer.Sce | Efer.Nxe) | (mode == 3 ? Efer.Lme | Efer.Lma : 0),
            apic_base = 0xfee00900,
        };

    private static readonly (string Name, uint Command)[] s_all =
    [
        ("GET_REGS", KVM_GET_REGS), ("SET_REGS", KVM_SET_REGS), ("GET_SREGS", KVM_GET_SREGS),
        ("SET_SREGS", KVM_SET_SREGS), ("GET_SREGS2", KVM_GET_SREGS2), ("SET_SREGS2", KVM_SET_SREGS2),
        ("GET_FPU", KVM_GET_FPU), ("SET_FPU", KVM_SET_FPU), ("GET_XSAVE", KVM_GET_XSAVE),
        ("GET_XSAVE2", KVM_GET_XSAVE2), ("SET_XSAVE", KVM_SET_XSAVE), ("GET_XCRS", KVM_GET_XCRS),
        ("SET_XCRS", KVM_SET_XCRS), ("GET_MSRS", KVM_GET_MSRS), ("SET_MSRS", KVM_SET_MSRS),
        ("GET_DEBUGREGS", KVM_GET_DEBUGREGS), ("SET_DEBUGREGS", KVM_SET_DEBUGREGS),
        ("SET_GUEST_DEBUG", KVM_SET_GUEST_DEBUG), ("GET_VCPU_EVENTS", KVM_GET_VCPU_EVENTS),
        ("SET_VCPU_EVENTS", KVM_SET_VCPU_EVENTS), ("GET_MP_STATE", KVM_GET_MP_STATE),
        ("SET_MP_STATE", KVM_SET_MP_STATE), ("SET_CPUID2", KVM_SET_CPUID2),
        ("GET_CPUID2", KVM_GET_CPUID2), ("TRANSLATE", KVM_TRANSLATE), ("INTERRUPT", KVM_INTERRUPT),
        ("X86_SETUP_MCE", KVM_X86_SETUP_MCE), ("X86_SET_MCE", KVM_X86_SET_MCE),
        ("TPR_ACCESS_REPORTING", KVM_TPR_ACCESS_REPORTING),
    ];

    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp() => _test = new TestVcpu();

    [TearDown]
    public void TearDown() => _test.Dispose();

    [Test]
    public void AnArgumentThatIsNotMappedIsRefused() => Assert.Multiple(() =>
    {
        foreach ((string name, uint command) in s_all)
            Assert.That(_test.Call(command, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT), name);
    });

    /// <summary>The last byte of the argument is on a page that does not exist.</summary>
    [Test]
    public void AnArgumentThatIsCutOffIsRefused()
    {
        ulong end = TestVcpu.Argument + TestVcpu.ArgumentPages * Page.Size;
        Assert.Multiple(() =>
        {
            Cut<kvm_regs>(KVM_GET_REGS, KVM_SET_REGS);
            Cut<kvm_sregs>(KVM_GET_SREGS, KVM_SET_SREGS);
            Cut<kvm_sregs2>(KVM_GET_SREGS2, KVM_SET_SREGS2);
            Cut<kvm_fpu>(KVM_GET_FPU, KVM_SET_FPU);
            Cut<kvm_xcrs>(KVM_GET_XCRS, KVM_SET_XCRS);
            Cut<kvm_debugregs>(KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS);
            Cut<kvm_vcpu_events>(KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS);
            Cut<kvm_guest_debug>(KVM_SET_GUEST_DEBUG);
            Cut<kvm_x86_mce>(KVM_X86_SET_MCE);
        });

        void Cut<T>(params uint[] commands) where T : unmanaged
        {
            foreach (uint command in commands)
            {
                ulong cut = end + 1 - (ulong)Unsafe.SizeOf<T>();
                Assert.That(_test.Call(command, cut), Is.EqualTo(Errno.EFAULT), typeof(T).Name);
            }
        }
    }

    /// <summary>Whatever the bytes, an ioctl ends with an errno or a count, never with a trap in the core.</summary>
    [Test]
    public void RandomArgumentsNeverTrap() => Gen.Select(Gen.Int[0, s_all.Length - 1], Gen.UInt[0, 40],
        Gen.Byte.Array[1024], Gen.Bool).Sample((which, count, bytes, small) =>
        {
            if (small)
                MemoryMarshal.Write(bytes, count);
            Assert.That(UserMemory.Write(new Hva(TestVcpu.Argument), bytes), Is.True);
            Assert.That(_test.Call(s_all[which].Command), Is.GreaterThan(-134), s_all[which].Name);
            Exceptions<FakeVendor>.Take(ref _test.Vcpu);
            _test.Vcpu.Cpuid.Query((uint)bytes[0] << 24 | bytes[1], bytes[2], out _);
        }, iter: 20_000, threads: 1);

    [Test]
    public void RegistersComeBack() => Gen.ULong.Array[18].Sample(values =>
    {
        kvm_regs regs = MemoryMarshal.Cast<ulong, kvm_regs>(values)[0];
        Assert.That(_test.Set(KVM_SET_REGS, regs), Is.Zero);
        regs.rflags |= 2;
        AssertSame(_test.Get<kvm_regs>(KVM_GET_REGS), regs);
    }, iter: 200, threads: 1);

    [Test]
    public void RegistersGoWhereTheirNamesSay()
    {
        _test.Set(KVM_SET_REGS, new kvm_regs { rax = 1, rbx = 2, rsi = 3, rsp = 4, r15 = 5, rip = 6 });
        ref GuestRegisters registers = ref _test.Vcpu.Registers;
        Assert.That((registers[Gpr.Rax], registers[Gpr.Rbx], registers[Gpr.Rsi], registers[Gpr.Rsp], registers[Gpr.R15],
            registers.Rip), Is.EqualTo((1ul, 2ul, 3ul, 4ul, 5ul, 6ul)));
    }

    [Test]
    public void SystemRegistersComeBack() => s_sregs.Sample(common =>
    {
        Assert.That(_test.Set(KVM_SET_SREGS, new kvm_sregs { common = common }), Is.Zero);
        AssertSame(_test.Get<kvm_sregs>(KVM_GET_SREGS).common, common);
        Assert.That(_test.Block.Cpl, Is.EqualTo(common.ss.dpl));
    }, iter: 300, threads: 1);

    [Test]
    public void SystemRegistersOfTheSecondKindComeBack() => s_sregs.Sample(common =>
    {
        Assert.That(_test.Set(KVM_SET_SREGS2, new kvm_sregs2 { common = common }), Is.Zero);
        AssertSame(_test.Get<kvm_sregs2>(KVM_GET_SREGS2).common, common);
    }, iter: 300, threads: 1);

    [Test]
    public void PdptesAreReadFromMemoryAndTakenOnlyInPaeMode()
    {
        const ulong User = 0x7f00_0000_0000;
        _test.Host.Process.Map(User, 16);
        Assert.That(MemorySlots.SetRegion(ref _test.Machine.Vm,
            new kvm_userspace_memory_region { memory_size = 0x10000, userspace_addr = User }), Is.Zero);
        for (ulong i = 0; i < 4; i++)
            UserMemory.TryWrite(new Hva(User + 0x2020 + 8 * i), 0x1000 * i + 0x21);

        kvm_sregs2 sregs = _test.Get<kvm_sregs2>(KVM_GET_SREGS2);
        Assert.That(sregs.flags, Is.Zero);
        sregs.flags = kvm_sregs2.KVM_SREGS2_FLAGS_PDPTRS_VALID;
        Assert.That(_test.Set(KVM_SET_SREGS2, sregs), Is.EqualTo(Errno.EINVAL), "not PAE");
        sregs.common.cr0 = Cr0.Pe | Cr0.Pg | Cr0.Et;
        sregs.common.cr4 = Cr4.Pae;
        sregs.common.cr3 = 0x2020;
        Assert.That(_test.Set(KVM_SET_SREGS2, sregs), Is.Zero);
        sregs = _test.Get<kvm_sregs2>(KVM_GET_SREGS2);
        Assert.That(sregs.flags, Is.EqualTo(kvm_sregs2.KVM_SREGS2_FLAGS_PDPTRS_VALID));
        Assert.That(new[] { sregs.pdptrs[0], sregs.pdptrs[1], sregs.pdptrs[2], sregs.pdptrs[3] },
            Is.EqualTo(new ulong[] { 1, 0x1001, 0x2001, 0x3001 }));
        sregs.flags = 2;
        Assert.That(_test.Set(KVM_SET_SREGS2, sregs), Is.EqualTo(Errno.EINVAL), "unknown flag");
    }

    private static IEnumerable<TestCaseData> ImpossibleStates()
    {
        yield return State("CR0 above 32 bits", s => s.cr0 = 1ul << 32);
        yield return State("paging without protection", s => s.cr0 = Cr0.Pg);
        yield return State("NW without CD", s => s.cr0 = Cr0.Nw);
        yield return State("CR4 reserved", s => s.cr4 = 1ul << 31);
        yield return State("VMXE", s => s.cr4 = 1 << 13);
        yield return State("LA57", s => s.cr4 = Cr4.La57);
        yield return State("SVME", s => s.efer = Efer.Svme);
        yield return State("EFER reserved", s => s.efer = 1ul << 40);
        yield return State("long mode without PAE", s => Long(s).cr4 = 0);
        yield return State("long mode without LMA", s => Long(s).efer = Efer.Lme);
        yield return State("CR3 too wide", s => Long(s).cr3 = 1ul << 50);
        yield return State("LMA without paging", s => s.efer = Efer.Lma | Efer.Lme);
        yield return State("64-bit code outside long mode", s => s.cs.l = 1);
        yield return State("APIC base reserved", s => s.apic_base = 0xfee00801);
        yield return State("APIC base too wide", s => s.apic_base = 1ul << 52);
        yield return State("x2APIC", s => s.apic_base = 0xfee00c00);

        static TestCaseData State(string name, Action<Box> change) => new TestCaseData(change).SetArgDisplayNames(name);

        static Box Long(Box s)
        {
            s.cr0 = Cr0.Pe | Cr0.Pg;
            s.cr4 = Cr4.Pae;
            s.efer = Efer.Lme | Efer.Lma;
            return s;
        }
    }

    /// <summary>Fields of a kvm_sregs that a lambda can change.</summary>
    internal sealed class Box
    {
        public kvm_sregs Sregs;
        public ref kvm_segment cs => ref Sregs.common.cs;
        public ref ulong cr0 => ref Sregs.common.cr0;
        public ref ulong cr3 => ref Sregs.common.cr3;
        public ref ulong cr4 => ref Sregs.common.cr4;
        public ref ulong efer => ref Sregs.common.efer;
        public ref ulong apic_base => ref Sregs.common.apic_base;
    }

    [TestCaseSource(nameof(ImpossibleStates))]
    public void AnImpossibleStateIsRefusedAndChangesNothing(object change)
    {
        Box box = new() { Sregs = _test.Get<kvm_sregs>(KVM_GET_SREGS) };
        kvm_sregs before = box.Sregs;
        box.Sregs.common.cr2 = 0x1234;
        ((Action<Box>)change)(box);
        Assert.That(_test.Set(KVM_SET_SREGS, box.Sregs), Is.EqualTo(Errno.EINVAL));
        AssertSame(_test.Get<kvm_sregs>(KVM_GET_SREGS), before);
    }

    [Test]
    public void Cr4NeedsTheFeatureOnTheHost()
    {
        CpuidLeaf leaf = _test.Host.Cpu.Cpuid[(1, 0)];
        leaf.Ecx &= ~(1u << 26);
        _test.Host.Cpu.Cpuid[(1, 0)] = leaf;
        Assert.That(_test.SetCpuid(TestVcpu.Entry(1, ecx: ~0u)), Is.Zero);
        kvm_sregs sregs = _test.Get<kvm_sregs>(KVM_GET_SREGS);
        sregs.common.cr4 = Cr4.Osxsave;
        Assert.That(_test.Set(KVM_SET_SREGS, sregs), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void TheInterruptBitmapQueuesItsLowestVector()
    {
        kvm_sregs sregs = _test.Get<kvm_sregs>(KVM_GET_SREGS);
        sregs.interrupt_bitmap[1] = 1ul << 3;
        sregs.interrupt_bitmap[3] = 1;
        Assert.That(_test.Set(KVM_SET_SREGS, sregs), Is.Zero);
        Assert.That(_test.Vcpu.Events.Interrupt.Vector.Value, Is.EqualTo(67));
        sregs = _test.Get<kvm_sregs>(KVM_GET_SREGS);
        Assert.That((sregs.interrupt_bitmap[0], sregs.interrupt_bitmap[1], sregs.interrupt_bitmap[3]),
            Is.EqualTo((0ul, 1ul << 3, 0ul)));
    }

    [Test]
    public void AnUnusableSegmentIsNotPresent()
    {
        kvm_sregs sregs = _test.Get<kvm_sregs>(KVM_GET_SREGS);
        sregs.common.fs.present = 1;
        sregs.common.fs.unusable = 1;
        _test.Set(KVM_SET_SREGS, sregs);
        kvm_segment fs = _test.Get<kvm_sregs>(KVM_GET_SREGS).common.fs;
        Assert.That((fs.present, fs.unusable), Is.EqualTo(((byte)0, (byte)1)));
    }

    [Test]
    public void FpuComesBack() => Gen.Byte.Array[416].Sample(bytes =>
    {
        kvm_fpu fpu = MemoryMarshal.Cast<byte, kvm_fpu>(bytes)[0];
        fpu.x87.pad1 = 0;
        fpu.pad2 = 0;
        fpu.mxcsr &= 0xffff;
        Assert.That(_test.Set(KVM_SET_FPU, fpu), Is.Zero);
        AssertSame(_test.Get<kvm_fpu>(KVM_GET_FPU), fpu);
    }, iter: 100, threads: 1);

    [Test]
    public void FpuPartsThatXsaveLeftOutAreInitial()
    {
        Span<byte> image = _test.Vcpu.Shared.Host.LegacyFpu();
        image[..512].Fill(0xee);
        image[24] = 0x80;
        image[25] = 0x1f;
        image[26] = image[27] = 0;
        kvm_fpu fpu = _test.Get<kvm_fpu>(KVM_GET_FPU);
        Assert.That((fpu.x87.fcw, fpu.x87.fsw, fpu.x87.ftwx, fpu.fpr[0], fpu.xmm[0][0], fpu.mxcsr),
            Is.EqualTo(((ushort)0x37f, (ushort)0, (byte)0, 0ul, 0ul, 0x1f80u)));
    }

    [Test]
    public void ReservedMxcsrBitsAreRefused() =>
        Assert.That(_test.Set(KVM_SET_FPU, new kvm_fpu { mxcsr = 0x10000 }), Is.EqualTo(Errno.EINVAL));

    [Test]
    public void XsaveComesBack() => Gen.Byte.Array[4096].Sample(bytes =>
    {
        Assert.That(UserMemory.Write(new Hva(TestVcpu.Argument), bytes), Is.True);
        Assert.That(_test.Call(KVM_SET_XSAVE), Is.Zero);
        Assert.That(_test.Call(KVM_GET_XSAVE, TestVcpu.Argument + 0x2000), Is.Zero);
        Assert.That(_test.Call(KVM_GET_XSAVE2, TestVcpu.Argument + 0x4000), Is.Zero);
        byte[] first = new byte[4096], second = new byte[4096];
        UserMemory.Read(new Hva(TestVcpu.Argument + 0x2000), first);
        UserMemory.Read(new Hva(TestVcpu.Argument + 0x4000), second);
        Assert.That(first, Is.EqualTo(bytes));
        Assert.That(second, Is.EqualTo(bytes));
    }, iter: 10, threads: 1);

    [TestCase(1ul, true)]
    [TestCase(3ul, true)]
    [TestCase(7ul, true)]
    [TestCase(0ul, false)]
    [TestCase(2ul, false)]
    [TestCase(5ul, false)]
    [TestCase(0xful, false)]
    [TestCase(0xe7ul, false)]
    public void Xcr0TakesWhatXsetbvWould(ulong value, bool valid)
    {
        _test.SetSupportedCpuid();
        kvm_xcrs xcrs = new() { nr_xcrs = 1 };
        xcrs.xcrs[0].value = value;
        Assert.That(_test.Set(KVM_SET_XCRS, xcrs), Is.EqualTo(valid ? 0 : Errno.EINVAL));
        kvm_xcrs got = _test.Get<kvm_xcrs>(KVM_GET_XCRS);
        Assert.That((got.nr_xcrs, got.xcrs[0].xcr, got.xcrs[0].value), Is.EqualTo((1u, 0u, valid ? value : 1)));
    }

    [Test]
    public void XcrsRefusesFlagsAndTooMany()
    {
        Assert.That(_test.Set(KVM_SET_XCRS, new kvm_xcrs { nr_xcrs = 17 }), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.Set(KVM_SET_XCRS, new kvm_xcrs { flags = 1 }), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.Set(KVM_SET_XCRS, new kvm_xcrs()), Is.Zero);
        _test.Host.Cpu.SupportedXcr0 = 0;
        Assert.That(_test.Set(KVM_SET_XCRS, new kvm_xcrs()), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.Get<kvm_xcrs>(KVM_GET_XCRS).nr_xcrs, Is.Zero);
    }

    [Test]
    public void OnlyRunnableIsAnMpState()
    {
        Assert.That(_test.Get<uint>(KVM_GET_MP_STATE), Is.Zero);
        for (uint state = 0; state < 12; state++)
        {
            Assert.That(_test.Set(KVM_SET_MP_STATE, state),
                Is.EqualTo(state == 0 ? 0 : Errno.EINVAL));
        }
    }

    [Test]
    public void TheTscRunsAtTheHostsRate()
    {
        Assert.That(_test.Call(KVM_GET_TSC_KHZ), Is.EqualTo(2_000_000));
        Assert.That(VmCpuState.SetTscKhz(0), Is.Zero);
        Assert.That(VmCpuState.SetTscKhz(2_000_400), Is.Zero);
        Assert.That(VmCpuState.SetTscKhz(1_000_000), Is.EqualTo(Errno.EINVAL));
        Assert.That(VmCpuState.SetTscKhz(uint.MaxValue), Is.EqualTo(Errno.EINVAL));
    }

    [Test]
    public void InterruptsAreTakenOneAtATime()
    {
        Assert.That(_test.Set(KVM_INTERRUPT, 256u), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.Set(KVM_INTERRUPT, 0x20u), Is.Zero);
        Assert.That(_test.Set(KVM_INTERRUPT, 0x21u), Is.EqualTo(Errno.EEXIST));
        Assert.That(_test.Vcpu.Events.Interrupt.Vector.Value, Is.EqualTo(0x20));
    }

    [Test]
    public void NmisAreLatched()
    {
        for (int i = 0; i < 4; i++)
            Assert.That(_test.Call(KVM_NMI), Is.Zero);
        Assert.That(_test.Vcpu.Events.Nmi.Pending, Is.EqualTo(2));
        _test.Vcpu.Events.Nmi.Pending = 0;
        _test.Block.NmiMasked = true;
        _test.Call(KVM_NMI);
        _test.Call(KVM_NMI);
        Assert.That(_test.Vcpu.Events.Nmi.Pending, Is.EqualTo(1));
    }

    [Test]
    public void WhatNeedsAnInterruptControllerInTheKernelIsRefused()
    {
        Assert.That(Dispatch(Ioctl.KVM_SET_VAPIC_ADDR), Is.EqualTo(Errno.EINVAL));
        Assert.That(Dispatch(Ioctl.KVM_KVMCLOCK_CTRL), Is.EqualTo(Errno.EINVAL));
        Assert.That(Dispatch(Ioctl.KVM_SMI), Is.EqualTo(Errno.ENOTTY));
        Assert.That(_test.Set(KVM_TPR_ACCESS_REPORTING, new kvm_tpr_access_ctl { enabled = 1 }),
            Is.EqualTo(Errno.EINVAL));

        long Dispatch(uint command) => VcpuIoctls<FakeVendor>.Dispatch(ref _test.Vcpu, command, TestVcpu.Argument);
    }

    [Test]
    public void TranslationWithoutPagingIsTheAddressItself()
    {
        Assert.That(_test.Set(KVM_TRANSLATE, new kvm_translation { linear_address = 0xffff0 }), Is.Zero);
        kvm_translation result = _test.Take<kvm_translation>();
        Assert.That((result.linear_address, result.physical_address, result.valid, result.writeable, result.usermode),
            Is.EqualTo((0xffff0ul, 0xffff0ul, (byte)1, (byte)1, (byte)0)));
    }

    /// <summary>Compares all bytes, padding included.</summary>
    internal static void AssertSame<T>(T actual, T expected) where T : unmanaged
    {
        byte[] left = MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in actual)).ToArray();
        byte[] right = MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in expected)).ToArray();
        Assert.That(left, Is.EqualTo(right), typeof(T).Name);
    }
}
