// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

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

    /// <summary>Replaces operations one by one; a branch to one goes to the first of its replacements.</summary>
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
