// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// Gives each method the frame that objtool, the unwinder and the landing of a trap understand:
/// <c>push rbp; mov rbp, rsp</c> first.
/// </summary>
internal static class Frames
{
    public static void Run(Method method)
    {
        List<Op> code = method.Code;
        bool hasFrame = IsPush(code[0], Register.RBP);
        int at = hasFrame ? 1 : 0;
        if (hasFrame && IsMoveToFramePointer(code[at]))
        {
            at++;
        }

        int pushes = 0;
        while (at < code.Count && code[at].Instruction.Code == Code.Push_r64)
        {
            pushes++;
            at++;
        }

        Op? allocation = null;
        int size = 0;
        if (code[at].Instruction.Mnemonic is Mnemonic.Sub && code[at].Instruction.Op0Register == Register.RSP)
        {
            allocation = code[at];
            size = (int)allocation.Instruction.GetImmediate(1);
            at++;
        }

        if (hasFrame)
        {
            NormalizePrologue(method, at, size + (8 * pushes));
        }
        else
        {
            AddFrame(method, size + (8 * pushes));
        }

        RefuseOtherUses(method);
        method.FrameSize = 8 + (8 * pushes) + size;
    }

    public static void CheckSize(Method method, int limit)
    {
        method.FrameSize += method.SlotBytes;
        if (method.FrameSize > limit)
        {
            throw method.Refuse(method.Code[0], $"needs a stack frame of {method.FrameSize} bytes; {limit} are allowed",
                "Pass large structs by 'ref' or 'in', keep them in the VM's memory, or split the method.");
        }
    }

    private static bool IsPush(Op op, Register register)
        => op.Instruction.Code == Code.Push_r64 && op.Instruction.Op0Register == register;

    private static bool IsMoveToFramePointer(Op op)
        => op.Instruction.Mnemonic is Mnemonic.Mov && op.Instruction.Op0Register == Register.RBP
            && op.Instruction.Op1Register == Register.RSP;

    private static void NormalizePrologue(Method method, int at, int below)
    {
        List<Op> code = method.Code;
        if (IsMoveToFramePointer(code[1]))
        {
            return;
        }

        // The last step of the compiler's prologue points rbp at the saved rbp, from below; ours does so at once.
        Op last = code[at];
        if (last.Instruction is not { Mnemonic: Mnemonic.Lea, Op0Register: Register.RBP, MemoryBase: Register.RSP }
            || (int)last.Instruction.MemoryDisplacement64 != below)
        {
            throw method.Refuse(code[0], "has a prologue the object pass does not know", "");
        }

        var first = code[0].With(Instruction.Create(Code.Mov_r64_rm64, Register.RBP, Register.RSP));
        code.RemoveAt(at);
        code.Insert(1, first);
        method.Renumber();
    }

    private static void AddFrame(Method method, int below)
    {
        var frame = Instruction.Create(Code.Mov_r64_rm64, Register.RBP, Register.RSP);
        Op entry = method.Code[0];
        foreach (Op op in method.Code)
        {
            // Arguments on the stack lie above the return address and are now one word further away. An index may count
            // down to the locals from a displacement as high as that: so does the loop that clears them.
            if (op.Instruction.MemoryBase == Register.RSP && (int)op.Instruction.MemoryDisplacement64 >= below + 8)
            {
                if (op.Instruction.MemoryIndex == Register.None)
                {
                    op.Instruction.MemoryDisplacement64 += 8;
                }
                else if (!op.Instruction.Op1Register.IsXMM())
                {
                    throw method.Refuse(op, "indexes its arguments on the stack", "Pass the struct by 'ref' or 'in'.");
                }
            }
        }

        method.Rewrite(op => op.Instruction.FlowControl is FlowControl.Return
            || op is { Instruction.FlowControl: FlowControl.UnconditionalBranch, Branch: null, Trap: null }
            ? [op.With(Instruction.Create(Code.Pop_r64, Register.RBP)), op]
            : null);
        method.Code.InsertRange(0, [entry.With(Instruction.Create(Code.Push_r64, Register.RBP)), entry.With(frame)]);
        method.Renumber();
    }

    private static void RefuseOtherUses(Method method)
    {
        foreach (Op op in method.Code.Skip(2))
        {
            bool isEpilogue = op.Instruction.Code == Code.Pop_r64 || op.Instruction.Mnemonic is Mnemonic.Leave;
            if (!isEpilogue && (Effects.Changes(op) & Place.Of(Register.RBP)) != 0)
            {
                throw method.Refuse(op, "uses rbp as a general register", "Make the method larger or smaller.");
            }
        }
    }
}
