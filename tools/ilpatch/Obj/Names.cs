// SPDX-License-Identifier: GPL-2.0-only
using System.Text;
using System.Text.RegularExpressions;
using Mono.Cecil;

namespace IlPatch.Obj;

/// <summary>From the compiler's mangled symbols back to C# names, and to short unique assembler symbols.</summary>
internal sealed partial class Names
{
    private const int LongestSymbol = 120;

    private readonly string _prefix;
    private readonly Dictionary<string, string> _types = [];
    private readonly Dictionary<string, int> _used = [];

    public Names(string assemblyPath)
    {
        using var module = ModuleDefinition.ReadModule(assemblyPath);
        _prefix = Mangle(module.Assembly.Name.Name) + "_";
        foreach (TypeDefinition type in module.GetTypes())
        {
            string name = type.FullName.Replace('/', '.');
            int arity = name.IndexOf('`');
            _types[_prefix + Mangle(type.FullName)] = arity < 0 ? name : name[..arity];
        }
    }

    /// <summary>Namespace.Type.Method as people write it; the symbol itself when it is no method's.</summary>
    public string Readable(string mangled)
    {
        for (int at = mangled.IndexOf("__", 1, StringComparison.Ordinal); at > 0;
            at = mangled.IndexOf("__", at + 1, StringComparison.Ordinal))
        {
            string type = mangled[..at];
            string arguments = "";
            if (type.EndsWith('>') && type.IndexOf('<') is var open and > 0)
            {
                arguments = ShortArguments(type[open..]);
                type = type[..open];
            }

            if (_types.TryGetValue(type, out string? name))
            {
                string method = mangled[(at + 2)..];
                int bracket = method.IndexOf('<');
                return bracket < 0
                    ? $"{name}{arguments}.{method}"
                    : $"{name}{arguments}.{method[..bracket]}{ShortArguments(method[bracket..])}";
            }
        }

        return mangled.Replace(_prefix, "");
    }

    /// <summary>Type arguments without their namespaces.</summary>
    private string ShortArguments(string arguments)
        => Word().Replace(arguments, match =>
        {
            bool isWhole = match.Value.StartsWith(_prefix, StringComparison.Ordinal);
            string word = isWhole ? match.Value : _prefix + match.Value;
            return _types.TryGetValue(word, out string? name) ? name[(name.LastIndexOf('.') + 1)..] : match.Value;
        });

    [GeneratedRegex(@"\w+")]
    private static partial Regex Word();

    /// <summary>A symbol of letters, digits, dots and underscores, unique in the output.</summary>
    public string Symbol(string readable)
    {
        var text = new StringBuilder();
        foreach (char c in readable)
        {
            bool isPlain = char.IsAsciiLetterOrDigit(c) || c is '.' or '_';
            if (isPlain || (text.Length > 0 && text[^1] != '_'))
            {
                text.Append(isPlain ? c : '_');
            }
        }

        string symbol = text.Replace("_.", ".").ToString().TrimEnd('_');
        symbol = symbol.Length > LongestSymbol ? symbol[..LongestSymbol] : symbol;
        int seen = _used[symbol] = _used.GetValueOrDefault(symbol) + 1;
        return seen == 1 ? symbol : $"{symbol}.{seen}";
    }

    private static string Mangle(string name)
        => string.Concat(name.Select(c => char.IsAsciiLetterOrDigit(c) ? c : '_'));
}
