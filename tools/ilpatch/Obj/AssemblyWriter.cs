// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Text;
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Writes the program as one GNU assembler source. What differs between the kernel and a user-space test is in
/// the macros of cskernel-asm.h.</summary>
internal sealed class AssemblyWriter
{
    private readonly CoreProgram _program;
    private readonly Names _names;
    private readonly StringBuilder _text = new();
    private readonly Dictionary<ElfSymbol, string> _symbols = [];
    private readonly Dictionary<string, int> _files = [];
    private readonly List<(Trap Trap, string Method)> _sites = [];
    private readonly GasFormatter _formatter;
    private readonly StringOutput _output = new();
    private readonly SymbolResolver _resolver = new();
    private int _label;

    public AssemblyWriter(CoreProgram program, Names names)
    {
        _program = program;
        _names = names;
        _formatter = new GasFormatter(_resolver);
        _formatter.Options.GasShowMnemonicSizeSuffix = true;
        _formatter.Options.RipRelativeAddresses = true;
        _formatter.Options.UsePseudoOps = false;
        _formatter.Options.ShowSymbolAddress = false;
    }

    public string Write()
    {
        foreach (Method method in _program.Methods)
        {
            _symbols[method.Symbol] = method.IsExported ? method.Exports[0] : _names.Symbol(method.Name);
        }

        foreach (DataBlock block in _program.Data)
        {
            _symbols[block.Symbol] = _names.Symbol(_names.Readable(block.Symbol.Name));
        }

        Line("/* SPDX-License-Identifier: GPL-2.0-only */");
        Line("/* Made by ilpatch. Do not edit. */");
        Line("#include \"cskernel-asm.h\"");
        WriteFiles();
        Line("\t.text");
        Line(".Lcs_text:");
        foreach (Method method in _program.Methods)
        {
            WriteMethod(method);
        }

        Line(".Lcs_text_end:");
        foreach (DataBlock block in _program.Data)
        {
            WriteData(block);
        }

        WriteSites();
        WriteDebugInfo();
        Line("\t.section .note.GNU-stack,\"\",@progbits");
        return _text.ToString();
    }

    private void Line(string line) => _text.Append(line).Append('\n');

    private static string Quote(string symbol) => symbol.Contains('.') ? $"\"{symbol}\"" : symbol;

    private void WriteFiles()
    {
        foreach (string file in _program.Methods.SelectMany(m => m.Code).Select(op => op.Line.File)
            .Where(file => file is not null).Distinct().Order(StringComparer.Ordinal))
        {
            _files[file] = _files.Count + 1;
            Line($"\t.file {_files[file]} \"{file}\"");
        }
    }

