// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// The compiler copies and clears structs through xmm registers, which kernel code must not touch. Stores of zero
/// become immediate stores; a copy goes through two dead general registers where there are any; whatever is left keeps
/// its xmm value in a stack slot.
/// </summary>
internal static class SimdRemoval
{
    public static void Run(Method method)
    {
        if (!method.Code.Exists(IsVector))
        {
            return;
        }

        method.SimdRewritten = method.Code.Count(IsVector);
        foreach (Op op in method.Code.Where(IsVector))
        {
            if (Classify(op) == Form.Unknown)
            {
                throw method.Refuse(op, $"uses the SIMD form '{op.Instruction}'",
                    "Compare or combine the fields one by one, in integers.");
            }
        }

        StoreZeros(method);
        CopyThroughRegisters(method);
        DropDead(method);
        if (method.Code.Exists(IsVector))
        {
            SimdSlots.Run(method);
        }
    }

    internal enum Form
    {
        Unknown,
        Zero,
        Load,
        Store,
        Move,
    }

    internal static bool IsVector(Op op)
    {
        for (int i = 0; i < op.Instruction.OpCount; i++)
        {
            if (op.Instruction.GetOpKind(i) == OpKind.Register && IsVector(op.Instruction.GetOpRegister(i)))
            {
                return true;
            }
        }

        return op.Instruction.CpuidFeatures.Contains(CpuidFeature.FPU)
            || op.Instruction.CpuidFeatures.Contains(CpuidFeature.MMX);
    }

    private static bool IsVector(Register register)
        => register.IsVectorRegister() || register.IsMM() || register.IsST();

    internal static Form Classify(Op op)
    {
        ref readonly Instruction instruction = ref op.Instruction;
        bool isFirstVector = instruction.Op0Kind == OpKind.Register && instruction.Op0Register.IsXMM();
        bool isSecondVector = instruction.Op1Kind == OpKind.Register && instruction.Op1Register.IsXMM();
        switch (instruction.Mnemonic)
        {
            case Mnemonic.Xorps or Mnemonic.Xorpd or Mnemonic.Pxor
                when isSecondVector && instruction.Op0Register == instruction.Op1Register:
                return Form.Zero;
            case Mnemonic.Movups or Mnemonic.Movaps or Mnemonic.Movupd or Mnemonic.Movapd or Mnemonic.Movdqu
                or Mnemonic.Movdqa:
                return isFirstVector ? isSecondVector ? Form.Move : Form.Load : Form.Store;
            case Mnemonic.Movq or Mnemonic.Movd or Mnemonic.Movss:
                return isFirstVector && !isSecondVector ? Form.Load : isSecondVector && !isFirstVector ? Form.Store
                    : Form.Unknown;
            case Mnemonic.Movsd when instruction.Code is Code.Movsd_xmm_xmmm64 or Code.Movsd_xmmm64_xmm:
                return isFirstVector && !isSecondVector ? Form.Load : isSecondVector && !isFirstVector ? Form.Store
                    : Form.Unknown;
            default:
                return Form.Unknown;
        }
    }

    /// <summary>Bytes that the memory or general-register side has.</summary>
    internal static int WidthOf(Op op)
        => op.Instruction.Mnemonic switch
        {
            Mnemonic.Movq or Mnemonic.Movsd => 8,
            Mnemonic.Movd or Mnemonic.Movss =>
                op.Instruction.Op0Register.IsGPR64() || op.Instruction.Op1Register.IsGPR64() ? 8 : 4,
            _ => 16,
        };

    /// <summary>The same memory operand as the operation's, a few bytes further, in a new instruction.</summary>
    internal static Op Access(Op original, Code code, Register register, int offset)
    {
        MemoryOperand memory = MemoryOf(original, offset);
        Instruction instruction = code is Code.Mov_r64_rm64 or Code.Mov_r32_rm32
            ? Instruction.Create(code, register, memory)
            : Instruction.Create(code, memory, register);
        return original.With(instruction, Shift(original, offset));
    }

    private static Reference? Shift(Op original, int offset)
        => original.Symbol is { } symbol ? symbol with { Offset = symbol.Offset + offset } : null;

    private static MemoryOperand MemoryOf(Op op, int offset)
    {
        ref readonly Instruction i = ref op.Instruction;
        return new MemoryOperand(
            i.MemoryBase, i.MemoryIndex, i.MemoryIndexScale, (long)i.MemoryDisplacement64 + offset,
            i.IsIPRelativeMemoryOperand ? 8 : i.MemoryDisplSize == 0 && offset == 0 ? 0 : 1);
    }

    internal static IEnumerable<Op> ZeroStores(Op op)
    {
        int width = WidthOf(op);
        for (int offset = 0; offset < width; offset += 8)
        {
            Code code = width == 4 ? Code.Mov_rm32_imm32 : Code.Mov_rm64_imm32;
            yield return op.With(Instruction.Create(code, MemoryOf(op, offset), 0), Shift(op, offset));
        }
    }

