// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;
using Mono.Cecil.Cil;

namespace IlPatch.Il;

/// <summary>
/// Methods that stand for a trap get the body <c>throw null</c>: the compiler then knows that they do not return, keeps
/// them as calls on cold paths, and the object pass makes each call a trap of its own line.
/// </summary>
internal static class TrapHelpers
{
    public static void Run(IlAssembly assembly)
    {
        foreach (MethodDefinition method in assembly.MethodsWithBody.Where(IsTrap))
        {
            method.Body = new MethodBody(method);
            method.Body.Instructions.Add(Instruction.Create(OpCodes.Ldnull));
            method.Body.Instructions.Add(Instruction.Create(OpCodes.Throw));
            method.DebugInformation.SequencePoints.Clear();
            method.DebugInformation.Scope = null;
        }
    }

    public static bool IsTrap(MethodDefinition method)
        => method.DeclaringType.FullName switch
        {
            "System.ThrowHelper" or "Internal.Runtime.CompilerHelpers.ThrowHelpers" => true,
            "<PrivateImplementationDetails>" => method.Name.StartsWith("Throw", StringComparison.Ordinal),
            _ => false,
        };
}
