// SPDX-License-Identifier: GPL-2.0-only
using System.Text.RegularExpressions;

namespace Toolchain;

/// <summary>Struct copies and clears through xmm registers, rewritten: the same effect, no xmm register left.</summary>
[TestFixture]
public sealed class SimdTests
{
    // Each function copies or clears 32 bytes from rsi to rdi; the C side compares.
    private const string CopyAdjacent =
        "movups (%rsi), %xmm0\nmovups %xmm0, (%rdi)\nmovups 16(%rsi), %xmm0\nmovups %xmm0, 16(%rdi)";

    private const string CopyBatched =
        "movups (%rsi), %xmm0\nmovdqu 16(%rsi), %xmm1\nmovups %xmm0, (%rdi)\nmovdqu %xmm1, 16(%rdi)";

    private const string CopyAcrossBranch = """
        movups (%rsi), %xmm0
        movups 16(%rsi), %xmm1
        test %edx, %edx
        je 1f
        nop
        1: movups %xmm0, (%rdi)
        movaps %xmm1, %xmm2
        movups %xmm2, 16(%rdi)
        """;

    private const string CopyAcrossCall = """
        push %rbx
        push %r15
        mov %rdi, %rbx
        mov %rsi, %r15
        movups (%rsi), %xmm8
        movups %xmm8, (%rdi)
        call clobber
        movups 16(%r15), %xmm8
        movups %xmm8, 16(%rbx)
        pop %r15
        pop %rbx
        """;

    private const string CopyUnderPressure = """
        push %rbx
        mov %edx, %ebx
        mov $1, %eax
        mov $2, %ecx
        mov $3, %r8d
        mov $4, %r9d
        mov $5, %r10d
        mov $6, %r11d
        movups (%rsi), %xmm0
        movups %xmm0, (%rdi)
        movups 16(%rsi), %xmm0
        movups %xmm0, 16(%rdi)
        add %ecx, %eax
        add %r8d, %eax
        add %r9d, %eax
        add %r10d, %eax
        add %r11d, %eax
        add %edx, %eax
        pop %rbx
        """;

    private const string CopyHalves =
        "movq (%rsi), %xmm0\nmovq %xmm0, (%rdi)\nmovq 8(%rsi), %xmm1\nmovq %xmm1, %rax\nmov %rax, 8(%rdi)\n"
        + "movsd 16(%rsi), %xmm2\nmovsd %xmm2, 16(%rdi)\nmov 24(%rsi), %rax\nmovq %rax, %xmm3\nmovq %xmm3, 24(%rdi)";

    private const string Clear = "xorps %xmm0, %xmm0\nmovups %xmm0, (%rdi)\nmovups %xmm0, 16(%rdi)";

    private const string ClearInLoop =
        "pxor %xmm9, %xmm9\nmov $-32, %rax\n1: movdqu %xmm9, 32(%rdi,%rax)\nadd $16, %rax\njne 1b";

    private const string ClearOnOnePath = """
        xorps %xmm0, %xmm0
        test %rsi, %rsi
        jne 1f
        movups (%rsi), %xmm0
        1: movups %xmm0, (%rdi)
        movups %xmm0, 16(%rdi)
        """;

    // A method without rbp, whose locals are cleared by a loop that counts up to their end: only rbx's survival and the
    // copy are seen from outside.
    private const string CopyInFramelessMethod = """
        push %rbx
        sub $0x60, %rsp
        mov %rdi, %rbx
        xorps %xmm8, %xmm8
        mov $-0x60, %rax
        1: movups %xmm8, 0x70(%rsp,%rax)
        add $0x10, %rax
        cmp $-0x10, %rax
        jne 1b
        movups (%rsi), %xmm0
        movups %xmm0, 0x10(%rsp)
        movups 16(%rsi), %xmm0
        movups %xmm0, 0x20(%rsp)
        movups 0x10(%rsp), %xmm0
        movups %xmm0, (%rbx)
        movups 0x20(%rsp), %xmm0
        movups %xmm0, 16(%rbx)
        add $0x60, %rsp
        pop %rbx
        ret
        """;

