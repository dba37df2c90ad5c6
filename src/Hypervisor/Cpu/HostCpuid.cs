// SPDX-License-Identifier: GPL-2.0-only
using System.Runtime.CompilerServices;
using SharpKvm.Abi;
using SharpKvm.Host;

namespace SharpKvm.Cpu;

/// <summary>The CPUID that a guest can be given on this host.</summary>
internal static class HostCpuid
{
    private const uint LastBasic = 0xd;
    private const uint LastExtended = 0x80000021;
    private const uint Hypervisor = 0x40000000;
    /// <summary>KVM_FEATURE_NOP_IO_DELAY: port accesses need no delay between them.</summary>
    private const uint NopIoDelay = 1 << 1;
    private const uint AlwaysRunningApicTimer = 1 << 2;
    private const uint MaxWidth = 48;

    /// <summary>Writes entries to user space while there is room, and counts all.</summary>
    private ref struct Writer(Hva body, uint room)
    {
        private Hva _next = body;
        public uint Count;
        public bool Failed;

        public void Add(uint leaf, uint subleaf, bool indexed, in CpuidLeaf values)
        {
            if (Count++ >= room || Failed)
                return;
            kvm_cpuid_entry2 entry = default;
            entry.function = leaf;
            entry.index = subleaf;
            entry.flags = indexed ? kvm_cpuid_entry2.KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
            entry.eax = values.Eax;
            entry.ebx = values.Ebx;
            entry.ecx = values.Ecx;
            entry.edx = values.Edx;
            Failed = !UserMemory.TryWrite(_next, entry);
            _next += (ulong)Unsafe.SizeOf<kvm_cpuid_entry2>();
        }
    }

    /// <summary>KVM_GET_SUPPORTED_CPUID. E2BIG, with the count needed, when the entries do not fit.</summary>
    public static int Supported(Hva argument)
    {
        if (!UserMemory.TryRead(argument, out kvm_cpuid2 head))
            return Errno.EFAULT;
        Writer writer = new(argument + (ulong)Unsafe.SizeOf<kvm_cpuid2>(), head.nent);

        HostCpu.Cpuid(0, 0, out CpuidLeaf basic);
        basic.Eax = Math.Min(basic.Eax, LastBasic);
        for (uint leaf = 0; leaf <= basic.Eax; leaf++)
            AddBasic(ref writer, leaf, in basic);

        CpuidLeaf kvm = new() { Eax = Hypervisor + 1, Ebx = 0x4b4d564b, Ecx = 0x564b4d56, Edx = 0x4d }; // KVMKVMKVM
        writer.Add(Hypervisor, 0, false, in kvm);
        kvm = new() { Eax = NopIoDelay };
        writer.Add(Hypervisor + 1, 0, false, in kvm);

        HostCpu.Cpuid(0x80000000, 0, out CpuidLeaf extended);
        extended.Eax = Math.Min(extended.Eax, LastExtended);
        for (uint leaf = 0x80000000; leaf <= extended.Eax; leaf++)
            AddExtended(ref writer, leaf, in extended);
        return Finish(argument, head, in writer);
    }

    /// <summary>
    /// KVM_GET_EMULATED_CPUID: features that the host lacks and the emulator could add. None: instructions that the
    /// host does not know reach the guest as #UD. EINVAL when the padding that user space passes is not clean.
    /// </summary>
    public static int Emulated(Hva argument)
    {
        if (!UserMemory.TryRead(argument, out kvm_cpuid2 head))
            return Errno.EFAULT;
        if (head.nent < 1)
            return Errno.E2BIG;
        Hva body = argument + (ulong)Unsafe.SizeOf<kvm_cpuid2>();
        uint count = Math.Min(head.nent, CpuidTable.MaxEntries);
        for (uint i = 0; i < count; i++)
        {
            if (!UserMemory.TryRead(body, out kvm_cpuid_entry2 entry))
                return Errno.EFAULT;
            if ((entry.padding[0] | entry.padding[1] | entry.padding[2]) != 0)
                return Errno.EINVAL;
            body += (ulong)Unsafe.SizeOf<kvm_cpuid_entry2>();
        }
        Writer writer = new(body, 0);
        return Finish(argument, head, in writer);
    }

    private static int Finish(Hva argument, kvm_cpuid2 head, in Writer writer)
    {
        uint room = head.nent;
        head.nent = writer.Count;
        if (writer.Failed || !UserMemory.TryWrite(argument, head))
            return Errno.EFAULT;
        return writer.Count > room ? Errno.E2BIG : 0;
    }

