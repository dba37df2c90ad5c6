// SPDX-License-Identifier: GPL-2.0-only
using System.IO.Enumeration;

namespace SharpKvm.Selftests;

/// <summary>The command line.</summary>
sealed record Options
{
    public string Device { get; private set; } = Kvm.DefaultDevice;
    public string Filter { get; private set; } = "*";
    public int TimeoutSeconds { get; private set; } = 60;
    public bool List { get; private set; }

    /// <summary>Set in the child processes that the runner starts: run what standard input names.</summary>
    public bool Worker { get; private set; }

    /// <summary>Run one test in this process, for a debugger or strace.</summary>
    public string? RunOne { get; private set; }

    public bool Selects(TestCase test) => FileSystemName.MatchesSimpleExpression(Filter, test.Name, ignoreCase: false);

    /// <summary>Null, with the usage printed, when the command line is not understood or asks for help.</summary>
    public static Options? Parse(string[] args)
    {
        var options = new Options();
        for (int i = 0; i < args.Length; i++)
        {
            string? value = i + 1 < args.Length ? args[i + 1] : null;
            switch (args[i])
            {
                case "--list":
                    options.List = true;
                    continue;
                case "--worker":
                    options.Worker = true;
                    continue;
                case "--device" when value != null:
                    options.Device = value;
                    break;
                case "--filter" when value != null:
                    options.Filter = value;
                    break;
                case "--run-one" when value != null:
                    options.RunOne = value;
                    break;
                case "--timeout" when int.TryParse(value, out int seconds) && seconds > 0:
                    options.TimeoutSeconds = seconds;
                    break;
                default:
                    Console.Error.WriteLine(
                        """
                        usage: selftests [--list] [--device PATH] [--filter GLOB] [--timeout SECONDS] [--run-one NAME]
                          --list       print the names of the tests
                          --device     the KVM device to judge (default /dev/sharpkvm)
                          --filter     only tests whose group/name matches, as in 'mmio/*'
                          --timeout    the longest that one test may take (default 60)
                          --run-one    one test in this process, without a watchdog
                        Prints KTAP version 1. Exit code: 0 all passed, 1 something failed, 2 bad command line.
                        """);
                    return null;
            }
            i++;
        }
        return options;
    }
}
