// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// Finds what is known before each operation, of all methods together: a method begins with what all its callers know
/// of the arguments, and a call yields what all the callee's returns know of the result.
/// </summary>
internal sealed class PointerFacts
{
    private readonly Dictionary<ElfSymbol, KnownRegisters> _entries = [];
    private readonly Dictionary<ElfSymbol, KnownRegisters> _results = [];
    private readonly Dictionary<Op, OpFacts> _facts = [];
    private bool _isChanged;

    public PointerFacts(IReadOnlyList<Method> methods)
    {
        foreach (Method method in methods)
        {
            ulong arguments = method.IsExported ? 0 : Place.Arguments;
            _entries[method.Symbol] = new(arguments, arguments);
            _results[method.Symbol] = KnownRegisters.Everything;
            foreach (Op op in method.Code)
            {
                _facts[op] = OpFacts.Of(op);
            }
        }

        do
        {
            _isChanged = false;
            foreach (Method method in methods)
            {
                KnownRegisters?[] before = Before(method);
                foreach (Op op in method.Code)
                {
                    if (before[op.Index] is { } known)
                    {
                        Propagate(method, op, known);
                    }
                }
            }
        }
        while (_isChanged);
    }

    /// <summary>What is known before each operation; null for what is never reached.</summary>
    public KnownRegisters?[] Before(Method method)
    {
        method.Renumber();
        int exposed = method.Code.Where(op => op.Instruction is { Mnemonic: Mnemonic.Lea, MemoryBase: Register.RBP })
            .Select(op => (int)(long)op.Instruction.MemoryDisplacement64).DefaultIfEmpty(0).Min();
        bool[] isJoin = Flow.Targets(method);
        var before = new Knowledge?[method.Code.Count];
        before[0] = new Knowledge(_entries[method.Symbol]);
        var result = new KnownRegisters?[method.Code.Count];
        var pending = new SortedSet<int> { 0 };
        while (pending.Count > 0)
        {
            int index = pending.Min;
            pending.Remove(index);
            Knowledge state = before[index]!.Copy();
            for (; ; index++)
            {
                Op op = method.Code[index];
                result[index] = state.Known;
                state.Apply(op, _facts[op], exposed, ResultOf);
                if (op.Branch is { } target)
                {
                    Join(before, target.Index, state, pending);
                }

                if (op.EndsFlow || index + 1 == method.Code.Count)
                {
                    break;
                }

                if (isJoin[index + 1])
                {
                    Join(before, index + 1, state, pending);
                    break;
                }
            }
        }

        return result;
    }

    private static void Join(Knowledge?[] before, int index, Knowledge state, SortedSet<int> pending)
    {
        if (before[index] is not { } known)
        {
            before[index] = state.Copy();
            pending.Add(index);
        }
        else if (known.Meet(state))
        {
            pending.Add(index);
        }
    }

    private KnownRegisters ResultOf(ElfSymbol callee) => _results.GetValueOrDefault(callee);

    private void Propagate(Method method, Op op, KnownRegisters before)
    {
        bool isTailCall = op is { Branch: null, Trap: null, Symbol: not null }
            && op.Instruction.FlowControl is FlowControl.UnconditionalBranch;
        if (op.Symbol is { } callee && !op.IsTrapCall && _entries.TryGetValue(callee.Symbol, out KnownRegisters entry)
            && (isTailCall || op.Instruction.FlowControl is FlowControl.Call))
        {
            Update(_entries, callee.Symbol, entry.Meet(before));
        }

        if (op.Instruction.FlowControl is FlowControl.Return)
        {
            Update(_results, method.Symbol, _results[method.Symbol].Meet(before));
        }
        else if (isTailCall)
        {
            Update(_results, method.Symbol, _results[method.Symbol].Meet(ResultOf(op.Symbol!.Value.Symbol)));
        }
    }

    private void Update(Dictionary<ElfSymbol, KnownRegisters> table, ElfSymbol key, KnownRegisters value)
    {
        if (table[key] != value)
        {
            table[key] = value;
            _isChanged = true;
        }
    }
}
