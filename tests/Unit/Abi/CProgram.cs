// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using System.Globalization;
using System.Text;
using NUnit.Framework;

namespace SharpKvm.Tests.Abi;

/// <summary>Asks the C compiler for the values of expressions.</summary>
internal sealed class CProgram(string declarations)
{
    private readonly List<string> _expressions = [];

    public void Ask(string expression) => _expressions.Add(expression);

    /// <summary>The value of each expression that was asked for.</summary>
    public Dictionary<string, long> Run()
    {
        StringBuilder source = new();
        source.AppendLine("#include <stddef.h>").AppendLine("#include <stdio.h>").AppendLine(declarations);
        source.AppendLine("int main(void) {");
        foreach (string expression in _expressions)
            source.AppendLine($"    printf(\"%lld\\n\", (long long)({expression}));");
        source.AppendLine("    return 0; }");

        DirectoryInfo folder = Directory.CreateTempSubdirectory("sharpkvm-layout-");
        try
        {
            string file = Path.Combine(folder.FullName, "layout.c"), program = Path.Combine(folder.FullName, "layout");
            File.WriteAllText(file, source.ToString());
            Execute("gcc", "-std=gnu11", "-o", program, file);
            string[] lines = Execute(program).Split('\n', StringSplitOptions.RemoveEmptyEntries);
            Assert.That(lines, Has.Length.EqualTo(_expressions.Count));
            return _expressions.Zip(lines).DistinctBy(pair => pair.First)
                .ToDictionary(pair => pair.First, pair => long.Parse(pair.Second, CultureInfo.InvariantCulture));
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static string Execute(string program, params string[] arguments)
    {
        ProcessStartInfo start = new(program, arguments)
        {
            RedirectStandardOutput = true, RedirectStandardError = true,
        };
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.That(process.ExitCode, Is.Zero, errors.Result);
        return output;
    }
}
