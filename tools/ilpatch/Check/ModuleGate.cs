// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;
using IlPatch.Obj;

namespace IlPatch.Check;

/// <summary>Looks at the finished module with fresh eyes: what the core's functions must not contain, and what
/// neither they nor the module may import.</summary>
internal static class ModuleGate
{
    /// <summary>What the kernel has returns jump to; they are the one thing the core takes from it directly.</summary>
    private const string ReturnThunk = "__x86_return_thunk";

    public static void Run(string modulePath, string? corePath, IReadOnlyList<string> imports, string? report)
    {
        ElfObject module = ElfObject.Read(modulePath);
        ElfObject? coreObject = corePath is null ? null : ElfObject.Read(corePath);
        HashSet<string>? core = coreObject is null
            ? null
            : [.. FunctionsOf(coreObject).Select(function => function.Name)];
        List<Violation> violations = [];
        List<string> rows = [];
        foreach (ElfSymbol function in FunctionsOf(module).Where(s => core is null || core.Contains(s.Name)))
        {
            rows.Add($"{function.Name}\t{function.Size}\t{CheckFunction(function, violations)}");
        }

        CheckImports(module, coreObject, imports, violations);
        if (module.Find(".orc_unwind_ip") is null)
        {
            violations.Add(new(new(modulePath, "", 0), "has no ORC unwind data", "Was objtool run?"));
        }

        if (violations.Count > 0)
        {
            throw new ViolationException(violations);
        }

        Report.Write(report, "function\tbytes\tinstructions", rows.Order(StringComparer.Ordinal));
    }

    private static IEnumerable<ElfSymbol> FunctionsOf(ElfObject file)
        => file.Symbols.Where(s => s is { IsFunction: true, Section.IsExecutable: true, Size: > 0 });

    private static int CheckFunction(ElfSymbol function, List<Violation> violations)
    {
        ElfSection section = function.Section!;
        var decoder = Decoder.Create(64, section.Content[(int)function.Value..(int)(function.Value + function.Size)]);
        var relocated = section.RelocationsIn(function.Value, function.Size)
            .ToDictionary(r => r.Offset - function.Value, r => r.Symbol.Name);
        int count = 0;
        while (decoder.IP < function.Size)
        {
            ulong at = decoder.IP;
            Instruction instruction = decoder.Decode();
            count++;
            if (Complaint(instruction, section, function, relocated) is { } what)
            {
                var place = new SourcePlace($"{function.Name}+{at:x}", "", 0);
                violations.Add(new(place, what, "This is ilpatch's own fault: report it."));
            }
        }

        return count;
    }

    private static string? Complaint(
        in Instruction instruction, ElfSection section, ElfSymbol function, Dictionary<ulong, string> relocated)
    {
        if (instruction.IsInvalid)
        {
            return "cannot be decoded";
        }

        if (SimdRemoval.IsVector(new Op(instruction, default)))
        {
            return $"uses SIMD or x87: {instruction}";
        }

        if (instruction.FlowControl is FlowControl.Return && UsesReturnThunks(section))
        {
            return "has a naked ret";
        }

        if (instruction.FlowControl is FlowControl.IndirectBranch or FlowControl.IndirectCall)
        {
            return $"has a naked indirect branch: {instruction}";
        }

        for (ulong at = instruction.IP; at < instruction.NextIP; at++)
        {
            if (relocated.TryGetValue(at, out string? name)
                && (name.StartsWith("Rh", StringComparison.Ordinal)
                    || name.Contains("__cctor", StringComparison.Ordinal)))
            {
                return $"refers to the managed runtime's {name} in {function.Name}";
            }
        }

        return null;
    }

    /// <summary>A kernel that wants return thunks gets a relocation to one at each of its returns.</summary>
    private static bool UsesReturnThunks(ElfSection section)
        => section.Relocations.Exists(r => r.Symbol.Name == ReturnThunk);

    /// <summary>The module has no managed runtime, and the core reaches the kernel through the shim: what it refers to
    /// is defined in the module, or named as a function of the kernel that it calls itself.</summary>
    private static void CheckImports(
        ElfObject module, ElfObject? core, IReadOnlyList<string> imports, List<Violation> violations)
    {
        foreach (string name in Undefined(module.Symbols).Where(IsRuntime))
        {
            violations.Add(new(new(name, "", 0), "belongs to a runtime that the module does not have",
                "This is ilpatch's own fault: report it."));
        }

        HashSet<string> defined = [.. module.Symbols.Where(s => s.Section is not null).Select(s => s.Name), .. imports];
        defined.Add(ReturnThunk);
        foreach (string name in Undefined(core?.Symbols ?? []).Where(name => !defined.Contains(name)))
        {
            violations.Add(new(new(name, "", 0), "is imported by the core, but the shim does not define it",
                "Correct the name, let a function of the shim call it, or name it with --imports."));
        }
    }

    private static IEnumerable<string> Undefined(IEnumerable<ElfSymbol> symbols)
        => symbols.Where(s => s.Section is null && s.Name.Length > 0).Select(s => s.Name);

    private static bool IsRuntime(string name)
        => name.StartsWith("Rh", StringComparison.Ordinal) || name.StartsWith("cs_x86_", StringComparison.Ordinal);
}
