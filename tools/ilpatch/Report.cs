// SPDX-License-Identifier: GPL-2.0-only
namespace IlPatch;

/// <summary>A tab-separated table for people and scripts.</summary>
internal static class Report
{
    public static void Write(string? path, string header, IEnumerable<string> rows)
    {
        if (path is not null)
        {
            File.WriteAllLines(path, rows.Prepend(header));
        }
    }
}
