// SPDX-License-Identifier: GPL-2.0-only
namespace IlPatch;

/// <summary>A place in C#: the method as people write it, its file and line (0 when unknown).</summary>
internal readonly record struct SourcePlace(string Method, string File, int Line)
{
    public override string ToString() => File.Length == 0 ? Method : $"{File}({Line}): {Method}";
}

/// <summary>One reason why the build stops, and what to write instead.</summary>
internal sealed record Violation(SourcePlace Place, string What, string Instead)
{
    public override string ToString()
    {
        string where = Place.File.Length == 0 ? "ilpatch" : $"{Place.File}({Place.Line})";
        return $"{where}: error: {Place.Method}: {What}. {Instead}".TrimEnd();
    }
}

/// <summary>Ends the command: nothing is written, the violations are printed, the exit code is 1.</summary>
internal sealed class ViolationException(IReadOnlyList<Violation> violations) : Exception
{
    public ViolationException(SourcePlace place, string what, string instead = "")
        : this([new Violation(place, what, instead)])
    {
    }

    public IReadOnlyList<Violation> Violations => violations;

    public override string Message => string.Join(Environment.NewLine, violations);
}
