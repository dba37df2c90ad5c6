// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>An object file as the native compiler would make it, assembled from text: cases that no C# produces on
/// demand.</summary>
internal static class AssembledObject
{
    private const string Prologue = "push %rbp\nmov %rsp, %rbp\n";
    private const string Epilogue = "pop %rbp\nret\n";

    /// <summary>An exported method of a body inside the usual frame.</summary>
    public static string Method(string name, string body) => Bare(name, Prologue + body + "\n" + Epilogue);

    /// <summary>An exported method of exactly this code.</summary>
    public static string Bare(string name, string code)
        => $"""
            .globl {name}, Test_{name}
            .hidden Test_{name}
            .type {name}, @function
            .type Test_{name}, @function
            {name}:
            Test_{name}:
            {code}
            .size {name}, . - {name}
            .size Test_{name}, . - Test_{name}

            """;

    /// <summary>Assembles methods and runs the object pass; the source is beside the object as core.S.</summary>
    public static Tool.Result Pass(string folder, string methods, string data = "")
    {
        string source = Path.Combine(folder, "input.s");
        File.WriteAllText(source, $"{data}\n.section __managedcode,\"ax\",@progbits\n{methods}");
        Tool.Require("as", ["-o", Path.Combine(folder, "input.o"), source]);
        return Ilpatch.Run(
            "obj", Path.Combine(folder, "input.o"), typeof(AssembledObject).Assembly.Location,
            Path.Combine(folder, "core.S"), "--report", Path.Combine(folder, "core.tsv"));
    }
}
