// SPDX-License-Identifier: GPL-2.0-only
namespace IlPatch.Obj;

/// <summary>The object passes in order.</summary>
internal static class ObjectPass
{
    public const int DefaultFrameLimit = 2048;

    public static void Run(
        string objectPath, string assemblyPath, string output, int frameLimit, string? report)
    {
        File.Delete(output);
        var names = new Names(assemblyPath);
        var program = new CoreProgram(ElfObject.Read(objectPath), names, new ImportResults(assemblyPath));
        program.Load();
        NoReturn.Run(program.Methods);
        foreach (Method method in program.Methods)
        {
            Frames.Run(method);
            SimdRemoval.Run(method);
            Frames.CheckSize(method, frameLimit);
        }

        FrameTrim.Run(program.Methods);
        AccessChecks.Run(program.Methods);
        File.WriteAllText(output, new AssemblyWriter(program, names).Write());
        WriteReport(report, program);
    }

    private static void WriteReport(string? path, CoreProgram program)
    {
        var depth = new StackDepth(program.Methods);
        Report.Write(
            path, "method\tinstructions\tframe\tdepth\tsimd\tchecks\telided\tcalls",
            program.Methods.Select(m => $"{m.Name}\t{m.Code.Count}\t{m.FrameSize}\t"
                + $"{depth.Of(m)}{(depth.IsRecursive(m) ? "+" : "")}\t{m.SimdRewritten}\t{m.ChecksAdded}\t"
                + $"{m.ChecksElided}\t{string.Join(' ', m.CallsOut)}"));
    }
}