    private void WriteMethod(Method method)
    {
        string symbol = Quote(_symbols[method.Symbol]);
        Line("");
        Line("\t.p2align 4");
        foreach (string export in method.Exports)
        {
            Line($"\t.globl {export}");
        }

        Line($"\t.type {symbol}, @function");
        foreach (string alias in method.Exports.Skip(1))
        {
            Line($"\t.type {alias}, @function");
            Line($"{alias}:");
        }

        Line($"{symbol}:");
        SourceLine current = default;
        WriteLocation(method.Code[0].Line, ref current);
        if (method.IsExported)
        {
            Line("\tCS_ENDBR");
        }

        var labels = new Dictionary<Op, string>();
        foreach (Op op in method.Code)
        {
            if (op.Branch is { } target && !labels.ContainsKey(target))
            {
                labels[target] = $".L{_label++}";
            }
        }

        var stubs = new Dictionary<Trap, string>();
        string Stub(Trap trap) => stubs.TryGetValue(trap, out string? known) ? known : stubs[trap] = $".Lt{_label++}";
        foreach (Op op in method.Code)
        {
            if (labels.TryGetValue(op, out string? label))
            {
                Line($"{label}:");
            }

            WriteLocation(op.Line, ref current);
            if (op.IsTrapCall)
            {
                WriteTrap(op.Trap!.Value, method);
                continue;
            }

            string fault = "";
            if (op.Fault is { } trap)
            {
                fault = $".Lf{_label++}";
                _text.Append(fault).Append(":\n");
                Line($"\t{Format(op, "")}");
                Line($"\tCS_FAULT({fault}, {Stub(trap)})");
                continue;
            }

            if (op.Symbol is { Symbol: { Section: null, Name: "cs_memmove" or "cs_memzero" } })
            {
                // These trap on behalf of their caller and want its site in eax.
                _sites.Add((new Trap(TrapKind.BadAddress, op.Line), method.Name));
                Line($"\tmovl ${_sites.Count}, %eax");
            }

            string where = op.Branch is { } branch ? labels[branch] : op.Trap is { } toTrap ? Stub(toTrap) : "";
            Line($"\t{Format(op, where)}");
            if (op.NeverReturns)
            {
                Line("\tud2");
            }
        }

        foreach ((Trap trap, string label) in stubs)
        {
            Line($"{label}:");
            WriteLocation(trap.Line, ref current);
            WriteTrap(trap, method);
        }

        foreach (string export in method.Exports.Append(_symbols[method.Symbol]).Distinct())
        {
            Line($"\t.size {Quote(export)}, . - {Quote(export)}");
        }
    }

    private void WriteLocation(SourceLine line, ref SourceLine current)
    {
        if (line.File is not null && line != current)
        {
            Line($"\t.loc {_files[line.File]} {line.Line}");
            current = line;
        }
    }

    private void WriteTrap(Trap trap, Method method)
    {
        _sites.Add((trap, method.Name));
        Line($"\tCS_TRAP({_sites.Count})");
    }

    /// <summary>The instruction's text; <paramref name="where"/> is the label a branch leads to.</summary>
    private string Format(Op op, string where)
    {
        ref readonly Instruction instruction = ref op.Instruction;
        switch (instruction.FlowControl)
        {
            case FlowControl.Return:
                return "CS_RET";
            case FlowControl.ConditionalBranch when op.Trap is not null && instruction.Mnemonic is Mnemonic.Jns
                && op.Trap.Value.Kind is TrapKind.BadAddress:
                return $"CS_JUMP_IF_BAD {where}";
            case FlowControl.ConditionalBranch when instruction.Mnemonic is Mnemonic.Js
                && op.Branch?.Instruction.Mnemonic is Mnemonic.Nop:
                return $"CS_JUMP_IF_GOOD {where}";
        }

        _resolver.Text = op.Symbol is { } symbol ? Name(symbol) : where.Length > 0 ? where : null;
        _formatter.Format(instruction, _output);
        return _output.ToStringAndReset();
    }

    private string Name(Reference reference)
    {
        ElfSymbol symbol = reference.Symbol;
        long offset = reference.Offset;
        if (_program.SymbolMap.FunctionOf(symbol) is { } function)
        {
            symbol = function;
        }
        else if (symbol.Section is { } section)
        {
            DataBlock block = _program.SymbolMap.BlockAt(section, symbol.Value);
            offset += (long)(symbol.Value - block.Start);
            symbol = block.Symbol;
        }

        string name = Quote(_symbols.GetValueOrDefault(symbol, symbol.Name));
        return offset == 0 ? name : $"{name}{offset:+0;-0}";
    }

