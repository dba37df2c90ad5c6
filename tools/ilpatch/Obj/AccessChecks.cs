// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// Makes every access that can fail a trap. A hardware fault reaches the stub through the exception table, but not one
/// below the kernel's half of the address space; so a base register whose sign is not known to be set is tested before
/// the access. What is known travels along the control flow, through calls and returns.
/// </summary>
internal static class AccessChecks
{
    private static readonly InstructionInfoFactory Factory = new();

    public static void Run(IReadOnlyList<Method> methods)
    {
        var facts = new PointerFacts(methods);
        foreach (Method method in methods)
        {
            Protect(method, facts);
        }
    }

    internal static bool IsDivision(Op op) => op.Instruction.Mnemonic is Mnemonic.Div or Mnemonic.Idiv;

    /// <summary>Memory that the operation touches, outside the code and data of the module itself.</summary>
    internal static UsedMemory[] Operands(Op op)
    {
        if (op.Instruction.Mnemonic is Mnemonic.Nop or Mnemonic.Lea || op.Instruction.IsIPRelativeMemoryOperand)
        {
            return [];
        }

        return [.. Factory.GetInfo(op.Instruction).GetUsedMemory().Where(m => m.Access != OpAccess.NoMemAccess)];
    }

    internal static bool IsOwnStack(Register register) => register is Register.RSP or Register.RBP;

    private static void Protect(Method method, PointerFacts facts)
    {
        KnownRegisters?[] before = facts.Before(method);
        var flow = new Flow(method);
        bool[] targets = Flow.Targets(method);
        var planned = new SortedDictionary<int, List<Op>>();
        HashSet<Op> dropped = [];
        foreach (Op op in method.Code)
        {
            if (IsNullCheck(op) && (flow.LiveAfter(op.Index) & Place.AllFlags) == 0)
            {
                dropped.Add(op);
            }

            if (IsDivision(op))
            {
                op.Fault = new Trap(TrapKind.DivideError, op.Line);
            }

            foreach (UsedMemory memory in Operands(op))
            {
                if (IsOwnStack(memory.Base) && memory.Index == Register.None)
                {
                    continue;
                }

                op.Fault ??= new Trap(TrapKind.BadAddress, op.Line);
                Register[] suspects = before[op.Index]?.Suspects(memory) ?? [];
                if (suspects.Length == 0)
                {
                    method.ChecksElided++;
                }
                else
                {
                    Plan(method, flow, targets, op, suspects, planned);
                    method.ChecksAdded++;
                }
            }
        }

        method.Rewrite(op =>
        {
            bool isDropped = dropped.Contains(op);
            return planned.TryGetValue(op.Index, out List<Op>? check) ? isDropped ? check : [.. check, op]
                : isDropped ? [] : null;
        });
    }

    /// <summary>The compiler's own null check reads a byte only to fault; the sign test takes its place.</summary>
    private static bool IsNullCheck(Op op)
        => op.Instruction is { Mnemonic: Mnemonic.Cmp, Op0Kind: OpKind.Memory, MemoryIndex: Register.None } instruction
            && instruction.Op1Kind == OpKind.Register
            && instruction.MemoryBase == instruction.Op1Register.GetFullRegister();

    private static void Plan(
        Method method, Flow flow, bool[] targets, Op op, Register[] suspects, SortedDictionary<int, List<Op>> planned)
    {
        ulong bases = suspects.Aggregate(0UL, (set, register) => set | Place.Of(register));
        int at = op.Index;
        while ((flow.LiveBefore(at) & Place.AllFlags) != 0 && !targets[at] && at > 0
            && (Effects.Changes(method.Code[at - 1]) & bases) == 0
            && method.Code[at - 1] is { EndsFlow: false, Branch: null, Trap: null })
        {
            at--;
        }

        bool keepsFlags = (flow.LiveBefore(at) & Place.AllFlags) != 0;
        if (keepsFlags)
        {
            at = op.Index;
        }

        if (!planned.TryGetValue(at, out List<Op>? check))
        {
            planned[at] = check = [];
        }

        if (keepsFlags)
        {
            check.Add(op.With(Instruction.Create(Code.Pushfq)));
        }

        Op end = op.With(Instruction.Create(Code.Nopd));
        for (int i = 0; i < suspects.Length; i++)
        {
            bool isLast = i == suspects.Length - 1;
            check.Add(op.With(Instruction.Create(Code.Test_rm64_r64, suspects[i], suspects[i])));
            check.Add(isLast
                ? new Op(Instruction.CreateBranch(Code.Jns_rel32_64, 0), op.Line)
                {
                    Trap = new Trap(TrapKind.BadAddress, op.Line),
                }
                : new Op(Instruction.CreateBranch(Code.Js_rel32_64, 0), op.Line) { Branch = end });
        }

        if (suspects.Length > 1)
        {
            check.Add(end);
        }

        if (keepsFlags)
        {
            check.Add(op.With(Instruction.Create(Code.Popfq)));
        }
    }
}
