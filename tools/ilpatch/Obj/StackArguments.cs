// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Tells arguments on the stack, above the return address, from the locals below it.</summary>
internal static class StackArguments
{
    private const int PrologueReach = 12;

    /// <summary>The accesses through rsp to arguments, which lie at <paramref name="first"/> bytes and above.</summary>
    public static List<Op> Find(Method method, int first)
    {
        List<Op> arguments = [];
        List<Op> code = method.Code;
        for (int i = 0; i < code.Count; i++)
        {
            ref readonly Instruction instruction = ref code[i].Instruction;
            if (instruction.MemoryBase != Register.RSP || (int)instruction.MemoryDisplacement64 < first)
            {
                continue;
            }

            if (instruction.MemoryIndex == Register.None)
            {
                arguments.Add(code[i]);
            }
            else if (!IsClearing(code, i))
            {
                throw method.Refuse(code[i], "indexes an array that was passed by value on the stack",
                    "Pass it by 'ref' or 'in'.");
            }
        }

        return arguments;
    }

    /// <summary>
    /// The compiler clears large locals in a loop that counts a negative index up to zero, so that its addresses seem
    /// to lie above the frame.
    /// </summary>
    private static bool IsClearing(List<Op> code, int at)
    {
        Register index = code[at].Instruction.MemoryIndex;
        for (int i = at - 1; i >= Math.Max(0, at - PrologueReach); i--)
        {
            Instruction earlier = code[i].Instruction;
            if (earlier.Mnemonic is Mnemonic.Mov && earlier.Op0Kind == OpKind.Register && earlier.Op0Register == index)
            {
                return earlier.Op1Kind is OpKind.Immediate64 or OpKind.Immediate32to64 or OpKind.Immediate32
                    && (long)earlier.GetImmediate(1) < 0;
            }
        }

        return false;
    }
}
