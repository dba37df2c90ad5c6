// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>What the object pass does not understand stops the build: exit code 1, a message, no output.</summary>
[TestFixture]
public sealed class ObjectRefusalTests
{
    [TestCase("addps %xmm1, %xmm0", "SIMD form")]
    [TestCase("movups (%rdi), %xmm0\npcmpeqb %xmm1, %xmm0\npmovmskb %xmm0, %eax", "SIMD form")]
    [TestCase("cvtsi2sd %rdi, %xmm0", "SIMD form")]
    [TestCase("fld1", "SIMD form")]
    [TestCase("jmp *%rax", "indirect branch")]
    [TestCase("call *%rax", "indirect call")]
    [TestCase("mov %fs:0, %rax", "thread-local")]
    [TestCase("mov 0x1000, %eax", "fixed address")]
    [TestCase("mov %rdi, %rbp", "rbp as a general register")]
    [TestCase("call RhpNewFast", "allocates an object")]
    [TestCase("call RhpThrowEx", "throws an exception")]
    [TestCase("call RhpGetThreadStatic", "thread static")]
    [TestCase("call RhSomethingNew", "needs the runtime's RhSomethingNew")]
    [TestCase("call JIT_StackProbe", "stack frame of a page")]
    [TestCase("lea _ZTV_Thing(%rip), %rax", "run-time type")]
    [TestCase("call cs_x86_no_such", "unknown intrinsic")]
    [TestCase("movabs $outside, %rax", "relocation")]
    [TestCase("lea .Linside(%rip), %rax\n.Linside: nop", "reads its own code")]
    public void BodyIsRefused(string body, string message)
    {
        const string Data = ".section .rodata\n.globl _ZTV_Thing\n_ZTV_Thing: .quad 0";
        Refuse(AssembledObject.Method("broken", body), message, Data);
    }

    [Test]
    public void LargeFrameIsRefused()
        => Refuse(
            AssembledObject.Bare("broken", FrameOf(4096, framePointer: 4096)),
            "needs a stack frame of 4104 bytes; 2048 are allowed");

    [Test]
    public void UnknownPrologueIsRefused()
        => Refuse(
            AssembledObject.Bare("broken", FrameOf(32, framePointer: 16)),
            "prologue");

    [Test]
    public void StaticConstructorIsRefused()
        => Refuse(
            AssembledObject.Method("broken", "call Test_Thing____cctor")
                + ".hidden Test_Thing____cctor\n" + AssembledObject.Bare("Thing____cctor", "ret")
                    .Replace(".globl Thing____cctor,", ".globl", StringComparison.Ordinal),
            "static constructor");

    [Test]
    public void ObjectWithoutExportsIsRefused() => Refuse("nop\n", "exports nothing");

    [Test]
    public void FileThatIsNoObjectIsRefused()
    {
        string folder = Ilpatch.Folder("no-object");
        File.WriteAllText(Path.Combine(folder, "input.o"), "text");
        Tool.Result result = Ilpatch.Run(
            "obj", Path.Combine(folder, "input.o"), typeof(ObjectRefusalTests).Assembly.Location,
            Path.Combine(folder, "core.S"));
        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(result.Errors, Does.Contain("not a relocatable x86-64 ELF file"));
    }

    private static string FrameOf(int size, int framePointer)
        => $"push %rbp\nsub ${size}, %rsp\nlea {framePointer}(%rsp), %rbp\nadd ${size}, %rsp\npop %rbp\nret";

    private static void Refuse(string methods, string message, string data = "")
    {
        string folder = Ilpatch.Folder("refusal");
        Tool.Result result = AssembledObject.Pass(folder, methods, data);
        Assert.That(result.Errors, Does.Contain(message));
        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(Path.Combine(folder, "core.S"), Does.Not.Exist);
    }
}
