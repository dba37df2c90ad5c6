// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Vm;

/// <summary>What KVM_RUN finishes first when user space comes back.</summary>
internal enum PendingKind : byte
{
    None,
    /// <summary>IN or OUT of one item, decoded by hardware.</summary>
    Port,
    /// <summary>RDMSR or WRMSR.</summary>
    Msr,
    /// <summary>An emulated instruction that waits for an answer: it runs again, with all that it got so far.</summary>
    Instruction,
    /// <summary>The same, but it waits for memory.</summary>
    Absent,
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
    /// <summary>What user space has served and serves of it, so that it can be run again from the top.</summary>
    public AccessList Log;
    /// <summary>Its writes to device memory, which leave when it is over; dropped when it ends in a fault.</summary>
    public AccessList Writes;
    /// <summary>It was stepped: a debugger or the guest gets its trap when all writes are out.</summary>
    public bool Steps;
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
    [MethodImpl(AggressiveInlining)]
    public readonly bool Matches(Gva address, int size, bool write) => Valid && (Write || !write)
        && (address.Value ^ Address.Value) % Page.Size == 0 && (int)address.Offset + size <= Page.Size;

    /// <summary>Whether an access is the one that faulted.</summary>
    public readonly bool Covers(PageAccess kind) => IsOperand && (Write || kind == PageAccess.Read);
}

internal enum AccessKind : byte
{
    Read, Write, PortRead, PortWrite,
    /// <summary>A write that the devices in the kernel were offered already.</summary>
    RefusedWrite,
}

/// <summary>An access to a device by an emulated instruction.</summary>
internal struct DeviceAccess
{
    /// <summary>Guest physical address, or the port.</summary>
    public ulong Address;
    public ulong Data;
    public uint Length;
    public AccessKind Kind;
}

/// <summary>Accesses of one instruction in order, those below <see cref="Position"/> in this run of it.</summary>
internal struct AccessList
{
    /// <summary>
    /// More than any supported instruction makes (PUSHA: 16 halves; ENTER is bounded by the emulator).
    /// </summary>
    private const int Capacity = 40;

    [InlineArray(Capacity)] private struct Entries { private DeviceAccess _first; }

    private Entries _entries;
    public int Count;
    public int Position;

    public readonly bool IsAtEnd => Position == Count;

    public void Clear() => Count = Position = 0;

    /// <summary>False: there is no room.</summary>
    public bool TryAdd(AccessKind kind, ulong address, uint length, ulong data = 0)
    {
        if (Count == Capacity)
            return false;
        _entries[Count++] = new DeviceAccess { Kind = kind, Address = address, Length = length, Data = data };
        return true;
    }

    public DeviceAccess Take() => _entries[Position++];

    /// <summary>The answer to this access, if it is the next one that was already served.</summary>
    public bool TryReplay(AccessKind kind, ulong address, uint length, out ulong data)
    {
        data = 0;
        if (IsAtEnd)
            return false;
        ref DeviceAccess entry = ref _entries[Position];
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

    /// <summary>User space has served the access that was added last.</summary>
    public void Answer(ulong data) => _entries[Count - 1].Data = data;
}