    private void WriteData(DataBlock block)
    {
        ElfSection section = block.Symbol.Section!;
        string name = Quote(_symbols[block.Symbol]);
        Line("");
        Line(section.IsZero ? "\t.bss" : section.IsWritable ? "\t.data" : "\t.section .rodata");
        ulong alignment = Math.Min(section.Alignment, block.Start == 0 ? 16 : block.Start & (~block.Start + 1));
        Line($"\t.balign {Math.Clamp(alignment, 1, 16)}");
        Line($"\t.type {name}, @object");
        Line($"\t.size {name}, {block.Size}");
        Line($"{name}:");
        if (section.IsZero)
        {
            Line($"\t.zero {block.Size}");
            return;
        }

        var relocations = section.RelocationsIn(block.Start, block.Size).ToDictionary(r => r.Offset);
        ulong end = block.Start + block.Size;
        for (ulong at = block.Start; at < end;)
        {
            if (relocations.TryGetValue(at, out ElfRelocation relocation))
            {
                Line($"\t.quad {Name(new Reference(relocation.Symbol, relocation.Addend))}");
                at += 8;
                continue;
            }

            ulong stop = at + 1;
            while (stop < end && stop < at + 32 && !relocations.ContainsKey(stop))
            {
                stop++;
            }

            Line("\t.byte " + string.Join(", ", section.Content[(int)at..(int)stop]));
            at = stop;
        }
    }

    /// <summary>The table behind cs_report_trap: where each site is in C#. Site n is entry n - 1.</summary>
    private void WriteSites()
    {
        var strings = new Dictionary<string, int>();
        var blob = new StringBuilder();
        int Offset(string text)
        {
            if (!strings.TryGetValue(text, out int offset))
            {
                offset = strings[text] = blob.Length;
                blob.Append(text).Append('\0');
            }

            return offset;
        }

        Line("");
        Line("\t.section .rodata");
        Line("\t.balign 4");
        Line("\t.globl cs_sites, cs_site_count, cs_strings");
        Line("\t.type cs_sites, @object");
        Line("cs_sites:");
        foreach ((Trap trap, string method) in _sites)
        {
            string file = Path.GetFileName(trap.Line.File ?? "?");
            Line($"\t.long {Offset(method)}, {Offset(file)}, {trap.Line.Line | ((int)trap.Kind << 24)}");
        }

        Line("\t.size cs_sites, . - cs_sites");
        Line("\t.type cs_site_count, @object");
        Line("cs_site_count:");
        Line($"\t.long {_sites.Count}");
        Line("\t.size cs_site_count, 4");
        Line("\t.type cs_strings, @object");
        Line("cs_strings:");
        foreach (string text in blob.ToString().Split('\0')[..^1])
        {
            Line($"\t.asciz \"{text}\"");
        }

        Line("\t.size cs_strings, . - cs_strings");
    }

    /// <summary>One compile unit, so that addr2line and gdb find the line table (DWARF version 4).</summary>
    private void WriteDebugInfo()
    {
        Line("""

                .section .debug_line,"",@progbits
            .Lcs_line:
                .section .debug_abbrev,"",@progbits
            .Lcs_abbrev:
                .uleb128 1, 0x11
                .byte 0
                .uleb128 0x10, 0x17, 0x11, 0x01, 0x12, 0x07, 0x03, 0x08, 0x13, 0x05, 0, 0
                .byte 0
                .section .debug_info,"",@progbits
                .long .Lcs_info_end - .Lcs_info
            .Lcs_info:
                .short 4
                .long .Lcs_abbrev
                .byte 8
                .uleb128 1
                .long .Lcs_line
                .quad .Lcs_text
                .quad .Lcs_text_end - .Lcs_text
                .asciz "C#"
                .short 0x0002
            .Lcs_info_end:
            """);
    }

    private sealed class SymbolResolver : ISymbolResolver
    {
        public string? Text { get; set; }

        public bool TryGetSymbol(
            in Instruction instruction, int operand, int instructionOperand, ulong address, int addressSize,
            out SymbolResult symbol)
        {
            bool isReference = instruction.FlowControl is not FlowControl.Next
                || (instruction.IsIPRelativeMemoryOperand && instructionOperand >= 0
                    && instruction.GetOpKind(instructionOperand) == OpKind.Memory);
            symbol = Text is not null && isReference ? new SymbolResult(address, Text) : default;
            return Text is not null && isReference;
        }
    }
}