    private static void AddBasic(ref Writer writer, uint leaf, in CpuidLeaf basic)
    {
        CpuidLeaf values = basic;
        if (leaf != 0)
            HostCpu.Cpuid(leaf, 0, out values);
        switch (leaf)
        {
            case 0:
            case 2:
                writer.Add(leaf, 0, false, in values);
                break;
            case 1:
                // CLFLUSH size and brand; the APIC id and the number of threads are user space's to fill in.
                values.Ebx &= 0xffff;
                AddFiltered(ref writer, leaf, 0, false, values);
                break;
            case 4:
                for (uint i = 0; (values.Eax & 0x1f) != 0 && i < 8; HostCpu.Cpuid(leaf, ++i, out values))
                    writer.Add(leaf, i, true, in values);
                break;
            case 6:
                values = new() { Eax = AlwaysRunningApicTimer };
                writer.Add(leaf, 0, false, in values);
                break;
            case 7:
                bool more = values.Eax >= 1;
                values.Eax = more ? 1u : 0;
                AddFiltered(ref writer, leaf, 0, true, values);
                if (more)
                {
                    HostCpu.Cpuid(leaf, 1, out values);
                    AddFiltered(ref writer, leaf, 1, true, new() { Eax = values.Eax });
                }
                break;
            case 0xd:
                AddXsave(ref writer);
                break;
            default:
                values = default;
                writer.Add(leaf, 0, leaf is 0xb, in values);
                break;
        }
    }

    /// <summary>Leaf 0xD: the state components, their places and sizes (SDM vol. 1, 13.2).</summary>
    private static void AddXsave(ref Writer writer)
    {
        ulong xcr0 = HostCpu.SupportedXcr0();
        uint size = XsaveLayout.Size(xcr0, compacted: false);
        CpuidLeaf values = new() { Eax = (uint)xcr0, Edx = (uint)(xcr0 >> 32), Ebx = size, Ecx = size };
        writer.Add(0xd, 0, true, xcr0 == 0 ? default : values);
        if (xcr0 == 0)
            return;
        HostCpu.Cpuid(0xd, 1, out values);
        values.Ebx = XsaveLayout.Size(xcr0, compacted: true);
        values.Ecx = values.Edx = 0;
        AddFiltered(ref writer, 0xd, 1, true, values);
        for (uint i = 2; i < 63; i++)
        {
            if ((xcr0 >> (int)i & 1) == 0)
                continue;
            HostCpu.Cpuid(0xd, i, out values);
            values.Edx = 0;
            writer.Add(0xd, i, true, in values);
        }
    }

    private static void AddExtended(ref Writer writer, uint leaf, in CpuidLeaf extended)
    {
        CpuidLeaf values = extended;
        if (leaf != 0x80000000)
            HostCpu.Cpuid(leaf, 0, out values);
        switch (leaf)
        {
            case 0x80000001:
                values.Ebx &= ~0u << 28;
                AddFiltered(ref writer, leaf, 0, false, values);
                break;
            case 0x80000007:
            case 0x80000021:
                AddFiltered(ref writer, leaf, 0, false, leaf == 0x80000021
                    ? new() { Eax = values.Eax } : new() { Edx = values.Edx });
                break;
            case 0x80000008:
                values.Eax = Math.Min(values.Eax & 0xff, MaxWidth) | Math.Min(values.Eax >> 8 & 0xff, MaxWidth) << 8;
                values.Edx = 0;
                AddFiltered(ref writer, leaf, 0, false, values);
                break;
            case 0x8000001d:
                for (uint i = 0; (values.Eax & 0x1f) != 0 && i < 8; HostCpu.Cpuid(leaf, ++i, out values))
                    writer.Add(leaf, i, true, in values);
                break;
            case 0x80000000 or (>= 0x80000002 and <= 0x80000006) or 0x80000019 or 0x8000001a:
                writer.Add(leaf, 0, false, in values);
                break;
            default:
                values = default;
                writer.Add(leaf, 0, false, in values);
                break;
        }
    }

    /// <summary>Adds a leaf whose feature words keep only what is supported.</summary>
    private static void AddFiltered(ref Writer writer, uint leaf, uint subleaf, bool indexed, CpuidLeaf values)
    {
        for (int word = 0; word < FeatureWords.Count; word++)
        {
            if (FeatureWords.Leaf(word) != leaf || FeatureWords.Subleaf(word) != subleaf)
                continue;
            uint bits = FeatureWords.Filter(word, values.Register(FeatureWords.Register(word)));
            switch (FeatureWords.Register(word))
            {
                case 0: values.Eax = bits; break;
                case 1: values.Ebx = bits; break;
                case 2: values.Ecx = bits; break;
                default: values.Edx = bits; break;
            }
        }
        writer.Add(leaf, subleaf, indexed, in values);
    }
}
