// SPDX-License-Identifier: GPL-2.0-only
using System.Security.Cryptography;
using IlPatch.Obj;

namespace Toolchain;

/// <summary>The finished modules: what objtool, the unwinder, kallsyms and addr2line see of the C# in them.</summary>
[TestFixture]
public sealed class ModuleTests
{
    private static readonly string[] Methods =
        ["hello_read", "hello_write", "Hello.Greeter.Greet", "Hello.Greeter.ReadThrough", "Hello.Greeter.Warn"];

    [TestCase("samples/hello", Kernels.Installed)]
    [TestCase("samples/hello", Kernels.Backports)]
    [TestCase("tests/Toolchain/Batch", Kernels.Installed)]
    [TestCase("tests/Toolchain/Batch", Kernels.Backports)]
    public void ObjtoolIsSilent(string folder, string kernel)
    {
        string stage = Build(folder, kernel);
        Assert.That(File.ReadAllText(Path.Combine(stage, "kbuild.log")), Does.Not.Contain("objtool"));
    }

    [TestCase(Kernels.Installed)]
    [TestCase(Kernels.Backports)]
    public void EveryFunctionHasUnwindDataAndSize(string kernel)
    {
        string stage = Build("samples/hello", kernel);
        ElfObject module = ElfObject.Read(Path.Combine(stage, "hello.ko"));
        HashSet<ulong> unwound = [.. module.Find(".orc_unwind_ip")!.Relocations
            .Where(r => r.Symbol.Section?.Name == ".text").Select(r => r.Symbol.Value + (ulong)r.Addend)];
        foreach (string method in Methods)
        {
            ElfSymbol symbol = module.Symbols.Single(s => s.Name == method);
            Assert.That(symbol.IsFunction, Is.True, method);
            Assert.That(symbol.Size, Is.GreaterThan(0), method);
            Assert.That(unwound, Does.Contain(symbol.Value), $"no ORC entry at the start of {method}");
        }
    }

    [Test]
    public void AddressesLeadToLines()
    {
        string module = Path.Combine(Build("samples/hello", Kernels.Installed), "hello.ko");
        ElfSymbol method = ElfObject.Read(module).Symbols.Single(s => s.Name == "Hello.Greeter.ReadThrough");
        string place = Tool.Require("addr2line", ["-j", ".text", "-e", module, $"0x{method.Value + 8:x}"]);
        string[] lines = File.ReadAllLines(Repository.PathOf("samples", "hello", "Greeter.cs"));
        int line = Array.FindIndex(lines, text => text.Contains("ReadThrough(int* pointer)")) + 1;
        Assert.That(place.Trim(), Is.EqualTo($"samples/hello/Greeter.cs:{line}"));
    }

    [Test]
    public void SameSourcesGiveSameBytes()
    {
        string first = Hash(Build("samples/hello", Kernels.Installed));
        string build = Repository.PathOf("build", "modules", "hello");
        Directory.Delete(build, recursive: true);
        File.Delete(Repository.PathOf("build", "artifacts", "bin", "Hello", "release", "Hello.dll"));
        Assert.That(Hash(Build("samples/hello", Kernels.Installed)), Is.EqualTo(first));
    }

    private static string Hash(string stage)
        => Convert.ToHexString(SHA256.HashData(File.ReadAllBytes(Path.Combine(stage, "hello.ko"))));

    /// <summary>Builds, and returns the folder where Kbuild worked.</summary>
    private static string Build(string folder, string kernel)
    {
        string[] arguments = Kernels.Arguments(kernel);
        Ilpatch.RequireMake(folder, ["module", .. arguments]);
        string stage = Ilpatch.RequireMake(folder, ["stage", .. arguments]).Trim();
        return stage;
    }
}
