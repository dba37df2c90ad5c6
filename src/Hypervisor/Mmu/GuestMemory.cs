// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Mmu;

/// <summary>How an access to guest physical memory ended.</summary>
internal enum MemoryAccess : byte
{
    Done,
    /// <summary>No slot has the address: MMIO.</summary>
    NoMemory,
    /// <summary>A write to a read-only slot: to be treated as MMIO.</summary>
    ReadOnly,
    /// <summary>The process has no memory behind the slot: EFAULT.</summary>
    Fault,
}

/// <summary>
/// Guest physical memory as the core reads and writes it: through the process's own mapping, in its context. An access
/// across the end of a slot that fails in the middle has done its first part. Lengths are those of instructions and
/// structures: few slots are crossed.
/// </summary>
internal static class GuestMemory
{
    /// <summary>
    /// <see cref="Read"/> of 8 to 16 bytes within a page, as instruction fetches are.
    /// </summary>
    public static MemoryAccess ReadWords(ref Vm.Vm vm, Gpa source, Span<byte> destination)
    {
        ref readonly MemorySlot slot = ref vm.Memory.Slots.Find(source);
        if (!slot.TryToHva(source, out Hva hva))
            return MemoryAccess.NoMemory;
        return UserMemory.ReadWords(hva, destination) ? MemoryAccess.Done : MemoryAccess.Fault;
    }

    public static MemoryAccess Read(ref Vm.Vm vm, Gpa source, Span<byte> destination)
    {
        ref readonly MemorySlot slot = ref vm.Memory.Slots.Find(source);
        if (!slot.Contains(source))
            return MemoryAccess.NoMemory;
        int count = Part(in slot, source, destination.Length);
        if (!UserMemory.Read(slot.ToHva(source), destination[..count]))
            return MemoryAccess.Fault;
        return count == destination.Length
            ? MemoryAccess.Done : Read(ref vm, source + (ulong)count, destination[count..]);
    }

    public static MemoryAccess Write(ref Vm.Vm vm, Gpa destination, ReadOnlySpan<byte> source)
    {
        ref readonly MemorySlot slot = ref vm.Memory.Slots.Find(destination);
        if (!slot.Contains(destination))
            return MemoryAccess.NoMemory;
        if (slot.IsReadOnly)
            return MemoryAccess.ReadOnly;
        int count = Part(in slot, destination, source.Length);
        if (!UserMemory.Write(slot.ToHva(destination), source[..count]))
            return MemoryAccess.Fault;
        MarkDirty(ref vm, in slot, destination, count);
        return count == source.Length
            ? MemoryAccess.Done : Write(ref vm, destination + (ulong)count, source[count..]);
    }

    public static bool TryRead<T>(ref Vm.Vm vm, Gpa source, out T value) where T : unmanaged
    {
        Unsafe.SkipInit(out value);
        return Read(ref vm, source, MemoryMarshal.AsBytes(new Span<T>(ref value))) == MemoryAccess.Done;
    }

    public static bool TryWrite<T>(ref Vm.Vm vm, Gpa destination, in T value) where T : unmanaged =>
        Write(ref vm, destination, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value))) == MemoryAccess.Done;

    /// <summary>
    /// Atomic compare and exchange of 1, 2, 4 or 8 naturally aligned bytes. <paramref name="swapped"/> says whether
    /// the memory held <paramref name="expected"/>.
    /// </summary>
    public static MemoryAccess CompareExchange(
        ref Vm.Vm vm, Gpa address, int size, ulong expected, ulong replacement, out bool swapped)
    {
        swapped = false;
        ref readonly MemorySlot slot = ref vm.Memory.Slots.Find(address);
        if (!slot.Contains(address))
            return MemoryAccess.NoMemory;
        if (slot.IsReadOnly)
            return MemoryAccess.ReadOnly;
        Exchange exchange = UserMemory.CompareExchange(slot.ToHva(address), size, expected, replacement);
        if (exchange == Exchange.Fault)
            return MemoryAccess.Fault;
        swapped = exchange == Exchange.Swapped;
        if (swapped)
            DirtyLog.Mark(ref vm, in slot, address);
        return MemoryAccess.Done;
    }

    /// <summary>Whether memory that can be read, or written to, is at <paramref name="address"/>.</summary>
    public static bool IsMemory(ref Vm.Vm vm, Gpa address, bool write)
    {
        ref readonly MemorySlot slot = ref vm.Memory.Slots.Find(address);
        return slot.Contains(address) && !(write && slot.IsReadOnly);
    }

    /// <summary>How many of <paramref name="length"/> bytes at <paramref name="address"/> lie in the slot.</summary>
    private static int Part(in MemorySlot slot, Gpa address, int length) =>
        (int)Math.Min((ulong)length, slot.End.Value - address.Value);

    private static void MarkDirty(ref Vm.Vm vm, in MemorySlot slot, Gpa start, int count)
    {
        if (!slot.LogsDirty || count == 0)
            return;
        Gpa last = start + (ulong)(count - 1);
        for (ulong frame = start.Frame.Value; frame <= last.Frame.Value; frame++)
            DirtyLog.Mark(ref vm, in slot, new Gfn(frame).Address);
    }
}
