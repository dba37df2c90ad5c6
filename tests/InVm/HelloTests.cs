// SPDX-License-Identifier: GPL-2.0-only
using System.Globalization;
using System.Text.RegularExpressions;

namespace SharpKvm.InVm;

/// <summary>
/// The sample module, a small C# character device: it is read, made to trap in every way it knows, and made to warn,
/// in one boot of L1.
/// </summary>
[TestFixture]
public sealed partial class HelloTests
{
    private const string Greeting = "Hello from C# in the kernel";
    private const string WarningText = "hello: asked to warn";

    private static readonly string Module = L1Kernel.Default.ModuleBuilt("hello");
    private static readonly string Source = Repository.PathOf("samples", "hello", "Greeter.cs");

    private L1Result run = null!;

    [OneTimeSetUp]
    public void Boot()
    {
        Assert.That(Module, Does.Exist, "the sample is not built: make samples");
        run = L1Machine.Run(new L1Options
        {
            Name = "hello",
            ExpectedReports = ["^hello: trap: ", WarningText],
            Script = $"""
                insmod '{Module}' || exit 125
                echo ::greeting; cat /dev/hello
                for fault in null index divide warn; do
                    echo "::$fault"
                    echo $fault >/dev/hello
                    cat /dev/hello 2>&1
                    echo "status $?"
                done
                echo ::again; cat /dev/hello
                echo ::unload; check_leaks; rmmod hello && ! grep -q ^hello /proc/modules && echo gone
                """,
        });
    }

    [Test]
    public void RunEndsWellAndTheRestOfTheLogIsClean() => Assert.That(run.Succeeded, Is.True, run.Describe());

    [TestCase("greeting")]
    [TestCase("again", Description = "after three traps and a warning")]
    public void ReadReturnsTheGreeting(string section) =>
        Assert.That(Section(section), Is.EqualTo((string[])[Greeting]));

    [Test]
    public void ModuleUnloads() => Assert.That(Section("unload"), Is.EqualTo((string[])["gone"]));

    [TestCase("null", "null or wild address", "Hello.Greeter.ReadThrough", "=> *pointer;")]
    [TestCase("index", "index out of range", "Hello.Greeter.Read", "Greeting[size]")]
    [TestCase("divide", "divide error", "Hello.Greeter.Read", "/ (size - size)")]
    public void TrapReturnsAnErrorAndNamesItsPlace(string fault, string kind, string method, string code)
    {
        Assert.That(Section(fault), Has.Some.Contains("Input/output error"));
        Assert.That(Section(fault), Has.Some.EqualTo("status 1"));
        string place = $"hello: trap: {kind} in {method} (Greeter.cs:{LineOf(code)})";
        Assert.That(run.KernelLog.Select(KernelLog.WithoutTime).Where(line => line.Contains("trap:")),
            Has.Exactly(1).EqualTo(place));
    }

    [Test]
    public void WarningShowsReliableFramesOfCSharp()
    {
        string[] frames = [.. Trace().Where(frame => !frame.StartsWith('?'))];
        int first = Array.FindIndex(frames, frame => frame.StartsWith("Hello.Greeter.Warn+"));
        Assert.That(first, Is.GreaterThanOrEqualTo(0), string.Join('\n', Trace()));
        Assert.That(frames[first..(first + 4)].Select(frame => frame.Split('+')[0]),
            Is.EqualTo((string[])["Hello.Greeter.Warn", "hello_read", "cs_enter", "hello_fop_read"]));
    }

    [TestCase("Hello.Greeter.Warn", "WarnFromC();")]
    [TestCase("hello_read", "Warn(),")]
    public void SourceLineOfFrameIsFound(string symbol, string code)
    {
        string frame = Trace().First(line => line.StartsWith($"{symbol}+", StringComparison.Ordinal));
        long offset = Convert.ToInt64(Offset().Match(frame).Groups[1].Value, 16);
        string entry = Tool.Require("nm", [Module]).Split('\n').First(line => line.EndsWith($" {symbol}"));
        long start = long.Parse(entry.Split(' ')[0], NumberStyles.HexNumber);
        // The frame's address is where the call returns to: the call itself lies just before.
        string place = Tool.Require("addr2line", ["-j", ".text", "-e", Module, $"0x{start + offset - 1:x}"]);
        Assert.That(place, Does.Contain($"Greeter.cs:{LineOf(code)}"));
    }

    private IReadOnlyList<string> Section(string name) => run.Section(name) ?? [];

    /// <summary>The warning's call trace, one "symbol+offset/size" per line, unreliable ones behind a '?'.</summary>
    private IEnumerable<string> Trace()
    {
        KernelReport? warning = KernelLog.Scan(run.KernelLog)
            .FirstOrDefault(report => report.Title.Contains(WarningText));
        Assert.That(warning, Is.Not.Null, run.Describe());
        return warning!.Lines.SkipWhile(line => !line.Contains("Call Trace:")).Skip(1)
            .TakeWhile(line => !line.Contains("</TASK>")).Select(line => line.Trim());
    }

    private static int LineOf(string code) =>
        Array.FindIndex(File.ReadAllLines(Source), line => line.Contains(code, StringComparison.Ordinal)) + 1;

    [GeneratedRegex(@"\+0x([0-9a-f]+)/")]
    private static partial Regex Offset();
}
