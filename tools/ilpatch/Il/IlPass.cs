// SPDX-License-Identifier: GPL-2.0-only
using Mono.Cecil;

namespace IlPatch.Il;

/// <summary>The IL passes in order.</summary>
internal static class IlPass
{
    public static void Run(string input, string output, string? report, string? header)
    {
        File.Delete(output);
        using var assembly = new IlAssembly(input);
        SubsetVerifier.Run(assembly);
        NativeHeader.Run(assembly, header);
        KernelImports.Run(assembly);
        TrapHelpers.Run(assembly);
        IReadOnlyDictionary<MethodDefinition, int> switches = SwitchLowering.Run(assembly);
        InlineArrayHelpers.Run(assembly);
        DenseSequencePoints.Run(assembly);
        assembly.Write(output);
        Report.Write(report, "method\tswitches", switches.Select(pair => $"{pair.Key.FullName}\t{pair.Value}"));
    }
}
