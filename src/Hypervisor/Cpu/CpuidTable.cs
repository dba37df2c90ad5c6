// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Cpu;

/// <summary>The CPUID of a vCPU, as user space set it, and what the rest of the core derives from it.</summary>
internal struct CpuidTable
{
    /// <summary>KVM_MAX_CPUID_ENTRIES.</summary>
    public const int MaxEntries = 256;
    private const uint Monitor = 1 << 3, Osxsave = 1 << 27, Apic = 1 << 9, Ospke = 1 << 4;
    /// <summary>Physical address width where leaf 0x80000008 is missing (SDM vol. 3, 4.1.4).</summary>
    private const int DefaultPhysicalBits = 36;
    /// <summary>The first four letters of the vendors whose CPUID is AMD's.</summary>
    private const uint AuthenticAmd = 0x68747541, HygonGenuine = 0x6f677948;
    /// <summary>Basic, hypervisor's and extended leaves begin at 0, 0x40000000 and 0x80000000.</summary>
    private const int Ranges = 3, SlotsPerRange = 40;

    [InlineArray(Ranges * SlotsPerRange)] private struct Starts { private ushort _first; }

    private KernelArray<kvm_cpuid_entry2> _entries;
    /// <summary>Where to begin looking for the leaves that real systems have.</summary>
    private Starts _starts;
    /// <summary>Features that the guest was given and that we support.</summary>
    private InlineArray12<uint> _words;
    public int MaxPhysAddr;
    /// <summary>Bits that a guest physical address cannot have.</summary>
    public ulong ReservedGpa;
    public ulong Cr4Allowed;
    public ulong EferAllowed;
    public ulong Xcr0Allowed;
    /// <summary>The guest has run: the table may be set again only to what it is.</summary>
    public bool Locked;

    public readonly bool Has(Feature feature) => (_words[(int)feature / 32] >> ((int)feature % 32) & 1) != 0;

    /// <summary>TSC_AUX, by whichever instruction reads it.</summary>
    public readonly bool HasTscAux => Has(Feature.Rdtscp) || Has(Feature.Rdpid);

    /// <summary>MONITOR and MWAIT, which no host's support matters for.</summary>
    public readonly bool HasMonitor
    {
        get => (At(1, 0, out _).ecx & Monitor) != 0;
        set => Assign(ref At(1, 0, out _).ecx, Monitor, value);
    }

    public readonly ReadOnlySpan<kvm_cpuid_entry2> Entries => _entries.Span;

    public readonly bool IsValidGpa(ulong address) => (address & ReservedGpa) == 0;

    public readonly void Free() => _entries.Free();

    /// <summary>The CPUID instruction.</summary>
    public static void Execute(ref Vcpu vcpu)
    {
        ref GuestRegisters registers = ref vcpu.Registers;
        uint leaf = (uint)registers[Gpr.Rax], subleaf = (uint)registers[Gpr.Rcx];
        if (!vcpu.Cpuid.TryGet(leaf, subleaf, out CpuidLeaf result))
            vcpu.Cpuid.Query(leaf, subleaf, out result);
        if (leaf == HostCpuid.Paravirtual && !vcpu.HasApic)
            result.Eax &= ~HostCpuid.ParavirtOfApic;
        registers[Gpr.Rax] = result.Eax;
        registers[Gpr.Rbx] = result.Ebx;
        registers[Gpr.Rcx] = result.Ecx;
        registers[Gpr.Rdx] = result.Edx;
    }

    /// <summary>
    /// What the guest's CPUID returns. Beyond the last leaf of a range AMD returns zeros, Intel the data of the last
    /// basic leaf (SDM vol. 2, CPUID).
    /// </summary>
    public readonly void Query(uint leaf, uint subleaf, out CpuidLeaf result)
    {
        if (TryGet(leaf, subleaf, out result))
            return;
        // A hypervisor's leaves come in groups of 256.
        uint group = leaf >> 28 == 4 ? leaf & 0xffffff00 : leaf & 0xc0000000;
        bool inRange = TryGet(group, 0, out CpuidLeaf head) && leaf <= head.Eax;
        if (!inRange && TryGet(0, 0, out CpuidLeaf basic) && basic.Ebx is not (AuthenticAmd or HygonGenuine))
        {
            TryGet(basic.Eax, subleaf, out result);
        }
        else if (leaf is 0xb or 0x1f && TryGet(leaf, 1, out CpuidLeaf topology))
        {
            // Past the last level of the topology only the level and the x2APIC id remain.
            result.Ecx = subleaf & 0xff;
            result.Edx = topology.Edx;
        }
    }

    [MethodImpl(AggressiveInlining)] private readonly bool TryGet(uint leaf, uint subleaf, out CpuidLeaf result)
    {
        result = default;
        int found = Find(leaf, subleaf);
        if (found < 0)
            return false;
        ref kvm_cpuid_entry2 entry = ref _entries.Span[found];
        result = new() { Eax = entry.eax, Ebx = entry.ebx, Ecx = entry.ecx, Edx = entry.edx };
        return true;
    }

    private readonly int Find(uint leaf, uint subleaf)
    {
        Span<kvm_cpuid_entry2> entries = _entries.Span;
        int slot = Slot(leaf);
        for (int i = slot < 0 ? 0 : _starts[slot]; i < entries.Length; i++)
        {
            ref kvm_cpuid_entry2 entry = ref entries[i];
            if (entry.function == leaf && (entry.index == subleaf
                || (entry.flags & kvm_cpuid_entry2.KVM_CPUID_FLAG_SIGNIFCANT_INDEX) == 0))
                return i;
        }
        return -1;
    }

