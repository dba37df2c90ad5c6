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
    public Access Outcome;
    /// <summary>The shadow that the completed instruction casts; the caller clears any older one.</summary>
    public Shadow Shadow;
    /// <summary>TF was set when the instruction began: raise #DB with DR6.BS.</summary>
    public bool SingleStep;
    /// <summary>HLT completed: the vCPU sleeps.</summary>
    public bool Halted;
    public Fault Fault;

    /// <summary>
    /// Emulates the instruction at CS:RIP. Pure: all that it reads and changes is behind <paramref name="machine"/>,
    /// and registers, flags and RIP change only when the instruction (or a batch of a REP instruction) is complete.
    /// </summary>
    public static Emulation Run<TMachine>(ref TMachine machine) where TMachine : struct, IMachine, allows ref struct
    {
        Execution<TMachine> execution = new(machine);
        execution.Run();
        return execution.Result;
    }
}
