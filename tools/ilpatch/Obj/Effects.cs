// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>What an operation reads and what it surely overwrites.</summary>
internal readonly record struct Effects(ulong Reads, ulong Writes)
{
    private static readonly InstructionInfoFactory Factory = new();

    public static Effects Of(Op op)
    {
        if (op.IsTrapCall)
        {
            return new(Place.Of(Register.RBP), 0);
        }

        ref readonly Instruction instruction = ref op.Instruction;
        switch (instruction.FlowControl)
        {
            case FlowControl.Call or FlowControl.IndirectCall:
                return new(
                    Place.Arguments | Place.Of(Register.RSP)
                        | (op.Symbol is null ? Place.Of(Register.RAX) : 0),
                    Place.CallerSaved | Place.AllVector | Place.AllFlags);
            case FlowControl.Return:
                return new(Place.CalleeSaved | Place.Of(Register.RAX) | Place.Of(Register.RDX), 0);
            case FlowControl.UnconditionalBranch when op is { Branch: null, Trap: null }:
                return new(Place.Arguments | Place.CalleeSaved, 0);
        }

        ulong reads = Place.OfFlags(instruction.RflagsRead);
        ulong writes = Place.OfFlags(instruction.RflagsModified);
        foreach (UsedRegister used in Factory.GetInfo(instruction).GetUsedRegisters())
        {
            ulong place = Place.Of(used.Register);
            bool isWhole = used.Register.IsGPR64() || used.Register.IsGPR32() || used.Register.IsVectorRegister();
            switch (used.Access)
            {
                case OpAccess.Write when isWhole:
                    writes |= place;
                    break;
                case OpAccess.ReadWrite or OpAccess.ReadCondWrite when isWhole:
                    reads |= place;
                    writes |= place;
                    break;
                case OpAccess.None or OpAccess.NoMemAccess:
                    break;
                default:
                    reads |= place;
                    break;
            }
        }

        return new(reads, writes);
    }

    /// <summary>All that an operation may change.</summary>
    public static ulong Changes(Op op)
    {
        if (op.Instruction.FlowControl is FlowControl.Call or FlowControl.IndirectCall)
        {
            return Place.CallerSaved | Place.AllVector | Place.AllFlags;
        }

        ulong changes = Place.OfFlags(op.Instruction.RflagsModified);
        foreach (UsedRegister used in Factory.GetInfo(op.Instruction).GetUsedRegisters())
        {
            if (used.Access is OpAccess.Write or OpAccess.ReadWrite or OpAccess.CondWrite or OpAccess.ReadCondWrite)
            {
                changes |= Place.Of(used.Register);
            }
        }

        return changes;
    }
}
