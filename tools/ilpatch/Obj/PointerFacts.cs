// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// What is known at one point: the registers and frame slots that hold, or are derived from, a pointer whose sign was
/// tested, and the registers that hold a zero-extended 32-bit value and so cannot be a kernel pointer. Registers and
/// slots with the same origin have a common base: testing one of them tests all.
/// </summary>
internal sealed class Knowledge
{
    private const int Registers = 16;

    private readonly int[] _origins;
    private readonly SortedDictionary<int, (bool IsPointer, int Origin)> _slots;

    private Knowledge(ulong pointers, ulong small, int[] origins, SortedDictionary<int, (bool, int)> slots)
    {
        Pointers = pointers;
        Small = small;
        _origins = origins;
        _slots = slots;
    }

    public Knowledge(KnownRegisters registers)
        : this(registers.Pointers, registers.Small, new int[Registers], [])
    {
    }

    public ulong Pointers { get; private set; }

    public ulong Small { get; private set; }

    public KnownRegisters Known => new(Pointers, Small);

    /// <summary>Keeps what both know; says whether that is less than before.</summary>
    public bool Meet(Knowledge other)
    {
        bool isLess = (Pointers & ~other.Pointers) != 0 || (Small & ~other.Small) != 0;
        Pointers &= other.Pointers;
        Small &= other.Small;
        for (int i = 0; i < Registers; i++)
        {
            if (_origins[i] != other._origins[i] && _origins[i] != 0)
            {
                _origins[i] = 0;
                isLess = true;
            }
        }

        foreach ((int offset, (bool IsPointer, int Origin) slot) in _slots.ToArray())
        {
            (bool IsPointer, int Origin) met = other._slots.TryGetValue(offset, out (bool IsPointer, int Origin) theirs)
                ? (slot.IsPointer && theirs.IsPointer, slot.Origin == theirs.Origin ? slot.Origin : 0)
                : default;
            if (met != slot)
            {
                isLess = true;
                _slots[offset] = met;
            }
        }

        return isLess;
    }

    public Knowledge Copy() => new(Pointers, Small, [.. _origins], new(_slots));

    /// <summary>Applies an operation, which has been made safe if it accesses memory.</summary>
    /// <param name="exposed">Frame offsets from here on may be written through pointers.</param>
    public void Apply(Op op, OpFacts facts, int exposed, Func<ElfSymbol, KnownRegisters> returned)
    {
        foreach (UsedMemory memory in facts.Operands)
        {
            if (Known.Suspects(memory) is [var tested])
            {
                MarkPointer(tested);
            }
        }

        KnownRegisters before = Known;
        ulong changed = facts.Changed;
        ref readonly Instruction i = ref op.Instruction;
        Register target = i.OpCount > 0 && i.Op0Kind == OpKind.Register ? i.Op0Register : Register.None;
        Register source = SourceOf(i, before);
        int origin = source == Register.None ? 0 : OriginOf(source, op.Index + 1);
        (bool IsPointer, int Origin) loaded = LoadedSlot(i, exposed);
        ForgetOverwritten(facts, i, exposed);

        Pointers &= ~changed;
        Small &= ~changed;
        for (int r = 0; r < Registers; r++)
        {
            if ((changed & (1UL << r)) != 0)
            {
                _origins[r] = 0;
            }
        }

        if (i.FlowControl is FlowControl.Call)
        {
            KnownRegisters result = op.Symbol is { } callee ? returned(callee.Symbol) : default;
            ulong results = Place.Of(Register.RAX) | Place.Of(Register.RDX);
            Pointers |= result.Pointers & results;
            Small |= result.Small & results;
        }
        else if (target.IsGPR32() && (changed & Place.Of(target)) != 0)
        {
            Small |= Place.Of(target);
        }
        else if (target.IsGPR64() && (changed & Place.Of(target)) != 0)
        {
            if (before.GivesPointer(i) || loaded.IsPointer)
            {
                Pointers |= Place.Of(target);
            }

            if (before.GivesSmall(i))
            {
                Small |= Place.Of(target);
            }

            _origins[target - Register.RAX] = source != Register.None ? origin : loaded.Origin;
        }

        Store(i, exposed, op.Index + 1);
    }

    /// <summary>The register whose base the result of a move, an address or a small addition shares.</summary>
    private static Register SourceOf(in Instruction i, KnownRegisters before)
        => i.Mnemonic switch
        {
            Mnemonic.Mov when i.Op0Kind == OpKind.Register && i.Op1Kind == OpKind.Register && i.Op0Register.IsGPR64()
                && i.Op1Register.IsGPR64() => i.Op1Register,
            Mnemonic.Lea when i.MemoryBase.IsGPR64() && (i.MemoryIndex == Register.None || before.IsSmall(i.MemoryIndex))
                => i.MemoryBase,
            Mnemonic.Add or Mnemonic.Sub when i.Op0Register.IsGPR64() && i.Op0Kind == OpKind.Register
                && (KnownRegisters.Immediate(i) is not null || (i.Op1Kind == OpKind.Register && before.IsSmall(i.Op1Register)))
                => i.Op0Register,
            _ => Register.None,
        };

