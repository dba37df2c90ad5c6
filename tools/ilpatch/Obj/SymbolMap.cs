// SPDX-License-Identifier: GPL-2.0-only
namespace IlPatch.Obj;

/// <summary>A run of bytes in a data section that one symbol begins.</summary>
internal sealed record DataBlock(ElfSymbol Symbol, ulong Start, ulong Size);

/// <summary>Which function or data block an address belongs to.</summary>
internal sealed class SymbolMap
{
    private readonly Dictionary<(ElfSection, ulong), ElfSymbol> _functions = [];
    private readonly Dictionary<ElfSection, (ulong[] Starts, ElfSymbol[] Symbols)> _data = [];

    public SymbolMap(ElfObject elf)
    {
        // A method has its own hidden symbol; an export is a second, visible one at the same place.
        foreach (ElfSymbol symbol in elf.Symbols.Where(s => s is { IsFunction: true, Section: not null }))
        {
            (ElfSection, ulong) place = (symbol.Section!, symbol.Value);
            if (!_functions.TryGetValue(place, out ElfSymbol? known) || (known.IsVisible && !symbol.IsVisible))
            {
                _functions[place] = symbol;
            }
        }

        foreach (IGrouping<ElfSection, ElfSymbol> group in elf.Symbols
            .Where(s => s is { IsFunction: false, IsSection: false, Section.IsAllocated: true })
            .GroupBy(s => s.Section!))
        {
            ElfSymbol[] sorted = [.. group.DistinctBy(s => s.Value).OrderBy(s => s.Value)];
            _data[group.Key] = ([.. sorted.Select(s => s.Value)], sorted);
        }
    }

    public ElfSymbol FunctionAt(ElfSection section, ulong address)
        => _functions.TryGetValue((section, address), out ElfSymbol? symbol)
            ? symbol
            : throw new ViolationException(new("object", "", 0), $"no function starts at {section.Name}+{address:x}");

    /// <summary>The method symbol behind a symbol, when it names code.</summary>
    public ElfSymbol? FunctionOf(ElfSymbol symbol)
        => symbol.Section is { IsExecutable: true } section ? FunctionAt(section, symbol.Value) : null;

    /// <summary>The block that holds this place of a data section; it reaches to the next symbol.</summary>
    public DataBlock BlockAt(ElfSection section, ulong address)
    {
        if (!_data.TryGetValue(section, out (ulong[] Starts, ElfSymbol[] Symbols) known))
        {
            throw new ViolationException(new("object", "", 0), $"section {section.Name} has no symbols");
        }

        int index = Array.BinarySearch(known.Starts, address);
        index = index < 0 ? ~index - 1 : index;
        ulong start = known.Starts[index];
        ulong end = index + 1 < known.Starts.Length ? known.Starts[index + 1] : (ulong)section.Content.Length;
        return new DataBlock(known.Symbols[index], start, end - start);
    }
}
