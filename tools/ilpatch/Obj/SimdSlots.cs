// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Gives each xmm register that is left a 16-byte slot in the frame and replaces every use of it.</summary>
internal static class SimdSlots
{
    private const int SlotSize = 16;

    public static void Run(Method method)
    {
        Register[] registers =
        [
            .. method.Code.Where(SimdRemoval.IsVector)
                .SelectMany(op => new[] { op.Instruction.Op0Register, op.Instruction.Op1Register })
                .Where(register => register.IsXMM()).Distinct().Order(),
        ];
        int lowest = Enlarge(method, registers.Length * SlotSize);
        int SlotOf(Register register) => lowest + (Array.IndexOf(registers, register) * SlotSize);
        var flow = new Flow(method);
        method.Rewrite(op => SimdRemoval.IsVector(op) ? Replace(method, flow, op, SlotOf) : null);
        method.SlotBytes = registers.Length * SlotSize;
    }

    /// <summary>Makes room in the frame; returns the lowest slot's offset from rbp.</summary>
    private static int Enlarge(Method method, int bytes)
    {
        List<Op> code = method.Code;
        int at = 2;
        int pushes = 0;
        if (code[0].Instruction.Code != Code.Push_r64 || code[1].Instruction.Mnemonic != Mnemonic.Mov
            || code[1].Instruction.Op0Register != Register.RBP)
        {
            throw method.Refuse(code[0], "copies a struct through SIMD registers in a method without a frame",
                "Copy field by field, or by 'ref'.");
        }

        for (; code[at].Instruction.Code == Code.Push_r64; at++)
        {
            pushes++;
        }

        int size = 0;
        bool hasAllocation = code[at].Instruction is { Mnemonic: Mnemonic.Sub, Op0Register: Register.RSP };
        if (hasAllocation)
        {
            size = (int)code[at].Instruction.GetImmediate(1);
        }

        // Words for outgoing arguments stay at the bottom; the slots go between them and the locals.
        int outgoing = 0;
        foreach (Op op in code.Where(op => op.Instruction.MemoryBase == Register.RSP))
        {
            int offset = (int)op.Instruction.MemoryDisplacement64;
            if (op.Instruction.MemoryIndex != Register.None)
            {
                // Somewhere among the locals: the loop that clears them.
                outgoing = size;
            }
            else if (offset >= size + (8 * pushes) + 16)
            {
                op.Instruction.MemoryDisplacement64 = (ulong)(offset + bytes);
            }
            else
            {
                outgoing = Math.Min(size, Math.Max(outgoing, offset + 16));
            }
        }

        if (hasAllocation)
        {
            code[at].Instruction = Adjust(Code.Sub_rm64_imm32, size + bytes);
        }
        else
        {
            code.Insert(at, code[0].With(Adjust(Code.Sub_rm64_imm32, bytes)));
        }

        for (int i = at + 1; i < code.Count; i++)
        {
            if (code[i].Instruction is { Mnemonic: Mnemonic.Add, Op0Register: Register.RSP }
                && (int)code[i].Instruction.GetImmediate(1) == size && hasAllocation)
            {
                code[i].Instruction = Adjust(Code.Add_rm64_imm32, size + bytes);
            }
        }

        method.Renumber();
        if (!hasAllocation)
        {
            AddRelease(method, bytes);
        }

        return -(8 * pushes) - size - bytes + outgoing;
    }

    /// <summary>Before the pops of each epilogue of a method that had no locals.</summary>
    private static void AddRelease(Method method, int bytes)
    {
        HashSet<Op> firstPops = [];
        for (int i = 0; i < method.Code.Count; i++)
        {
            bool isPop = method.Code[i].Instruction.Code == Code.Pop_r64;
            if (isPop && method.Code[i - 1].Instruction.Code != Code.Pop_r64
                && method.Code[i - 1].Instruction is not { Mnemonic: Mnemonic.Lea, Op0Register: Register.RSP })
            {
                firstPops.Add(method.Code[i]);
            }
        }

        method.Rewrite(op => firstPops.Contains(op) ? [op.With(Adjust(Code.Add_rm64_imm32, bytes)), op] : null);
    }

