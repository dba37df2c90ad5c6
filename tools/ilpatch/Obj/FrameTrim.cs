// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// Takes away what a frame does not need in the kernel: the word that only aligns the stack to 16 bytes, and the whole
/// frame of a leaf that keeps nothing in it. A leaf may trap all the same: rbp is its caller's frame then. So it must
/// have a caller in the core, which the exported methods and the targets of tail calls need not have.
/// </summary>
internal static class FrameTrim
{
    public static void Run(IReadOnlyList<Method> methods)
    {
        HashSet<ElfSymbol> tailTargets = [.. methods.SelectMany(method => method.Code).Where(IsTailCall)
            .Select(op => op.Symbol!.Value.Symbol)];
        foreach (Method method in methods.Where(HasFrame))
        {
            DropAlignment(method);
            if (!method.IsExported && !tailTargets.Contains(method.Symbol) && KeepsNothing(method))
            {
                Op[] frame = [method.Code[0], method.Code[1]];
                method.Rewrite(op => frame.Contains(op) || IsPop(op, Register.RBP) ? [] : null);
                method.FrameSize -= 8;
            }
        }
    }

    private static bool IsTailCall(Op op)
        => op is { Symbol: not null, Branch: null, Trap: null }
            && op.Instruction.FlowControl is FlowControl.UnconditionalBranch or FlowControl.ConditionalBranch;

    private static bool HasFrame(Method method)
        => method.Code is [{ } first, { } second, ..] && first.Instruction.Code == Code.Push_r64
            && first.Instruction.Op0Register == Register.RBP && second.Instruction.Mnemonic == Mnemonic.Mov
            && second.Instruction.Op0Register == Register.RBP;

    private static bool IsPop(Op op, Register register)
        => op.Instruction.Code == Code.Pop_r64 && op.Instruction.Op0Register == register;

    private static void DropAlignment(Method method)
    {
        int last = 2;
        while (method.Code[last].Instruction.Code == Code.Push_r64)
        {
            last++;
        }

        Op word = method.Code[--last];
        long offset = -8 * (last - 1);
        if (last < 2 || word.Instruction.Op0Register != Register.RAX || method.Code.Exists(op => Touches(op, offset)))
        {
            return;
        }

        HashSet<Op> releases = [.. method.Code.Where((op, i) => i + 1 < method.Code.Count
            && op.Instruction is { Mnemonic: Mnemonic.Add, Op0Register: Register.RSP }
            && method.Code[i + 1].Instruction.Code == Code.Pop_r64)];
        if (releases.All(op => op.Instruction.GetImmediate(1) == 8))
        {
            method.Rewrite(op => op == word || releases.Contains(op) ? [] : null);
            method.FrameSize -= 8;
        }
    }

    /// <summary>Whether the word may be used, or the stack is handled in a way that is not the plain one.</summary>
    private static bool Touches(Op op, long offset)
    {
        ref readonly Instruction i = ref op.Instruction;
        long displacement = (long)i.MemoryDisplacement64;
        return i.MemoryBase == Register.RSP
            || (i.MemoryBase == Register.RBP && (i.MemoryIndex != Register.None || displacement < offset + 8))
            || (i.Mnemonic is Mnemonic.Lea or Mnemonic.Mov or Mnemonic.Sub or Mnemonic.And
                && i.Op0Kind == OpKind.Register && i.Op0Register == Register.RSP);
    }

    private static bool KeepsNothing(Method method)
    {
        ulong stack = Place.Of(Register.RSP) | Place.Of(Register.RBP);
        return method.Code.Skip(2).All(op => op.IsTrapCall || op.Instruction.FlowControl is FlowControl.Return
            || IsPop(op, Register.RBP)
            || (op.Symbol is null || op.Instruction.FlowControl is FlowControl.Next)
                && op.Instruction.FlowControl is not FlowControl.Call
                && ((Effects.Of(op).Reads | Effects.Changes(op)) & stack) == 0);
    }
}
