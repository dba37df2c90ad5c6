/* SPDX-License-Identifier: GPL-2.0-only */
/* The world switch of AMD SVM (APM vol. 2, 15.5). */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>

#include "compat.h"
#include "shim.h"

#define GPR(n) (8 * (n))

	.section .noinstr.text, "ax"

/*
 * void sk_svm_vmrun(struct sk_vcpu_shared *shared, u64 host_vmcb)
 *
 * Interrupts are off. VMLOAD/VMSAVE carry FS, GS, TR, LDTR and the SYSCALL and SYSENTER MSRs both ways; RAX, RSP,
 * RIP and RFLAGS are in the VMCB. SPEC_CTRL is switched here, before any RET or indirect branch of the host.
 */
SYM_FUNC_START(sk_svm_vmrun)
	.irp register, rbp, r15, r14, r13, r12, rbx, rsi, rdi
	push	%\register
	.endr

	clgi
	ALTERNATIVE "jmp .Lspec_loaded", "", X86_FEATURE_MSR_SPEC_CTRL
	ALTERNATIVE "", "jmp .Lspec_loaded", X86_FEATURE_V_SPEC_CTRL
	mov	SK_SHARED_SPEC_CTRL(%rdi), %eax
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	je	.Lspec_loaded
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	xor	%edx, %edx
	wrmsr
.Lspec_loaded:
	mov	SK_SHARED_CONTROL_BLOCK(%rdi), %rax
	vmload	%rax
	mov	GPR(1)(%rdi), %rcx
	mov	GPR(2)(%rdi), %rdx
	mov	GPR(3)(%rdi), %rbx
	mov	GPR(5)(%rdi), %rbp
	mov	GPR(6)(%rdi), %rsi
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	mov	GPR(\n)(%rdi), %r\n
	.endr
	mov	GPR(7)(%rdi), %rdi

	/* Nothing of the host stays in buffers that the guest could sample. */
	VM_CLEAR_CPU_BUFFERS
	/* With GIF clear the interrupt flag only says that physical interrupts end the guest's turn. */
	sti
	vmrun	%rax
	cli

	vmsave	%rax
	mov	(%rsp), %rax
	mov	%rcx, GPR(1)(%rax)
	mov	%rdx, GPR(2)(%rax)
	mov	%rbx, GPR(3)(%rax)
	mov	%rbp, GPR(5)(%rax)
	mov	%rsi, GPR(6)(%rax)
	mov	%rdi, GPR(7)(%rax)
	.irp n, 8, 9, 10, 11, 12, 13, 14, 15
	mov	%r\n, GPR(\n)(%rax)
	.endr
	mov	%rax, %rdi
	mov	8(%rsp), %rax
	vmload	%rax

	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE

	ALTERNATIVE "jmp .Lspec_saved", "", X86_FEATURE_MSR_SPEC_CTRL
	ALTERNATIVE "", "jmp .Lspec_saved", X86_FEATURE_V_SPEC_CTRL
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	rdmsr
	mov	%eax, SK_SHARED_SPEC_CTRL(%rdi)
	cmp	PER_CPU_VAR(x86_spec_ctrl_current), %eax
	je	.Lspec_saved
	mov	PER_CPU_VAR(x86_spec_ctrl_current), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
.Lspec_saved:
	/* No guest value stays in a register that speculation could use. */
	.irp register, ecx, edx, ebx, ebp, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
	xor	%\register, %\register
	.endr
	SK_UNTRAIN_RET
	stgi

	.irp register, rdi, rsi, rbx, r12, r13, r14, r15, rbp
	pop	%\register
	.endr
	RET
SYM_FUNC_END(sk_svm_vmrun)
