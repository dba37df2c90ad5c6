// SPDX-License-Identifier: GPL-2.0-only
using System.Text;
using System.Text.RegularExpressions;
using Mono.Cecil;

namespace IlPatch.Il;

/// <summary>
/// Writes <c>core.h</c>: the structs and enums that are marked <c>[KernelHeader("name")]</c>, for C and assembler sources.
/// </summary>
internal static partial class NativeHeader
{
    private const string Mark = "KernelHeaderAttribute", InlineArray = "InlineArrayAttribute";

    private static readonly Dictionary<MetadataType, (string Name, int Size)> Primitives = new()
    {
        [MetadataType.Boolean] = ("u8", 1), [MetadataType.Byte] = ("u8", 1), [MetadataType.SByte] = ("s8", 1),
        [MetadataType.Char] = ("u16", 2), [MetadataType.UInt16] = ("u16", 2), [MetadataType.Int16] = ("s16", 2),
        [MetadataType.UInt32] = ("u32", 4), [MetadataType.Int32] = ("s32", 4), [MetadataType.UInt64] = ("u64", 8),
        [MetadataType.Int64] = ("s64", 8), [MetadataType.IntPtr] = ("void *", 8), [MetadataType.Pointer] = ("void *", 8),
        [MetadataType.UIntPtr] = ("unsigned long", 8),
    };

    /// <summary>A field's type as C declares it, around the field's name.</summary>
    private readonly record struct CType(string Before, string After, int Size, int Alignment);

    public static void Run(IlAssembly assembly, string? path)
    {
        if (path is not null)
        {
            File.WriteAllText(path, TextOf(assembly.Module.GetTypes()));
        }
    }

    public static string TextOf(IEnumerable<TypeDefinition> types)
    {
        var defines = new StringBuilder();
        var structs = new StringBuilder();
        foreach (TypeDefinition type in types)
        {
            if (AttributeOf(type, Mark)?.ConstructorArguments[0].Value is not string name)
            {
                continue;
            }

            if (type.IsEnum)
            {
                foreach (FieldDefinition value in type.Fields.Where(field => field.HasConstant))
                {
                    defines.AppendLine($"#define {name}_{Words(value.Name).ToUpperInvariant()} 0x{value.Constant:x}");
                }

                continue;
            }

            var asserts = new StringBuilder();
            CType body = StructOf(type, [], (field, offset) =>
            {
                string constant = $"{name}_{field}".ToUpperInvariant();
                defines.AppendLine($"#define {constant} {offset}");
                asserts.AppendLine($"static_assert(offsetof(struct {name}, {field}) == {constant});");
            });
            structs.AppendLine($"struct {name} {{\n{body.Before}}};");
            structs.Append(asserts).AppendLine($"static_assert(sizeof(struct {name}) == {body.Size});");
        }

        return $"""
            /* SPDX-License-Identifier: GPL-2.0-only */
            /* What the C# core shares with C. Made by ilpatch. */
            #pragma once
            {defines}
            #ifndef __ASSEMBLY__
            #include <linux/build_bug.h>
            #include <linux/stddef.h>
            #include <linux/types.h>
            {structs}
            #endif

            """;
    }

    /// <summary>The fields of a struct, laid out as C# and C both do: in their order, each at its natural boundary.</summary>
    private static CType StructOf(TypeDefinition type, IList<TypeReference> arguments, Action<string, int>? place)
    {
        if (!type.IsSequentialLayout || type.PackingSize > 0)
        {
            throw Refused(type, "has a layout of its own", "Declare it without StructLayout.");
        }

        var body = new StringBuilder();
        int end = 0, alignment = 1;
        foreach (FieldDefinition field in type.Fields.Where(field => !field.IsStatic))
        {
            CType inner = TypeOf(Resolved(field.FieldType, arguments), type);
            string name = Words(field.Name);
            end = Aligned(end, inner.Alignment);
            place?.Invoke(name, end);
            body.AppendLine($"\t{inner.Before}{(inner.Before.EndsWith('*') ? "" : " ")}{name}{inner.After};");
            end += inner.Size;
            alignment = Math.Max(alignment, inner.Alignment);
        }

        return new(body.ToString(), "", Aligned(end, alignment), alignment);
    }

    private static CType TypeOf(TypeReference type, TypeDefinition owner)
    {
        if (Primitives.TryGetValue(type.MetadataType, out (string Name, int Size) primitive))
        {
            return new(primitive.Name, "", primitive.Size, primitive.Size);
        }

        TypeDefinition? definition = type.IsValueType || type is GenericInstanceType ? type.Resolve() : null;
        if (definition is not { IsValueType: true })
        {
            throw Refused(owner, $"has a field of the type {type.Name}", "Only integers, pointers and structs go to C.");
        }

        if (definition.IsEnum)
        {
            return TypeOf(definition.Fields.Single(field => !field.IsStatic).FieldType, owner);
        }

        IList<TypeReference> arguments = type is GenericInstanceType generic ? generic.GenericArguments : [];
        FieldDefinition[] fields = [.. definition.Fields.Where(field => !field.IsStatic)];
        CType only = fields.Length == 1 ? TypeOf(Resolved(fields[0].FieldType, arguments), owner) : default;
        if (AttributeOf(definition, InlineArray)?.ConstructorArguments[0].Value is int length)
        {
            return only with { After = $"[{length}]{only.After}", Size = length * only.Size };
        }

        // As in calls, a struct of one field is that field.
        if (fields.Length == 1)
        {
            return only;
        }

        CType inner = StructOf(definition, arguments, null);
        return inner with { Before = $"struct {{\n{inner.Before}}}" };
    }

    private static ViolationException Refused(TypeDefinition type, string what, string instead)
        => new(new SourcePlace(type.FullName.Replace('/', '.'), "", 0), what, instead);

    private static TypeReference Resolved(TypeReference type, IList<TypeReference> arguments)
        => type is GenericParameter parameter ? arguments[parameter.Position] : type;

    private static int Aligned(int offset, int alignment) => (offset + alignment - 1) / alignment * alignment;

    private static CustomAttribute? AttributeOf(TypeDefinition type, string name)
        => type.CustomAttributes.FirstOrDefault(attribute => attribute.AttributeType.Name == name);

    /// <summary>SpecCtrl is spec_ctrl.</summary>
    private static string Words(string name)
        => WordStart().Replace(name.TrimStart('_'), "_").ToLowerInvariant();

    [GeneratedRegex("(?<=[a-z0-9])(?=[A-Z])")]
    private static partial Regex WordStart();
}
