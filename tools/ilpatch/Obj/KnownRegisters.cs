// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>What is known of the general registers alone.</summary>
internal readonly record struct KnownRegisters(ulong Pointers, ulong Small)
{
    public static readonly KnownRegisters Everything = new(Place.AllGeneral, Place.AllGeneral);

    public KnownRegisters Meet(KnownRegisters other) => new(Pointers & other.Pointers, Small & other.Small);

    public bool IsPointer(Register register) => (Pointers & Place.Of(register)) != 0;

    public bool IsSmall(Register register) => (Small & Place.Of(register)) != 0;

    /// <summary>What to test before an access: nothing, its base, or both when either may be the pointer.</summary>
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
