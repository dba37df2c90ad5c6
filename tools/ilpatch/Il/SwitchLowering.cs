// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;
using Mono.Cecil.Cil;
using Mono.Cecil.Rocks;

namespace IlPatch.Il;

/// <summary>
/// Turns each <c>switch</c> into a balanced tree of compares: the compiler then has no reason to make a jump table,
/// which would need an indirect branch.
/// </summary>
internal static class SwitchLowering
{
    /// <summary>How many there were, per method.</summary>
    public static IReadOnlyDictionary<MethodDefinition, int> Run(IlAssembly assembly)
    {
        var counts = new Dictionary<MethodDefinition, int>();
        foreach (MethodDefinition method in assembly.MethodsWithBody)
        {
            Instruction[] switches = [.. method.Body.Instructions.Where(i => i.OpCode.Code == Code.Switch)];
            if (switches.Length == 0)
            {
                continue;
            }

            method.Body.SimplifyMacros();
            var index = new VariableDefinition(assembly.Module.TypeSystem.UInt32);
            method.Body.Variables.Add(index);
            foreach (Instruction instruction in switches)
            {
                Lower(method.Body, instruction, index);
            }

            method.Body.OptimizeMacros();
            counts[method] = switches.Length;
        }

        return counts;
    }

    private static void Lower(MethodBody body, Instruction instruction, VariableDefinition index)
    {
        var targets = (Instruction[])instruction.Operand;
        Instruction otherwise = instruction.Next;
        ILProcessor il = body.GetILProcessor();
        List<Instruction> code =
        [
            il.Create(OpCodes.Ldloc, index),
            il.Create(OpCodes.Ldc_I4, targets.Length),
            il.Create(OpCodes.Bge_Un, otherwise),
        ];
        EmitTree(il, code, targets, 0, targets.Length, index);

        // The switch itself becomes the store, so that branches to it stay right.
        instruction.OpCode = OpCodes.Stloc;
        instruction.Operand = index;
        Instruction position = instruction;
        foreach (Instruction added in code)
        {
            il.InsertAfter(position, added);
            position = added;
        }
    }

    private static void EmitTree(
        ILProcessor il, List<Instruction> code, Instruction[] targets, int low, int high, VariableDefinition index)
    {
        if (Array.TrueForAll(targets[low..high], target => target == targets[low]))
        {
            code.Add(il.Create(OpCodes.Br, targets[low]));
            return;
        }

        int middle = (low + high) / 2;
        code.Add(il.Create(OpCodes.Ldloc, index));
        code.Add(il.Create(OpCodes.Ldc_I4, middle));
        int branch = code.Count;
        EmitTree(il, code, targets, middle, high, index);
        int lowerHalf = code.Count;
        EmitTree(il, code, targets, low, middle, index);
        code.Insert(branch, il.Create(OpCodes.Blt_Un, code[lowerHalf]));
    }
}
