// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;
using Mono.Cecil;

namespace IlPatch.Obj;

/// <summary>
/// Widens the results of C functions that return less than 32 bits. C leaves the rest of eax undefined (psABI 3.2.3),
/// the compiler takes it as defined, as it is between C# methods.
/// </summary>
internal sealed class ImportResults
{
    private readonly Dictionary<string, Code> _widenings = [];

    public ImportResults(string assemblyPath)
    {
        using var module = ModuleDefinition.ReadModule(assemblyPath);
        foreach (MethodDefinition method in module.GetTypes().SelectMany(type => type.Methods))
        {
            CustomAttribute? import = method.CustomAttributes
                .FirstOrDefault(attribute => attribute.AttributeType.Name == "RuntimeImportAttribute");
            if (import?.ConstructorArguments is [.., { Value: string name }]
                && WideningOf(method.ReturnType) is { } widening)
            {
                _widenings[name] = widening;
            }
        }
    }

    public void Run(Method method)
        => method.Rewrite(op =>
        {
            if (op.Symbol is not { Symbol: { Section: null } callee }
                || !_widenings.TryGetValue(callee.Name, out Code widening))
            {
                return null;
            }

            Register narrow = widening is Code.Movzx_r32_rm8 or Code.Movsx_r32_rm8 ? Register.AL : Register.AX;
            Op widen = op.With(Instruction.Create(widening, Register.EAX, narrow));
            return op.Instruction.FlowControl switch
            {
                FlowControl.Call => [op, widen],
                FlowControl.UnconditionalBranch =>
                [
                    op.With(Instruction.CreateBranch(Code.Call_rel32_64, 0), op.Symbol),
                    widen,
                    op.With(Instruction.Create(Code.Retnq)),
                ],
                _ => null,
            };
        });

    private static Code? WideningOf(TypeReference type)
    {
        TypeReference plain = type.Resolve() is { IsEnum: true } definition
            ? definition.Fields.First(field => !field.IsStatic).FieldType
            : type;
        return plain.MetadataType switch
        {
            MetadataType.Boolean or MetadataType.Byte => Code.Movzx_r32_rm8,
            MetadataType.SByte => Code.Movsx_r32_rm8,
            MetadataType.Char or MetadataType.UInt16 => Code.Movzx_r32_rm16,
            MetadataType.Int16 => Code.Movsx_r32_rm16,
            _ => null,
        };
    }
}
