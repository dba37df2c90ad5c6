// SPDX-License-Identifier: GPL-2.0-only
using System.CommandLine;
using SharpKvm.Lab;

namespace SharpKvm.Tool;

/// <summary>The option <c>--lane</c> of commands that boot the throw-away machine.</summary>
internal static class LaneOption
{
    public static Option<string> Create() => new("--lane")
    {
        Description = "kind of machine: " + string.Join(", ", Lane.All.Select(lane => lane.Name)),
        DefaultValueFactory = _ => Lane.Default.Name,
    };
}
