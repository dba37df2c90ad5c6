// SPDX-License-Identifier: GPL-2.0-only
using System.Text;

namespace Toolchain.Generator;

/// <summary>
/// Writes a batch of random functions as C#, and the C table of their symbols. The same C# is compiled as an ordinary
/// program and by the kernel toolchain; both run every function on the same inputs.
/// </summary>
public static class Batch
{
    public static void Write(int seed, int count, string folder)
    {
        var random = new Random(seed);
        var functions = new StringBuilder();
        var delegates = new StringBuilder();
        var table = new StringBuilder("/* Made by batchgen. */\n");
        for (int i = 0; i < count; i++)
        {
            var writer = new FunctionWriter(random, i);
            functions.Append(writer.Write());
            delegates.Append($"            case {i}: return F{i}.Run(a, b, c, memory);\n");
            table.Append($"BATCH_FUNCTION({i})\n");
        }

        Directory.CreateDirectory(folder);
        WriteIfChanged(Path.Combine(folder, "Functions.cs"), $$"""
            // Made by batchgen with seed {{seed}}.
            using System;
            using System.Buffers.Binary;
            using System.Numerics;
            using System.Runtime;
            using System.Runtime.CompilerServices;
            using System.Runtime.InteropServices;
            using System.Threading;

            namespace Batch;

            {{SharedTypes.Text}}

            {{functions}}
            #if !KERNEL
            internal static unsafe class Table
            {
                public const int Count = {{count}};

                public static ulong Call(int index, ulong a, ulong b, ulong c, byte* memory)
                {
                    switch (index)
                    {
            {{delegates}}            default: throw new InvalidOperationException();
                    }
                }
            }
            #endif
            """);
        WriteIfChanged(Path.Combine(folder, "table.h"), table.ToString());
    }

    private static void WriteIfChanged(string path, string text)
    {
        if (!File.Exists(path) || File.ReadAllText(path) != text)
        {
            File.WriteAllText(path, text);
        }
    }
}
