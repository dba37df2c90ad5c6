// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Coalesced MMIO and ports: writes that the kernel collects in a ring shared with user space.</summary>
static class CoalescedTests
{
    const ulong Mmio = GuestLayout.Mmio;
    const ushort Port = 0x510;

    public static IEnumerable<TestCase> All =>
    [
        new("coalesced/memory", Memory),
        new("coalesced/port", PortWrites),
        new("coalesced/sizes", Sizes),
        new("coalesced/zone_borders", ZoneBorders),
        new("coalesced/reads_are_user_spaces", Reads),
        new("coalesced/full_ring", FullRing),
        new("coalesced/ring_wraps", RingWraps),
        new("coalesced/order_with_exits", OrderWithExits),
        new("coalesced/all_cpus_one_ring", AllCpusOneRing),
        new("coalesced/unregistered", Unregistered),
        new("coalesced/two_zones", TwoZones),
        new("coalesced/bad_arguments", BadArguments),
        new("coalesced/ioeventfd_inside_of_a_zone", IoeventfdInside),
        new("coalesced/hostile_indices", HostileIndices),
        new("coalesced/indices_change_while_running", IndicesChange),
        new("coalesced/without_irqchip", WithoutIrqchip),
    ];

    static void Register(Machine machine, ulong address, uint size, uint pio = 0) =>
        Check.Succeeds(machine.Vm.TryRegisterCoalesced(address, size, pio), $"zone at {address:x}");

    /// <summary>Takes what is in the ring.</summary>
    static List<KvmCoalescedMmio> Drain(Vcpu vcpu)
    {
        List<KvmCoalescedMmio> taken = [];
        ref KvmCoalescedMmioRing ring = ref vcpu.CoalescedRing;
        while (ring.First != Volatile.Read(ref ring.Last))
        {
            taken.Add(ring.Entries[(int)ring.First]);
            ring.First = (ring.First + 1) % KvmCoalescedMmioRing.Max;
        }
        return taken;
    }

    static string Show(KvmCoalescedMmio entry) => $"{entry.PhysAddr:x}/{entry.Len}"
        + $"={Convert.ToHexString(((ReadOnlySpan<byte>)entry.Data)[..(int)Math.Min(entry.Len, 8)])}";

    static string Show(IEnumerable<KvmCoalescedMmio> entries) => string.Join(' ', entries.Select(Show));

    /// <summary>So many 32-bit writes at consecutive addresses, the number as value.</summary>
    static Action<Assembler> Writes(uint number) => code =>
    {
        Label again = code.CreateLabel();
        code.mov(rbx, Mmio);
        code.xor(ecx, ecx);
        code.Label(ref again);
        code.mov(__dword_ptr[rbx + rcx * 4], ecx);
        code.inc(ecx);
        code.cmp(ecx, number);
        code.jb(again);
        code.Done();
    };

    static void Memory()
    {
        using var machine = new Machine(Writes(3));
        Check.Equal(KvmCoalescedMmioRing.PageOffset, machine.Vm.CheckExtension(KvmCap.CoalescedMmio),
            "KVM_CAP_COALESCED_MMIO");
        Register(machine, Mmio, 0x100);
        machine.RunToDone();
        Check.Equal("d0000/4=00000000 d0004/4=01000000 d0008/4=02000000", Show(Drain(machine.Vcpu)), "ring");
    }

    static void PortWrites()
    {
        using var machine = new Machine(code =>
        {
            code.mov(eax, 0x11223344);
            code.mov(dx, Port);
            code.@out(dx, al);
            code.@out(dx, ax);
            code.inc(dx);
            code.@out(dx, al);
            code.Done();
        });
        Check.Needs(KvmCap.CoalescedPio);
        Register(machine, Port, 2, pio: 1);
        machine.RunToDone();
        List<KvmCoalescedMmio> taken = Drain(machine.Vcpu);
        Check.Equal("510/1=44 510/2=4433 511/1=44", Show(taken), "ring");
        Check.That(taken.All(entry => entry.Pio == 1), "all are ports");
    }