    private void MarkPointer(Register register)
    {
        Pointers |= Place.Of(register);
        int origin = _origins[register - Register.RAX];
        if (origin == 0)
        {
            return;
        }

        for (int r = 0; r < Registers; r++)
        {
            Pointers |= _origins[r] == origin ? 1UL << r : 0;
        }

        foreach ((int offset, (bool IsPointer, int Origin) slot) in _slots.ToArray())
        {
            if (slot.Origin == origin)
            {
                _slots[offset] = (true, origin);
            }
        }
    }

    /// <summary>A register's origin; a new one where there is none, which nothing else may still have.</summary>
    private int OriginOf(Register register, int fresh)
    {
        ref int origin = ref _origins[register - Register.RAX];
        if (origin == 0)
        {
            for (int r = 0; r < Registers; r++)
            {
                _origins[r] = _origins[r] == fresh ? 0 : _origins[r];
            }

            foreach ((int offset, (bool IsPointer, int Origin) slot) in _slots.ToArray())
            {
                if (slot.Origin == fresh)
                {
                    _slots[offset] = (slot.IsPointer, 0);
                }
            }

            origin = fresh;
        }

        return origin;
    }

    private static bool IsSlot(in Instruction i, int exposed)
        => i.MemoryBase == Register.RBP && i.MemoryIndex == Register.None && (long)i.MemoryDisplacement64 < exposed;

    private (bool IsPointer, int Origin) LoadedSlot(in Instruction i, int exposed)
        => i.Code == Code.Mov_r64_rm64 && i.Op1Kind == OpKind.Memory && IsSlot(i, exposed)
            ? _slots.GetValueOrDefault((int)i.MemoryDisplacement64)
            : default;

    private void ForgetOverwritten(OpFacts facts, in Instruction i, int exposed)
    {
        if (_slots.Count == 0 || !facts.WritesFrame)
        {
            return;
        }

        if (!IsSlot(i, exposed))
        {
            if (i.MemoryIndex != Register.None)
            {
                _slots.Clear();
            }

            return;
        }

        long start = (long)i.MemoryDisplacement64;
        int size = Math.Max(8, i.MemorySize.GetSize());
        foreach (int offset in _slots.Keys.Where(slot => slot < start + size && slot + 8 > start).ToArray())
        {
            _slots.Remove(offset);
        }
    }

    private void Store(in Instruction i, int exposed, int fresh)
    {
        if (i.Code == Code.Mov_rm64_r64 && i.Op0Kind == OpKind.Memory && IsSlot(i, exposed))
        {
            int origin = OriginOf(i.Op1Register, fresh);
            _slots[(int)i.MemoryDisplacement64] = (Known.IsPointer(i.Op1Register), origin);
        }
    }
}

/// <summary>What is known of the general registers alone.</summary>
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

    /// <summary>Whether the 64-bit register result is a pointer, given what is known of the operands.</summary>
    public bool GivesPointer(in Instruction i)
        => i.Mnemonic switch
        {
            Mnemonic.Mov => i.Op1Kind == OpKind.Register && IsPointer(i.Op1Register),
            Mnemonic.Lea => i.MemoryBase is Register.RIP or Register.RSP or Register.RBP || IsPointer(i.MemoryBase)
                || (i.MemoryIndexScale == 1 && IsPointer(i.MemoryIndex)),
            Mnemonic.Add => IsPointer(i.Op0Register) || (i.Op1Kind == OpKind.Register && IsPointer(i.Op1Register)),
            Mnemonic.Sub or Mnemonic.Or or Mnemonic.Inc or Mnemonic.Dec => IsPointer(i.Op0Register),
            Mnemonic.And => IsPointer(i.Op0Register) && Immediate(i) < 0,
            >= Mnemonic.Cmova and <= Mnemonic.Cmovs => IsPointer(i.Op0Register) && i.Op1Kind == OpKind.Register
                && IsPointer(i.Op1Register),
            _ => false,
        };

    /// <summary>Whether the 64-bit register result fits 32 bits, given what is known of the operands.</summary>
    public bool GivesSmall(in Instruction i)
        => i.Mnemonic switch
        {
            Mnemonic.Mov when i.Op1Kind == OpKind.Register => IsSmall(i.Op1Register),
            Mnemonic.Mov => Immediate(i) is >= 0 and <= uint.MaxValue,
            Mnemonic.Movzx => true,
            Mnemonic.Shr => IsSmall(i.Op0Register),
            Mnemonic.And => Immediate(i) >= 0,
            _ => false,
        };

    public static long? Immediate(in Instruction instruction)
        => instruction.OpCount == 2 && instruction.Op1Kind is not OpKind.Memory and not OpKind.Register
            ? (long)instruction.GetImmediate(1)
            : null;
}

/// <summary>What of an operation the analysis asks for again and again.</summary>
internal sealed record OpFacts(UsedMemory[] Operands, ulong Changed, bool WritesFrame)
{
    public static OpFacts Of(Op op)
    {
        UsedMemory[] operands = AccessChecks.Operands(op);
        bool writesFrame = Array.Exists(operands, memory => memory.Base == Register.RBP
            && memory.Access is OpAccess.Write or OpAccess.ReadWrite or OpAccess.CondWrite or OpAccess.ReadCondWrite);
        return new(operands, Effects.Changes(op), writesFrame);
    }
}

/// <summary>Finds what is known before each operation of all methods together: a method begins with what all its callers
/// know of the arguments, and a call yields what all the callee's returns know of the result.</summary>
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
