// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>How a case of a selftest program ended.</summary>
public enum KtapOutcome
{
    /// <summary><c>ok</c>.</summary>
    Passed,

    /// <summary><c>not ok</c>.</summary>
    Failed,

    /// <summary><c>ok … # SKIP</c>.</summary>
    Skipped,
}

/// <summary>One result line.</summary>
/// <param name="Name">The case, <c>group/name</c>.</param>
/// <param name="Outcome">How it ended.</param>
/// <param name="Reason">What stands behind the <c>#</c>; empty when nothing does.</param>
/// <param name="Diagnostics">The comment lines since the result before.</param>
public sealed record KtapCase(string Name, KtapOutcome Outcome, string Reason, IReadOnlyList<string> Diagnostics);

/// <summary>
/// Reads the kernel's test protocol (Documentation/dev-tools/ktap.rst), flat, from any number of programs.
/// </summary>
public static partial class Ktap
{
    /// <summary>All result lines of some output; other lines are the diagnostics of the result that follows.</summary>
    public static IReadOnlyList<KtapCase> Parse(IEnumerable<string> output)
    {
        var cases = new List<KtapCase>();
        var diagnostics = new List<string>();
        foreach (string line in output)
        {
            if (Result().Match(line) is not { Success: true } match)
            {
                if (!Header().IsMatch(line))
                {
                    diagnostics.Add(line);
                }

                continue;
            }

            bool ok = match.Groups["not"].Length == 0;
            string reason = match.Groups["reason"].Value;
            bool skipped = ok && match.Groups["skip"].Success;
            cases.Add(new KtapCase(
                match.Groups["name"].Value.Trim(),
                skipped ? KtapOutcome.Skipped : ok ? KtapOutcome.Passed : KtapOutcome.Failed,
                reason.Trim(), [.. diagnostics]));
            diagnostics.Clear();
        }

        return cases;
    }

    [GeneratedRegex(@"^(?<not>not )?ok \d+ (- )?(?<name>[^#]+?)\s*(#\s*(?<skip>SKIP\b)?(?<reason>.*))?$")]
    private static partial Regex Result();

    [GeneratedRegex(@"^(KTAP version \d+|1\.\.\d+.*)$")]
    private static partial Regex Header();
}
