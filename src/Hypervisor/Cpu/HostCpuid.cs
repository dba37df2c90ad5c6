// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Abi;
using SharpKvm.Host;

namespace SharpKvm.Cpu;

/// <summary>The CPUID that a guest can be given on this host.</summary>
internal static class HostCpuid
{
    private const uint LastBasic = 0xd, Hypervisor = 0x40000000, Extended = 0x80000000, LastExtended = 0x80000021;
    /// <summary>KVM_FEATURE_NOP_IO_DELAY: port accesses need no delay between them.</summary>
    private const uint NopIoDelay = 1 << 1;
    private const uint AlwaysRunningApicTimer = 1 << 2;
    private const uint MaxWidth = 48;
    /// <summary>Leaves 4 and 0x8000001D list caches until one has no type.</summary>
    private const uint MaxCaches = 8, CacheType = 0x1f;

    /// <summary>Width of the host's physical addresses that are made use of.</summary>
    public static int MaxPhysAddr
    {
        get
        {
            HostCpu.Cpuid(0x80000008, 0, out CpuidLeaf widths);
            return (int)Width(widths.Eax);
        }
    }

    /// <summary>Writes entries to user space while there is room, and counts all.</summary>
    private ref struct Writer(Hva argument, uint room)
    {
        private Hva _next = argument + (ulong)Unsafe.SizeOf<kvm_cpuid2>();
        private uint _count;
        private bool _failed;

        /// <summary>Adds a leaf, of whose feature words only what is supported.</summary>
        public void Add(uint leaf, uint subleaf, bool indexed, CpuidLeaf values)
        {
            FeatureWords.Filter(leaf, subleaf, ref values);
            if (_count++ >= room || _failed)
                return;
            kvm_cpuid_entry2 entry = new()
            {
                function = leaf, index = subleaf,
                flags = indexed ? kvm_cpuid_entry2.KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                eax = values.Eax, ebx = values.Ebx, ecx = values.Ecx, edx = values.Edx,
            };
            _failed = !UserMemory.TryWrite(_next, entry);
            _next += (ulong)Unsafe.SizeOf<kvm_cpuid_entry2>();
        }

        public readonly int Finish() =>
            _failed || !UserMemory.TryWrite(argument, _count) ? Errno.EFAULT : _count > room ? Errno.E2BIG : 0;
    }

    /// <summary>KVM_GET_SUPPORTED_CPUID. E2BIG, with the count needed, when the entries do not fit.</summary>
    public static int Supported(Hva argument)
    {
        if (!UserMemory.TryRead(argument, out kvm_cpuid2 head))
            return Errno.EFAULT;
        Writer writer = new(argument, head.nent);
        AddRange(ref writer, 0, LastBasic);
        // KVMKVMKVM
        writer.Add(Hypervisor, 0, false,
            new() { Eax = Hypervisor + 1, Ebx = 0x4b4d564b, Ecx = 0x564b4d56, Edx = 0x4d });
        writer.Add(Hypervisor + 1, 0, false, new() { Eax = NopIoDelay });
        AddRange(ref writer, Extended, LastExtended);
        return writer.Finish();
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
        for (uint i = 0; i < Math.Min(head.nent, CpuidTable.MaxEntries); i++)
        {
            if (!UserMemory.TryRead(body, out kvm_cpuid_entry2 entry))
                return Errno.EFAULT;
            if ((entry.padding[0] | entry.padding[1] | entry.padding[2]) != 0)
                return Errno.EINVAL;
            body += (ulong)Unsafe.SizeOf<kvm_cpuid_entry2>();
        }
        return new Writer(argument, head.nent).Finish();
    }

    private static void AddRange(ref Writer writer, uint first, uint last)
    {
        HostCpu.Cpuid(first, 0, out CpuidLeaf range);
        range.Eax = Math.Min(range.Eax, last);
        writer.Add(first, 0, false, range);
        for (uint leaf = first + 1; leaf <= range.Eax; leaf++)
        {
            HostCpu.Cpuid(leaf, 0, out CpuidLeaf values);
            Add(ref writer, leaf, values);
        }
    }

    private static void Add(ref Writer writer, uint leaf, CpuidLeaf values)
    {
        switch (leaf)
        {
            case 4 or 0x8000001d:
                for (uint i = 0; (values.Eax & CacheType) != 0 && i < MaxCaches; HostCpu.Cpuid(leaf, ++i, out values))
                    writer.Add(leaf, i, true, values);
                return;
            case 7:
                values.Eax = Math.Min(values.Eax, 1);
                writer.Add(leaf, 0, true, values);
                if (values.Eax != 0)
                {
                    HostCpu.Cpuid(leaf, 1, out values);
                    writer.Add(leaf, 1, true, new() { Eax = values.Eax });
                }
                return;
            case 0xd:
                AddXsave(ref writer);
                return;
        }
        writer.Add(leaf, 0, leaf is 0xb, Reduced(leaf, in values));
    }

    private static CpuidLeaf Reduced(uint leaf, in CpuidLeaf host) => leaf switch
    {
        // CLFLUSH size and brand; the APIC id and the number of threads are user space's to fill in.
        1 => host with { Ebx = host.Ebx & 0xffff },
        6 => new() { Eax = AlwaysRunningApicTimer },
        0x80000001 => host with { Ebx = host.Ebx & ~0u << 28 },
        0x80000007 => new() { Edx = host.Edx },
        0x80000008 => host with { Eax = Width(host.Eax) | Width(host.Eax >> 8) << 8, Edx = 0 },
        0x80000021 => new() { Eax = host.Eax },
        2 or (>= 0x80000002 and <= 0x80000006) or 0x80000019 or 0x8000001a => host,
        _ => default,
    };

    private static uint Width(uint hostBits) => Math.Min(hostBits & 0xff, MaxWidth);

    /// <summary>Leaf 0xD: the state components, their places and sizes (SDM vol. 1, 13.2).</summary>
    private static void AddXsave(ref Writer writer)
    {
        ulong xcr0 = HostCpu.SupportedXcr0();
        uint size = xcr0 == 0 ? 0 : XsaveLayout.Size(xcr0, compacted: false);
        writer.Add(0xd, 0, true, new() { Eax = (uint)xcr0, Edx = (uint)(xcr0 >> 32), Ebx = size, Ecx = size });
        for (uint i = 1; i < 63; i++)
        {
            if (xcr0 == 0 || i > 1 && (xcr0 >> (int)i & 1) == 0)
                continue;
            HostCpu.Cpuid(0xd, i, out CpuidLeaf values);
            values.Edx = 0;
            if (i == 1)
                values = new() { Eax = values.Eax, Ebx = XsaveLayout.Size(xcr0, compacted: true) };
            writer.Add(0xd, i, true, values);
        }
    }
}
