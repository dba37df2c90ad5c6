// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Refuses the forms of code that a kernel core must not contain, before any pass touches it.</summary>
internal static class Forms
{
    public static void Run(Method method)
    {
        foreach (Op op in method.Code)
        {
            switch (op.Instruction.FlowControl)
            {
                case FlowControl.IndirectBranch:
                    throw method.Refuse(op, "has an indirect branch (a jump table?)",
                        "Write the switch as comparisons or as table data.");
                case FlowControl.IndirectCall:
                    throw method.Refuse(op, "has an indirect call",
                        "Use a generic parameter with a static abstract method.");
                case FlowControl.Interrupt or FlowControl.XbeginXabortXend:
                    throw method.Refuse(op, $"has the instruction '{op.Instruction}'", "");
            }

            foreach (UsedMemory memory in AccessChecks.Operands(op))
            {
                if (memory.Segment is Register.FS or Register.GS)
                {
                    throw method.Refuse(op, "uses thread-local storage",
                        "Keep it in the vCPU's or the caller's struct.");
                }

                if (memory.Base == Register.None && memory.Index == Register.None)
                {
                    throw method.Refuse(op, "accesses a fixed address", "Take the pointer from the host.");
                }
            }
        }
    }
}
