// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Memory slots, faults on fresh memory, and what Linux does to the memory behind them.</summary>
static class MemoryTests
{
    const ulong Page = 4096, Extra = 0x40000000, Big = 64 << 20;

    public static IEnumerable<TestCase> All =>
    [
        new("memory/fresh_pages", FreshPages),
        new("memory/fresh_reads_zero", FreshReadsZero),
        new("memory/host_write_visible", HostWriteVisible),
        new("memory/slot_errors", SlotErrors),
        new("memory/overlap", Overlap),
        new("memory/change_errors", ChangeErrors),
        new("memory/slot_numbers", SlotNumbers),
        new("memory/delete", Delete),
        new("memory/delete_unknown", DeleteUnknown),
        new("memory/move", Move),
        new("memory/replace_backing", ReplaceBacking),
        new("memory/add_while_guest_exists", AddLater),
        new("memory/adjacent_slots", AdjacentSlots),
        new("memory/two_slots_one_backing", TwoSlotsOneBacking),
        new("memory/readonly_read", ReadonlyRead),
        new("memory/readonly_write_is_mmio", ReadonlyWriteIsMmio),
        new("memory/readonly_rmw", ReadonlyReadModifyWrite),
        new("memory/readonly_flag_change", ReadonlyFlagChange),
        new("memory/readonly_execute", ReadonlyExecute),
        new("memory/host_readonly_mapping", HostReadonlyMapping),
        new("memory/dirty_log", DirtyLog),
        new("memory/dirty_log_errors", DirtyLogErrors),
        new("memory/dirty_log_switched_on_later", DirtyLogLater),
        new("memory/dirty_log_by_emulator", DirtyLogByEmulator),
        new("memory/dirty_log_switched_off", DirtyLogOff),
        new("memory/unmapped_backing", UnmappedBacking),
        new("memory/remapped_backing", RemappedBacking),
        new("memory/madvise_dontneed", MadviseDontneed),
        new("memory/munmap_while_running", MunmapWhileRunning, Own: true),
        new("memory/fork_copy_on_write", ForkCopyOnWrite, Own: true),
        new("memory/mprotect", Mprotect),
        new("memory/high_gpa", HighGuestPhysical),
        new("memory/large_slot", LargeSlot),
        new("memory/page_tables_changed_by_guest", PageTablesChanged),
        new("memory/accessed_dirty_bits", AccessedDirtyBits),
        new("memory/mmio_becomes_ram", MmioBecomesRam),
        new("memory/device_memory", DeviceMemory),
    ];

    /// <summary>A guest that touches memory at rbx: reads to eax, writes ecx, halts between.</summary>
    static Guest Toucher() => new(GuestMode.Long, code =>
    {
        Label again = code.CreateLabel();
        code.Label(ref again);
        code.mov(eax, __dword_ptr[rbx]);
        code.hlt();
        code.mov(__dword_ptr[rbx], ecx);
        code.hlt();
        code.jmp(again);
    });

    static uint ReadAt(Guest guest, ulong address)
    {
        guest.SetRegs((ref regs) => (regs.Rip, regs.Rbx, regs.Rax) = (GuestLayout.Code, address, ulong.MaxValue));
        guest.RunToHalt($"read at {address:x}");
        return (uint)guest.Vcpu.Regs.Rax;
    }

    static void StartWrite(Guest guest, ulong address, uint value) =>
        guest.SetRegs((ref regs) => (regs.Rip, regs.Rbx, regs.Rcx) = (GuestLayout.Code + 3, address, value));

    static void WriteAt(Guest guest, ulong address, uint value)
    {
        StartWrite(guest, address, value);
        guest.RunToHalt($"write at {address:x}");
    }

