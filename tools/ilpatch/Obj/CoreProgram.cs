// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>All of the core that its exports reach.</summary>
internal sealed class CoreProgram
{
    private static readonly (string Symbol, string What, string Instead)[] RuntimeNeeds =
    [
        ("RhpNewFast", "allocates an object", "Use structs and 'ref'."),
        ("RhpNewArray", "allocates an array", "Use a span over existing memory."),
        ("RhNew", "allocates", "Use structs, spans and memory from the host's allocator."),
        ("RhpThrow", "throws an exception", "Return an error value."),
        ("RhpRethrow", "throws an exception", "Return an error value."),
        ("RhBox", "boxes a value", "Use a generic method with a constraint."),
        ("RhUnbox", "unboxes a value", "Use a generic method with a constraint."),
        ("TypeCast", "casts an object", "Use generics over structs."),
        ("RhpInitialDynamicInterfaceDispatch", "calls an interface through an object", "Use a generic constraint."),
        ("RhpGetThread", "uses a thread static", "Keep it in the caller's struct."),
        ("RhpAssignRef", "stores an object reference", "Use structs and 'ref'."),
        ("RhpCheckedAssignRef", "stores an object reference", "Use structs and 'ref'."),
        ("RhpByRefAssignRef", "stores an object reference", "Use structs and 'ref'."),
        ("JIT_StackProbe", "needs a stack frame of a page or more",
            "Pass large structs by 'ref' or 'in', or keep them in the VM's memory."),
        ("RhpPInvoke", "calls out through P/Invoke", "Use [KernelImport]."),
        ("RhpReversePInvoke", "is entered through UnmanagedCallersOnly", "Use RuntimeExport."),
    ];

    private readonly ElfObject _elf;
    private readonly Names _names;
    private readonly ImportResults _importResults;
    private readonly LineTable _lines;
    private readonly Dictionary<ElfSymbol, Method> _methods = [];
    private readonly Dictionary<ElfSymbol, DataBlock> _data = [];
    private readonly Queue<(ElfSymbol Symbol, Method? User, Op? At)> _pending = new();

    public CoreProgram(ElfObject elf, Names names, ImportResults importResults)
    {
        _elf = elf;
        _names = names;
        _importResults = importResults;
        SymbolMap = new SymbolMap(elf);
        ElfSection code = elf.Find("__managedcode")
            ?? throw new ViolationException(new("object", "", 0), "has no section __managedcode",
                "The compiler's output changed: pin the known version.");
        _lines = LineTable.Read(elf, code);
    }

    public SymbolMap SymbolMap { get; }

    public IReadOnlyList<Method> Methods { get; private set; } = [];

    public IReadOnlyList<DataBlock> Data { get; private set; } = [];

    public SortedSet<string> Imports { get; } = new(StringComparer.Ordinal);

    /// <summary>Decodes what is reachable from the exports.</summary>
    public void Load()
    {
        foreach (ElfSymbol symbol in _elf.Symbols
            .Where(symbol => symbol is { IsFunction: true, IsVisible: true, Section: not null })
            .Where(symbol => !symbol.Name.StartsWith("__managed__", StringComparison.Ordinal)))
        {
            ElfSymbol function = SymbolMap.FunctionAt(symbol.Section!, symbol.Value);
            AddMethod(function).Exports.Add(symbol.Name);
        }

        if (_methods.Count == 0)
        {
            throw new ViolationException(new("object", "", 0), "exports nothing",
                "Mark at least one static method with [RuntimeExport(\"name\")].");
        }

        while (_pending.TryDequeue(out (ElfSymbol Symbol, Method? User, Op? At) next))
        {
            Visit(next.Symbol, next.User, next.At);
        }

        Methods = [.. _methods.Values.OrderBy(method => method.Symbol.Value)];
        Data =
        [
            .. _data.Values.OrderBy(block => block.Symbol.Section!.Name, StringComparer.Ordinal)
                .ThenBy(block => block.Start),
        ];
        foreach (Method method in Methods)
        {
            method.Exports.Sort(StringComparer.Ordinal);
        }
    }

    private Method AddMethod(ElfSymbol symbol)
    {
        if (_methods.TryGetValue(symbol, out Method? known))
        {
            return known;
        }

        var method = new Method(symbol, _names.Readable(symbol.Name));
        _methods[symbol] = method;
        Decoding.Run(method, SymbolMap, _lines);
        Traps.Run(method);
        Forms.Run(method);
        Intrinsics.Run(method);
        _importResults.Run(method);
        foreach (Op op in method.Code.Where(op => op.Symbol is not null && !op.IsTrapCall))
        {
            _pending.Enqueue((op.Symbol!.Value.Symbol, method, op));
        }

        return method;
    }

    private void Visit(ElfSymbol symbol, Method? user, Op? at)
    {
        if (SymbolMap.FunctionOf(symbol) is { } function)
        {
            if (function.Name.Contains("__cctor", StringComparison.Ordinal)
                || function.Name.Contains("CheckStaticClassConstruction", StringComparison.Ordinal))
            {
                throw Refuse(user, at, $"needs the static constructor {_names.Readable(function.Name)} at run time",
                    "Use 'const' or 'static ReadOnlySpan<T> Name => [...]', or set the field from an entry point.");
            }

            AddMethod(function);
            user?.CallsOut.Add(_names.Readable(function.Name));
        }
        else if (symbol.Section is null)
        {
            Import(symbol, user, at);
        }
        else
        {
            AddData(symbol, user, at);
        }
    }

    private void Import(ElfSymbol symbol, Method? user, Op? at)
    {
        foreach ((string need, string what, string instead) in RuntimeNeeds)
        {
            if (symbol.Name.StartsWith(need, StringComparison.Ordinal))
            {
                throw Refuse(user, at, what, instead);
            }
        }

        if (symbol.Name.StartsWith("Rh", StringComparison.Ordinal)
            || symbol.Name.StartsWith("JIT_", StringComparison.Ordinal) || symbol.Name.Contains("__GCStaticBase"))
        {
            throw Refuse(user, at, $"needs the runtime's {symbol.Name}",
                "See the restricted subset in docs/toolchain.md.");
        }

        Imports.Add(symbol.Name);
        user?.CallsOut.Add(symbol.Name);
    }

    private void AddData(ElfSymbol symbol, Method? user, Op? at)
    {
        ElfSection section = symbol.Section!;
        DataBlock block = SymbolMap.BlockAt(section, symbol.Value);
        if (!section.IsAllocated || section.IsExecutable)
        {
            throw Refuse(user, at, $"refers to section {section.Name}", "");
        }

        if (block.Symbol.Name.StartsWith("_ZTV", StringComparison.Ordinal))
        {
            throw Refuse(user, at, $"needs the run-time type {block.Symbol.Name[4..]}",
                "Types exist at compile time only: no typeof, casts, boxing or objects.");
        }

        if (_data.TryAdd(block.Symbol, block))
        {
            foreach (ElfRelocation relocation in section.RelocationsIn(block.Start, block.Size))
            {
                if (relocation.Kind != RelocationKind.Absolute64)
                {
                    throw Refuse(user, at, $"refers to data {block.Symbol.Name} with an unknown relocation", "");
                }

                _pending.Enqueue((relocation.Symbol, user, at));
            }
        }
    }

    private static ViolationException Refuse(Method? user, Op? at, string what, string instead)
        => new(user is null || at is null ? new("object", "", 0) : user.PlaceOf(at), what, instead);
}
