// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// Finds methods that can only trap. The compiler goes on after a call of one; objtool sees that nothing can, and wants
/// the code after it gone.
/// </summary>
internal static class NoReturn
{
    public static void Run(IReadOnlyList<Method> methods)
    {
        // At first no method is known to return; each round finds more that do.
        HashSet<ElfSymbol> silent = [.. methods.Select(method => method.Symbol)];
        int known;
        do
        {
            known = silent.Count;
            foreach (Method method in methods.Where(method => silent.Contains(method.Symbol)))
            {
                Mark(method, silent);
                if (Flow.Reached(method).Any(op => Leaves(op, silent)))
                {
                    silent.Remove(method.Symbol);
                }
            }
        }
        while (silent.Count < known);

        foreach (Method method in methods)
        {
            Mark(method, silent);
            Flow.DropUnreachable(method);
        }
    }

    private static void Mark(Method method, HashSet<ElfSymbol> silent)
    {
        foreach (Op op in method.Code.Where(op => op is { IsTrapCall: false, Symbol: not null }))
        {
            op.NeverReturns =
                op.Instruction.FlowControl is FlowControl.Call && silent.Contains(op.Symbol!.Value.Symbol);
        }
    }

    private static bool Leaves(Op op, HashSet<ElfSymbol> silent)
        => op.Instruction.FlowControl is FlowControl.Return
            || (op.Instruction.FlowControl is FlowControl.UnconditionalBranch
                && op is { Branch: null, Trap: null, Symbol.Symbol: { } symbol } && !silent.Contains(symbol));
}