    private static Instruction Adjust(Code code, int bytes) => Instruction.Create(code, Register.RSP, bytes);

    private static List<Op> Replace(Method method, Flow flow, Op op, Func<Register, int> slotOf)
    {
        SimdRemoval.Form form = SimdRemoval.Classify(op);
        Register register = form is SimdRemoval.Form.Store ? op.Instruction.Op1Register : op.Instruction.Op0Register;
        var slot = new MemoryOperand(Register.RBP, slotOf(register));
        MemoryOperand Slot(int offset) => new(Register.RBP, slotOf(register) + offset);
        if (form is SimdRemoval.Form.Zero)
        {
            return [Zero(op, slot), Zero(op, Slot(8))];
        }

        int width = SimdRemoval.WidthOf(op);
        if (width < 16 && RegisterSide(op) is { } general)
        {
            (Code load, Code store) = width == 8
                ? (Code.Mov_r64_rm64, Code.Mov_rm64_r64)
                : (Code.Mov_r32_rm32, Code.Mov_rm32_r32);
            return form is SimdRemoval.Form.Store
                ? [op.With(Instruction.Create(load, general, slot))]
                : [op.With(Instruction.Create(store, slot, general)), .. ClearRest(op, Slot, width)];
        }

        Register[] free = SimdRemoval.FindFree(method, flow, op.Index, op.Index, 1);
        Register scratch = free.Length > 0 ? free[0] : Unused(op);
        List<Op> code = [];
        for (int offset = 0; offset < width; offset += 8)
        {
            bool isWide = width >= 8;
            Register part = isWide ? scratch : scratch - Register.RAX + Register.EAX;
            Code load = isWide ? Code.Mov_r64_rm64 : Code.Mov_r32_rm32;
            Code store = isWide ? Code.Mov_rm64_r64 : Code.Mov_rm32_r32;
            switch (form)
            {
                case SimdRemoval.Form.Load:
                    code.Add(SimdRemoval.Access(op, load, part, offset));
                    code.Add(op.With(Instruction.Create(store, Slot(offset), part)));
                    break;
                case SimdRemoval.Form.Store:
                    code.Add(op.With(Instruction.Create(load, part, Slot(offset))));
                    code.Add(SimdRemoval.Access(op, store, part, offset));
                    break;
                default:
                    var source = new MemoryOperand(Register.RBP, slotOf(op.Instruction.Op1Register) + offset);
                    code.Add(op.With(Instruction.Create(load, part, source)));
                    code.Add(op.With(Instruction.Create(store, Slot(offset), part)));
                    break;
            }
        }

        if (form is SimdRemoval.Form.Load && width < 16)
        {
            code.AddRange(ClearRest(op, Slot, width));
        }

        if (free.Length == 0)
        {
            if (op.Instruction.MemoryBase == Register.RSP)
            {
                throw method.Refuse(op, "has no free register for a struct copy", "Split the method.");
            }

            code.Insert(0, op.With(Instruction.Create(Code.Push_r64, scratch)));
            code.Add(op.With(Instruction.Create(Code.Pop_r64, scratch)));
        }

        return code;
    }

    private static Op Zero(Op op, MemoryOperand where) => op.With(Instruction.Create(Code.Mov_rm64_imm32, where, 0));

    private static IEnumerable<Op> ClearRest(Op op, Func<int, MemoryOperand> slot, int width)
    {
        if (width == 4)
        {
            yield return op.With(Instruction.Create(Code.Mov_rm32_imm32, slot(4), 0));
        }

        yield return Zero(op, slot(8));
    }

    private static Register? RegisterSide(Op op)
        => op.Instruction.Op0Register.IsGPR() ? op.Instruction.Op0Register
            : op.Instruction.Op1Register.IsGPR() ? op.Instruction.Op1Register
            : null;

    private static Register Unused(Op op)
        => new[] { Register.RAX, Register.RCX, Register.RDX }.First(register
            => (Effects.Of(op).Reads & Place.Of(register)) == 0);
}
