// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace SharpKvm.Lab;

/// <summary>Something that a kernel complained about.</summary>
/// <param name="Title">The line that says what it is.</param>
/// <param name="Lines">All lines that belong to it, with the title.</param>
public sealed record KernelReport(string Title, IReadOnlyList<string> Lines);

/// <summary>Finds in a kernel log whatever a healthy kernel does not say.</summary>
public static partial class KernelLog
{
    /// <summary>A report that goes on without its end mark is cut here.</summary>
    private const int LongestReport = 400;

    /// <summary>The reports in a log, those left out that an expected pattern matches in any of their lines.</summary>
    public static IReadOnlyList<KernelReport> Scan(IEnumerable<string> log, params IEnumerable<string> expected)
    {
        Regex[] known = [.. expected.Select(pattern => new Regex(pattern, RegexOptions.CultureInvariant))];
        return [.. Split([.. log.Select(WithoutTime)])
            .Where(report => !report.Lines.Any(line => known.Any(pattern => pattern.IsMatch(line))))];
    }

    /// <summary>A log line without its time stamp, level or task prefix.</summary>
    public static string WithoutTime(string line) => Prefix().Replace(line, "");

    private static IEnumerable<KernelReport> Split(string[] lines)
    {
        for (int i = 0; i < lines.Length; i++)
        {
            if (!Bad().IsMatch(lines[i]))
            {
                continue;
            }

            int end = EndOfReport(lines, i);
            string[] report = lines[i..end];
            // "cut here" opens the report, the line after it says what it is about.
            string title = report.FirstOrDefault(line => !line.Contains("[ cut here ]"), report[0]);
            yield return new KernelReport(title, report);
            i = end - 1;
        }
    }

    private static int EndOfReport(string[] lines, int start)
    {
        int limit = Math.Min(lines.Length, start + LongestReport);
        string first = lines[start];
        if (Leaks().IsMatch(first))
        {
            int after = Array.FindIndex(lines, start, limit - start, line => !Leaks().IsMatch(line));
            return after < 0 ? limit : after;
        }

        Regex? last = Ruled().IsMatch(first) ? Rule() : Traced().IsMatch(first) ? EndOfTrace()
            : Opening().IsMatch(first) ? EndMark() : null;
        int end = last is null ? start : Array.FindIndex(lines, start, limit - start, last.IsMatch);
        return end < 0 ? limit : end + 1;
    }

    [GeneratedRegex(@"^(<\d+>)?\[\s*\d+\.\d+\](\[[^\]]*\])?\s?")]
    private static partial Regex Prefix();

    /// <summary>What stands between two rules, the first of which is said before it.</summary>
    [GeneratedRegex("^(BUG: KASAN|UBSAN): ")]
    private static partial Regex Ruled();

    [GeneratedRegex("^={20,}$")]
    private static partial Regex Rule();

    /// <summary>What is over when its call trace is.</summary>
    [GeneratedRegex("^BUG: (sleeping|scheduling|using|Bad|MAX_)|^INFO: trying to register|"
        + "vmalloc error: |alloc_cpumask_var: failed|"
        + "^WARNING: (possible|suspicious|inconsistent|bad|held|lock|nested|HARDIRQ|SOFTIRQ|.* still has locks)")]
    private static partial Regex Traced();

    [GeneratedRegex("^ *</TASK>$")]
    private static partial Regex EndOfTrace();

    /// <summary>What the leak checker says: each line begins so, the leaks' own by the lab's doing.</summary>
    [GeneratedRegex("^kmemleak: ")]
    private static partial Regex Leaks();

    [GeneratedRegex(@"---\[ end ")]
    private static partial Regex EndMark();

    /// <summary>What opens a report of many lines, up to its "end trace" mark.</summary>
    [GeneratedRegex(@"\[ cut here \]|^BUG: |^Oops|^general protection fault|^kernel BUG at|^double fault|^int3:|"
        + @"^traps: PANIC|^invalid opcode:|^divide error:|^stack segment:")]
    private static partial Regex Opening();

    [GeneratedRegex(
        @"\[ cut here \]|\bBUG\b|\bOops\b|kernel BUG at|^WARNING: |Call Trace|general protection fault|double fault|"
        + @"^(int3|invalid opcode|divide error|stack segment): |unable to handle|scheduling while atomic|"
        + @"sleeping function called|possible (recursive|circular) locking|possible deadlock|suspicious RCU|"
        + @"inconsistent lock state|held lock freed|bad unlock balance|lock held when returning|still has locks held|"
        + @"register non-static key|lockdep is turned off|turning off the locking|leak detector disabled|"
        + @"INFO: rcu|rcu: INFO|rcu_\w+ (self-)?detected|detected stall|soft lockup|hard LOCKUP|hung_task|"
        + @"blocked for more than|KASAN|KCSAN|KMSAN|UBSAN|kmemleak: (\d+ new|unreferenced)|ODEBUG|"
        + @"refcount_t: |Bad page (state|map)|Bad rss-counter|list_(add|del) corruption|stack-protector|"
        + @"vmalloc error: |alloc_cpumask_var: failed|"
        + @"NMI watchdog: Watchdog detected|irq \d+: nobody cared|unchecked MSR access|page allocation failure|"
        + @"Out of memory|Kernel panic|corrupted|Tainted: [A-Z ]*[BDLW]|slab .*(error|Objects remaining)|"
        + @"Objects remaining|sharpkvm: trap:|: trap: ",
        RegexOptions.CultureInvariant)]
    private static partial Regex Bad();
}
