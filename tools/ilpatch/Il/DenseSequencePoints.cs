// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;
using Mono.Cecil.Cil;

namespace IlPatch.Il;

/// <summary>
/// Gives every instruction a sequence point of its own. The compiler reports code by exact IL offset and drops what has
/// no sequence point there; without this most of an optimised method has no line.
/// </summary>
internal static class DenseSequencePoints
{
    public static void Run(IlAssembly assembly)
    {
        foreach (MethodDefinition method in assembly.MethodsWithBody)
        {
            IDictionary<Instruction, SequencePoint> known = method.DebugInformation.GetSequencePointMapping();
            if (known.Count == 0)
            {
                continue;
            }

            method.DebugInformation.SequencePoints.Clear();
            SequencePoint? current = null;
            foreach (Instruction instruction in method.Body.Instructions)
            {
                if (known.TryGetValue(instruction, out SequencePoint? own) && !own.IsHidden)
                {
                    current = own;
                }

                if (current is not null)
                {
                    method.DebugInformation.SequencePoints.Add(new SequencePoint(instruction, current.Document)
                    {
                        StartLine = current.StartLine,
                        EndLine = current.EndLine,
                        StartColumn = current.StartColumn,
                        EndColumn = current.EndColumn,
                    });
                }
            }
        }
    }
}
