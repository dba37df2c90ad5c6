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
            Mnemonic.Lea when i.MemoryBase.IsGPR64()
                && (i.MemoryIndex == Register.None || before.IsSmall(i.MemoryIndex)) => i.MemoryBase,
            Mnemonic.Add or Mnemonic.Sub when i.Op0Kind == OpKind.Register && i.Op0Register.IsGPR64()
                && (KnownRegisters.Immediate(i) is not null
                    || (i.Op1Kind == OpKind.Register && before.IsSmall(i.Op1Register))) => i.Op0Register,
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
