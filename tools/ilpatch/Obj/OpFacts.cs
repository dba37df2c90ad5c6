// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

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
