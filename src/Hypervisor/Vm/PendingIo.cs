// SPDX-License-Identifier: GPL-2.0-only
using SharpKvm.Emulator;
using SharpKvm.Host;
using SharpKvm.Mmu;

namespace SharpKvm.Vm;

/// <summary>What KVM_RUN finishes first when user space comes back.</summary>
internal enum PendingKind : byte
{
    None,
    /// <summary>IN or OUT of one item, decoded by hardware.</summary>
    Port,
    /// <summary>RDMSR or WRMSR.</summary>
    Msr,
    /// <summary>An emulated instruction: it runs again, with the log's answers.</summary>
    Instruction,
    /// <summary>Writes of an emulated instruction that is complete itself: they leave one after the other.</summary>
    Writes,
}

/// <summary>
/// An access that left for user space. It is finished when KVM_RUN is called again and RIP is still where it was;
/// otherwise user space has sent the vCPU elsewhere and it is forgotten.
/// </summary>
internal struct PendingIo
{
    public PendingKind Kind;
    public ulong Rip;
    /// <summary>
    /// For <see cref="PendingKind.Port"/> and <see cref="PendingKind.Msr"/>: where execution goes on, what was asked.
    /// </summary>
    public ulong NextRip;
    public bool IsInput;
    public byte Size;
    /// <summary>The instruction that is emulated, decoded.</summary>
    public FetchedInstruction Instruction;
    public ReplayLog Log;
    public PostedWrites Writes;
    public FaultHint Hint;

    public void Forget()
    {
        Kind = PendingKind.None;
        Log.Clear();
        Writes.Clear();
        Hint = default;
    }
}

/// <summary>
/// Where the nested page fault was whose instruction is emulated, if no memory is there: hardware has translated and
/// checked that access, and it goes to a device.
/// </summary>
internal struct FaultHint
{
    public Gpa Address;
    public bool Valid;
    /// <summary>The access was a write, so that writing was checked too.</summary>
    public bool Write;
    /// <summary>The emulated instruction has one memory operand only, which is it.</summary>
    public bool IsOperand;

    /// <summary>Whether an access could be the one that faulted: it has the same offset within its page.</summary>
    public readonly bool Matches(Gva address, int size, bool write) => Valid && (Write || !write)
        && (address.Value ^ Address.Value) % Page.Size == 0 && (int)address.Offset + size <= Page.Size;

    /// <summary>Whether an access is the one that faulted.</summary>
    public readonly bool Covers(PageAccess kind) => IsOperand && (Write || kind == PageAccess.Read);
}

/// <summary>A write to device memory that user space has yet to see.</summary>
internal struct PostedWrite
{
    public ulong Address;
    public ulong Data;
    public uint Length;
    /// <summary>It was offered to the devices in the kernel already.</summary>
    public bool Refused;
}

/// <summary>
/// The writes to device memory of one instruction, in order. Dropped when the instruction ends in a fault.
/// </summary>
internal struct PostedWrites
{
    /// <summary>
    /// More than any supported instruction makes (PUSHA: 16 halves; ENTER is bounded by the emulator).
    /// </summary>
    private const int Capacity = 40;

    [InlineArray(Capacity)]
    private struct Entries
    {
        private PostedWrite _first;
    }

    private Entries _entries;
    private int _count;
    private int _next;
    /// <summary>A debugger in user space gets its step when all are out.</summary>
    public bool ThenStep;

    public readonly bool IsEmpty => _next == _count;

    public void Clear()
    {
        _count = 0;
        _next = 0;
        ThenStep = false;
    }

    public bool TryAdd(ulong address, uint length, ulong data, bool refused)
    {
        if (_count == Capacity)
            return false;
        _entries[_count++] = new PostedWrite { Address = address, Length = length, Data = data, Refused = refused };
        return true;
    }

    public PostedWrite Take() => _entries[_next++];
}

/// <summary>One access of an emulated instruction that user space served or is serving.</summary>
internal struct ReplayEntry
{
    /// <summary>Guest physical address, or the port.</summary>
    public ulong Address;
    public ulong Data;
    public uint Length;
    public ReplayKind Kind;
}

internal enum ReplayKind : byte
{
    MmioRead, PortRead, PortWrite,
}

/// <summary>
/// The accesses of one instruction in order, so that it can be run again from the top: those below
/// <see cref="Position"/> were replayed, the last one may still wait for user space's answer.
/// </summary>
internal struct ReplayLog
{
    /// <summary>More reads than any supported instruction makes (POPA: 16 halves).</summary>
    private const int Capacity = 20;

    [InlineArray(Capacity)]
    private struct Entries
    {
        private ReplayEntry _first;
    }

    private Entries _entries;
    public int Count;
    public int Position;
    /// <summary>The last entry was handed to user space and not yet answered.</summary>
    public bool Waiting;

    public void Clear()
    {
        Count = 0;
        Position = 0;
        Waiting = false;
    }

    /// <summary>The answer to this access, if it is the next one that was already served.</summary>
    public bool TryReplay(ReplayKind kind, ulong address, uint length, out ulong data)
    {
        data = 0;
        if (Position >= Count)
            return false;
        ref ReplayEntry entry = ref _entries[Position];
        if (entry.Kind != kind || entry.Address != address || entry.Length != length)
        {
            // The guest's own tables or registers changed under the instruction: what follows is a new access.
            Count = Position;
            return false;
        }
        Position++;
        data = entry.Data;
        return true;
    }

    /// <summary>Adds the access that goes to user space now. False: there is no room.</summary>
    public bool TryAppend(ReplayKind kind, ulong address, uint length)
    {
        if (Count == Capacity)
            return false;
        _entries[Count++] = new ReplayEntry { Kind = kind, Address = address, Length = length };
        Waiting = true;
        return true;
    }

    /// <summary>Completes the access that waited and rewinds for another run.</summary>
    public void Answer(ulong data)
    {
        if (Waiting)
            _entries[Count - 1].Data = data;
        Waiting = false;
        Position = 0;
    }
}
