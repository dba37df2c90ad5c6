// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Why the core stopped itself; the kernel side prints the text (Native/trap.c keeps the same order).</summary>
internal enum TrapKind
{
    BadAddress,
    IndexOutOfRange,
    Overflow,
    DivideError,
    OutOfRange,
    InvalidArgument,
    InvalidState,
    StackOverrun,
    PrivilegedFault,
}

/// <summary>A place at which the core may stop itself; equal ones of a method share a stub.</summary>
internal readonly record struct Trap(TrapKind Kind, SourceLine Line);

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

    public bool EndsFlow
        => IsTrapCall
            || Instruction.FlowControl is FlowControl.UnconditionalBranch or FlowControl.Return
                or FlowControl.Exception or FlowControl.IndirectBranch;

    /// <summary>A new operation in this one's place, on the same line.</summary>
    public Op With(Instruction instruction) => new(instruction, Line);

    public Op With(Instruction instruction, Reference? symbol) => new(instruction, Line) { Symbol = symbol };
}

/// <summary>A method of the core on its way from the compiler's object to assembler text.</summary>
internal sealed class Method(ElfSymbol symbol, string name)
{
    public ElfSymbol Symbol => symbol;

    /// <summary>As people write it: namespace, type and method with dots.</summary>
    public string Name => name;

    public List<string> Exports { get; } = [];

    public bool IsExported => Exports.Count > 0;

    public List<Op> Code { get; set; } = [];

    /// <summary>Bytes between the return address and the lowest stack pointer.</summary>
    public int FrameSize { get; set; }

    /// <summary>Bytes of stack that replaced SIMD registers need.</summary>
    public int SlotBytes { get; set; }

    public int SimdRewritten { get; set; }

    public int ChecksAdded { get; set; }

    public int ChecksElided { get; set; }

    public SortedSet<string> CallsOut { get; } = new(StringComparer.Ordinal);

    public SourcePlace PlaceOf(Op op) => new(Name, op.Line.File ?? "", op.Line.Line);

    public ViolationException Refuse(Op op, string what, string instead) => new(PlaceOf(op), what, instead);

    public void Renumber()
    {
        for (int i = 0; i < Code.Count; i++)
        {
            Code[i].Index = i;
        }
    }

    /// <summary>Replaces operations one by one; branches to a replaced one go to the first of its replacements.</summary>
    public void Rewrite(Func<Op, IReadOnlyList<Op>?> replace)
    {
        var result = new List<Op>(Code.Count);
        var moved = new Dictionary<Op, Op>();
        List<Op> orphans = [];
        foreach (Op op in Code)
        {
            IReadOnlyList<Op>? replacement = replace(op);
            if (replacement is null)
            {
                orphans.ForEach(orphan => moved[orphan] = op);
                orphans.Clear();
                result.Add(op);
            }
            else if (replacement.Count == 0)
            {
                orphans.Add(op);
            }
            else
            {
                orphans.ForEach(orphan => moved[orphan] = replacement[0]);
                orphans.Clear();
                moved[op] = replacement[0];
                result.AddRange(replacement);
            }
        }

        foreach (Op op in result)
        {
            if (op.Branch is { } target && moved.TryGetValue(target, out Op? now))
            {
                op.Branch = now;
            }
        }

        Code = result;
        Renumber();
    }
}
