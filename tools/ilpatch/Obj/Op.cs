// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>A symbol with an offset.</summary>
internal readonly record struct Reference(ElfSymbol Symbol, long Offset);

/// <summary>One machine instruction with what the plain encoding does not say.</summary>
internal sealed class Op
{
    public Op(Instruction instruction, SourceLine line)
    {
        Instruction = instruction;
        Line = line;
    }

    public Instruction Instruction;

    public SourceLine Line { get; init; }

    /// <summary>The symbol behind a call, a jump or a RIP-relative operand.</summary>
    public Reference? Symbol { get; init; }

    /// <summary>The operation in the same method that a branch leads to.</summary>
    public Op? Branch { get; set; }

    /// <summary>A branch that leads to a trap's stub, or (with no branch) code that cannot go on.</summary>
    public Trap? Trap { get; set; }

    /// <summary>The trap that a hardware fault of this instruction becomes.</summary>
    public Trap? Fault { get; set; }

    /// <summary>Position in the method; valid after <see cref="Method.Renumber"/>.</summary>
    public int Index { get; set; }

    /// <summary>Stands for a trap that control simply falls into.</summary>
    public bool IsTrapCall => Trap is not null && Instruction.FlowControl is FlowControl.Call;

    /// <summary>A call of a method that can only trap.</summary>
    public bool NeverReturns { get; set; }

    public bool EndsFlow
        => IsTrapCall || NeverReturns
            || Instruction.FlowControl is FlowControl.UnconditionalBranch or FlowControl.Return
                or FlowControl.Exception or FlowControl.IndirectBranch;

    /// <summary>A new operation in this one's place, on the same line.</summary>
    public Op With(Instruction instruction) => new(instruction, Line);

    public Op With(Instruction instruction, Reference? symbol) => new(instruction, Line) { Symbol = symbol };
}