    static void Sizes()
    {
        using var machine = new Machine(code =>
        {
            code.mov(rbx, Mmio);
            code.mov(rax, 0x8877665544332211);
            code.mov(__byte_ptr[rbx + 1], al);
            code.mov(__word_ptr[rbx + 2], ax);
            code.mov(__dword_ptr[rbx + 4], eax);
            code.mov(__qword_ptr[rbx + 8], rax);
            code.Done();
        });
        Register(machine, Mmio, 0x10);
        machine.RunToDone();
        Check.Equal("d0001/1=11 d0002/2=1122 d0004/4=11223344 d0008/8=1122334455667788",
            Show(Drain(machine.Vcpu)), "ring");
    }

    /// <summary>What reaches over a zone's end is user space's, as is what lies before it.</summary>
    static void ZoneBorders()
    {
        using var machine = new Machine(code =>
        {
            code.mov(rbx, Mmio);
            code.xor(eax, eax);
            code.mov(__dword_ptr[rbx + 0x0E], eax);
            code.mov(__dword_ptr[rbx + 0x10], eax);
            code.mov(__dword_ptr[rbx + 0x1C], eax);
            code.mov(__dword_ptr[rbx + 0x1E], eax);
            code.mov(__dword_ptr[rbx + 0x20], eax);
            code.Done();
        });
        Register(machine, Mmio + 0x10, 0x10);
        foreach (ulong offset in (ulong[])[0x0E, 0x1E, 0x20])
        {
            machine.RunTo(KvmExit.Mmio);
            Check.Equal(Mmio + offset, machine.Run.Mmio.PhysAddr, "address");
        }
        machine.RunToDone();
        Check.Equal("d0010/4=00000000 d001c/4=00000000", Show(Drain(machine.Vcpu)), "ring");
    }

    static void Reads()
    {
        using var machine = new Machine(code =>
        {
            code.mov(rbx, Mmio);
            code.mov(__dword_ptr[rbx], 7);
            code.mov(eax, __dword_ptr[rbx]);
            code.Done();
        });
        Register(machine, Mmio, 0x10);
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(0, machine.Run.Mmio.IsWrite, "is_write");
        Check.Equal("d0000/4=07000000", Show(Drain(machine.Vcpu)), "ring at the read");
        machine.RunToDone();
    }

    /// <summary>A write that finds no room leaves to user space, and no order is changed by that.</summary>
    static void FullRing()
    {
        const uint Number = 400;
        using var machine = new Machine(Writes(Number));
        Register(machine, Mmio, 0x1000);
        uint expected = 0;
        int exits = 0;
        while (machine.Vcpu.RunOnce() == KvmExit.Mmio)
        {
            List<KvmCoalescedMmio> taken = Drain(machine.Vcpu);
            foreach (KvmCoalescedMmio entry in taken)
                Check.Equal(Mmio + 4 * expected++, entry.PhysAddr, "address in the ring");
            Check.Equal(Mmio + 4 * expected++, machine.Run.Mmio.PhysAddr, "address of the write without room");
            exits++;
            // Stock KVM's remainder of a difference below 0 makes its ring smaller at some places.
            if (TestEnvironment.IsSharpKvm)
                Check.Equal(KvmCoalescedMmioRing.Max - 1, taken.Count, "entries of a full ring");
        }
        Check.Equal(Number, expected + (uint)Drain(machine.Vcpu).Count, "writes");
        Check.That(exits is > 0 and < 10, $"{exits} writes without room");
    }