    // The same kind of method, with values that live across a branch, beside locals that must keep theirs.
    private const string CopyAcrossBranchInFramelessMethod = """
        push %rbx
        sub $0x20, %rsp
        mov %rdi, %rbx
        mov %rdx, 0x10(%rsp)
        movups (%rsi), %xmm0
        movups 16(%rsi), %xmm1
        test %edx, %edx
        je 1f
        mov %rdx, 0x8(%rsp)
        1: mov %rdx, 0x18(%rsp)
        movups %xmm0, (%rdi)
        movups %xmm1, 16(%rdi)
        mov 0x10(%rsp), %rax
        cmp 0x18(%rsp), %rax
        jne 2f
        add $0x20, %rsp
        pop %rbx
        ret
        2: movq $-1, (%rbx)
        add $0x20, %rsp
        pop %rbx
        ret
        """;

    [TestCase(CopyAdjacent, true)]
    [TestCase(CopyBatched, true)]
    [TestCase(CopyAcrossBranch, true)]
    [TestCase(CopyAcrossCall, true)]
    [TestCase(CopyUnderPressure, true)]
    [TestCase(CopyHalves, true)]
    [TestCase(Clear, false)]
    [TestCase(ClearInLoop, false)]
    [TestCase(ClearOnOnePath, false)]
    public void SameEffectWithoutSimd(string body, bool isCopy)
        => Check(AssembledObject.Method("rewritten", body), isCopy);

    [TestCase(CopyInFramelessMethod)]
    [TestCase(CopyAcrossBranchInFramelessMethod)]
    public void LocalsOfFramelessMethodStayInTheirFrame(string code)
        => Check(AssembledObject.Bare("rewritten", code), isCopy: true);

    private static void Check(string method, bool isCopy)
    {
        string folder = Ilpatch.Folder("simd");
        Tool.Result result = AssembledObject.Pass(folder, method);
        Assert.That(result.Succeeded, Is.True, result.Errors);
        Assert.That(File.ReadAllText(Path.Combine(folder, "core.S")), Does.Not.Match(new Regex(@"%[xyz]?mm\d")));
        File.WriteAllText(Path.Combine(folder, "main.c"), $$"""
            #include <stdio.h>
            #include <string.h>
            void rewritten(void *to, const void *from, int flag);
            void clobber(void) { __asm__("" ::: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"); }
            int main(void)
            {
                for (int flag = 0; flag < 2; flag++) {
                    unsigned char to[64], from[32], wanted[64];
                    memset(to, 0xee, 64);
                    memset(wanted, 0xee, 64);
                    for (int i = 0; i < 32; i++)
                        from[i] = i * 7 + flag;
                    if ({{(isCopy ? 1 : 0)}})
                        memcpy(wanted + 16, from, 32);
                    else
                        memset(wanted + 16, 0, 32);
                    register long kept __asm__("rbx") = 0x1234 + flag;
                    __asm__ volatile("" : "+r"(kept));
                    rewritten(to + 16, from, flag);
                    __asm__ volatile("" : "+r"(kept));
                    if (kept != 0x1234 + flag)
                        return 2;
                    if (memcmp(to, wanted, 64))
                        return 1;
                }
                puts("equal");
                return 0;
            }
            """);
        string native = Repository.PathOf("src", "CoreLib", "Native");
        string program = Path.Combine(folder, "test");
        string[] sources =
            [Path.Combine(folder, "main.c"), Path.Combine(folder, "core.S"), Path.Combine(native, "door.S")];
        Tool.Require("cc", ["-O1", "-no-pie", $"-I{native}", "-o", program, .. sources]);
        Assert.That(Tool.Run(program, []).Output.Trim(), Is.EqualTo("equal"));
    }
}