    static void FreshPages()
    {
        const int Pages = 600;
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.mov(rbx, Extra);
            code.mov(ecx, Pages);
            code.Label(ref again);
            code.mov(__qword_ptr[rbx], rbx);
            code.add(rbx, (int)Page);
            code.dec(ecx);
            code.jnz(again);
            code.hlt();
        });
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, Pages * Page);
        guest.RunToHalt();
        for (ulong i = 0; i < Pages; i++)
            Check.Equal(Extra + i * Page, memory.Read<ulong>(Extra + i * Page), $"page {i}");
    }

    static void FreshReadsZero()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 16 * Page);
        Check.Equal(0u, ReadAt(guest, Extra + 3 * Page), "fresh page");
        // Read first (a zero page), written later: the write must not go to a shared page.
        WriteAt(guest, Extra + 3 * Page, 0x1111);
        Check.Equal(0x1111u, memory.Read<uint>(Extra + 3 * Page), "as the host sees it");
        Check.Equal(0u, memory.Read<uint>(Extra + 4 * Page), "its neighbour");
        Check.Equal(0x1111u, ReadAt(guest, Extra + 3 * Page), "as the guest sees it");
    }

    static void HostWriteVisible()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        for (uint i = 1; i < 20; i++)
        {
            memory.Write(Extra + 8, i);
            Check.Equal(i, ReadAt(guest, Extra + 8), "value in the guest");
        }
    }

    static void SlotErrors()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        using var memory = new GuestMemory(0, 16 * Page);
        ulong host = memory.HostAddress;
        Vm vm = guest.Vm;
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra + 1, Page, host), "address not on a page");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra, Page + 1, host), "size not in pages");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra, Page, host + 1), "user address not on a page");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, (KvmMem)4, Extra, Page, host), "unknown flag");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, (KvmMem)0x80000000, Extra, Page, host), "unknown flag");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, 0xFFFFFFFFFFFFF000, 2 * Page, host), "address wraps");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra, Page, 0xFFFF888000000000), "kernel address");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra, 0xFFFFFFFFFFFFF000, host), "huge size");
        int slots = vm.CheckExtension(KvmCap.NrMemslots);
        int spaces = Math.Max(1, vm.CheckExtension(KvmCap.MultiAddressSpace));
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion((uint)slots + 10, 0, Extra, Page, host),
            "slot number too large");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion((uint)spaces << 16, 0, Extra, Page, host),
            "one address space too many");
        guest.RunToHalt();
    }

    static void Overlap()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        using var memory = new GuestMemory(0, 16 * Page);
        ulong host = memory.HostAddress;
        Vm vm = guest.Vm;
        vm.SetMemoryRegion(1, 0, Extra, 4 * Page, host);
        Check.Fails(Errno.EEXIST, vm.TrySetMemoryRegion(2, 0, Extra, 4 * Page, host), "the same range");
        Check.Fails(Errno.EEXIST, vm.TrySetMemoryRegion(2, 0, Extra + 3 * Page, Page, host), "its last page");
        Check.Fails(Errno.EEXIST, vm.TrySetMemoryRegion(2, 0, Extra - Page, 2 * Page, host), "its first page");
        Check.Fails(Errno.EEXIST, vm.TrySetMemoryRegion(2, 0, Extra - Page, 8 * Page, host), "around it");
        Check.Succeeds(vm.TrySetMemoryRegion(2, 0, Extra + 4 * Page, Page, host), "right behind");
        Check.Succeeds(vm.TrySetMemoryRegion(3, 0, Extra - Page, Page, host), "right before");
        Check.Fails(Errno.EEXIST, vm.TrySetMemoryRegion(3, 0, Extra, Page, host), "moved onto another");
    }

    static void ChangeErrors()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        using var memory = new GuestMemory(0, 16 * Page);
        ulong host = memory.HostAddress;
        Vm vm = guest.Vm;
        vm.SetMemoryRegion(1, 0, Extra, 4 * Page, host);
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra, 5 * Page, host), "another size");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, 0, Extra, 4 * Page, host + Page), "another user address");
        Check.Fails(Errno.EINVAL, vm.TrySetMemoryRegion(1, KvmMem.Readonly, Extra, 4 * Page, host), "to read-only");
        Check.Succeeds(vm.TrySetMemoryRegion(1, 0, Extra, 4 * Page, host), "the same again");
        Check.Succeeds(vm.TrySetMemoryRegion(1, KvmMem.LogDirtyPages, Extra, 4 * Page, host), "dirty log on");
    }

    static void SlotNumbers()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        using var memory = new GuestMemory(0, Page);
        int slots = Math.Min(guest.Vm.CheckExtension(KvmCap.NrMemslots), 128);
        for (uint slot = 1; slot < slots; slot++)
            guest.Vm.SetMemoryRegion(slot, 0, Extra + slot * 16 * Page, Page, memory.HostAddress);
        for (uint slot = 1; slot < slots; slot++)
            guest.Vm.SetMemoryRegion(slot, 0, Extra + slot * 16 * Page, 0, 0);
        guest.RunToHalt();
    }

    static void Delete()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        memory.Write(Extra, 0x77u);
        Check.Equal(0x77u, ReadAt(guest, Extra), "before");
        guest.Vm.SetMemoryRegion(1, 0, Extra, 0, 0);
        StartWrite(guest, Extra, 0x12345678);
        guest.ExpectMmioWrite(Extra, 0x78, 0x56, 0x34, 0x12);
        guest.RunToHalt();
        Check.Equal(0x77u, memory.Read<uint>(Extra), "memory that was taken away");
        guest.Vm.SetMemoryRegion(1, 0, Extra, 4 * Page, memory.HostAddress);
        Check.Equal(0x77u, ReadAt(guest, Extra), "given again");
    }

    static void DeleteUnknown()
    {
        using var guest = new Guest(GuestMode.Long, code => code.hlt());
        Check.Fails(Errno.EINVAL, guest.Vm.TrySetMemoryRegion(9, 0, Extra, 0, 0), "a slot that is not there");
    }

    static void Move()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        memory.Write(Extra, 0x55u);
        Check.Equal(0x55u, ReadAt(guest, Extra), "before");
        guest.Vm.SetMemoryRegion(1, 0, Extra + Big, 4 * Page, memory.HostAddress);
        Check.Equal(0x55u, ReadAt(guest, Extra + Big), "at the new place");
        StartWrite(guest, Extra, 1);
        guest.ExpectMmioWrite(Extra, 1, 0, 0, 0);
    }

    static void ReplaceBacking()
    {
        using Guest guest = Toucher();
        GuestMemory first = guest.Vm.AddMemory(1, Extra, 4 * Page);
        first.Write(Extra, 1u);
        Check.Equal(1u, ReadAt(guest, Extra), "first");
        guest.Vm.SetMemoryRegion(1, 0, Extra, 0, 0);
        GuestMemory second = guest.Vm.AddMemory(1, Extra, 4 * Page);
        second.Write(Extra, 2u);
        Check.Equal(2u, ReadAt(guest, Extra), "second");
        WriteAt(guest, Extra, 3);
        Check.Equal(1u, first.Read<uint>(Extra), "the first keeps its value");
        Check.Equal(3u, second.Read<uint>(Extra), "the second has the new one");
    }

    static void AddLater()
    {
        using Guest guest = Toucher();
        StartWrite(guest, Extra, 9);
        guest.ExpectMmioWrite(Extra, 9, 0, 0, 0);
        guest.RunToHalt();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        WriteAt(guest, Extra, 10);
        Check.Equal(10u, memory.Read<uint>(Extra), "memory");
    }

    static void AdjacentSlots()
    {
        using Guest guest = Toucher();
        GuestMemory low = guest.Vm.AddMemory(1, Extra, Page);
        GuestMemory high = guest.Vm.AddMemory(2, Extra + Page, Page);
        WriteAt(guest, Extra + Page - 2, 0x44332211);
        Check.Equal(0x2211, low.Read<ushort>(Extra + Page - 2), "end of the first");
        Check.Equal(0x4433, high.Read<ushort>(Extra + Page), "start of the second");
    }

    static void TwoSlotsOneBacking()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        guest.Vm.SetMemoryRegion(2, 0, Extra + Big, 4 * Page, memory.HostAddress);
        WriteAt(guest, Extra + Page, 0xABCD);
        Check.Equal(0xABCDu, ReadAt(guest, Extra + Big + Page), "through the other slot");
    }

    static Guest WithReadonlySlot(out GuestMemory memory)
    {
        Guest guest = Toucher();
        memory = guest.Vm.AddMemory(1, Extra, 4 * Page, KvmMem.Readonly);
        memory.Write(Extra, 0x1234u);
        return guest;
    }

    static void ReadonlyRead()
    {
        using Guest guest = WithReadonlySlot(out _);
        Check.Equal(0x1234u, ReadAt(guest, Extra), "value");
    }

    static void ReadonlyWriteIsMmio()
    {
        using Guest guest = WithReadonlySlot(out GuestMemory memory);
        Check.Equal(0x1234u, ReadAt(guest, Extra), "before");
        StartWrite(guest, Extra, 0x55667788);
        guest.ExpectMmioWrite(Extra, 0x88, 0x77, 0x66, 0x55);
        guest.RunToHalt();
        Check.Equal(0x1234u, memory.Read<uint>(Extra), "memory is untouched");
        Check.Equal(0x1234u, ReadAt(guest, Extra), "value afterwards");
    }

    /// <summary>The read part comes from the memory, only the write leaves.</summary>
    static void ReadonlyReadModifyWrite()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, Extra);
            code.add(__dword_ptr[rbx], 1);
            code.hlt();
        });
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, Page, KvmMem.Readonly);
        memory.Write(Extra, 0x41u);
        guest.ExpectMmioWrite(Extra, 0x42, 0, 0, 0);
        guest.RunToHalt();
    }

    static void ReadonlyFlagChange()
    {
        using Guest guest = WithReadonlySlot(out GuestMemory memory);
        Check.Fails(Errno.EINVAL, guest.Vm.TrySetMemoryRegion(1, 0, Extra, 4 * Page, memory.HostAddress),
            "to writable");
        guest.Vm.SetMemoryRegion(1, 0, Extra, 0, 0);
        guest.Vm.SetMemoryRegion(1, 0, Extra, 4 * Page, memory.HostAddress);
        WriteAt(guest, Extra, 5);
        Check.Equal(5u, memory.Read<uint>(Extra), "memory");
    }

    static void ReadonlyExecute()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, Page, KvmMem.Readonly);
        memory.Write(Extra, (ReadOnlySpan<byte>)[0xB8, 0x21, 0x43, 0, 0, 0xF4]);
        guest.SetRegs((ref regs) => regs.Rip = Extra);
        guest.RunToHalt();
        Check.Equal(0x4321ul, guest.Vcpu.Regs.Rax, "rax");
    }

    /// <summary>Memory that the process itself may only read, in a read-only slot: a ROM file's mapping.</summary>
    static void HostReadonlyMapping()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page, KvmMem.Readonly);
        memory.Write(Extra, 0x99u);
        Check.Equal(0, Process.Protect((nint)memory.HostAddress, (nuint)(4 * Page), Libc.ProtRead), "mprotect");
        Check.Equal(0x99u, ReadAt(guest, Extra), "value");
        StartWrite(guest, Extra, 1);
        guest.ExpectMmioWrite(Extra, 1, 0, 0, 0);
    }

    static void DirtyLog()
    {
        using Guest guest = Toucher();
        guest.Vm.AddMemory(1, Extra, 130 * Page, KvmMem.LogDirtyPages);
        Check.Equal("", Dirty(guest, 130), "nothing written yet");
        Check.Equal(0u, ReadAt(guest, Extra + 5 * Page), "read");
        WriteAt(guest, Extra + 7 * Page, 1);
        WriteAt(guest, Extra + 64 * Page, 1);
        WriteAt(guest, Extra + 129 * Page, 1);
        Check.Equal("7,64,129", Dirty(guest, 130), "pages written");
        Check.Equal("", Dirty(guest, 130), "nothing since");
        WriteAt(guest, Extra + 7 * Page, 2);
        Check.Equal("7", Dirty(guest, 130), "a page written again");
    }

    static string Dirty(Guest guest, int pages, uint slot = 1)
    {
        ulong[] bitmap = guest.Vm.GetDirtyLog(slot, pages);
        return string.Join(',', Enumerable.Range(0, pages).Where(page => (bitmap[page / 64] >> (page % 64) & 1) != 0));
    }

    static void DirtyLogErrors()
    {
        using Guest guest = Toucher();
        guest.Vm.AddMemory(1, Extra, 4 * Page);
        foreach ((uint slot, string what) in new[] { (1u, "a slot without log"), (7u, "no such slot"),
            (0xFFFFu, "slot 65535"), (0x10000u, "address space 1") })
        {
            var bitmap = new KvmDirtyLog { Slot = slot };
            int result = guest.Vm.TryCall(KvmIoctl.GetDirtyLog, ref bitmap);
            Check.That(result is -(int)Errno.ENOENT or -(int)Errno.EINVAL, $"{what}: {result}");
        }
        guest.Vm.AddMemory(2, Extra + Big, 4 * Page, KvmMem.LogDirtyPages);
        var bad = new KvmDirtyLog { Slot = 2, DirtyBitmap = 16 };
        Check.Fails(Errno.EFAULT, guest.Vm.TryCall(KvmIoctl.GetDirtyLog, ref bad), "bad bitmap pointer");
    }

    static void DirtyLogLater()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 8 * Page);
        WriteAt(guest, Extra + 2 * Page, 1);
        guest.Vm.SetMemoryRegion(1, KvmMem.LogDirtyPages, Extra, 8 * Page, memory.HostAddress);
        _ = Dirty(guest, 8);
        WriteAt(guest, Extra + 2 * Page, 2);
        WriteAt(guest, Extra + 3 * Page, 2);
        Check.Equal("2,3", Dirty(guest, 8), "pages written");
    }

    static void DirtyLogByEmulator()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rbx, Extra);
            code.mov(rsi, GuestLayout.Mmio);
            code.lea(rdi, __[rbx + 0x2000]);
            code.cld();
            code.movsd();
            code.mov(dx, 0x100);
            code.lea(rdi, __[rbx + 0x5000]);
            code.insb();
            code.hlt();
        });
        guest.Vm.AddMemory(1, Extra, 8 * Page, KvmMem.LogDirtyPages);
        guest.ExpectMmioRead(GuestLayout.Mmio, 1, 2, 3, 4);
        guest.ExpectPort(KvmRunIo.In, 0x100, 1)[0] = 1;
        guest.RunToHalt();
        Check.Equal("2,5", Dirty(guest, 8), "pages written by the hypervisor for the guest");
    }

    static void DirtyLogOff()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 8 * Page, KvmMem.LogDirtyPages);
        WriteAt(guest, Extra, 1);
        guest.Vm.SetMemoryRegion(1, 0, Extra, 8 * Page, memory.HostAddress);
        WriteAt(guest, Extra + Page, 1);
        var log = new KvmDirtyLog { Slot = 1 };
        Check.Fails(Errno.ENOENT, guest.Vm.TryCall(KvmIoctl.GetDirtyLog, ref log), "log of a slot that keeps none");
    }

    /// <summary>A slot over addresses where the process has nothing: the guest's access fails, the host's life goes
    /// on.</summary>
    static void UnmappedBacking()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        _ = Libc.MemoryUnmap((nint)memory.HostAddress, (nuint)(4 * Page));
        StartWrite(guest, Extra, 1);
        Check.Fails(Errno.EFAULT, guest.Vcpu.TryRun(), "KVM_RUN on unmapped memory");
        nint again = Libc.MemoryMap((nint)memory.HostAddress, (nuint)(4 * Page), Libc.ProtRead | Libc.ProtWrite,
            Libc.MapPrivate | Libc.MapAnonymous | Libc.MapFixed, -1, 0);
        Check.Equal((nint)memory.HostAddress, again, "mmap at the same place");
        guest.RunToHalt("the same instruction after memory came back");
        Check.Equal(1u, memory.Read<uint>(Extra), "memory");
    }

    static void RemappedBacking()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        WriteAt(guest, Extra, 0x1111);
        _ = Libc.MemoryMap((nint)memory.HostAddress, (nuint)(4 * Page), Libc.ProtRead | Libc.ProtWrite,
            Libc.MapPrivate | Libc.MapAnonymous | Libc.MapFixed, -1, 0);
        Check.Equal(0u, ReadAt(guest, Extra), "new mapping");
        WriteAt(guest, Extra, 0x2222);
        Check.Equal(0x2222u, memory.Read<uint>(Extra), "as the host sees it");
    }

    static void MadviseDontneed()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        WriteAt(guest, Extra + Page, 0x1111);
        Check.Equal(0, Process.Advise((nint)memory.HostAddress, (nuint)(4 * Page), 4), "madvise(MADV_DONTNEED)");
        Check.Equal(0u, ReadAt(guest, Extra + Page), "given back to Linux, so zero again");
        WriteAt(guest, Extra + Page, 0x3333);
        Check.Equal(0x3333u, memory.Read<uint>(Extra + Page), "as the host sees it");
    }

    /// <summary>The guest writes a page in a loop while the host takes it away.</summary>
    static unsafe void MunmapWhileRunning()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            Label again = code.CreateLabel();
            code.mov(rbx, Extra);
            code.Label(ref again);
            code.inc(__qword_ptr[rbx]);
            code.jmp(again);
        });
        // Unmapped here and nowhere else: others of this process may get the addresses.
        nint memory = Libc.MemoryMap(0, (nuint)(4 * Page), Libc.ProtRead | Libc.ProtWrite,
            Libc.MapPrivate | Libc.MapAnonymous, -1, 0);
        Check.That(memory != Libc.MapFailed, "mmap");
        guest.Vm.SetMemoryRegion(1, 0, Extra, 4 * Page, (ulong)memory);
        int result = 0;
        var runner = new Thread(() => result = guest.Vcpu.TryRun());
        runner.Start();
        Wait.Until(() => Volatile.Read(ref *(ulong*)memory) > 1000, "the guest to run");
        _ = Libc.MemoryUnmap(memory, (nuint)(4 * Page));
        Check.That(runner.Join(TimeSpan.FromSeconds(10)), "the CPU goes on without its memory");
        Check.Fails(Errno.EFAULT, result, "KVM_RUN");
    }

    /// <summary>After fork the first writer gets a copy; the guest must be on the parent's side of it.</summary>
    static unsafe void ForkCopyOnWrite()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        WriteAt(guest, Extra, 0x1111);
        WriteAt(guest, Extra + Page, 0x1111);
        // fork(); the child sleeps until it is killed, keeping its half of the memory.
        nint fork = HostCode.Load(code =>
        {
            Label parent = code.CreateLabel(), sleep = code.CreateLabel();
            code.mov(eax, 57);
            code.syscall();
            code.test(eax, eax);
            code.jnz(parent);
            code.Label(ref sleep);
            code.mov(eax, 34);
            code.syscall();
            code.jmp(sleep);
            code.Label(ref parent);
            code.ret();
        });
        int child = (int)HostCode.Call(fork, null);
        Check.That(child > 0, "fork");
        try
        {
            memory.Write(Extra, 0x2222u);
            Check.Equal(0x2222u, ReadAt(guest, Extra), "written by the host after fork");
            WriteAt(guest, Extra + Page, 0x3333);
            Check.Equal(0x3333u, memory.Read<uint>(Extra + Page), "written by the guest after fork");
        }
        finally
        {
            Process.Kill(child, Process.SigKill);
            _ = Process.WaitPid(child, out _, 0);
        }
    }

    static void Mprotect()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 4 * Page);
        WriteAt(guest, Extra, 0x1111);
        Check.Equal(0, Process.Protect((nint)memory.HostAddress, (nuint)(4 * Page), Libc.ProtRead), "mprotect");
        Check.Equal(0x1111u, ReadAt(guest, Extra), "still readable");
        StartWrite(guest, Extra, 0x2222);
        Check.Fails(Errno.EFAULT, guest.Vcpu.TryRun(), "KVM_RUN, write to memory that became read-only");
        Check.Equal(0, Process.Protect((nint)memory.HostAddress, (nuint)(4 * Page), Libc.ProtRead | Libc.ProtWrite),
            "mprotect");
        guest.RunToHalt();
        Check.Equal(0x2222u, memory.Read<uint>(Extra), "memory");
    }

    /// <summary>Guest-physical memory above 4 GiB, through a page table entry.</summary>
    static void HighGuestPhysical()
    {
        const ulong High = 1UL << 36;
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, High, 4 * Page);
        guest.Memory.Write(GuestLayout.LowPageTable + 0x50 * 8, High | 7);
        WriteAt(guest, 0x50123, 0xFEED);
        Check.Equal(0xFEEDu, memory.Read<uint>(High + 0x123), "memory");
    }

    static void LargeSlot()
    {
        using Guest guest = Toucher();
        GuestMemory memory = guest.Vm.AddMemory(1, Extra, 1UL << 30);
        foreach (ulong at in (ulong[])[0, 0x1FFFFC, 0x200000, 0x3FFFF000, (1UL << 30) - 4])
        {
            WriteAt(guest, Extra + at, (uint)at + 1);
            Check.Equal((uint)at + 1, memory.Read<uint>(Extra + at), $"at {at:x}");
        }
    }

    static void PageTablesChanged()
    {
        using var guest = new Guest(GuestMode.Long, code =>
        {
            code.mov(rdi, GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8);
            code.mov(rbx, GuestLayout.Data);
            code.mov(eax, __dword_ptr[rbx]);
            code.mov(__qword_ptr[rdi], 0);
            code.mov(rdx, cr3);
            code.mov(cr3, rdx);
            code.mov(ecx, __dword_ptr[rbx]);
            code.hlt();
        });
        Trap trap = guest.ExpectTrap(14, "page that the guest unmapped");
        Check.Equal(0ul, trap.ErrorCode, "error code");
        Check.Equal(GuestLayout.Data, guest.Vcpu.Sregs.Cr2, "cr2");
    }

    static void AccessedDirtyBits()
    {
        using Guest guest = Toucher();
        ulong entry = GuestLayout.LowPageTable + (GuestLayout.Data >> 12) * 8;
        Check.Equal(0ul, guest.Memory.Read<ulong>(entry) & 0x60, "before");
        ReadAt(guest, GuestLayout.Data);
        Check.Equal(0x20ul, guest.Memory.Read<ulong>(entry) & 0x60, "accessed");
        WriteAt(guest, GuestLayout.Data, 1);
        Check.Equal(0x60ul, guest.Memory.Read<ulong>(entry) & 0x60, "accessed and dirty");
    }

    static void MmioBecomesRam()
    {
        using Guest guest = Toucher();
        for (uint round = 0; round < 5; round++)
        {
            StartWrite(guest, Extra, round);
            guest.ExpectMmioWrite(Extra, (byte)round, 0, 0, 0);
            guest.RunToHalt();
            using var memory = new GuestMemory(Extra, Page);
            guest.Vm.SetMemoryRegion(1, 0, Extra, Page, memory.HostAddress);
            WriteAt(guest, Extra, round + 100);
            Check.Equal(round + 100, memory.Read<uint>(Extra), "memory");
            guest.Vm.SetMemoryRegion(1, 0, Extra, 0, 0);
        }
    }

    /// <summary>Memory without a struct page that a driver has mapped into the process: the firmware.</summary>
    static unsafe void DeviceMemory()
    {
        const long Firmware = 0xF0000;
        int device = Libc.Open("/dev/mem", Libc.OpenReadWrite | Libc.OpenCloseOnExec);
        Check.Needs(device >= 0, "/dev/mem");
        nint memory = Libc.MemoryMap(0, (nuint)(16 * Page), Libc.ProtRead, Libc.MapShared, device, Firmware);
        _ = Libc.Close(device);
        Check.Needs(memory != Libc.MapFailed, "access to the firmware");
        using Guest guest = Toucher();
        guest.Vm.SetMemoryRegion(1, KvmMem.Readonly, Extra, 16 * Page, (ulong)memory);
        // The reset vector is in the last 16 bytes.
        for (ulong at = 16 * Page - 16; at < 16 * Page; at += 4)
            Check.Equal(*(uint*)(memory + (nint)at), ReadAt(guest, Extra + at), $"at {at:x}");
        _ = Libc.MemoryUnmap(memory, (nuint)(16 * Page));
        guest.SetRegs((ref regs) => (regs.Rip, regs.Rbx) = (GuestLayout.Code, Extra + 16 * Page - 16));
        Check.Fails(Errno.EFAULT, guest.Vcpu.TryRun(), "KVM_RUN without it");
    }
}
