// SPDX-License-Identifier: GPL-2.0-only
using System.Diagnostics;
using System.Threading.Channels;

namespace SharpKvm.Selftests;

/// <summary>Runs the tests in worker processes and prints KTAP.</summary>
/// <remarks>A worker runs many tests, one after the other. When one hangs or dies, the worker is killed, the test is
/// reported, and a fresh worker goes on with the next. Tests that want it get a worker of their own.</remarks>
static class Runner
{
    static readonly TimeSpan KillGrace = TimeSpan.FromSeconds(10);

    public static int Start(Options options)
    {
        TestEnvironment.Device = options.Device;
        if (options.Worker)
            return Worker.Serve();
        if (options.RunOne is { } name)
            return RunHere(name);

        TestCase[] tests = [.. Registry.All.Where(options.Selects)];
        if (options.List)
        {
            foreach (TestCase test in tests)
                Console.WriteLine(test.Name);
            return 0;
        }
        Print("KTAP version 1");
        Print($"1..{tests.Length}");
        return RunAll(tests, options) ? 0 : 1;
    }

    static bool RunAll(TestCase[] tests, Options options)
    {
        bool good = true;
        WorkerProcess? worker = null;
        for (int i = 0; i < tests.Length; i++)
        {
            if (tests[i].Own)
            {
                worker?.Dispose();
                worker = null;
            }
            worker ??= new WorkerProcess(options.Device);
            string verdict = worker.Run(tests[i], TimeSpan.FromSeconds(options.TimeoutSeconds), KillGrace);
            bool passed = verdict.StartsWith(Verdict.Ok, StringComparison.Ordinal);
            bool skipped = verdict.StartsWith(Verdict.Skip, StringComparison.Ordinal);
            good &= passed || skipped;
            Print(passed ? $"ok {i + 1} {tests[i].Name}"
                : skipped ? $"ok {i + 1} {tests[i].Name} # SKIP {verdict[Verdict.Skip.Length..]}"
                : $"not ok {i + 1} {tests[i].Name} # {verdict}");
            if (tests[i].Own || worker.Dead)
            {
                worker.Dispose();
                worker = null;
            }
        }
        worker?.Dispose();
        return good;
    }

    static int RunHere(string name)
    {
        TestCase? test = Registry.All.Concat(Registry.Helpers).FirstOrDefault(test => test.Name == name);
        if (test == null)
        {
            Console.Error.WriteLine($"selftests: no test is called '{name}'");
            return 2;
        }
        string verdict = Worker.Judge(test);
        Print($"{verdict} {name}");
        return verdict == Verdict.Ok ? 0 : 1;
    }

    static void Print(string line)
    {
        Console.Out.WriteLine(line);
        Console.Out.Flush();
    }
}

/// <summary>The first word of a worker's answer; anything else is the reason of a failure.</summary>
static class Verdict
{
    public const string Ok = "ok", Skip = "skip: ";
}

/// <summary>A child that runs tests, seen from the parent.</summary>
sealed class WorkerProcess : IDisposable
{
    readonly System.Diagnostics.Process _process;
    readonly Channel<string?> _answers = Channel.CreateUnbounded<string?>();

    public WorkerProcess(string device)
    {
        _process = System.Diagnostics.Process.Start(new ProcessStartInfo(Environment.ProcessPath!,
            ["--worker", "--device", device])
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
        })!;
        new Thread(ReadAnswers) { IsBackground = true }.Start();
    }

    /// <summary>It has ended or was killed; a fresh one is needed.</summary>
    public bool Dead { get; private set; }

    public string Run(TestCase test, TimeSpan limit, TimeSpan killGrace)
    {
        try
        {
            _process.StandardInput.WriteLine(test.Name);
            _process.StandardInput.Flush();
        }
        catch (IOException)
        {
            // It died before; the reader reports that below.
        }
        ValueTask<string?> answer = _answers.Reader.ReadAsync();
        Task<string?> pending = answer.AsTask();
        if (pending.Wait(limit))
            return pending.Result ?? Died(killGrace);

        Dead = true;
        string where = KernelStacks();
        _process.Kill();
        return $"hung for {limit.TotalSeconds} s{where}" +
            (_process.WaitForExit(killGrace) ? "" : "; and its process cannot be killed");
    }

    public void Dispose()
    {
        Dead = true;
        try
        {
            _process.StandardInput.Close();
            if (!_process.WaitForExit(TimeSpan.FromSeconds(10)))
                _process.Kill();
        }
        catch (IOException)
        {
            // The pipe of a killed worker.
        }
        _process.Dispose();
    }

    void ReadAnswers()
    {
        string? line;
        do
        {
            line = _process.StandardOutput.ReadLine();
            _answers.Writer.TryWrite(line);
        }
        while (line != null);
    }

    string Died(TimeSpan grace)
    {
        Dead = true;
        return _process.WaitForExit(grace) ? $"the test's process died, exit code {_process.ExitCode}"
            : "the test's process closed its output";
    }

    /// <summary>Where its threads are inside the kernel: the first thing to know of a hang.</summary>
    string KernelStacks()
    {
        try
        {
            foreach (string task in Directory.GetDirectories($"/proc/{_process.Id}/task"))
            {
                string[] frames = File.ReadAllLines(Path.Combine(task, "stack"));
                if (frames.Any(frame => frame.Contains("kvm", StringComparison.OrdinalIgnoreCase)))
                    return "; in the kernel: " + string.Join(" < ",
                        frames.Take(8).Select(frame => frame.Split(' ')[^1]));
            }
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            // It ended meanwhile, or the kernel does not show stacks.
        }
        return "";
    }
}

/// <summary>The child's side: reads names of tests, answers with one line each.</summary>
static class Worker
{
    public static int Serve()
    {
        var byName = Registry.All.ToDictionary(test => test.Name);
        while (Console.ReadLine() is { } name)
        {
            Console.Out.WriteLine(Judge(byName[name]));
            Console.Out.Flush();
        }
        return 0;
    }

    public static string Judge(TestCase test)
    {
        try
        {
            test.Body();
            return Verdict.Ok;
        }
        catch (TestSkipped skipped)
        {
            return Verdict.Skip + skipped.Message;
        }
        catch (TestFailure failure)
        {
            return OneLine(failure.Message);
        }
        catch (Exception error)
        {
            return OneLine($"{error.GetType().Name}: {error.Message} {error.StackTrace}");
        }
    }

    static string OneLine(string text) =>
        string.Join(' ', text.Split((char[])['\n', '\r', ' ', '\t', '#'], StringSplitOptions.RemoveEmptyEntries));
}
