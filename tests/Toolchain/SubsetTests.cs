// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace Toolchain;

/// <summary>Every rule of the restricted subset, broken once: the message names the method, the file and the line, and
/// says what to write instead.</summary>
[TestFixture]
public sealed class SubsetTests
{
    private static readonly string Source = Repository.PathOf("tests", "Toolchain", "Violations", "Violations.cs");

    private Tool.Result result = null!;
    private string output = "";

    [OneTimeSetUp]
    public void RunOnce()
    {
        string configuration = Path.GetFileName(AppContext.BaseDirectory.TrimEnd('/'));
        string assembly = Repository.PathOf("build", "artifacts", "bin", "Violations", configuration, "Violations.dll");
        output = Path.Combine(Ilpatch.Folder("violations"), "out.dll");
        result = Ilpatch.Run("il", assembly, output);
    }

    [Test]
    public void BuildStopsWithoutOutput()
    {
        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(output, Does.Not.Exist);
    }

    [TestCase("Allocate", "allocates an object of class Thing", "Make it a struct")]
    [TestCase("AllocateArray", "allocates an array of Int32", "Use a span")]
    [TestCase("Box", "boxes Int32", "Keep the value type")]
    [TestCase("Unbox", "tests or casts", "Use generics over structs")]
    [TestCase("InterfaceCall", "calls IShape.Area through an object", "Take the struct itself")]
    [TestCase("VirtualCall", "calls Animal.Legs through an object", "Take the struct itself")]
    [TestCase("Throw", "throws an exception", "Return an error value")]
    [TestCase("TryFinally", "try, catch, finally", "Return an error value")]
    [TestCase("Delegate", "takes the address of a method", "static abstract")]
    [TestCase("FunctionPointer", "takes the address of a method", "static abstract")]
    [TestCase("Text", "uses a string", "UTF-8 literal")]
    [TestCase("FloatingPoint", "floating point", "Use an integer")]
    [TestCase("Cast", "tests or casts", "Use generics over structs")]
    [TestCase("Reflection", "uses reflection", "Use a generic parameter")]
    public void MethodIsRefused(string method, string what, string instead)
    {
        string pattern = $@"^tests/Toolchain/Violations/Violations\.cs\({LineOf(method)}\): error: "
            + $@"Violations\.Broken\.{method}: .*{Regex.Escape(what)}.*{Regex.Escape(instead)}";
        Assert.That(result.Errors, Does.Match(new Regex(pattern, RegexOptions.Multiline)));
    }

    [TestCase("StaticReference.s_thing", "a static field of the reference type Thing")]
    [TestCase("PerThread.s_count", "a thread static")]
    [TestCase("FloatField.s_ratio", "a floating-point field")]
    public void FieldIsRefused(string field, string what)
        => Assert.That(result.Errors, Does.Contain($"error: Violations.{field}: {what}"));

    [TestCase("Instance", "generic or not static", "Declare it 'static extern'")]
    [TestCase("Generic", "generic or not static", "outside of generic types")]
    [TestCase("Misnamed", "without a C function's name", "Write it as in C")]
    [TestCase("WithBody", "has a body", "Declare it 'static extern'")]
    [TestCase("Unbound", "not an import", "Name the C function")]
    public void ImportIsRefused(string method, string what, string instead)
    {
        string pattern = $@"^tests/Toolchain/Violations/Violations\.cs\(\d+\): error: "
            + $@"Violations\.Imports\.{method}: .*{Regex.Escape(what)}.*{Regex.Escape(instead)}";
        Assert.That(result.Errors, Does.Match(new Regex(pattern, RegexOptions.Multiline)));
    }

    private static int LineOf(string method)
        => Array.FindIndex(File.ReadAllLines(Source), line => line.EndsWith($"// line of {method}")) + 1;
}
