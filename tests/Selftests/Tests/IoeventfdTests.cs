// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>KVM_IOEVENTFD: writes of the guest that end in an eventfd instead of user space.</summary>
static class IoeventfdTests
{
    const ulong Mmio = GuestLayout.Mmio;
    const ushort Port = 0x510;
    const uint Pio = KvmIoeventfd.FlagPio, Match = KvmIoeventfd.FlagDatamatch, Deassign = KvmIoeventfd.FlagDeassign;

    public static IEnumerable<TestCase> All =>
    [
        new("ioeventfd/port", PortWrites),
        new("ioeventfd/memory", MemoryWrites),
        new("ioeventfd/other_lengths_are_user_spaces", OtherLengths),
        new("ioeventfd/any_length_memory", AnyLengthMemory),
        new("ioeventfd/any_length_port", AnyLengthPort),
        new("ioeventfd/data_match", DataMatch),
        new("ioeventfd/data_match_several", DataMatchSeveral),
        new("ioeventfd/reads_are_user_spaces", Reads),
        new("ioeventfd/string_output", StringOutput),
        new("ioeventfd/deassigned", Deassigned),
        new("ioeventfd/deassign_unknown", DeassignUnknown),
        new("ioeventfd/duplicates", Duplicates),
        new("ioeventfd/bad_arguments", BadArguments),
        new("ioeventfd/many_writes", ManyWrites),
        new("ioeventfd/many_of_them", ManyOfThem),
        new("ioeventfd/closed_eventfd", ClosedEventFd),
        new("ioeventfd/without_irqchip", WithoutIrqchip),
        new("ioeventfd/in_ram", InRam),
        new("ioeventfd/changed_while_in_use", ChangedWhileInUse),
        new("ioeventfd/neighbours", Neighbours),
    ];

    static KvmIoeventfd At(EventFd eventFd, ulong address, uint length, uint flags = 0, ulong match = 0) =>
        new() { Addr = address, Len = length, Fd = eventFd.Fd, Flags = flags, Datamatch = match };

    static void Assign(Machine machine, KvmIoeventfd request) =>
        Check.Succeeds(machine.Vm.TryIoeventfd(request), $"IOEVENTFD at {request.Addr:x}, length {request.Len}");

    static void WriteMemory(this Assembler code, int length, ulong value, int offset = 0)
    {
        code.mov(rax, value);
        code.mov(rbx, Mmio);
        switch (length)
        {
            case 1:
                code.mov(__byte_ptr[rbx + offset], al);
                break;
            case 2:
                code.mov(__word_ptr[rbx + offset], ax);
                break;
            case 4:
                code.mov(__dword_ptr[rbx + offset], eax);
                break;
            default:
                code.mov(__qword_ptr[rbx + offset], rax);
                break;
        }
    }

    static void WritePort(this Assembler code, int length, uint value)
    {
        code.mov(eax, value);
        code.mov(dx, Port);
        if (length == 1)
            code.@out(dx, al);
        else if (length == 2)
            code.@out(dx, ax);
        else
            code.@out(dx, eax);
    }

    static void PortWrites()
    {
        foreach (int length in (int[])[1, 2, 4])
        {
            using var machine = new Machine(code =>
            {
                code.WritePort(length, 0x11223344);
                code.WritePort(length, 0);
                code.Done();
            });
            using var eventFd = new EventFd();
            Assign(machine, At(eventFd, Port, (uint)length, Pio));
            machine.RunToDone();
            Check.Equal(2ul, eventFd.Take(), $"writes of {length} bytes");
        }
    }

    static void MemoryWrites()
    {
        foreach (int length in (int[])[1, 2, 4, 8])
        {
            using var machine = new Machine(code =>
            {
                code.WriteMemory(length, 0x1122334455667788);
                code.WriteMemory(length, 0);
                code.Done();
            });
            using var eventFd = new EventFd();
            Assign(machine, At(eventFd, Mmio, (uint)length));
            machine.RunToDone();
            Check.Equal(2ul, eventFd.Take(), $"writes of {length} bytes");
        }
    }

