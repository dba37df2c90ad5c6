// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>
/// Makes each call to a throwing helper a trap. The compiler shares the call of its own checks within a method; each
/// branch to it becomes a trap of the branch's own line. What nothing reaches afterwards is dropped, padding too.
/// </summary>
internal static class Traps
{
    private static readonly (string Suffix, TrapKind Kind)[] Helpers =
    [
        ("_ThrowHelper__OutOfRange", TrapKind.OutOfRange),
        ("_ThrowHelper__Argument", TrapKind.InvalidArgument),
        ("_ThrowHelper__DivideByZero", TrapKind.DivideError),
        ("_ThrowHelper__Invalid", TrapKind.InvalidState),
        ("_ThrowHelpers__ThrowIndexOutOfRangeException", TrapKind.IndexOutOfRange),
        ("_ThrowHelpers__ThrowOverflowException", TrapKind.Overflow),
        ("_ThrowHelpers__ThrowDivideByZeroException", TrapKind.DivideError),
        ("_ThrowHelpers__ThrowNullReferenceException", TrapKind.BadAddress),
        ("_ThrowHelpers__ThrowArgumentException", TrapKind.InvalidArgument),
        ("_ThrowHelpers__ThrowArgumentOutOfRangeException", TrapKind.OutOfRange),
        ("_ThrowHelpers__ThrowPlatformNotSupportedException", TrapKind.InvalidState),
        ("_ThrowHelpers__ThrowNotSupportedException", TrapKind.InvalidState),
    ];

    public static TrapKind? KindOf(ElfSymbol symbol)
    {
        if (symbol.Section is null)
        {
            return symbol.Name == "RhpFallbackFailFast" ? TrapKind.StackOverrun : null;
        }

        foreach ((string suffix, TrapKind kind) in Helpers)
        {
            if (symbol.Name.EndsWith(suffix, StringComparison.Ordinal))
            {
                return kind;
            }
        }

        return symbol.Name.Contains("_PrivateImplementationDetails___Throw", StringComparison.Ordinal)
            ? TrapKind.InvalidState
            : null;
    }

    public static void Run(Method method)
    {
        var incoming = new Dictionary<Op, int>();
        foreach (Op op in method.Code)
        {
            if (op.Instruction.FlowControl is FlowControl.Call && op.Symbol is { } callee
                && KindOf(callee.Symbol) is { } kind)
            {
                op.Trap = new Trap(kind, op.Line);
            }

            if (op.Branch is { } target)
            {
                incoming[target] = incoming.GetValueOrDefault(target) + 1;
            }
        }

        foreach (Op op in method.Code)
        {
            if (op.Branch is { IsTrapCall: true } target)
            {
                bool isOwnCall = incoming[target] == 1
                    && target.Symbol!.Value.Symbol.Name.Contains("_ThrowHelper__", StringComparison.Ordinal);
                op.Trap = isOwnCall ? target.Trap : target.Trap!.Value with { Line = op.Line };
                op.Branch = null;
            }
        }

        Flow.DropUnreachable(method);
        method.Rewrite(op => op.Instruction.Mnemonic is Mnemonic.Nop ? [] : null);
    }
}
