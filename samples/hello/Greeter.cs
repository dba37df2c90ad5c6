// SPDX-License-Identifier: GPL-2.0-only
using System;
using System.Runtime;
using System.Runtime.CompilerServices;
using Kernel;

namespace Hello;

/// <summary>A device that greets whoever reads it. A line written to it says how the next read shall fail.</summary>
internal static unsafe class Greeter
{
    private static byte s_fault;

    private static ReadOnlySpan<byte> Greeting => "Hello from C# in the kernel\n"u8;

    [RuntimeExport("hello_read")]
    private static int Read(byte* buffer, int size)
    {
        byte fault = s_fault;
        s_fault = 0;
        return fault switch
        {
            (byte)'n' => ReadThrough(null),
            (byte)'i' => Greeting[size],
            (byte)'d' => Greeting.Length / (size - size),
            (byte)'w' => Warn(),
            _ => Greet(new Span<byte>(buffer, size)),
        };
    }

    /// <summary>Takes 'null', 'index', 'divide' or 'warn'; anything else means a greeting.</summary>
    [RuntimeExport("hello_write")]
    private static int Write(byte* text, int length)
    {
        s_fault = new ReadOnlySpan<byte>(text, length)[0];
        return 0;
    }

    private static int Greet(Span<byte> output)
    {
        Greeting.CopyTo(output);
        return Greeting.Length;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static int ReadThrough(int* pointer) => *pointer;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static int Warn()
    {
        WarnFromC();
        return 0;
    }

    [KernelImport("hello_warn")]
    private static extern void WarnFromC();
}