    static void OtherLengths()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMemory(2, 0);
            code.WriteMemory(8, 0);
            code.WriteMemory(4, 0, 4);
            code.WritePort(1, 0);
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4));
        Assign(machine, At(eventFd, Port, 2, Pio));
        foreach ((ulong address, uint length) in new[] { (Mmio, 2u), (Mmio, 8u), (Mmio + 4, 4u) })
        {
            machine.RunTo(KvmExit.Mmio);
            Check.Equal((address, length), (machine.Run.Mmio.PhysAddr, machine.Run.Mmio.Len), "address and length");
        }
        machine.RunTo(KvmExit.Io);
        Check.Equal(Port, machine.Run.Io.Port, "port");
        machine.RunToDone();
        Check.Equal(0ul, eventFd.Take(), "events");
    }

    static void AnyLengthMemory()
    {
        using var machine = new Machine(code =>
        {
            foreach (int length in (int[])[1, 2, 4, 8])
                code.WriteMemory(length, 5);
            code.WriteMemory(1, 5, 1);
            code.Done();
        });
        using var eventFd = new EventFd();
        Check.Needs(KvmCap.IoeventfdAnyLength);
        Assign(machine, At(eventFd, Mmio, 0));
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(Mmio + 1, machine.Run.Mmio.PhysAddr, "the next address");
        machine.RunToDone();
        Check.Equal(4ul, eventFd.Take(), "events");
    }

    static void AnyLengthPort()
    {
        using var machine = new Machine(code =>
        {
            foreach (int length in (int[])[1, 2, 4])
                code.WritePort(length, 5);
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Port, 0, Pio));
        machine.RunToDone();
        Check.Equal(3ul, eventFd.Take(), "events");
    }

    static void DataMatch()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMemory(4, 0x80000001);
            code.WriteMemory(4, 0x80000002);
            code.WriteMemory(8, 0x8000000180000001, 8);
            code.WriteMemory(8, 0x0000000180000001, 8);
            code.WriteMemory(2, 0xFFFE, 16);
            code.WritePort(2, 0x1234);
            code.WritePort(2, 0x1235);
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4, Match, 0x80000001));
        Assign(machine, At(eventFd, Mmio + 8, 8, Match, 0x8000000180000001));
        Assign(machine, At(eventFd, Mmio + 16, 2, Match, 0xFFFE));
        Assign(machine, At(eventFd, Port, 2, Pio | Match, 0x1234));
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(1ul, eventFd.Take(), "events before the first other value");
        Check.Equal(2, machine.Run.Mmio.Data[0], "the other value");
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(Mmio + 8, machine.Run.Mmio.PhysAddr, "address of the other 64-bit value");
        machine.RunTo(KvmExit.Io);
        Check.Equal(Port, machine.Run.Io.Port, "port");
        machine.RunToDone();
        Check.Equal(3ul, eventFd.Take(), "events");
    }

    /// <summary>virtio's queues: one address, a value for each eventfd.</summary>
    static void DataMatchSeveral()
    {
        const int Queues = 16;
        using var machine = new Machine(code =>
        {
            for (int round = 0; round < 2; round++)
            {
                for (uint queue = 0; queue < Queues; queue++)
                    code.WriteMemory(2, queue);
            }
            code.WriteMemory(2, Queues);
            code.Done();
        });
        EventFd[] queues = [.. Enumerable.Range(0, Queues).Select(_ => new EventFd())];
        for (int i = 0; i < Queues; i++)
            Assign(machine, At(queues[i], Mmio, 2, Match, (ulong)i));
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(Queues, machine.Run.Mmio.Data[0], "the value without an eventfd");
        machine.RunToDone();
        foreach (EventFd queue in queues)
        {
            Check.Equal(2ul, queue.Take(), "events of a queue");
            queue.Dispose();
        }
    }

    static void Reads()
    {
        using var machine = new Machine(code =>
        {
            code.mov(rbx, Mmio);
            code.mov(eax, __dword_ptr[rbx]);
            code.mov(dx, Port);
            code.@in(eax, dx);
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4));
        Assign(machine, At(eventFd, Port, 4, Pio));
        machine.RunTo(KvmExit.Mmio);
        Check.Equal(0, machine.Run.Mmio.IsWrite, "is_write");
        machine.RunTo(KvmExit.Io);
        Check.Equal(KvmRunIo.In, machine.Run.Io.Direction, "direction");
        machine.RunToDone();
        Check.Equal(0ul, eventFd.Take(), "events");
    }

    /// <summary>OUTSB to such a port: each byte is one write, whoever gets it.</summary>
    static void StringOutput()
    {
        const uint Bytes = 10;
        using var machine = new Machine(code =>
        {
            code.mov(esi, (uint)MachineLayout.Shared);
            code.mov(ecx, Bytes);
            code.mov(dx, Port);
            code.rep.outsb();
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Port, 1, Pio));
        ulong seen = 0;
        for (int exits = 0; exits < 20; exits++)
        {
            machine.RunTo(KvmExit.Io);
            if (machine.Run.Io.Port == MachineLayout.DonePort)
                break;
            seen += machine.Run.Io.Count;
        }
        seen += eventFd.Take();
        Check.Equal((ulong)Bytes, seen, "bytes");
    }

    static void Deassigned()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMemory(4, 0);
            code.WriteMemory(4, 0);
            code.WriteMemory(4, 0);
            code.Done();
        });
        using var eventFd = new EventFd();
        machine.RunTo(KvmExit.Mmio, "not assigned");
        Assign(machine, At(eventFd, Mmio, 4));
        Check.Succeeds(machine.Vm.TryIoeventfd(At(eventFd, Mmio, 4, Deassign)), "deassign");
        machine.RunTo(KvmExit.Mmio, "no longer assigned");
        Assign(machine, At(eventFd, Mmio, 4));
        machine.RunToDone();
        Check.Equal(1ul, eventFd.Take(), "events");
    }

    static void DeassignUnknown()
    {
        using var machine = new Machine();
        using var eventFd = new EventFd();
        using var other = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4));
        Assign(machine, At(eventFd, Mmio + 8, 4, Match, 7));
        foreach ((string what, KvmIoeventfd request) in new (string, KvmIoeventfd)[]
            {
                ("another address", At(eventFd, Mmio + 4, 4, Deassign)),
                ("another length", At(eventFd, Mmio, 2, Deassign)),
                ("another eventfd", At(other, Mmio, 4, Deassign)),
                ("as a port", At(eventFd, Mmio, 4, Deassign | Pio)),
                ("with a value", At(eventFd, Mmio, 4, Deassign | Match, 0)),
                ("with another value", At(eventFd, Mmio + 8, 4, Deassign | Match, 8)),
                ("without the value", At(eventFd, Mmio + 8, 4, Deassign)),
            })
            Check.Fails(Errno.ENOENT, machine.Vm.TryIoeventfd(request), what);
        Check.Succeeds(machine.Vm.TryIoeventfd(At(eventFd, Mmio, 4, Deassign)), "the right one");
        Check.Fails(Errno.ENOENT, machine.Vm.TryIoeventfd(At(eventFd, Mmio, 4, Deassign)), "the right one twice");
    }

    static void Duplicates()
    {
        using var machine = new Machine();
        using var eventFd = new EventFd();
        using var other = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4));
        Check.Fails(Errno.EEXIST, machine.Vm.TryIoeventfd(At(eventFd, Mmio, 4)), "the same");
        Check.Fails(Errno.EEXIST, machine.Vm.TryIoeventfd(At(other, Mmio, 4)), "with another eventfd");
        Check.Fails(Errno.EEXIST, machine.Vm.TryIoeventfd(At(other, Mmio, 4, Match, 3)),
            "a value where all values are taken");
        Assign(machine, At(other, Mmio, 2));
        Assign(machine, At(other, Mmio, 4, Pio));
        Assign(machine, At(eventFd, Mmio + 8, 4, Match, 1));
        Assign(machine, At(other, Mmio + 8, 4, Match, 2));
        Check.Fails(Errno.EEXIST, machine.Vm.TryIoeventfd(At(other, Mmio + 8, 4, Match, 1)), "the same value");
        Check.Fails(Errno.EEXIST, machine.Vm.TryIoeventfd(At(other, Mmio + 8, 4)), "all values where one is taken");
    }

    static void BadArguments()
    {
        using var machine = new Machine();
        using var eventFd = new EventFd();
        foreach ((string what, KvmIoeventfd request, Errno error) in new (string, KvmIoeventfd, Errno)[]
            {
                ("3 bytes", At(eventFd, Mmio, 3), Errno.EINVAL),
                ("16 bytes", At(eventFd, Mmio, 16), Errno.EINVAL),
                ("2^32-1 bytes", At(eventFd, Mmio, uint.MaxValue), Errno.EINVAL),
                ("beyond the last address", At(eventFd, ulong.MaxValue - 1, 4), Errno.EINVAL),
                ("unknown flag", At(eventFd, Mmio, 4, 32), Errno.EINVAL),
                ("a value of any length", At(eventFd, Mmio, 0, Match, 1), Errno.EINVAL),
                ("no descriptor", At(eventFd, Mmio, 4) with { Fd = -1 }, Errno.EBADF),
                ("not an eventfd", At(eventFd, Mmio, 4) with { Fd = machine.Vm.Fd }, Errno.EINVAL),
            })
            Check.Fails(error, machine.Vm.TryIoeventfd(request), what);
        Check.Fails(Errno.EFAULT, machine.Vm.TryCall(KvmIoctl.Ioeventfd, 0x10), "an address in page 0");
    }

    static void ManyWrites()
    {
        const uint Writes = 1000;
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.mov(ecx, Writes);
            code.mov(rbx, Mmio);
            code.mov(dx, Port);
            code.Label(ref again);
            code.mov(__dword_ptr[rbx], ecx);
            code.@out(dx, eax);
            code.dec(ecx);
            code.jnz(again);
            code.Done();
        });
        using var memory = new EventFd();
        using var port = new EventFd();
        Assign(machine, At(memory, Mmio, 4));
        Assign(machine, At(port, Port, 4, Pio));
        machine.RunToDone();
        Check.Equal("1000 1000", $"{memory.Take()} {port.Take()}", "events");
    }

    static void ManyOfThem()
    {
        const int Number = 200;
        using var machine = new Machine(code =>
        {
            for (int i = 0; i < Number; i += 9)
                code.WriteMemory(4, 0, i * 4);
            code.Done();
        });
        EventFd[] eventFds = [.. Enumerable.Range(0, Number).Select(_ => new EventFd())];
        for (int i = 0; i < Number; i++)
            Assign(machine, At(eventFds[i], Mmio + (ulong)i * 4, 4));
        machine.RunToDone();
        for (int i = 0; i < Number; i++)
        {
            Check.Equal(i % 9 == 0 ? 1ul : 0, eventFds[i].Take(), $"events of number {i}");
            eventFds[i].Dispose();
        }
    }

    static void ClosedEventFd()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMemory(4, 0);
            code.Done();
        });
        using (var eventFd = new EventFd())
            Assign(machine, At(eventFd, Mmio, 4));
        machine.RunToDone();
    }

    static void WithoutIrqchip()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMemory(4, 0);
            code.WritePort(4, 0);
            code.Done();
        }, Chips.None);
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4));
        Assign(machine, At(eventFd, Port, 4, Pio));
        machine.RunToDone();
        Check.Equal(2ul, eventFd.Take(), "events");
    }

    /// <summary>Memory is memory; the eventfd stays silent.</summary>
    static void InRam()
    {
        using var machine = new Machine(code =>
        {
            code.mov(__dword_ptr[(long)MachineLayout.Shared], 5);
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, MachineLayout.Shared, 4));
        machine.RunToDone();
        Check.Equal(5u, machine.Memory.Read<uint>(MachineLayout.Shared), "memory");
        Check.Equal(0ul, eventFd.Take(), "events");
    }

    static void ChangedWhileInUse()
    {
        const int Writes = 3000;
        using var machine = new Machine(code =>
        {
            Label again = code.CreateLabel();
            code.mov(ecx, Writes);
            code.mov(rbx, Mmio);
            code.Label(ref again);
            code.mov(__dword_ptr[rbx], ecx);
            code.dec(ecx);
            code.jnz(again);
            code.Done();
        });
        using var eventFd = new EventFd();
        ulong exits = 0;
        VcpuThread thread = machine.Start(0, _ =>
        {
            exits++;
            return true;
        });
        int changes = 0;
        while (!thread.Ended && changes < 10_000)
        {
            Assign(machine, At(eventFd, Mmio, 4));
            Check.Succeeds(machine.Vm.TryIoeventfd(At(eventFd, Mmio, 4, Deassign)), "deassign");
            changes++;
        }
        machine.Join();
        Check.Equal((ulong)Writes, exits + eventFd.Take(), "events and exits");
    }

    static void Neighbours()
    {
        using var machine = new Machine(code =>
        {
            code.WriteMemory(4, 0, 4);
            code.WriteMemory(1, 0, 2);
            code.WriteMemory(4, 0, -4);
            code.Done();
        });
        using var eventFd = new EventFd();
        Assign(machine, At(eventFd, Mmio, 4));
        foreach (ulong address in (ulong[])[Mmio + 4, Mmio + 2, Mmio - 4])
        {
            machine.RunTo(KvmExit.Mmio);
            Check.Equal(address, machine.Run.Mmio.PhysAddr, "address");
        }
        machine.RunToDone();
        Check.Equal(0ul, eventFd.Take(), "events");
    }
}
