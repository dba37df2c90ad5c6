// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>How an emulation ended.</summary>
internal enum Outcome : byte
{
    /// <summary>
    /// Registers and RIP are up to date. A REP instruction may have done part of its work and then still points at
    /// itself, as between two iterations on hardware; likewise a locked instruction that lost a race.
    /// </summary>
    Done,
    /// <summary>An access waits for user space; run the instruction again afterwards.</summary>
    UserSpace,
    /// <summary>Raise <see cref="Emulation.Fault"/>; RIP still points at the instruction.</summary>
    Exception,
    /// <summary>Memory that an access needs is not there: run the instruction again when it may be.</summary>
    Absent,
    /// <summary>Not done, nothing changed: KVM_INTERNAL_ERROR_EMULATION with the bytes that were fetched.</summary>
    Unsupported,
}

/// <summary>What delays interrupts until after the next instruction (SDM vol. 3, 7.8.3 and 7.8.1).</summary>
internal enum Shadow : byte
{
    None, Sti, MovSs,
}

/// <summary>The longest instruction: 15 bytes (SDM vol. 2, 2.3.11), in a power of two.</summary>
[InlineArray(Size)]
internal struct InstructionBytes
{
    public const int Limit = 15;
    private const int Size = 16;
    private byte _first;
}

/// <summary>The result of emulating one instruction.</summary>
internal struct Emulation
{
    public Outcome Outcome;
    /// <summary>The shadow that the completed instruction casts; the caller clears any older one.</summary>
    public Shadow Shadow;
    /// <summary>TF was set when the instruction began: raise #DB with DR6.BS.</summary>
    public bool SingleStep;
    /// <summary>HLT completed: the vCPU sleeps.</summary>
    public bool Halted;
    public Fault Fault;
}
