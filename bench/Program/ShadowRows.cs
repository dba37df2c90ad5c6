// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Selftests;

namespace SharpKvm.Bench;

/// <summary>What shadow tables cost: a guest in long mode with two processes, the parent and the child. What lies below
/// 4 GiB is the kernel's, mapped in both.</summary>
static unsafe partial class Rows
{
    /// <summary>Tables, one a page from the top down, and the linear address that they map in pages of 4 KiB.</summary>
    const ulong Parent = GuestLayout.Data, Child = Parent + Levels * PageSize, UserMemory = 1ul << 39;
    /// <summary>The child's copies lie behind the parent's pages.</summary>
    const ulong Copies = FaultMemory + FaultPages * PageSize, FaultHandler = GuestLayout.Code + 0x2000;
    const int Levels = 4, EntriesPerTable = 512, LastTable = (Levels - 1) * (int)PageSize;
    const int KernelEntry = 0, UserEntry = sizeof(ulong), PageFault = 14, SwitchPages = 8, ForkPages = 64, Forks = 4;
    const int Mapped = 0x67, Writable = 2, Dirty = 0x40;

    /// <summary>For a machine without nested paging.</summary>
    public static IEnumerable<Row> OfShadowTables =>
    [
        new("shadow_fault", () => InProcesses(FaultPages, code => TouchUser(code, FaultPages), forgetMemory: true)),
        new("shadow_guest_fault", () => InProcesses(FaultPages, code => TouchUser(code, FaultPages),
            before: code =>
            {
                Clear(code, Parent + LastTable, FaultPages);
                Switch(code, Parent);
            },
            handler: MapPage)),
        new("shadow_context_switch", () => InProcesses(2 * RoundTripsInside, code => Times(code, RoundTripsInside, () =>
        {
            Switch(code, Child);
            TouchUser(code, SwitchPages);
            Switch(code, Parent);
            TouchUser(code, SwitchPages);
        }))),
        new("shadow_invlpg", () => InProcesses(RoundTripsInside, code =>
        {
            code.mov(rbx, UserMemory);
            Times(code, RoundTripsInside, () =>
            {
                code.xor(__qword_ptr[r12], (int)PageSize);
                code.invlpg(__[rbx]);
                code.mov(__qword_ptr[rbx], rsi);
            });
        })),
        new("shadow_fork",
            () => InProcesses(Forks, code => Times(code, Forks, () => Fork(code)), handler: CopyOnWrite)),
    ];

