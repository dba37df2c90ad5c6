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
    [TestCase("call not_on_the_list", "not_on_the_list: is imported but not on the list")]
    public void BrokenModuleIsRefused(string code, string message)
    {
        Tool.Result result = Check(code);
        Assert.That(result.Errors, Does.Contain(message));
        Assert.That(result.ExitCode, Is.EqualTo(1));
    }

    [Test]
    public void SoundModulePasses()
    {
        Tool.Result result = Check("mov (%rdi), %rax\ncall allowed\njmp __x86_return_thunk");
        Assert.That(result.Succeeded, Is.True, result.Errors);
    }

    [Test]
    public void ModuleWithoutUnwindDataIsRefused()
        => Assert.That(Check("jmp __x86_return_thunk", unwind: "").Errors, Does.Contain("no ORC unwind data"));

    private static Tool.Result Check(string code, string unwind = ".section .orc_unwind_ip,\"a\"\n.long 0")
    {
        string folder = Ilpatch.Folder("gate");
        string source = Path.Combine(folder, "module.s");
        File.WriteAllText(source, $".text\n{AssembledObject.Bare("method", code)}{unwind}\n");
        Tool.Require("as", ["-o", Path.Combine(folder, "module.ko"), source]);
        File.WriteAllText(Path.Combine(folder, "imports"), "# what the shim may use\nallowed\n__x86_return_thunk\n");
        return Ilpatch.Run("check", Path.Combine(folder, "module.ko"), "--imports", Path.Combine(folder, "imports"));
    }
}
