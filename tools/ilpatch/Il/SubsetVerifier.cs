// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;
using Mono.Cecil.Cil;

namespace IlPatch.Il;

/// <summary>Finds whatever would need a managed runtime, floating point or an indirect call.</summary>
internal static class SubsetVerifier
{
    public static void Run(IlAssembly assembly)
    {
        List<Violation> violations = [];
        foreach (TypeDefinition type in assembly.Module.GetTypes())
        {
            if (!IsExempt(type))
            {
                CheckFields(type, violations);
                foreach (MethodDefinition method in type.Methods)
                {
                    CheckMethod(method, violations);
                }
            }
        }

        if (violations.Count > 0)
        {
            throw new ViolationException(violations);
        }
    }

    /// <summary>Types that exist for the C# compiler alone; nothing can reach their code.</summary>
    private static bool IsExempt(TypeDefinition type)
    {
        for (TypeDefinition? ancestor = type; ancestor is not null; ancestor = ancestor.BaseType?.Resolve())
        {
            if (ancestor.FullName is "System.Attribute" or "System.Exception")
            {
                return true;
            }
        }

        return type.FullName is "System.Object" or "System.Array";
    }

    private static void CheckFields(TypeDefinition type, List<Violation> violations)
    {
        foreach (FieldDefinition field in type.Fields)
        {
            if (type.IsPrimitive || field.IsLiteral)
            {
                continue;
            }

            SourcePlace place = PlaceNear(type, field.Name);
            if (field.IsStatic && IsReference(field.FieldType))
            {
                violations.Add(new(place, $"a static field of the reference type {field.FieldType.Name}",
                    "Keep constant data in 'static ReadOnlySpan<T> Name => [...]', and state in structs."));
            }
            else if (field.CustomAttributes.Any(a => a.AttributeType.Name == "ThreadStaticAttribute"))
            {
                violations.Add(new(place, "a thread static", "Keep it in the vCPU's or the caller's struct."));
            }
            else if (IsFloat(field.FieldType))
            {
                violations.Add(new(place, "a floating-point field", "Use an integer with a fixed unit."));
            }
        }
    }

    /// <summary>Of a member that has no code: the first line of its type's code.</summary>
    private static SourcePlace PlaceNear(TypeDefinition type, string member)
    {
        var place = new SourcePlace($"{type.FullName.Replace('/', '.')}.{member}", "", 0);
        return type.Methods.FirstOrDefault(method => method.DebugInformation.HasSequencePoints) is { } near
            ? place with { File = IlAssembly.PlaceOf(near).File, Line = IlAssembly.PlaceOf(near).Line }
            : place;
    }

    private static void CheckMethod(MethodDefinition method, List<Violation> violations)
    {
        if (KernelImports.Check(method) is var (wrong, right))
        {
            violations.Add(new(PlaceNear(method.DeclaringType, method.Name), wrong, right));
        }

        // Record structs bring Equals(object), ToString and the like; what is really used is seen in the object.
        if (!method.HasBody || TrapHelpers.IsTrap(method) || IsSynthesized(method))
        {
            return;
        }

        if (method.Body.HasExceptionHandlers)
        {
            violations.Add(new(IlAssembly.PlaceOf(method), "try, catch, finally, using or foreach over IDisposable",
                "Return an error value, and release what was taken in plain code."));
        }

        if (method.Parameters.Select(p => p.ParameterType).Append(method.ReturnType)
            .Concat(method.Body.Variables.Select(v => v.VariableType)).Any(IsFloat))
        {
            violations.Add(new(IlAssembly.PlaceOf(method), "floating point", "Use an integer with a fixed unit."));
        }

        foreach (Instruction instruction in method.Body.Instructions)
        {
            if (Check(instruction) is var (what, instead))
            {
                violations.Add(new(IlAssembly.PlaceOf(method, instruction), what, instead));
            }
        }
    }

    private static bool IsSynthesized(MethodDefinition method)
        => method.CustomAttributes.Any(a => a.AttributeType.Name == "CompilerGeneratedAttribute")
            && !method.IsGetter && !method.IsSetter && !method.Name.Contains('<');

    private static (string What, string Instead)? Check(Instruction instruction)
    {
        switch (instruction.OpCode.Code)
        {
            case Code.Newobj when ((MethodReference)instruction.Operand).DeclaringType is var type && IsReference(type):
                return ($"allocates an object of class {type.Name}",
                    "Make it a struct, or take memory through the host's allocator and use 'ref'.");
            case Code.Newarr:
                return ($"allocates an array of {((TypeReference)instruction.Operand).Name}",
                    "Use a span over existing memory, an [InlineArray] struct, or 'ReadOnlySpan<T> X => [...]'.");
            case Code.Box:
                return ($"boxes {((TypeReference)instruction.Operand).Name}",
                    "Keep the value type: use a generic method with a constraint instead of object or an interface.");
            case Code.Unbox or Code.Unbox_Any or Code.Castclass or Code.Isinst:
                return ("tests or casts an object's type",
                    "Use generics over structs, or an enum that says which it is.");
            case Code.Throw or Code.Rethrow:
                return ("throws an exception",
                    "Return an error value; a broken invariant may trap through a checked index.");
            case Code.Ldstr:
                return ("uses a string", "Use a UTF-8 literal: \"text\"u8.");
            case Code.Ldftn or Code.Ldvirtftn:
                return ("takes the address of a method (delegate, lambda or function pointer)",
                    "Use a generic parameter with a static abstract method.");
            case Code.Calli:
                return ("calls through a pointer", "Use a generic parameter with a static abstract method.");
            case Code.Ldtoken when instruction.Next?.Operand is not MethodReference { Name: "CreateSpan" }:
                return ("uses reflection (typeof)", "Use a generic parameter, sizeof or an enum.");
            case Code.Mkrefany or Code.Refanyval or Code.Refanytype or Code.Arglist:
                return ("uses a typed reference", "Use 'ref'.");
            case Code.Ldc_R4 or Code.Ldc_R8 or Code.Conv_R4 or Code.Conv_R8 or Code.Conv_R_Un or Code.Ckfinite
                or Code.Ldind_R4 or Code.Ldind_R8 or Code.Stind_R4 or Code.Stind_R8:
                return ("floating point", "Use an integer with a fixed unit.");
            case Code.Callvirt when instruction.Previous?.OpCode.Code != Code.Constrained:
                return CheckVirtualCall((MethodReference)instruction.Operand);
            default:
                return null;
        }
    }

    private static (string What, string Instead)? CheckVirtualCall(MethodReference method)
        => IsReference(method.DeclaringType)
            ? ($"calls {method.DeclaringType.Name}.{method.Name} through an object",
                "Take the struct itself: a generic parameter constrained to the interface, passed by 'ref'.")
            : null;

    private static bool IsReference(TypeReference type)
        => type switch
        {
            GenericParameter parameter => parameter.HasReferenceTypeConstraint,
            PointerType or ByReferenceType or FunctionPointerType => false,
            RequiredModifierType modifier => IsReference(modifier.ElementType),
            ArrayType => true,
            _ => !type.IsValueType,
        };

    private static bool IsFloat(TypeReference type)
        => type.MetadataType is MetadataType.Single or MetadataType.Double
            || (type is TypeSpecification { ElementType: { } element } && IsFloat(element));
}