    /// <summary>An entry to change, or one that is nobody's.</summary>
    private readonly ref kvm_cpuid_entry2 At(uint leaf, uint subleaf, [UnscopedRef] out kvm_cpuid_entry2 nobodys)
    {
        nobodys = default;
        int found = Find(leaf, subleaf);
        return ref found >= 0 ? ref _entries.Span[found] : ref nobodys;
    }

    [MethodImpl(AggressiveInlining)] private static int Slot(uint leaf)
    {
        uint range = leaf >> 30, place = leaf & 0x3fffffff;
        return range < Ranges && place < SlotsPerRange ? (int)(range * SlotsPerRange + place) : -1;
    }

    /// <summary>
    /// Takes the entries of KVM_SET_CPUID2. E2BIG beyond 256; EINVAL for an impossible width of linear addresses, or a
    /// change after the guest has run.
    /// </summary>
    public static int Set<TVendor>(ref Vcpu vcpu, Hva elements, uint count) where TVendor : struct, IVendor
    {
        ref CpuidTable old = ref vcpu.Cpuid;
        if (count > MaxEntries)
            return Errno.E2BIG;
        CpuidTable table = new() { Locked = old.Locked };
        int error = UserMemory.Copy(elements, count, out table._entries);
        if (error == 0)
            error = table.Derive();
        if (error == 0)
        {
            table.UpdateRuntime(TVendor.GetCr4(ref vcpu), vcpu.Msrs.ApicBase, vcpu.Shared.Xcr0);
            if (!old.Locked || MemoryMarshal.AsBytes(old.Entries).SequenceEqual(MemoryMarshal.AsBytes(table.Entries)))
                (table, old) = (old, table);
            else
                error = Errno.EINVAL;
        }
        table.Free();
        return error;
    }

    /// <summary>Computes what follows from the entries; without any, the guest has what the host supports.</summary>
    public int Derive()
    {
        Span<kvm_cpuid_entry2> entries = _entries.Span;
        ((Span<ushort>)_starts).Fill((ushort)entries.Length);
        for (int i = entries.Length - 1; i >= 0; i--)
        {
            int slot = Slot(entries[i].function);
            if (slot >= 0)
                _starts[slot] = (ushort)i;
        }

        for (int word = 0; word < FeatureWords.Count; word++)
        {
            uint supported = FeatureWords.Supported(word);
            TryGet(FeatureWords.Leaf(word), FeatureWords.Subleaf(word), out CpuidLeaf guest);
            _words[word] = entries.IsEmpty ? supported : supported & guest[FeatureWords.Register(word)];
        }

        TryGet(0x80000008, 0, out CpuidLeaf widths);
        if ((widths.Eax >> 8 & 0xff) is not (0 or 48 or 57))
            return Errno.EINVAL;
        MaxPhysAddr = (int)Math.Min(widths.Eax & 0xff, 52);
        if (MaxPhysAddr == 0)
            MaxPhysAddr = DefaultPhysicalBits;
        ReservedGpa = ~0ul << MaxPhysAddr;

        TryGet(0xd, 0, out CpuidLeaf xsave);
        Xcr0Allowed = ((ulong)xsave.Edx << 32 | xsave.Eax) & HostCpu.SupportedXcr0();
        Cr4Allowed = Cr4.Always | If(Feature.Umip, Cr4.Umip) | If(Feature.Fsgsbase, Cr4.Fsgsbase)
            | If(Feature.Pcid, Cr4.Pcide) | If(Feature.Xsave, Cr4.Osxsave) | If(Feature.Smep, Cr4.Smep)
            | If(Feature.Smap, Cr4.Smap) | If(Feature.Pku, Cr4.Pke) | If(Feature.La57, Cr4.La57);
        EferAllowed = Efer.Sce | If(Feature.LongMode, Efer.Lme | Efer.Lma) | If(Feature.Nx, Efer.Nxe)
            | If(Feature.FxsrOpt, Efer.Ffxsr);
        return 0;
    }

    private readonly ulong If(Feature feature, ulong bits) => Has(feature) ? bits : 0;

    /// <summary>Brings those bits up to date that show the state of the CPU rather than its features.</summary>
    public readonly void UpdateRuntime(ulong cr4, ulong apicBase, ulong xcr0)
    {
        ref kvm_cpuid_entry2 basic = ref At(1, 0, out _), compact = ref At(0xd, 1, out _);
        Assign(ref basic.ecx, Osxsave, (cr4 & Cr4.Osxsave) != 0);
        Assign(ref basic.edx, Apic, (apicBase & ApicBase.Enable) != 0);
        Assign(ref At(7, 0, out _).ecx, Ospke, (cr4 & Cr4.Pke) != 0);
        At(0xd, 0, out _).ebx = XsaveLayout.Size(xcr0, compacted: false);
        if ((compact.eax & XsaveLayout.CompactionBits) != 0)
            compact.ebx = XsaveLayout.Size(xcr0, compacted: true);
    }

    private static void Assign(ref uint word, uint bit, bool value) => word = value ? word | bit : word & ~bit;
}
