// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Selftests;

/// <summary>Writes a guest's descriptor and page tables (SDM volume 3, chapters 3 to 7; APM volume 2, 4, 5 and
/// 8).</summary>
static class GuestTables
{
    public const ulong Present = 1, Writable = 2, User = 4, LargePage = 0x80, NoExecute = 1UL << 63;
    const ulong All = Present | Writable | User;

    /// <summary>Vectors for which the CPU pushes an error code.</summary>
    public static bool HasErrorCode(int vector) => vector is 8 or 10 or 11 or 12 or 13 or 14 or 17 or 21;

    public static void Write(GuestMemory memory, GuestMode mode)
    {
        WriteStubs(memory, mode);
        if (mode == GuestMode.Real)
        {
            for (int vector = 0; vector < 256; vector++)
                memory.Write((ulong)vector * 4, (uint)StubAddress(vector));
            return;
        }
        WriteGdt(memory, mode);
        for (int vector = 0; vector < 256; vector++)
            SetGate(memory, mode, vector, StubAddress(vector));
        if (mode.HasPaging())
            WritePageTables(memory, mode);
    }

    public static ulong StubAddress(int vector) => GuestLayout.Stubs + (ulong)vector * GuestLayout.StubSize;

    /// <summary>Points an interrupt vector at a handler.</summary>
    public static void SetGate(GuestMemory memory, GuestMode mode, int vector, ulong handler)
    {
        if (mode == GuestMode.Real)
        {
            memory.Write((ulong)vector * 4, (uint)handler);
            return;
        }
        // Breakpoint, overflow and 0x80 may be raised by user code.
        ulong dpl = vector is 3 or 4 or 0x80 ? 3UL : 0;
        ulong selector = mode.IsLongMode() ? GuestLayout.Code64
            : mode == GuestMode.Protected16 ? GuestLayout.Code16 : GuestLayout.Code32;
        ulong type = mode == GuestMode.Protected16 ? 6UL : 14;
        ulong low = (handler & 0xFFFF) | (selector << 16) | (type << 40) | (dpl << 45) | (1UL << 47) |
            ((handler >> 16 & 0xFFFF) << 48);
        if (mode.IsLongMode())
        {
            memory.Write(GuestLayout.Idt + (ulong)vector * 16, low);
            memory.Write(GuestLayout.Idt + (ulong)vector * 16 + 8, handler >> 32);
        }
        else
            memory.Write(GuestLayout.Idt + (ulong)vector * 8, low);
    }

    /// <summary>A segment descriptor; <paramref name="access"/> is bits 40 to 47, <paramref name="flags"/> 52 to
    /// 55.</summary>
    public static ulong Descriptor(uint @base, uint limit, byte access, byte flags) =>
        (limit & 0xFFFF) | ((ulong)(@base & 0xFFFFFF) << 16) | ((ulong)access << 40) |
        ((ulong)(limit >> 16 & 0xF) << 48) | ((ulong)flags << 52) | ((ulong)(@base >> 24) << 56);

    static void WriteGdt(GuestMemory memory, GuestMode mode)
    {
        Set(GuestLayout.Code32, Descriptor(0, 0xFFFFF, 0x9B, 0xC));
        Set(GuestLayout.Data32, Descriptor(0, 0xFFFFF, 0x93, 0xC));
        Set(GuestLayout.Code64, Descriptor(0, 0xFFFFF, 0x9B, 0xA));
        Set(GuestLayout.UserData, Descriptor(0, 0xFFFFF, 0xF3, 0xC));
        Set(GuestLayout.UserCode64, Descriptor(0, 0xFFFFF, 0xFB, 0xA));
        Set(GuestLayout.UserCode32, Descriptor(0, 0xFFFFF, 0xFB, 0xC));
        Set(GuestLayout.Code16, Descriptor(0, 0xFFFFF, 0x9B, 0x8));
        Set(GuestLayout.Data16, Descriptor(0, 0xFFFFF, 0x93, 0x8));
        Set(GuestLayout.TssSelector, Descriptor((uint)GuestLayout.Tss, 0x67, 0x8B, 0));
        if (mode.IsLongMode())
            memory.Write(GuestLayout.Tss + 4, GuestLayout.StackTop);
        else
        {
            memory.Write(GuestLayout.Tss + 4, (uint)GuestLayout.StackTop);
            memory.Write(GuestLayout.Tss + 8, (uint)GuestLayout.Data32);
        }

        void Set(ushort selector, ulong descriptor) =>
            memory.Write(GuestLayout.Gdt + (ulong)(selector & ~7), descriptor);
    }

    /// <summary>Each vector's handler: evens out the error code, then halts; the vector is told by the
    /// address.</summary>
    static void WriteStubs(GuestMemory memory, GuestMode mode)
    {
        for (int vector = 0; vector < 256; vector++)
        {
            bool push = mode != GuestMode.Real && !HasErrorCode(vector);
            // push 0; hlt; jmp to the hlt
            ReadOnlySpan<byte> stub = push ? [0x6A, 0x00, 0xF4, 0xEB, 0xFD] : [0x90, 0x90, 0xF4, 0xEB, 0xFD];
            memory.Write(StubAddress(vector), stub);
        }
    }

    static void WritePageTables(GuestMemory memory, GuestMode mode)
    {
        if (mode == GuestMode.Paged)
        {
            memory.Write(GuestLayout.PageTables, (uint)(GuestLayout.LowPageTable | All));
            for (uint i = 1; i < 1024; i++)
                memory.Write(GuestLayout.PageTables + i * 4, (i << 22) | (uint)(All | LargePage));
            for (uint i = 0; i < 1024; i++)
                memory.Write(GuestLayout.LowPageTable + i * 4, (i << 12) | (uint)All);
            return;
        }
        ulong directories = GuestLayout.PageTables + 0x2000;
        ulong pointers = GuestLayout.PageTables + 0x1000;
        ulong pointerFlags = mode == GuestMode.Pae ? Present : All;
        memory.Write(GuestLayout.PageTables, pointers | All);
        for (ulong i = 0; i < 4; i++)
            memory.Write(pointers + i * 8, (directories + i * 0x1000) | pointerFlags);
        for (ulong i = 0; i < 2048; i++)
            memory.Write(directories + i * 8, (i << 21) | All | LargePage);
        memory.Write(directories, GuestLayout.LowPageTable | All);
        for (ulong i = 0; i < 512; i++)
            memory.Write(GuestLayout.LowPageTable + i * 8, (i << 12) | All);
    }
}
