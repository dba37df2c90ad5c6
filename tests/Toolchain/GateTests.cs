// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>The gate sees what a broken pass would let through.</summary>
[TestFixture]
public sealed class GateTests
{
    [TestCase("movups %xmm0, (%rax)", "SIMD or x87")]
    [TestCase("fninit", "SIMD or x87")]
    [TestCase("jmp *%rax", "naked indirect branch")]
    [TestCase("call *%rax", "naked indirect branch")]
    [TestCase("jmp __x86_return_thunk\nret", "naked ret")]
    [TestCase("call RhpNewFast", "managed runtime's RhpNewFast")]
    [TestCase("call cs_x86_left_over", "cs_x86_left_over: belongs to a runtime that the module does not have")]
    [TestCase("call _printk", "_printk: is imported by the core, but the shim does not define it")]
    [TestCase("lea missing(%rip), %rax", "missing: is imported by the core, but the shim does not define it")]
    public void BrokenModuleIsRefused(string code, string message)
    {
        Tool.Result result = Check(code);
        Assert.That(result.Errors, Does.Contain(message));
        Assert.That(result.ExitCode, Is.EqualTo(1));
    }

    [Test]
    public void SoundModulePasses()
    {
        Tool.Result result = Check("mov (%rdi), %rax\ncall shim_function\njmp __x86_return_thunk");
        Assert.That(result.Succeeded, Is.True, result.Errors);
    }

    [Test]
    public void TheShimMayImportWhatItLikes()
    {
        Tool.Result result = Check("jmp __x86_return_thunk", shim: "call _printk\njmp __x86_return_thunk");
        Assert.That(result.Succeeded, Is.True, result.Errors);
    }

    [Test]
    public void ModuleWithoutUnwindDataIsRefused()
        => Assert.That(Check("jmp __x86_return_thunk", unwind: "").Errors, Does.Contain("no ORC unwind data"));

    /// <summary>A module of a core with one method and a shim with one function.</summary>
    private static Tool.Result Check(
        string code, string shim = "jmp __x86_return_thunk", string unwind = ".section .orc_unwind_ip,\"a\"\n.long 0")
    {
        string folder = Ilpatch.Folder("gate");
        string core = Assemble(folder, "core", AssembledObject.Bare("method", code) + unwind);
        string other = Assemble(folder, "shim", AssembledObject.Bare("shim_function", shim));
        string module = Path.Combine(folder, "module.ko");
        Tool.Require("ld", ["-r", "-o", module, core, other]);
        return Ilpatch.Run("check", module, "--core", core);
    }

    private static string Assemble(string folder, string name, string text)
    {
        string source = Path.Combine(folder, $"{name}.s"), output = Path.Combine(folder, $"{name}.o");
        File.WriteAllText(source, $".text\n{text}\n");
        Tool.Require("as", ["-o", output, source]);
        return output;
    }
}
