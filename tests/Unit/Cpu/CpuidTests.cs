// SPDX-License-Identifier: GPL-2.0-only
using CsCheck;
using NUnit.Framework;
using SharpKvm.Cpu;
using SharpKvm.Vm;
using static SharpKvm.Abi.Ioctl;

namespace SharpKvm.Tests.Cpu;

public class CpuidTests
{
    private TestVcpu _test = null!;

    [SetUp]
    public void SetUp() => _test = new TestVcpu();

    [TearDown]
    public void TearDown() => _test.Dispose();

    private static kvm_cpuid_entry2 Entry(uint function, uint eax = 0, uint ebx = 0, uint ecx = 0, uint edx = 0,
        uint? index = null) => TestVcpu.Entry(function, eax, ebx, ecx, edx, index);

    private CpuidLeaf Query(uint leaf, uint subleaf = 0)
    {
        _test.Vcpu.Cpuid.Query(leaf, subleaf, out CpuidLeaf result);
        return result;
    }

    private Dictionary<(uint, uint), kvm_cpuid_entry2> Supported()
    {
        _test.Put(new kvm_cpuid2 { nent = CpuidTable.MaxEntries });
        Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, TestVcpu.Argument), Is.Zero);
        return Entries();
    }

    private Dictionary<(uint, uint), kvm_cpuid_entry2> Entries()
    {
        Dictionary<(uint, uint), kvm_cpuid_entry2> entries = [];
        for (uint i = 0; i < _test.Take<kvm_cpuid2>().nent; i++)
        {
            kvm_cpuid_entry2 entry = _test.Take<kvm_cpuid_entry2>(8 + 40 * (ulong)i);
            entries.Add((entry.function, entry.index), entry);
        }
        return entries;
    }

    [Test]
    public void WhatIsSetComesBack() =>
        Gen.Select(Gen.UInt.Array[4], Gen.UInt[0, 0x20], Gen.UInt[0, 3], (v, leaf, index) =>
                Entry(0x20000000 + leaf, v[0], v[1], v[2], v[3], index))
            .Array[0, 256].Sample(entries =>
            {
                Assert.That(_test.SetCpuid(entries), Is.Zero);
                _test.Put(new kvm_cpuid2 { nent = 256 });
                Assert.That(_test.Call(KVM_GET_CPUID2), Is.Zero);
                Assert.That(_test.Take<kvm_cpuid2>().nent, Is.EqualTo(entries.Length));
                for (int i = 0; i < entries.Length; i++)
                    StateIoctlsTests.AssertSame(_test.Take<kvm_cpuid_entry2>(8 + 40 * (ulong)i), entries[i]);
                foreach (kvm_cpuid_entry2 entry in entries)
                {
                    kvm_cpuid_entry2 first = entries.First(e => (e.function, e.index) == (entry.function, entry.index));
                    Assert.That(Query(entry.function, entry.index).Edx, Is.EqualTo(first.edx));
                }
            }, iter: 50, threads: 1);

    [Test]
    public void TooManyEntriesAreRefused()
    {
        _test.Put(new kvm_cpuid2 { nent = 257 });
        Assert.That(_test.Call(KVM_SET_CPUID2), Is.EqualTo(Errno.E2BIG));
        _test.Put(new kvm_cpuid2 { nent = uint.MaxValue });
        Assert.That(_test.Call(KVM_SET_CPUID2), Is.EqualTo(Errno.E2BIG));
    }

    [Test]
    public void EntriesThatCannotBeReadChangeNothing()
    {
        Assert.That(_test.SetCpuid(Entry(1, eax: 5)), Is.Zero);
        ulong end = TestVcpu.Argument + TestVcpu.ArgumentPages * Page.Size;
        UserMemory.TryWrite(new Hva(end - 8), new kvm_cpuid2 { nent = 1 });
        Assert.That(_test.Call(KVM_SET_CPUID2, end - 8), Is.EqualTo(Errno.EFAULT));
        _test.Host.FailingAllocation = _test.Host.Allocations;
        Assert.That(_test.SetCpuid(Entry(1, eax: 6)), Is.EqualTo(Errno.ENOMEM));
        Assert.That(Query(1).Eax, Is.EqualTo(5));
    }

    [Test]
    public void AnImpossibleAddressWidthIsRefused()
    {
        Assert.That(_test.SetCpuid(Entry(0x80000008, eax: 0x2f30)), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.SetCpuid(Entry(0x80000008, eax: 0x3030)), Is.Zero);
        Assert.That(_test.SetCpuid(Entry(0x80000008, eax: 0x3930)), Is.Zero);
    }

    [Test]
    public void AfterTheGuestHasRunOnlyTheSameTableIsTaken()
    {
        Assert.That(_test.SetCpuid(Entry(1, eax: 5), Entry(2)), Is.Zero);
        _test.Vcpu.Cpuid.Locked = true;
        Assert.That(_test.SetCpuid(Entry(1, eax: 5), Entry(2)), Is.Zero);
        Assert.That(_test.SetCpuid(Entry(1, eax: 6), Entry(2)), Is.EqualTo(Errno.EINVAL));
        Assert.That(_test.SetCpuid(Entry(1, eax: 5)), Is.EqualTo(Errno.EINVAL));
        Assert.That(Query(1).Eax, Is.EqualTo(5));
    }

    [Test]
    public void GetSaysHowManyThereAre()
    {
        _test.SetCpuid(Entry(0), Entry(1), Entry(2));
        _test.Put(new kvm_cpuid2 { nent = 2 });
        Assert.That(_test.Call(KVM_GET_CPUID2), Is.EqualTo(Errno.E2BIG));
        Assert.That(_test.Take<kvm_cpuid2>().nent, Is.EqualTo(3));
    }

    [Test]
    public void BeyondTheLastLeafIntelRepeatsAndAmdIsZero()
    {
        _test.SetCpuid(Entry(0, eax: 2, ebx: 0x756e6547), Entry(2, eax: 77), Entry(0x40000000, eax: 0x40000001),
            Entry(0x80000000, eax: 0x80000001));
        Assert.That(Query(1).Eax, Is.Zero, "inside the range, but not set");
        Assert.That(Query(3).Eax, Is.EqualTo(77));
        Assert.That(Query(0x40000001).Eax, Is.Zero);
        Assert.That(Query(0x40000002).Eax, Is.EqualTo(77));
        Assert.That(Query(0x80000002).Eax, Is.EqualTo(77));
        Assert.That(Query(0xc0000000).Eax, Is.EqualTo(77));
        _test.SetCpuid(Entry(0, eax: 2, ebx: 0x68747541), Entry(2, eax: 77));
        Assert.That((Query(3).Eax, Query(0xffffffff).Eax), Is.EqualTo((0u, 0u)));
        _test.SetCpuid();
        Assert.That(Query(0).Eax, Is.Zero);
        _test.SetCpuid(Entry(0, eax: 50, ebx: 0x756e6547));
        Assert.That(Query(60).Eax, Is.Zero, "the last leaf is missing too");
    }

    [Test]
    public void PastTheTopologyOnlyLevelAndIdRemain()
    {
        _test.SetCpuid(Entry(0, eax: 0xb), Entry(0xb, ecx: 1, edx: 9, index: 0), Entry(0xb, ecx: 2, edx: 9, index: 1));
        CpuidLeaf leaf = Query(0xb, 5);
        Assert.That((leaf.Eax, leaf.Ebx, leaf.Ecx, leaf.Edx), Is.EqualTo((0u, 0u, 5u, 9u)));
    }

    [Test]
    public void StateBitsFollowTheState()
    {
        _test.SetSupportedCpuid();
        const uint Osxsave = 1 << 27, Apic = 1 << 9, Ospke = 1 << 4;
        Assert.That((Query(1).Ecx & Osxsave, Query(1).Edx & Apic, Query(7).Ecx & Ospke), Is.EqualTo((0u, Apic, 0u)));
        Assert.That(Query(0xd).Ebx, Is.EqualTo(576));
        Assert.That(ControlRegisters<FakeVendor>.TrySetCr4(ref _test.Vcpu, Cr4.Osxsave | Cr4.Pke), Is.True);
        Assert.That(ControlRegisters<FakeVendor>.TrySetXcr0(ref _test.Vcpu, 0, 7), Is.True);
        Assert.That(Msrs<FakeVendor>.TryWrite(ref _test.Vcpu, Msr.ApicBase, 0xfee00000), Is.True);
        Assert.That((Query(1).Ecx & Osxsave, Query(1).Edx & Apic, Query(7).Ecx & Ospke),
            Is.EqualTo((Osxsave, 0u, Ospke)));
        Assert.That((Query(0xd).Ebx, Query(0xd).Ecx, Query(0xd, 1).Ebx), Is.EqualTo((0x340u, 0x340u, 0x340u)));
    }

    [Test]
    public void TheInstructionReadsAndWritesTheLowHalves()
    {
        _test.SetCpuid(Entry(1, 1, 2, 3, 4, index: 6));
        ref GuestRegisters registers = ref _test.Vcpu.Registers;
        registers[Gpr.Rax] = 0xffffffff00000001;
        registers[Gpr.Rcx] = 0xffffffff00000006;
        CpuidTable.Execute(ref _test.Vcpu);
        Assert.That((registers[Gpr.Rax], registers[Gpr.Rbx], registers[Gpr.Rcx], registers[Gpr.Rdx] & ~(1ul << 9)),
            Is.EqualTo((1ul, 2ul, 3ul, 4ul)));
    }

    [Test]
    public void DerivedFactsFollowTheTable()
    {
        Assert.That((_test.Vcpu.Cpuid.MaxPhysAddr, _test.Vcpu.Cpuid.Has(Feature.Smep)), Is.EqualTo((36, true)));
        _test.SetCpuid(Entry(0x80000008, eax: 0x3028), Entry(0x80000001, edx: 1 << 20));
        ref CpuidTable cpuid = ref _test.Vcpu.Cpuid;
        Assert.That((cpuid.MaxPhysAddr, cpuid.ReservedGpa), Is.EqualTo((40, ~0ul << 40)));
        Assert.That((cpuid.Has(Feature.Nx), cpuid.Has(Feature.LongMode)), Is.EqualTo((true, false)));
        Assert.That((cpuid.EferAllowed, cpuid.Cr4Allowed), Is.EqualTo((Efer.Sce | Efer.Nxe, Cr4.Always)));
    }

    [Test]
    public void SupportedHidesWhatThereIsNot()
    {
        Dictionary<(uint, uint), kvm_cpuid_entry2> entries = Supported();
        Assert.Multiple(() =>
        {
            uint ecx = entries[(1, 0)].ecx;
            Assert.That(ecx & 1u << 31, Is.Not.Zero, "hypervisor");
            Assert.That(ecx & (1 << 5 | 1 << 3 | 1 << 24 | 1 << 27), Is.Zero,
                "VMX, MONITOR, TSC deadline, OSXSAVE");
            Assert.That(entries[(1, 0)].ebx >> 16, Is.Zero, "APIC id and thread count");
            Assert.That(entries[(0, 0)].eax, Is.EqualTo(0xd));
            Assert.That(entries[(0x80000001, 0)].ecx & (1 << 2), Is.Zero, "SVM");
            const uint LongNxSyscall = 1 << 29 | 1 << 20 | 1 << 11;
            Assert.That(entries[(0x80000001, 0)].edx & LongNxSyscall, Is.EqualTo(LongNxSyscall));
            Assert.That(entries[(0x8000000a, 0)].edx, Is.Zero, "SVM features");
            Assert.That(entries[(7, 0)].eax, Is.EqualTo(1));
            Assert.That(entries[(7, 0)].ebx & (1 << 4 | 1 << 11 | 1 << 2 | 1 << 12), Is.Zero, "TSX, SGX, RDT");
            Assert.That(entries[(7, 0)].ecx & (1 << 16 | 1 << 4 | 1 << 5 | 1 << 7), Is.Zero,
                "LA57, OSPKE, WAITPKG, CET");
            Assert.That(entries[(7, 0)].edx & (7u << 22 | 1u << 29), Is.EqualTo(1u << 23), "AMX, ARCH_CAPABILITIES");
            Assert.That(entries[(0xd, 0)].eax, Is.EqualTo(7));
            Assert.That(entries[(0xd, 1)].eax, Is.EqualTo(7), "no XSAVES");
            Assert.That(entries.ContainsKey((0xd, 9)), Is.False);
            Assert.That(entries[(0x80000000, 0)].eax, Is.EqualTo(0x80000021));
            Assert.That((entries[(0x80000007, 0)].eax, entries[(0x80000007, 0)].edx), Is.EqualTo((0u, 1u << 8)));
            Assert.That((entries[(0x40000000, 0)].eax, entries[(0x40000000, 0)].ebx, entries[(0x40000000, 0)].ecx,
                entries[(0x40000000, 0)].edx), Is.EqualTo((0x40000001u, 0x4b4d564bu, 0x564b4d56u, 0x4du)));
            Assert.That(entries[(0x40000001, 0)].eax, Is.EqualTo(0x01007afb), "no ASYNC_PF_VMEXIT, no bit 15");
            Assert.That(entries[(0x8000001d, 1)].eax, Is.EqualTo(0x143));
            Assert.That(entries.Values.Where(e => e.function is 4 or 7 or 0xb or 0xd or 0x8000001d),
                Has.All.Matches<kvm_cpuid_entry2>(e => e.flags == 1));
        });
    }

    [Test]
    public void SupportedNeverExceedsTheHost()
    {
        foreach ((uint, uint) key in _test.Host.Cpu.Cpuid.Keys.ToArray())
        {
            if (key.Item1 is 1 or 7 or 0x80000001 or 0x80000007 or 0x80000008)
                _test.Host.Cpu.Cpuid[key] = default;
        }
        Dictionary<(uint, uint), kvm_cpuid_entry2> entries = Supported();
        Assert.That((entries[(1, 0)].ecx, entries[(1, 0)].edx, entries[(7, 0)].ebx, entries[(0x80000001, 0)].edx),
            Is.EqualTo((1u << 31 | 1u << 21, 0u, 2u, 0u)), "but for the hypervisor bit, x2APIC and TSC_ADJUST");
        Assert.That(entries.ContainsKey((7, 1)), Is.False);
    }

    [Test]
    public void OfLeaf7OnlyKnownSubleavesAndRegistersAreSupported()
    {
        CpuidLeaf first = _test.Host.Cpu.Cpuid[(7, 0)];
        first.Eax = 2;
        _test.Host.Cpu.Cpuid[(7, 0)] = first;
        _test.Host.Cpu.Cpuid[(7, 1)] = _test.Host.Cpu.Cpuid[(7, 2)] =
            new CpuidLeaf { Eax = ~0u, Ebx = ~0u, Ecx = ~0u, Edx = ~0u };
        Dictionary<(uint, uint), kvm_cpuid_entry2> entries = Supported();
        kvm_cpuid_entry2 second = entries[(7, 1)];
        Assert.That((entries[(7, 0)].eax, second.eax, second.ebx, second.ecx, second.edx),
            Is.EqualTo((1u, 0x30u, 0u, 0u, 0u)));
        Assert.That(entries.ContainsKey((7, 2)), Is.False);
    }

    [Test]
    public void SupportedSaysHowManyThereAre()
    {
        int count = Supported().Count;
        for (uint room = 0; room < count; room += 7)
        {
            _test.Put(new kvm_cpuid2 { nent = room });
            _test.Put(0xeeeeeeeeul, 8 + 40 * (ulong)room);
            Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, TestVcpu.Argument), Is.EqualTo(Errno.E2BIG));
            Assert.That(_test.Take<kvm_cpuid2>().nent, Is.EqualTo(count));
            Assert.That(_test.Take<ulong>(8 + 40 * (ulong)room), Is.EqualTo(0xeeeeeeee), "written past the end");
        }
        _test.Put(new kvm_cpuid2 { nent = uint.MaxValue });
        Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, TestVcpu.Argument), Is.Zero);
        Assert.That(SystemIoctls.Dispatch(KVM_GET_SUPPORTED_CPUID, TestVcpu.Nowhere), Is.EqualTo(Errno.EFAULT));
    }

    [Test]
    public void NothingIsEmulated()
    {
        _test.Put(new kvm_cpuid2 { nent = 0 });
        Assert.That(SystemIoctls.Dispatch(KVM_GET_EMULATED_CPUID, TestVcpu.Argument), Is.EqualTo(Errno.E2BIG));
        _test.Put(new kvm_cpuid2 { nent = 3 });
        Assert.That(SystemIoctls.Dispatch(KVM_GET_EMULATED_CPUID, TestVcpu.Argument), Is.Zero);
        Assert.That(_test.Take<kvm_cpuid2>().nent, Is.Zero);
        kvm_cpuid_entry2 dirty = default;
        dirty.padding[1] = 1;
        _test.Put(new kvm_cpuid2 { nent = 3 });
        _test.Put(dirty, 8 + 40);
        Assert.That(SystemIoctls.Dispatch(KVM_GET_EMULATED_CPUID, TestVcpu.Argument), Is.EqualTo(Errno.EINVAL));
    }
}
