// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Vm;

namespace SharpKvm.Cpu;

/// <summary>The CPUID that a guest can be given on this host.</summary>
internal static class HostCpuid
{
    private const uint LastBasic = 0xd, Hypervisor = 0x40000000, Extended = 0x80000000, LastExtended = 0x80000021;
    /// <summary>
    /// KVM_FEATURE_*: CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, ASYNC_PF, STEAL_TIME, PV_EOI, PV_UNHALT, PV_TLB_FLUSH,
    /// PV_SEND_IPI, POLL_CONTROL, PV_SCHED_YIELD, ASYNC_PF_INT, CLOCKSOURCE_STABLE.
    /// </summary>
    private const uint ParavirtFeatures = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9
        | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 24;
    /// <summary>ASYNC_PF(_INT), PV_EOI, PV_UNHALT and PV_SEND_IPI need local APICs that the kernel has.</summary>
    public const uint Paravirtual = 0x40000001, ParavirtOfApic = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14;
    private const uint AlwaysRunningApicTimer = 1 << 2;
    /// <summary>Of leaf 1, ECX.</summary>
    private const uint TscDeadline = 1 << 24;
    private const uint MaxWidth = 48;
    /// <summary>Leaves 4 and 0x8000001D list caches until one has no type.</summary>
    private const uint MaxCaches = 8, CacheType = 0x1f;

    /// <summary>Width of the host's physical addresses that are made use of.</summary>
    public static int MaxPhysAddr => (int)Width(CpuidLeaf.OfHost(0x80000008).Eax);

    private ref struct Listing(Span<kvm_cpuid_entry2> entries)
    {
        private readonly Span<kvm_cpuid_entry2> _entries = entries;
        public int Count;

        /// <summary>Adds a leaf, of whose feature words only what is supported.</summary>
        public void Add(uint leaf, uint subleaf, bool indexed, CpuidLeaf values)
        {
            FeatureWords.Filter(leaf, subleaf, ref values);
            // KVM_CAP_TSC_DEADLINE_TIMER tells of it instead: it needs a local APIC in the kernel.
            if (leaf == 1)
                values.Ecx &= ~TscDeadline;
            _entries[Count++] = new()
            {
                function = leaf, index = subleaf,
                flags = indexed ? kvm_cpuid_entry2.KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                eax = values.Eax, ebx = values.Ebx, ecx = values.Ecx, edx = values.Edx,
            };
        }
    }

    /// <summary>KVM_GET_SUPPORTED_CPUID. E2BIG, with the count needed, when the entries do not fit.</summary>
    public static int Supported(ref IoctlData data)
    {
        if (!KernelArray<kvm_cpuid_entry2>.TryAllocate(CpuidTable.MaxEntries, out KernelArray<kvm_cpuid_entry2> all))
            return Errno.ENOMEM;
        Listing listing = new(all.Span);
        AddRange(ref listing, 0, LastBasic);
        // KVMKVMKVM
        listing.Add(Hypervisor, 0, false,
            new() { Eax = Paravirtual, Ebx = 0x4b4d564b, Ecx = 0x564b4d56, Edx = 0x4d });
        listing.Add(Paravirtual, 0, false, new() { Eax = ParavirtFeatures });
        AddRange(ref listing, Extended, LastExtended);
        int result = data.AnswerList<kvm_cpuid_entry2>(all.Span[..listing.Count]);
        all.Free();
        return result;
    }

    /// <summary>
    /// KVM_GET_EMULATED_CPUID: features that the host lacks and the emulator could add. None: instructions that the
    /// host does not know reach the guest as #UD. EINVAL when the padding that user space passes is not clean.
    /// </summary>
    public static int Emulated(ref IoctlData data)
    {
        uint count = Math.Min(data.As<kvm_cpuid2>().nent, CpuidTable.MaxEntries), padding = 0;
        if (count == 0)
            return Errno.E2BIG;
        int error = UserMemory.Copy(data.Elements, count, out KernelArray<kvm_cpuid_entry2> given);
        foreach (ref kvm_cpuid_entry2 entry in given.Span)
            padding |= entry.padding[0] | entry.padding[1] | entry.padding[2];
        given.Free();
        return error != 0 ? error : padding != 0 ? Errno.EINVAL : data.AnswerList<kvm_cpuid_entry2>(default);
    }

    private static void AddRange(ref Listing listing, uint first, uint last)
    {
        CpuidLeaf range = CpuidLeaf.OfHost(first);
        range.Eax = Math.Min(range.Eax, last);
        listing.Add(first, 0, false, range);
        for (uint leaf = first + 1; leaf <= range.Eax; leaf++)
        {
            uint subleaves = leaf switch { 4 or 0x8000001d => MaxCaches, 7 => 2, 0xd => 63, _ => 1 };
            for (uint i = 0; i < subleaves; i++)
            {
                CpuidLeaf host = CpuidLeaf.OfHost(leaf, i);
                if (IsPresent(leaf, i, in host))
                    listing.Add(leaf, i, subleaves > 1 || leaf == 0xb, Reduced(leaf, i, in host));
            }
        }
    }

    private static bool IsPresent(uint leaf, uint subleaf, in CpuidLeaf host) => leaf switch
    {
        4 or 0x8000001d => (host.Eax & CacheType) != 0,
        7 => subleaf <= CpuidLeaf.OfHost(7).Eax,
        0xd => subleaf == 0 || ((HostCpu.SupportedXcr0() | 1) >> (int)subleaf & 1) != 0,
        _ => true,
    };

    private static CpuidLeaf Reduced(uint leaf, uint subleaf, in CpuidLeaf host) => leaf switch
    {
        // CLFLUSH size and brand; the APIC id and the number of threads are user space's to fill in.
        1 => host with { Ebx = host.Ebx & 0xffff },
        6 => new() { Eax = AlwaysRunningApicTimer },
        7 when subleaf == 0 => host with { Eax = Math.Min(host.Eax, 1) },
        7 => new() { Eax = host.Eax },
        0xd => ReducedXsave(subleaf, in host),
        0x80000001 => host with { Ebx = host.Ebx & ~0u << 28 },
        0x80000007 => new() { Edx = host.Edx },
        0x80000008 => host with { Eax = Width(host.Eax) | Width(host.Eax >> 8) << 8, Edx = 0 },
        0x80000021 => new() { Eax = host.Eax },
        2 or 4 or (>= 0x80000002 and <= 0x80000006) or 0x80000019 or 0x8000001a or 0x8000001d => host,
        _ => default,
    };

    private static uint Width(uint hostBits) => Math.Min(hostBits & 0xff, MaxWidth);

    /// <summary>Leaf 0xD: the state components, their places and sizes (SDM vol. 1, 13.2).</summary>
    private static CpuidLeaf ReducedXsave(uint subleaf, in CpuidLeaf host)
    {
        ulong xcr0 = HostCpu.SupportedXcr0();
        uint size = xcr0 == 0 || subleaf > 1 ? 0 : XsaveLayout.Size(xcr0, compacted: subleaf == 1);
        return subleaf switch
        {
            0 => new() { Eax = (uint)xcr0, Edx = (uint)(xcr0 >> 32), Ebx = size, Ecx = size },
            1 => new() { Eax = host.Eax, Ebx = size },
            _ => host with { Edx = 0 },
        };
    }
}
