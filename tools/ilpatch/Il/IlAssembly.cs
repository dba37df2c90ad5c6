// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;
using Mono.Cecil.Cil;

namespace IlPatch.Il;

/// <summary>An assembly with its symbols, as the IL passes see it.</summary>
internal sealed class IlAssembly : IDisposable
{
    private readonly AssemblyDefinition _assembly;

    public IlAssembly(string path)
    {
        _assembly = AssemblyDefinition.ReadAssembly(
            path,
            new ReaderParameters { ReadSymbols = true, SymbolReaderProvider = new PortablePdbReaderProvider() });
    }

    public ModuleDefinition Module => _assembly.MainModule;

    public IEnumerable<MethodDefinition> MethodsWithBody
        => Module.GetTypes().SelectMany(type => type.Methods).Where(method => method.HasBody);

    public static SourcePlace PlaceOf(MethodDefinition method, Instruction? instruction = null)
    {
        SequencePoint? best = null;
        foreach (SequencePoint point in method.DebugInformation.SequencePoints)
        {
            if (!point.IsHidden && (best is null || instruction is null || point.Offset <= instruction.Offset))
            {
                best = point;
                if (instruction is null)
                {
                    break;
                }
            }
        }

        string name = $"{method.DeclaringType.FullName.Replace('/', '.')}.{method.Name}";
        return best is null ? new(name, "", 0) : new(name, WithoutRoot(best.Document.Url), best.StartLine);
    }

    /// <summary>Paths are mapped to the project's root by the C# compiler and start with "./".</summary>
    private static string WithoutRoot(string path)
        => path.StartsWith("./", StringComparison.Ordinal) ? path[2..] : path;

    /// <summary>The same input gives the same bytes: the module id is derived from the content.</summary>
    public void Write(string path)
        => _assembly.Write(
            path,
            new WriterParameters
            {
                WriteSymbols = true,
                SymbolWriterProvider = new PortablePdbWriterProvider(),
                DeterministicMvid = true,
                Timestamp = 0,
            });

    public void Dispose() => _assembly.Dispose();
}
