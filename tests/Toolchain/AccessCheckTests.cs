// SPDX-License-Identifier: GPL-2.0-only
namespace Toolchain;

/// <summary>The sign tests before accesses: where they are needed, where they are left out, and that they disturb nothing.
/// In a process a bad pointer is a null one.</summary>
[TestFixture]
public sealed class AccessCheckTests
{
    // The compare's flags are needed after the access, and the access is on one path only.
    private const string BetweenCompareAndBranch = """
        cmp $5, %rsi
        je 1f
        mov (%rdi), %rax
        jb 2f
        add $1, %rax
        jmp 3f
        2: add $2, %rax
        jmp 3f
        1: mov $77, %eax
        3:
        """;

    [TestCase("0", "5", "77", Description = "no access, no trap")]
    [TestCase("0", "4", "trap")]
    [TestCase("&word", "4", "1002")]
    [TestCase("&word", "6", "1001")]
    public void FlagsAndPathsArePreserved(string pointer, string value, string expected)
        => Assert.That(Run(BetweenCompareAndBranch, pointer, value).Output, Is.EqualTo(expected));

    [TestCase("mov (%rdi), %rax\nadd 8(%rdi), %rax", 1, Description = "the same register")]
    [TestCase("mov %rdi, %rcx\nmov (%rcx), %rax\nadd (%rdi), %rax", 1, Description = "a copy tested, the original used")]
    [TestCase("lea 16(%rdi), %rcx\nmov (%rcx), %rax\nadd (%rdi), %rax", 1, Description = "a field's address")]
    [TestCase("mov (%rdi), %rax\nmov (%rax), %rax", 2, Description = "a loaded pointer is another pointer")]
    [TestCase("test %rsi, %rsi\nje 1f\nmov (%rdi), %rax\n1: mov (%rdi), %rax", 2, Description = "known on one path only")]
    [TestCase("mov (%rdi), %rax\n1: add (%rdi), %rax\ndec %rsi\njne 1b", 1, Description = "known around a loop")]
    [TestCase("mov (%rdi), %rax\nmov 8(%rsp), %rdi\nmov (%rdi), %rax", 2, Description = "the register was overwritten")]
    [TestCase("lea value(%rip), %rcx\nmov (%rcx), %rax", 0, Description = "the module's own data")]
    [TestCase("mov -8(%rbp), %rax", 0, Description = "the method's own frame")]
    [TestCase("cmp %dil, (%rdi)\nmov (%rdi), %rax", 1, Description = "the compiler's null check is dropped")]
    public void TestsArePlantedWhereNeeded(string body, int tests)
        => Assert.That(Count(Run(body, "&word", "1").Source, "CS_JUMP_IF_BAD"), Is.EqualTo(tests));

    [Test]
    public void EitherRegisterMayBeThePointer()
    {
        const string Body = "mov (%rdi,%rsi), %rax";
        Assert.That(Run(Body, "&word", "0").Output, Is.EqualTo("1000"));
        Assert.That(Run(Body, "0", "(long)&word").Output, Is.EqualTo("1000"));
        Assert.That(Run(Body, "0", "0").Output, Is.EqualTo("trap"));
    }

    private static int Count(string text, string word) => text.Split(word).Length - 1;

    private static (string Source, string Output) Run(string body, string pointer, string value)
    {
        string folder = Ilpatch.Folder("checks");
        Tool.Result result = AssembledObject.Pass(
            folder, AssembledObject.Method("method", body), ".section .rodata\n.globl value\nvalue: .quad 1");
        Assert.That(result.Succeeded, Is.True, result.Errors);
        string native = Repository.PathOf("src", "CoreLib", "Native");
        File.WriteAllText(Path.Combine(folder, "main.c"), $$"""
            #include <stdio.h>
            #include "cskernel.h"
            void method(void);
            static long word = 1000;
            int main(void)
            {
                struct cs_result result = cs_enter(method, (long)({{pointer}}), {{value}}, 0, 0);
                if (result.site)
                    printf("trap");
                else
                    printf("%ld", result.value);
                return !&word;
            }
            """);
        string program = Path.Combine(folder, "test");
        string[] sources =
            [Path.Combine(folder, "main.c"), Path.Combine(folder, "core.S"), Path.Combine(native, "door.S")];
        Tool.Require("cc", ["-O1", "-no-pie", $"-I{native}", "-o", program, .. sources]);
        return (File.ReadAllText(Path.Combine(folder, "core.S")), Tool.Run(program, []).Output);
    }
}