    private static void StoreZeros(Method method)
    {
        ulong[] zeros = FindZeros(method);
        method.Rewrite(op =>
        {
            if (!IsVector(op) || Classify(op) != Form.Store || op.Instruction.Op0Kind == OpKind.Register
                || (zeros[op.Index] & Place.Of(op.Instruction.Op1Register)) == 0)
            {
                return null;
            }

            return [.. ZeroStores(op)];
        });
    }

    /// <summary>Per operation, the xmm registers that surely hold zero before it.</summary>
    private static ulong[] FindZeros(Method method)
    {
        method.Renumber();
        var before = new ulong[method.Code.Count];
        Array.Fill(before, Place.AllVector);
        before[0] = 0;
        bool isChanged = true;
        while (isChanged)
        {
            isChanged = false;
            foreach (Op op in method.Code)
            {
                ulong after = before[op.Index];
                if (IsVector(op) && Classify(op) == Form.Zero)
                {
                    after |= Place.Of(op.Instruction.Op0Register);
                }
                else
                {
                    after &= ~Effects.Changes(op);
                }

                foreach (int next in Flow.Successors(method, op.Index))
                {
                    isChanged |= (before[next] & after) != before[next];
                    before[next] &= after;
                }
            }
        }

        return before;
    }

    private static void CopyThroughRegisters(Method method)
    {
        while (FindCopy(method) is var (load, stores, first, second))
        {
            method.Rewrite(op =>
            {
                if (op == load)
                {
                    return
                    [
                        Access(op, Code.Mov_r64_rm64, first, 0),
                        Access(op, Code.Mov_r64_rm64, second, 8),
                    ];
                }

                return stores.Contains(op)
                    ? [Access(op, Code.Mov_rm64_r64, first, 0), Access(op, Code.Mov_rm64_r64, second, 8)]
                    : null;
            });
        }
    }

    private static (Op Load, HashSet<Op> Stores, Register First, Register Second)? FindCopy(Method method)
    {
        if (!method.Code.Exists(op => IsVector(op) && Classify(op) == Form.Load))
        {
            return null;
        }

        var flow = new Flow(method);
        bool[] targets = Flow.Targets(method);
        foreach (Op load in method.Code)
        {
            if (IsVector(load) && Classify(load) == Form.Load && WidthOf(load) == 16
                && FindStores(method, flow, targets, load) is var (stores, end)
                && FindFree(method, flow, load.Index, end, 2) is [var first, var second])
            {
                return (load, stores, first, second);
            }
        }

        return null;
    }

    /// <summary>The stores of the loaded value when all its uses are full stores in the same block.</summary>
    private static (HashSet<Op> Stores, int End)? FindStores(Method method, Flow flow, bool[] targets, Op load)
    {
        ulong value = Place.Of(load.Instruction.Op0Register);
        HashSet<Op> stores = [];
        int end = load.Index;
        for (int i = load.Index + 1; i < method.Code.Count && !targets[i]; i++)
        {
            Op op = method.Code[i];
            Effects effects = Effects.Of(op);
            if ((effects.Reads & value) != 0)
            {
                if (Classify(op) != Form.Store || WidthOf(op) != 16)
                {
                    return null;
                }

                stores.Add(op);
                end = i;
            }

            if ((flow.LiveAfter(i) & value) == 0 || (effects.Writes & value) != 0)
            {
                return stores.Count > 0 ? (stores, end) : null;
            }

            if (op.EndsFlow || op.Branch is not null || op.Instruction.FlowControl is FlowControl.Call)
            {
                return null;
            }
        }

        return null;
    }

    /// <summary>General registers that are dead from one operation to another.</summary>
    internal static Register[] FindFree(Method method, Flow flow, int start, int end, int count)
    {
        ulong used = flow.LiveAfter(end) | flow.LiveBefore(start) | Place.Of(Register.RSP) | Place.Of(Register.RBP);
        for (int i = start; i <= end; i++)
        {
            used |= Effects.Of(method.Code[i]).Reads | Effects.Changes(method.Code[i]) | flow.LiveAfter(i);
        }

        Register[] candidates =
        [
            Register.RAX, Register.RCX, Register.RDX, Register.RSI, Register.RDI,
            Register.R8, Register.R9, Register.R10, Register.R11,
        ];
        return [.. candidates.Where(r => (used & Place.Of(r)) == 0).Take(count)];
    }

    /// <summary>Removes what only fed stores that are gone.</summary>
    private static void DropDead(Method method)
    {
        int before;
        do
        {
            before = method.Code.Count;
            var flow = new Flow(method);
            method.Rewrite(op => IsVector(op) && Classify(op) is Form.Zero or Form.Load
                && (flow.LiveAfter(op.Index) & Place.Of(op.Instruction.Op0Register)) == 0
                && (Classify(op) == Form.Zero || op.Instruction.MemoryBase == Register.RBP)
                ? []
                : null);
        }
        while (method.Code.Count != before);
    }
}
