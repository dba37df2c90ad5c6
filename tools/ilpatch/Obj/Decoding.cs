// SPDX-License-Identifier: GPL-2.0-only
using Iced.Intel;

namespace IlPatch.Obj;

/// <summary>Machine code to operations: branches become links, relocations become symbols.</summary>
internal static class Decoding
{
    public static void Run(Method method, SymbolMap symbols, LineTable lines)
    {
        ElfSection section = method.Symbol.Section!;
        ulong start = method.Symbol.Value;
        ulong end = start + method.Symbol.Size;
        var decoder = Decoder.Create(64, section.Content[(int)start..(int)end], start);
        var relocations = section.RelocationsIn(start, method.Symbol.Size).ToDictionary(r => r.Offset);
        var byAddress = new Dictionary<ulong, Op>();
        while (decoder.IP < end)
        {
            ulong at = decoder.IP;
            Instruction instruction = decoder.Decode();
            SourceLine line = lines.Find(at, start);
            if (instruction.IsInvalid)
            {
                throw new ViolationException(
                    new(method.Name, line.File ?? "", line.Line), $"has an undecodable instruction at +{at - start:x}",
                    "The compiler's output changed: pin the known version.");
            }

            ConstantOffsets constants = decoder.GetConstantOffsets(instruction);
            Reference? symbol = FindSymbol(method, constants, instruction, relocations, line);
            if (symbol is null && instruction.IsIPRelativeMemoryOperand)
            {
                throw new ViolationException(new(method.Name, line.File ?? "", line.Line),
                    "reads its own code (a jump table?)", "Write the switch as comparisons or as table data.");
            }

            bool isNear = instruction.FlowControl is FlowControl.Call or FlowControl.UnconditionalBranch
                or FlowControl.ConditionalBranch;
            if (isNear && symbol is null
                && (instruction.NearBranchTarget < start || instruction.NearBranchTarget >= end
                    || instruction.FlowControl is FlowControl.Call))
            {
                symbol = new Reference(symbols.FunctionAt(section, instruction.NearBranchTarget), 0);
            }

            var op = new Op(instruction, line) { Symbol = symbol };
            byAddress[at] = op;
            method.Code.Add(op);
        }

        foreach (Op op in method.Code)
        {
            if (op.Symbol is null && op.Instruction.FlowControl
                is FlowControl.UnconditionalBranch or FlowControl.ConditionalBranch)
            {
                op.Branch = byAddress.GetValueOrDefault(op.Instruction.NearBranchTarget)
                    ?? throw method.Refuse(op, "branches into an instruction", "");
            }
        }

        if (relocations.Count > 0)
        {
            throw new ViolationException(new(method.Name, "", 0),
                $"has a relocation the object pass does not know ({relocations.First().Value.Kind})", "");
        }

        method.Renumber();
    }

    private static Reference? FindSymbol(
        Method method, ConstantOffsets constants, in Instruction instruction,
        Dictionary<ulong, ElfRelocation> relocations, SourceLine line)
    {
        foreach ((bool has, int offset, int size, bool isRelative) in new[]
        {
            (constants.HasDisplacement, constants.DisplacementOffset, constants.DisplacementSize,
                instruction.IsIPRelativeMemoryOperand),
            (constants.HasImmediate, constants.ImmediateOffset, constants.ImmediateSize,
                instruction.FlowControl is not FlowControl.Next),
        })
        {
            if (!has || !relocations.Remove(instruction.IP + (ulong)offset, out ElfRelocation relocation))
            {
                continue;
            }

            if (size != 4 || !isRelative || relocation.Kind is not (RelocationKind.Pc32 or RelocationKind.Plt32))
            {
                throw new ViolationException(new(method.Name, line.File ?? "", line.Line),
                    $"has a relocation the object pass does not know ({relocation.Kind} in {instruction})", "");
            }

            // The processor adds the end of the instruction; an immediate may follow the displacement.
            long toEnd = instruction.Length - offset;
            return new Reference(relocation.Symbol, relocation.Addend + toEnd);
        }

        return null;
    }
}
