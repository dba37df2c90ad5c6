// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// What is known of the general registers at one point: those that hold, or are derived from, a pointer whose sign was
/// tested, and those that hold a zero-extended 32-bit value and so cannot be a kernel pointer.
/// </summary>
internal readonly record struct KnownRegisters(ulong Pointers, ulong Small)
{
    public static readonly KnownRegisters Everything = new(Place.AllGeneral, Place.AllGeneral);

    public KnownRegisters Meet(KnownRegisters other) => new(Pointers & other.Pointers, Small & other.Small);

    public bool IsPointer(Register register) => (Pointers & Place.Of(register)) != 0;

    public bool IsSmall(Register register) => (Small & Place.Of(register)) != 0;

    /// <summary>The registers to test before an access: none, its base, or both when either may be the pointer.</summary>
    public Register[] Suspects(UsedMemory memory)
    {
        if (AccessChecks.IsOwnStack(memory.Base) || IsPointer(memory.Base)
            || (memory.Scale == 1 && memory.Index != Register.None && IsPointer(memory.Index)))
        {
            return [];
        }

        if (memory.Base == Register.None)
        {
            return [memory.Index];
        }

        bool isIndexCandidate = memory.Index != Register.None && memory.Scale == 1 && !IsSmall(memory.Index);
        return !isIndexCandidate ? [memory.Base] : IsSmall(memory.Base) ? [memory.Index] : [memory.Base, memory.Index];
    }

    /// <summary>What is known after the operation, which has been made safe if it accesses memory.</summary>
    public KnownRegisters After(Op op, Func<ElfSymbol, KnownRegisters> returned)
    {
        ref readonly Instruction i = ref op.Instruction;
        ulong pointers = Pointers;
        foreach (UsedMemory memory in AccessChecks.Operands(op))
        {
            if (Suspects(memory) is [var tested])
            {
                pointers |= Place.Of(tested);
            }
        }

        ulong changed = Effects.Changes(op);
        var known = new KnownRegisters(pointers & ~changed, Small & ~changed);
        if (op.Instruction.FlowControl is FlowControl.Call)
        {
            KnownRegisters result = op.Symbol is { } callee ? returned(callee.Symbol) : default;
            ulong results = Place.Of(Register.RAX) | Place.Of(Register.RDX);
            return new(known.Pointers | (result.Pointers & results), known.Small | (result.Small & results));
        }

        if (i.OpCount == 0 || i.Op0Kind != OpKind.Register || (changed & Place.Of(i.Op0Register)) == 0)
        {
            return known;
        }

        ulong target = Place.Of(i.Op0Register);
        if (i.Op0Register.IsGPR32())
        {
            return known with { Small = known.Small | target };
        }

        if (!i.Op0Register.IsGPR64())
        {
            return known;
        }

        var before = new KnownRegisters(pointers, Small);
        bool isPointer = i.Mnemonic switch
        {
            Mnemonic.Mov => i.Op1Kind == OpKind.Register && before.IsPointer(i.Op1Register),
            Mnemonic.Lea => i.MemoryBase is Register.RIP or Register.RSP or Register.RBP || before.IsPointer(i.MemoryBase)
                || (i.MemoryIndexScale == 1 && before.IsPointer(i.MemoryIndex)),
            Mnemonic.Add => before.IsPointer(i.Op0Register)
                || (i.Op1Kind == OpKind.Register && before.IsPointer(i.Op1Register)),
            Mnemonic.Sub or Mnemonic.Or => before.IsPointer(i.Op0Register),
            Mnemonic.And => before.IsPointer(i.Op0Register) && Immediate(i) < 0,
            Mnemonic.Inc or Mnemonic.Dec => before.IsPointer(i.Op0Register),
            >= Mnemonic.Cmova and <= Mnemonic.Cmovs => before.IsPointer(i.Op0Register)
                && i.Op1Kind == OpKind.Register && before.IsPointer(i.Op1Register),
            _ => false,
        };
        bool isSmall = i.Mnemonic switch
        {
            Mnemonic.Mov when i.Op1Kind == OpKind.Register => before.IsSmall(i.Op1Register),
            Mnemonic.Mov => Immediate(i) >= 0,
            Mnemonic.Movzx => true,
            Mnemonic.Shr => before.IsSmall(i.Op0Register),
            Mnemonic.And => Immediate(i) >= 0,
            _ => false,
        };
        return new(known.Pointers | (isPointer ? target : 0), known.Small | (isSmall ? target : 0));
    }

    private static long? Immediate(in Instruction instruction)
        => instruction.OpCount == 2 && instruction.Op1Kind is not OpKind.Memory and not OpKind.Register
            ? (long)instruction.GetImmediate(1)
            : null;
}

/// <summary>Finds what is known before each operation of all methods together: a method begins with what all its callers
/// know of the arguments, and a call yields what all the callee's returns know of the result.</summary>
internal sealed class PointerFacts
{
    private readonly Dictionary<ElfSymbol, Method> _methods;
    private readonly Dictionary<ElfSymbol, KnownRegisters> _entries = [];
    private readonly Dictionary<ElfSymbol, KnownRegisters> _results = [];
    private bool _isChanged;

    public PointerFacts(IReadOnlyList<Method> methods)
    {
        _methods = methods.ToDictionary(method => method.Symbol);
        foreach (Method method in methods)
        {
            ulong arguments = method.IsExported ? 0 : Place.Arguments;
            _entries[method.Symbol] = new(arguments, arguments);
            _results[method.Symbol] = KnownRegisters.Everything;
        }

        do
        {
            _isChanged = false;
            foreach (Method method in methods)
            {
                KnownRegisters[] before = Before(method);
                foreach (Op op in method.Code)
                {
                    Propagate(method, op, before[op.Index]);
                }
            }
        }
        while (_isChanged);
    }

    /// <summary>What is known before each operation; everything for what is never reached.</summary>
    public KnownRegisters[] Before(Method method)
    {
        method.Renumber();
        var before = new KnownRegisters[method.Code.Count];
        Array.Fill(before, KnownRegisters.Everything);
        before[0] = _entries[method.Symbol];
        var pending = new SortedSet<int> { 0 };
        while (pending.Count > 0)
        {
            int index = pending.Min;
            pending.Remove(index);
            KnownRegisters after = before[index].After(method.Code[index], ResultOf);
            foreach (int next in Flow.Successors(method, index))
            {
                KnownRegisters met = before[next].Meet(after);
                if (met != before[next] || met == KnownRegisters.Everything)
                {
                    before[next] = met;
                    pending.Add(next);
                }
            }
        }

        return before;
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