    /// <summary>The guest runs <paramref name="body"/> as the parent, all of whose pages are mapped. R12 is the address
    /// of its last table, RSI has to be 0 at the end.</summary>
    /// <param name="before">Guest code that comes first, and is not measured.</param>
    /// <param name="handler">Of #PF; it need not keep R8 to R10, and finds the address in RBX.</param>
    /// <param name="forgetMemory">Whether the hypervisor loses all mappings of the process's memory first.</param>
    static Measurement InProcesses(int roundTrips, Action<Assembler> body, Action<Assembler>? before = null,
        Action<Assembler>? handler = null, bool forgetMemory = false)
    {
        using var memory = new HugeMemory(2 * FaultPages * PageSize, huge: false);
        memory.Bytes(0, (int)memory.Size).Fill(1);
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label start = code.CreateLabel();
            code.Label(ref start);
            before?.Invoke(code);
            code.@out(EndPort, al);
            body(code);
            code.@out(EndPort, al);
            code.jmp(start);
        });
        guest.Handle(PageFault, FaultHandler, code =>
        {
            handler?.Invoke(code);
            code.add(rsp, sizeof(ulong));
            code.iretq();
        });
        ulong kernel = guest.Memory.Read<ulong>(GuestLayout.PageTables);
        foreach (ulong top in (ulong[])[Parent, Child])
        {
            guest.Memory.Write(top + KernelEntry, kernel);
            for (ulong level = 1; level < Levels; level++)
                guest.Memory.Write(TableEntry(top, level), top + level * PageSize | Mapped);
            for (ulong page = 0; page < FaultPages; page++)
                guest.Memory.Write(top + LastTable + page * sizeof(ulong), FaultMemory + page * PageSize | Mapped);
        }
        guest.Vm.SetMemoryRegion(1, 0, FaultMemory, memory.Size, memory.Address);
        guest.SetSregs((ref sregs) => sregs.Cr3 = Parent);
        guest.SetRegs((ref regs) => regs.R12 = Parent + LastTable);
        return Measurement.Take(Samples, roundTrips, () =>
        {
            if (forgetMemory)
            {
                guest.Vm.SetMemoryRegion(1, 0, FaultMemory, 0, 0);
                guest.Vm.SetMemoryRegion(1, 0, FaultMemory, memory.Size, memory.Address);
            }
            RunToEnd(guest);
            return RunToEnd(guest);
        });
    }

    /// <summary>Where the address of a table below the top stands.</summary>
    static ulong TableEntry(ulong top, ulong level) => top + (level - 1) * PageSize + (level == 1 ? UserEntry : 0u);

    /// <summary>Writes one word to each of so many of the process's pages.</summary>
    static void TouchUser(Assembler code, int pages)
    {
        Label again = code.CreateLabel();
        code.mov(rbx, UserMemory);
        code.mov(edi, pages);
        code.Label(ref again);
        code.mov(__qword_ptr[rbx], rdi);
        code.add(rbx, (int)PageSize);
        code.dec(edi);
        code.jnz(again);
    }

    static void Switch(Assembler code, ulong top)
    {
        code.mov(eax, (uint)top);
        code.mov(cr3, rax);
    }

    /// <summary>Clears so many entries of tables.</summary>
    static void Clear(Assembler code, ulong address, int entries)
    {
        code.mov(edi, (uint)address);
        code.mov(ecx, entries);
        code.xor(eax, eax);
        code.rep.stosq();
    }

    /// <summary>Demand paging: the handler maps the page that is missing.</summary>
    static void MapPage(Assembler code)
    {
        FaultingEntry(code);
        code.mov(r9, r8);
        code.shl(r9, 12);
        code.add(r9, (int)FaultMemory | Mapped);
        code.mov(__qword_ptr[r12 + r8 * sizeof(ulong)], r9);
    }

    /// <summary>To R8: the number of the page of a #PF. CR2 is not asked: in QEMU any read of a control register exits
    /// where that of CR3 has to, which on hardware it does not.</summary>
    static void FaultingEntry(Assembler code)
    {
        code.mov(r8, rbx);
        code.shr(r8, 12);
        code.and(r8d, FaultPages - 1);
    }

    /// <summary>A process is forked, parent and child write to all of its pages, the child ends. The tables are written
    /// as Linux does it.</summary>
    static void Fork(Assembler code)
    {
        Label copy = code.CreateLabel(), free = code.CreateLabel();
        Clear(code, Child, Levels * EntriesPerTable);
        code.mov(rax, __qword_ptr[(long)Parent + KernelEntry]);
        code.mov(__qword_ptr[(long)Child + KernelEntry], rax);
        for (ulong level = 1; level < Levels; level++)
            WriteEntry(code, TableEntry(Child, level), Child + level * PageSize | Mapped);
        code.xor(edi, edi);
        code.Label(ref copy);
        code.mov(rax, __qword_ptr[r12 + rdi * sizeof(ulong)]);
        code.and(rax, ~Writable);
        code.mov(__qword_ptr[r12 + rdi * sizeof(ulong)], rax);
        code.mov(__qword_ptr[rdi * sizeof(ulong) + (long)Child + LastTable], rax);
        code.inc(edi);
        code.cmp(edi, ForkPages);
        code.jb(copy);
        Switch(code, Parent);

        Switch(code, Child);
        code.mov(r12d, (uint)Child + LastTable);
        TouchUser(code, ForkPages);
        Switch(code, Parent);
        code.mov(r12d, (uint)Parent + LastTable);
        TouchUser(code, ForkPages);

        code.xor(edi, edi);
        code.Label(ref free);
        code.mov(__qword_ptr[rdi * sizeof(ulong) + (long)Child + LastTable], 0);
        code.inc(edi);
        code.cmp(edi, ForkPages);
        code.jb(free);
        for (ulong level = Levels - 1; level > 0; level--)
            WriteEntry(code, TableEntry(Child, level), 0);
    }

    static void WriteEntry(Assembler code, ulong address, ulong entry)
    {
        code.mov(eax, (uint)entry);
        code.mov(__qword_ptr[(long)address], rax);
    }

    /// <summary>The child gets a copy of a word of the page, the parent its page back.</summary>
    static void CopyOnWrite(Assembler code)
    {
        Label reuse = code.CreateLabel(), done = code.CreateLabel();
        FaultingEntry(code);
        code.cmp(r12d, (uint)Parent + LastTable);
        code.je(reuse);
        code.mov(r10, r8);
        code.shl(r10, 12);
        code.mov(r9, __qword_ptr[r10 + (int)FaultMemory]);
        code.mov(__qword_ptr[r10 + (int)Copies], r9);
        code.mov(__qword_ptr[r12 + r8 * sizeof(ulong)], 0);
        code.invlpg(__[rbx]);
        code.add(r10, (int)Copies | Mapped);
        code.mov(__qword_ptr[r12 + r8 * sizeof(ulong)], r10);
        code.jmp(done);
        code.Label(ref reuse);
        code.or(__qword_ptr[r12 + r8 * sizeof(ulong)], Writable | Dirty);
        code.Label(ref done);
        code.nop();
    }
}