    static void RingWraps()
    {
        const uint Number = 500;
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.mov(rbx, Mmio);
            code.xor(ecx, ecx);
            code.Label(ref again);
            code.mov(__dword_ptr[rbx], ecx);
            code.inc(ecx);
            code.test(ecx, 63);
            Label more = code.CreateLabel();
            code.jnz(more);
            code.Done(1);
            code.Label(ref more);
            code.cmp(ecx, Number);
            code.jb(again);
            code.Done();
        });
        Register(machine, Mmio, 0x10);
        uint expected = 0;
        byte step;
        do
        {
            step = machine.RunToDone();
            foreach (KvmCoalescedMmio entry in Drain(machine.Vcpu))
                Check.Equal(expected++, BitConverter.ToUInt32(entry.Data), "value");
        }
        while (step != 0);
        Check.Equal(Number, expected, "writes");
    }

    static void OrderWithExits()
    {
        using var machine = new Machine(code =>
        {
            code.mov(rbx, Mmio);
            for (int i = 0; i < 4; i++)
            {
                code.mov(__dword_ptr[rbx], i);
                code.mov(__dword_ptr[rbx + 0x100], i);
            }
            code.Done();
        });
        Register(machine, Mmio, 0x10);
        for (int i = 0; i < 4; i++)
        {
            machine.RunTo(KvmExit.Mmio);
            Check.Equal(i, machine.Run.Mmio.Data[0], "the write to user space");
            Check.Equal($"d0000/4=0{i}000000", Show(Drain(machine.Vcpu)), "the writes before it");
        }
        machine.RunToDone();
    }

    static void AllCpusOneRing()
    {
        using var machine = new Machine(cpus: 2);
        Register(machine, Mmio, 0x1000);
        for (int cpu = 0; cpu < 2; cpu++)
        {
            machine.Program(cpu, code =>
            {
                code.mov(rbx, Mmio);
                for (int i = 0; i < 30; i++)
                    code.mov(__dword_ptr[rbx + cpu * 4], i);
                code.Done();
            });
            machine.Start(cpu);
        }
        machine.Join();
        Check.Equal(machine.Vcpu.CoalescedRing.Last, machine.Cpus[1].CoalescedRing.Last, "both see the same ring");
        List<KvmCoalescedMmio> taken = Drain(machine.Cpus[1]);
        for (int cpu = 0; cpu < 2; cpu++)
            Check.Equal(string.Join(' ', Enumerable.Range(0, 30)), string.Join(' ', taken
                .Where(entry => entry.PhysAddr == Mmio + (ulong)cpu * 4)
                .Select(entry => BitConverter.ToInt32(entry.Data))), $"writes of CPU {cpu}");
    }

    static void Unregistered()
    {
        using var machine = new Machine(Writes(3));
        Register(machine, Mmio, 0x10);
        Check.Succeeds(machine.Vm.TryUnregisterCoalesced(Mmio, 0x10), "unregister");
        for (int i = 0; i < 3; i++)
            machine.RunTo(KvmExit.Mmio);
        machine.RunToDone();
        Check.Equal(0, Drain(machine.Vcpu).Count, "in the ring");
        Check.Succeeds(machine.Vm.TryUnregisterCoalesced(Mmio, 0x10), "unregister what is not there");
    }

    /// <summary>Unregistering an area takes the zones that lie inside of it.</summary>
    static void TwoZones()
    {
        using var machine = new Machine(code =>
        {
            code.mov(rbx, Mmio);
            for (int round = 0; round < 2; round++)
            {
                code.mov(__dword_ptr[rbx], 0);
                code.mov(__dword_ptr[rbx + 0x20], 0);
                code.Done();
            }
        });
        Register(machine, Mmio, 0x10);
        Register(machine, Mmio + 0x20, 0x10);
        machine.RunToDone();
        Check.Equal(2, Drain(machine.Vcpu).Count, "in the ring");
        Check.Succeeds(machine.Vm.TryUnregisterCoalesced(Mmio, 0x10), "unregister the first");
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(Mmio, machine.Run.Mmio.PhysAddr, "address");
        machine.RunToDone();
        Check.Equal(1, Drain(machine.Vcpu).Count, "in the ring afterwards");
    }

    static void BadArguments()
    {
        using var machine = new Machine(Writes(1));
        Check.Fails(Errno.EINVAL, machine.Vm.TryRegisterCoalesced(Mmio, 0x10, 2), "neither memory nor port");
        Check.Fails(Errno.EINVAL, machine.Vm.TryUnregisterCoalesced(Mmio, 0x10, 2), "unregister, neither");
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.RegisterCoalescedMmio, 0x10), "an address in page 0");
        // Taken or refused; nothing bad comes of them.
        _ = machine.Vm.TryRegisterCoalesced(Mmio, 0);
        _ = machine.Vm.TryRegisterCoalesced(ulong.MaxValue, uint.MaxValue);
        _ = machine.Vm.TryRegisterCoalesced(ulong.MaxValue - 3, 8);
        machine.RunTo(KvmExit.Mmio, "a zone of no size");
        machine.RunToDone();
    }

    static void IoeventfdInside()
    {
        using var machine = new Machine(Writes(3));
        using var eventFd = new EventFd();
        Check.Succeeds(machine.Vm.TryIoeventfd(new() { Addr = Mmio + 4, Len = 4, Fd = eventFd.Fd }), "IOEVENTFD");
        Register(machine, Mmio, 0x100);
        machine.RunToDone();
        int inRing = Drain(machine.Vcpu).Count;
        // Both want that write; one gets it.
        Check.Equal(3ul, (ulong)inRing + eventFd.Take(), "writes seen");
        Check.That(inRing >= 2, $"{inRing} in the ring");
    }

    /// <summary>CVE-2019-14821: the indices are user space's to destroy, and its own loss.</summary>
    static void HostileIndices()
    {
        uint[] values = [KvmCoalescedMmioRing.Max - 1, KvmCoalescedMmioRing.Max, KvmCoalescedMmioRing.Max + 1, 0x1000,
            0x7FFFFFFF, 0x80000000, uint.MaxValue, 0];
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.mov(rbx, Mmio);
            code.Label(ref again);
            code.mov(__dword_ptr[rbx], 0x55);
            code.Done();
            code.jmp(again);
        });
        Register(machine, Mmio, 0x10);
        foreach (uint first in values)
        {
            foreach (uint last in values)
            {
                machine.Vcpu.CoalescedRing.First = first;
                machine.Vcpu.CoalescedRing.Last = last;
                // The write may go to user space.
                int exits = 0;
                do
                    machine.Vcpu.RunOnce();
                while (machine.Run.ExitReason == KvmExit.Mmio && ++exits < 3);
                Check.Equal(KvmExit.Io, machine.Run.ExitReason, $"first {first:x}, last {last:x}");
            }
        }
        machine.Vcpu.CoalescedRing.First = machine.Vcpu.CoalescedRing.Last = 0;
        machine.RunToDone();
        Check.Equal("d0000/4=55000000", Show(Drain(machine.Vcpu)), "ring, sane again");
    }

    static void IndicesChange()
    {
        using var machine = new Machine(Writes(1024));
        Register(machine, Mmio, 0x1000);
        VcpuThread thread = machine.Start(0, _ => true);
        Random random = TestEnvironment.FixedRandom;
        while (!thread.Ended)
        {
            machine.Vcpu.CoalescedRing.Last = (uint)random.NextInt64(uint.MaxValue);
            machine.Vcpu.CoalescedRing.First = (uint)random.Next(200);
            Thread.Yield();
        }
        machine.Join();
    }

    static void WithoutIrqchip()
    {
        using var machine = new Machine(Writes(2), Chips.None);
        Register(machine, Mmio, 0x10);
        machine.RunToDone();
        Check.Equal("d0000/4=00000000 d0004/4=01000000", Show(Drain(machine.Vcpu)), "ring");
    }
}
