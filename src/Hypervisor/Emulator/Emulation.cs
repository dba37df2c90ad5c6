// SPDX-License-Identifier: GPL-2.0-only
namespace SharpKvm.Emulator;

/// <summary>
/// What delays interrupts until after the next instruction (SDM vol. 3, 7.8.3 and 7.8.1), in the numbers of
/// KVM_X86_SHADOW_INT_*.
/// </summary>
internal enum Shadow : byte
{
    None, MovSs, Sti,
}

/// <summary>The longest instruction: 15 bytes (SDM vol. 2, 2.3.11), in a power of two.</summary>
[InlineArray(Size)] internal struct InstructionBytes
{
    public const int Limit = 15, Size = 16;
    private byte _first;
}

/// <summary>The result of emulating one instruction.</summary>
internal struct Emulation
{
    public Access Outcome;
    /// <summary>The shadow that the completed instruction casts; the caller clears any older one.</summary>
    public Shadow Shadow;
    /// <summary>TF was set when the instruction began: raise #DB with DR6.BS.</summary>
    public bool SingleStep;
    /// <summary>HLT completed: the vCPU sleeps.</summary>
    public bool Halted;
    /// <summary>IRET completed: NMIs are not blocked any more.</summary>
    public bool Returned;
    /// <summary>Another task was entered; a fault is the new one's.</summary>
    public bool TaskSwitched;
    public Fault Fault;
}
