// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;
using Mono.Cecil;

namespace IlPatch.Il;

/// <summary>
/// Turns <c>[KernelImport("name")]</c> into what the native compiler takes for a direct call of a C function:
/// <c>[MethodImpl(InternalCall), RuntimeImport("*", "name")]</c>.
/// </summary>
internal static partial class KernelImports
{
    private const string KernelImport = "KernelImportAttribute", RuntimeImport = "System.Runtime.RuntimeImportAttribute";

    public static void Run(IlAssembly assembly)
    {
        TypeSystem types = assembly.Module.TypeSystem;
        foreach (MethodDefinition method in assembly.Module.GetTypes().SelectMany(type => type.Methods))
        {
            if (ImportOf(method) is { } import)
            {
                MethodDefinition constructor
                    = assembly.Module.GetType(RuntimeImport).Methods.Single(member => member.IsConstructor);
                var known = new CustomAttribute(constructor);
                known.ConstructorArguments.Add(new CustomAttributeArgument(types.String, "*"));
                known.ConstructorArguments.Add(import.ConstructorArguments[0]);
                method.CustomAttributes.Remove(import);
                method.CustomAttributes.Add(known);
                method.IsInternalCall = true;
            }
        }
    }

    /// <summary>Why a method cannot be what it says it is, or null.</summary>
    public static (string What, string Instead)? Check(MethodDefinition method)
    {
        if (ImportOf(method) is not { } import)
        {
            bool isKnown = method.IsRuntime || HasAttribute(method, "IntrinsicAttribute");
            return method.RVA != 0 || method.IsAbstract || isKnown
                ? null
                : ("is extern, but not an import", "Name the C function: [KernelImport(\"name\")].");
        }

        if (method.RVA != 0 || method.IsPInvokeImpl)
        {
            return ("is an import that has a body", "Declare it 'static extern'.");
        }

        if (!method.IsStatic || method.HasGenericParameters || method.DeclaringType.HasGenericParameters)
        {
            return ("is an import, but generic or not static",
                "Declare it 'static extern', outside of generic types; a struct goes as a parameter.");
        }

        return import.ConstructorArguments[0].Value is string name && Identifier().IsMatch(name)
            ? null
            : ("is an import without a C function's name", "Write it as in C: [KernelImport(\"name\")].");
    }

    private static CustomAttribute? ImportOf(MethodDefinition method)
        => method.CustomAttributes.FirstOrDefault(attribute => attribute.AttributeType.Name == KernelImport);

    private static bool HasAttribute(MethodDefinition method, string name)
        => method.CustomAttributes.Any(attribute => attribute.AttributeType.Name == name);

    [GeneratedRegex("^[A-Za-z_][A-Za-z0-9_]*$")]
    private static partial Regex Identifier();
}
